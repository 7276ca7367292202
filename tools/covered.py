"""What the tests run of the library, module by module:  python tools/covered.py coverage.json

The file is what `pytest --cov=sr_distill --cov-report=json` writes.  Code that runs in processes of its own (workers of a
study, commands, jobs that are killed) is not counted.  On GitHub the table stands on the page of the run as well."""
import json
import os
import sys
from pathlib import Path

LIMIT = 90   # per cent; what is below is listed with its lines


def ranges(lines) -> str:
    "`[3, 4, 5, 9]` as `3-5, 9`."
    found = []
    for line in sorted(lines):
        if found and line == found[-1][1] + 1: found[-1][1] = line
        else: found.append([line, line])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)

def table(report: dict, limit: float = LIMIT) -> str:
    "A Markdown table of all modules, the least covered first, and below it the missing lines of those below `limit` per cent."
    modules = sorted(report["files"].items(), key=lambda item: item[1]["summary"]["percent_covered"])
    rows = ["| module | statements | covered |", "|:--|--:|--:|"]
    for path, found in modules:
        said = found["summary"]
        rows.append(f"| {Path(path).stem} | {said['num_statements']} | {said['percent_covered']:.0f} % |")
    rows.append(f"| all | {report['totals']['num_statements']} | {report['totals']['percent_covered']:.1f} % |")
    low = [(Path(p).name, found) for p, found in modules if found["summary"]["percent_covered"] < limit]
    missing = [f"- {name}: {ranges(found['missing_lines'])}" for name, found in low]
    return "\n".join([*rows, "", f"Below {limit} %: {len(low)} of {len(modules)} modules.", *missing])

def main(arguments) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).exists():
        print("give the file that pytest --cov-report=json wrote", file=sys.stderr)
        return 1
    said = table(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    print(said)
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(page, "a", encoding="utf-8") as f: f.write(said + "\n")
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
