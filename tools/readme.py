"""README.md from nbs/index.ipynb.  `python tools/readme.py` writes it; with `--check` it only compares."""
import difflib
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

REPO = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook, then run `make sync`. -->\n\n"
DIRECTIVE = re.compile(r"^#\|\s*(.+?)\s*\n?$", re.MULTILINE)
RELATIVE_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s]+")
HIDDEN = {"hide", "export", "exporti", "include: false"}


def reader_cells(cells: list) -> list:
    "The cells a reader sees: hidden ones left out, no `#|` lines, only the output where `echo: false`."
    shown = []
    for cell in cells:
        directives = set(DIRECTIVE.findall(cell.source)) if cell.cell_type == "code" else set()
        if directives & HIDDEN or any(d.startswith("default_exp") for d in directives): continue
        if cell.cell_type == "code":
            cell.source = DIRECTIVE.sub("", cell.source).strip("\n")
            cell.metadata["transient"] = {"remove_source": "echo: false" in directives}
        shown.append(cell)
    return shown


def from_root(markdown: str) -> str:
    "Links relative to nbs/ become relative to the repository."
    return RELATIVE_LINK.sub(lambda m: posixpath.normpath("nbs/" + m[0]), markdown)


def render() -> str:
    "The README's text; the same notebook gives the same bytes everywhere."
    nb = nbformat.read(REPO / "nbs/index.ipynb", as_version=4)
    nb.cells = reader_cells(nb.cells)
    nb.metadata["language_info"] = {"name": "python"}   # nbdev_clean drops it; the code fences want it
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = from_root(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = from_root(data["text/markdown"])
    plain = Config(NbConvertBase={"display_data_priority": ["text/markdown", "text/plain"]})
    text, _ = MarkdownExporter(config=plain).from_notebook_node(nb)
    return NOTICE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def difference() -> str:
    "A diff from README.md to what it should be; empty when they agree."
    path = REPO / "README.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    return "".join(difflib.unified_diff(old.splitlines(True), render().splitlines(True), "README.md", "nbs/index.ipynb"))


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit(difference() and difference() + "\nREADME.md differs from nbs/index.ipynb: run `make sync`")
    (REPO / "README.md").write_text(render(), encoding="utf-8")
