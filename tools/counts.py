"""One count line for several runs of pytest:  python tools/counts.py "as a newcomer=LOG" "with the test data=LOG"

Prints the sum in pytest's own words, then the counts of each run; a log that is not there is left out.
Ends with 1 where no log holds a count line."""
import re
import sys
from collections import Counter
from pathlib import Path

KINDS = ("failed", "errors", "passed", "skipped", "deselected", "xfailed", "xpassed")

def counts(log: str):
    "What the last count line of a log says: kind of outcome → number, and the seconds; None where there is no such line."
    lines = re.findall(r"^[= ]*(\d+ (?:passed|failed|errors?|skipped|deselected)\b.*?) in ([0-9.]+)s", log, re.M)
    if not lines: return None
    said, seconds = lines[-1]
    return Counter({re.sub("^error$", "errors", kind): int(n) for n, kind in re.findall(r"(\d+) (\w+)", said)}), float(seconds)

def words(found) -> str:
    "The counts in pytest's order."
    return ", ".join(f"{found[kind]} {kind}" for kind in KINDS if found[kind] and kind != "deselected")

def main(arguments) -> int:
    named = [argument.split("=", 1) for argument in arguments]
    runs = {name: found for name, path in named if Path(path).exists() and (found := counts(Path(path).read_text(errors="replace")))}
    if not runs: return 1
    total = sum((found for found, _ in runs.values()), Counter())
    each = "; ".join(f"{name}: {words(found)} in {seconds:.0f}s" for name, (found, seconds) in runs.items())
    print(f"{words(total)} in {sum(seconds for _, seconds in runs.values()):.2f}s ({each})")
    return 0

if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
