"""Links of the pages to the glossary: the first use of each term on a page.  `--check` only names what is missing."""
import json
import re
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"
GLOSSARY = "tutorials/08_glossary.ipynb"
TERMS = {   # anchor → how prose writes the term
    "sub-image": "sub-images?", "window": "windows?", "ipc": "IPC", "held-out": "held[- ]out", "pool": "pools?", "bank": "banks?",
    "prior": "priors?", "inversion": "inversion", "label": "labels?", "teacher": "teachers?", "budget": "budgets?",
    "layerwise": "layerwise", "by-error": "by error", "matching-loss": "matching loss", "sr-loss": "SR loss",
    "distillation-steps": "distillation steps?", "training-steps": "training steps?",
    "bicubic": "bicubic", "degradation": "degradations?", "cluster": "clusters?", "study": "stud(?:y|ies)",
    "training-set": "training sets?", "recipe": "recipes?", "program": "programs?",
}
OTHER_SENSE = {   # pages on which a word means something else, or that explain it themselves or link to its explanation
    "tools/06_plots.ipynb": {"label"}, "engine/02_core.ipynb": {"label"},
    "engine/03_parallel.ipynb": {"pool", "cluster"}, "engine/01_recipe.ipynb": {"recipe"},
    "tools/04_study_file.ipynb": {"study"}, "tools/07_study.ipynb": {"study"}, "method/06_train.ipynb": {"recipe"},
    "index.ipynb": {"recipe", "study", "program"}, "tutorials/00_what_and_why.ipynb": {"bicubic", "training-set", "program"},
    "tutorials/07_related_work.ipynb": {"cluster", "study", "program"},
    **{page: {"program"} for page in ("engine/09_safe_pickle.ipynb", "evidence/04_leaderboard.ipynb", "evidence/07_bytes.ipynb",
                                      "method/01_data.ipynb", "method/03_models.ipynb", "method/04_nets.ipynb",
                                      "method/05_metrics.ipynb", "method/10a_fitting.ipynb", "tools/10_export.ipynb")},
}
SKIPPED = re.compile(   # what is no prose: code, mathematics, links and pictures, HTML, headings, rows of tables, the one-line summary
    r"^(?:```|~~~).*?^(?:```|~~~)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|!?\[[^\]]*\]\([^)]*\)|<details>.*?</details>|<[^>\n]*>"
    r"|^#.*$|^\|.*$|^>.*$|^ {4}.*$|https?://\S+", re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    "`text` with everything that is no prose blanked out, of the same length."
    return SKIPPED.sub(lambda m: re.sub(r"[^\n]", "\0", m[0]), text)


def unlinked(text: str, target: str) -> str:
    "`text` without its links to terms of the glossary at `target`."
    return re.sub(rf"\[([^\]]*)\]\({re.escape(target)}#(?:{'|'.join(TERMS)})\)", r"\1", text)


def linked(cells: list, page: str) -> list:
    "The Markdown cells of `page`, with the first use of each term linked to the glossary and no other."
    target = Path(*[".."] * page.count("/"), GLOSSARY).as_posix() if not page.startswith("tutorials/") else Path(GLOSSARY).name
    cells = [unlinked(text, target) for text in cells]
    for anchor, pattern in TERMS.items():
        if anchor in OTHER_SENSE.get(page, ()): continue
        term = re.compile(rf"(?<![\w`/-])(?:{pattern})(?![\w`-])")
        for i, text in enumerate(cells):
            if found := term.search(prose(text)):
                a, b = found.span()
                cells[i] = f"{text[:a]}[{text[a:b]}]({target}#{anchor}){text[b:]}"
                break
    return cells


def main(check: bool) -> int:
    stale = []
    for path in sorted(NBS.rglob("*.ipynb")):
        page = path.relative_to(NBS).as_posix()
        if page == GLOSSARY or ".ipynb_checkpoints" in page: continue
        book = json.loads(path.read_text(encoding="utf-8"))
        cells = [c for c in book["cells"] if c["cell_type"] == "markdown"]
        before = ["".join(c["source"]) for c in cells]
        after = linked(before, page)
        if before == after: continue
        stale.append(page)
        for cell, text in zip(cells, after): cell["source"] = text.splitlines(True)
        if not check: path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if stale and check: print("run `make sync`: first uses of a term without a link to the glossary in", ", ".join(stale))
    return bool(stale and check)


if __name__ == "__main__": sys.exit(main("--check" in sys.argv))
