"""README.md, and the figures in it, from nbs/index.ipynb.  `python tools/readme.py` writes them; with `--check` it only compares."""
import difflib
import posixpath
import re
import sys
from pathlib import Path

import nbformat
import yaml
from nbconvert import MarkdownExporter
from traitlets.config import Config

REPO = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook, then run `make sync`. -->\n\n"
FIG_ALT = re.compile(r"^#\|\s*(fig-alt:.*)", re.MULTILINE)
DIRECTIVE = re.compile(r"^#\|\s*(.+?)\s*\n?$", re.MULTILINE)
RELATIVE_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s]+")
HIDDEN = {"hide", "export", "exporti", "include: false"}


def alt_text(cell) -> str:
    "What the figure of a cell shows, in words."
    line = FIG_ALT.search(cell.source)
    return yaml.safe_load(line[1])["fig-alt"] if line else ""


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


def render() -> dict:
    "Path in the repository → text: the README and its figures; the same notebook gives the same bytes everywhere."
    nb, made = nbformat.read(REPO / "nbs/index.ipynb", as_version=4), {}
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if svg := output.get("data", {}).get("image/svg+xml"):
                made[name := f"nbs/images/readme-{len(made) + 1}.svg"] = svg
                output["data"] = {"text/markdown": f"![{alt_text(cell)}]({posixpath.relpath(name, 'nbs')})"}
    nb.cells = reader_cells(nb.cells)
    nb.metadata["language_info"] = {"name": "python"}   # nbdev_clean drops it; the code fences want it
    for cell in nb.cells:
        if cell.cell_type == "markdown": cell.source = from_root(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = from_root(data["text/markdown"])
    plain = Config(NbConvertBase={"display_data_priority": ["text/markdown", "text/plain"]})
    text, _ = MarkdownExporter(config=plain).from_notebook_node(nb)
    return {"README.md": NOTICE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", **made}


def difference() -> str:
    "A diff from what is there to what it should be; empty when they agree."
    old = lambda path: path.read_text(encoding="utf-8") if path.exists() else ""
    return "".join("".join(difflib.unified_diff(old(REPO / name).splitlines(True), text.splitlines(True), name, "nbs/index.ipynb")) for name, text in render().items())


def write():
    "Write them all."
    for name, text in render().items(): (REPO / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit(difference() and difference() + "\nREADME.md differs from nbs/index.ipynb: run `make sync`")
    write()
