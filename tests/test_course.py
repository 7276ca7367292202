"""The course: what its pages promise."""
import json
import re

from test_notebooks import notebooks, solutions


def cells(path, kind): return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]

def test_every_solution_claims_something():
    "A solution without code would say what nobody checks; without an assertion its code could show anything."
    found = {f"{path.name} {code[:60]!r}": code for path in notebooks for prose in cells(path, "markdown") for code in solutions(prose)}
    assert len(found) >= 20 and not [name for name, code in found.items() if not re.search("assert|AssertionError", code)]

def test_every_tutorial_ends_alike():
    tutorials = [path for path in notebooks if path.parent.name == "tutorials"]
    assert len(tutorials) >= 9
    for path in tutorials:
        prose = cells(path, "markdown")
        assert "## What to remember" in prose and "## References" in prose, path.name
        assert len(prose[prose.index("## What to remember") + 1].splitlines()) == 3 and "**Where next:**" in prose[-1], path.name

def test_sixty_lines_are_sixty():
    path, = (path for path in notebooks if path.name == "06_sixty_lines.ipynb")
    code = [text for text in cells(path, "code") if "#| " not in text and "assert" not in text]
    until_the_loop = code[:next(k for k, text in enumerate(code) if "small, curve = distil(" in text) + 1]
    lines = [line for text in until_the_loop for line in text.splitlines() if line.strip()]
    assert 50 <= len(lines) <= 60 and not [line for line in lines if "sr_distill" in line and "import Photos" not in line]
