"""What is written from the notebooks agrees with them.  Works in a copy; the tree stays as it is."""
import difflib
import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(folder: Path, *command):
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

def differences(folder: Path, pattern: str) -> str:
    "A short diff for each file of `pattern` that is not the same here and in `folder`."
    names = {p.relative_to(root) for root in (REPO, folder) for p in root.glob(pattern) if ".ipynb_checkpoints" not in p.parts}
    found = []
    for name in sorted(names):
        here, there = ((root / name).read_text(encoding="utf-8").splitlines(True) if (root / name).exists() else [] for root in (REPO, folder))
        found += list(difflib.unified_diff(here, there, f"{name} (committed)", f"{name} (as it should be)", n=1))[:40]
    return "".join(line if len(line) < 200 else line[:200] + " …\n" for line in found)


def test_notebooks_are_clean(repo_copy):
    run(repo_copy, SCRIPTS / "nbdev_clean")
    diff = differences(repo_copy, "nbs/**/*.ipynb")
    assert not diff, f"notebooks are not clean: run `make sync`\n{diff}"


def test_library_is_what_the_notebooks_export(repo_copy):
    for path in repo_copy.glob("sr_distill/*.py"):
        if path.name not in ("__init__.py", "__main__.py"): path.unlink()   # the two that no notebook writes
    run(repo_copy, SCRIPTS / "nbdev_export")
    diff = differences(repo_copy, "sr_distill/*.py")
    assert not diff, f"sr_distill/ differs from nbdev_export: run `make sync`\n{diff}"


def test_pages_link_terms_to_the_glossary():
    run(REPO, sys.executable, "tools/glossary.py", "--check")


def test_readme_is_the_index_notebook(repo_copy):
    run(repo_copy, sys.executable, "tools/readme.py")
    diff = differences(repo_copy, "README.md") + differences(repo_copy, "nbs/images/readme-*.svg")
    assert not diff, f"README.md or a figure of it differs from nbs/index.ipynb: run `make sync`\n{diff}"


def test_readme_links_and_names_every_notebook():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text))
    dead = sorted(link for link in linked if not (REPO / link).exists())
    assert not dead, f"README.md links to what is not there: {dead}"
    pages = {p.relative_to(REPO).as_posix() for p in REPO.glob("nbs/**/[0-9]*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert pages <= linked, f"run nbs/index.ipynb again, README.md leaves out: {sorted(pages - linked)}"


def test_pages_show_what_the_leaderboard_stores():
    "All of a cell, or of its table the rows that a page names, which are then all there and in that order."
    cells = lambda name: json.loads((REPO / "nbs" / name).read_text(encoding="utf-8"))["cells"]
    lines = lambda cell: "".join(cell["outputs"][0]["data"]["text/markdown"]).splitlines()
    taken = [(str(Path(here).parent / found[1]), found[2], json.loads(found[3] or "[]"), cell) for here in ("index.ipynb", "tools/00_using.ipynb") for cell in cells(here)
             if (found := re.search(r'^from_page\("(.+?)", "(.+?)"(?:, (.+))?\)$', "".join(cell["source"]), re.M))]
    def wanted(page, label, rows):
        stored = lines(next(c for c in cells(page) if f"#| label: {label}\n" in "".join(c["source"])))
        return stored[:2] + [next(line for line in stored if line.startswith(f"| {row} | ")) for row in rows] if rows else stored
    stale = [label for page, label, rows, cell in taken if lines(cell) != wanted(page, label, rows)]
    assert len(taken) == 2 and not stale, f"run nbs/index.ipynb and nbs/tools/00_using.ipynb again, then `make sync`; of an earlier run are: {stale}"


def test_settings_of_the_site_are_one_file():
    assert (REPO / "nbs/_quarto.yml").resolve() == REPO / "_quarto.yml"
