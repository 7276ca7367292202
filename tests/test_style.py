"""House rules for notebooks.  The limits are tests; the style table only guides: `make style` prints it."""
import ast
import builtins
import json
import re
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (REPO / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(REPO / "nbs").parts))
MODULES = sorted(p for p in (REPO / "sr_distill").glob("*.py") if p.name != "__init__.py")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|tmp|private/var|var/folders)/[\w.-]+")
WIDE = ("_modidx",)   # nbdev's index; nothing else has lines over 120 characters
ASSERTING = ("assert ", "expect_error", "test_eq", "test_close")


def cells(path: Path, kind: str) -> list:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]

def source(cell: dict) -> str: return "".join(cell["source"])

def name(path: Path) -> str: return path.relative_to(REPO).as_posix()

ROOMS = ("engine", "method", "tools", "evidence")   # a module imports from its own room and those before it, which is not the order for readers

def room_numbers() -> dict:
    "Module name to the place of the notebook that exports it: its room, and its number there."
    found = {}
    for path in NOTEBOOKS:
        for cell in cells(path, "code"):
            if export := re.search(r"^#\|\s*default_exp\s+(\S+)", source(cell), re.M):
                found[export[1]] = ROOMS.index(path.parent.name), path.name.split("_")[0]  # 09a sorts behind 08 and before 10
    return found

def imported(path: Path) -> set:
    "Full names of all modules that a library file imports, wherever the import stands."
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["sr_distill" if node.level else "", node.module]))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names

def statements(code: str) -> list: return ast.parse(re.sub(r"^\s*[%!].*", "pass", code, flags=re.M)).body

def ends_in_a_value(code: str) -> bool: return isinstance((statements(code) or [None])[-1], ast.Expr)

def mixes_imports(code: str) -> bool:
    "Does a lesson cell import and also do something else?  nbdev would run it, alone, for the API tables."
    if re.match(r"#\|\s*(hide|export)", code): return False
    nodes = [n for n in statements(code) if not isinstance(n, ast.Pass)]
    imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    return 0 < len(imports) < len(nodes)

def style_row(path: Path) -> str:
    code, prose = cells(path, "code"), cells(path, "markdown")
    lines = sorted(len([line for line in source(c).splitlines() if line.strip()]) for c in code) or [0]
    words = [len(source(c).split()) for c in prose if not source(c).startswith("#")]
    asserting = sum(any(word in source(c) for word in ASSERTING) for c in code)
    shown = sum(bool(c["outputs"]) for c in code)
    return (f"{name(path):44}{len(code):6}{len(prose):7}{lines[len(lines) // 2]:8}{lines[int(len(lines) * .9)]:5}{lines[-1]:5}"
            f"{sum(words) // max(len(words), 1):7}{asserting:11}{shown:7}{path.stat().st_size // 1024:6}")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_limits(path):
    assert path.stat().st_size <= 500_000, "larger than 500 kB: show fewer or smaller pictures, as JPEG"
    outputs = [out for cell in cells(path, "code") for out in cell["outputs"]]
    assert not any(out["output_type"] == "error" for out in outputs), "an error is stored: show it with expect_error"
    stale = [source(cell) for cell in cells(path, "code") if any(out["output_type"] == "execute_result" for out in cell["outputs"]) and not ends_in_a_value(source(cell))]
    assert not stale, f"cells that show nothing have the value of an earlier run: {stale}"
    texts = [text for out in outputs for text in (out.get("text", ""), out.get("data", {}).get("text/plain", ""), out.get("data", {}).get("text/html", ""))]
    assert not any("%|" in "".join(text) for text in texts), "a progress bar is stored: delete that output"
    leaks = {m for text in texts for m in MACHINE_PATH.findall("".join(text))}
    assert not leaks, f"outputs show paths of this machine: {leaks}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_imports_have_cells_of_their_own(path):
    mixed = [source(cell) for cell in cells(path, "code") if mixes_imports(source(cell))]
    assert not mixed, f"put the imports in a cell above: {mixed}"


def functions(tree: ast.AST, public: bool = True, inside: bool = False):
    "(function, is it public?) of all functions of a module; those in functions are not public."
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node, public and not inside and (not node.name.startswith("_") or node.name in ("__init__", "__call__"))
            yield from functions(node, False, True)
        else: yield from functions(node, public and not (isinstance(node, ast.ClassDef) and node.name.startswith("_")), inside)

def long_lines(text: str) -> list:
    "Lines over 120 characters; not `__all__`, which nbdev breaks at 130, and the sentence under the title."
    return [line for k, line in enumerate(text.splitlines()) if len(line) > 120 and k and not line.startswith("__all__")]

def private_imports(tree: ast.AST) -> list:
    return [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level for a in n.names if re.match("_[^_]", a.name)]

def module_figures(path: Path) -> dict:
    "Lines, longest function, long lines, public parameters and how many are annotated, named lambdas, private names imported."
    text = path.read_text(encoding="utf-8")
    tree, found = ast.parse(text), [*functions(ast.parse(text))]
    asked = [a for f, public in found if public for a in
             [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *filter(None, [f.args.vararg, f.args.kwarg])] if a.arg not in ("self", "cls", "ctx")]
    longest = max(found, key=lambda f: f[0].end_lineno - f[0].lineno, default=None)
    return dict(lines=len(text.splitlines()), longest=f"{longest[0].name} {longest[0].end_lineno - longest[0].lineno + 1}" if longest else "",
                long=len(long_lines(text)), parameters=len(asked), annotated=sum(a.annotation is not None for a in asked),
                lambdas=sum(isinstance(n, ast.Assign) and isinstance(n.value, ast.Lambda) for n in ast.walk(tree)), private=len(private_imports(tree)))

def side_effects(tree: ast.Module) -> list:
    "What a module does to the process when it is imported: environment variables, global warnings filters."
    calls = [ast.unparse(n) for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.With, ast.If)) for n in ast.walk(node)
             if isinstance(n, (ast.Call, ast.Assign))]
    return [c for c in calls if re.match(r"os\.environ(\[|\.(update|setdefault))|os\.putenv|warnings\.(filterwarnings|simplefilter)", c)]

def idle_texts(tree: ast.Module) -> list:
    "Texts below the first line of a body that nothing takes: the second half of a docstring that was broken in two."
    bodies = (body[1:] for node in ast.walk(tree) if isinstance(body := getattr(node, "body", None), list))
    return [n.value.value for body in bodies for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)]


def test_the_measures_measure():
    assert idle_texts(ast.parse("def f():\n    'one '\n    'two'\n    x = 'three' 'four'")) == ["two"]
    tree = ast.parse("from .a import _b, __version__\ndef f(x: int, y):\n    def g(z): pass\nclass _C:\n    def h(self, w): pass\nh = lambda: 1")
    assert private_imports(tree) == ["_b"] and [(f.name, p) for f, p in functions(tree)] == [("f", True), ("g", False), ("h", False)]
    assert side_effects(ast.parse("import os\nos.environ['A'] = '1'\ndef f(): os.environ['B'] = '1'")) == ["os.environ['A'] = '1'"]

@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_keeps_to_itself(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not private_imports(tree), "private names of another module: make them public, or move what needs them"
    assert not side_effects(tree), "importing a module changes nothing for the rest of the process"
    assert not idle_texts(tree), "half a docstring; write it in triple quotes"
    assert path.stem in WIDE or not long_lines(path.read_text(encoding="utf-8")), "lines over 120 characters"

def test_public_parameters_are_annotated():
    figures = [module_figures(path) for path in MODULES if path.stem != "_modidx"]
    assert sum(f["annotated"] for f in figures) >= .95 * sum(f["parameters"] for f in figures)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_module_imports(path):
    names, number = imported(path), room_numbers()
    assert not {n for n in names if n.split(".")[0] in ("nbdev", "fastcore", "execnb")}, "nbdev and fastcore are not there at run time"
    mine = number.get(path.stem)
    higher = {room for room, n in number.items() if f"sr_distill.{room}" in names and mine is not None and n >= mine and room != path.stem}
    assert not higher, f"{path.stem} ({mine}) imports what comes after it: {higher}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_annotations_in_quotes_can_be_read(path):
    "The site evaluates the signature of a function right below its cell: a name in quotes must be known there."
    known, unknown = set(dir(builtins)), {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)): known |= {(a.asname or a.name).split(".")[0] for a in node.names}
        if isinstance(node, ast.Assign): known |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
        known.add(node.name)
        shown = [node] if isinstance(node, ast.FunctionDef) else [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        for f in shown if node.name[0] != "_" else []:
            for annotation in [f.returns, *(a.annotation for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs])]:
                if not (isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)): continue
                names = {n.id for n in ast.walk(ast.parse(annotation.value)) if isinstance(n, ast.Name)}
                if names - known: unknown[f"{node.name}: {annotation.value!r}"] = sorted(names - known)
    assert not unknown, f"give `object` and say in a comment what it is: {unknown}"


HEADLESS = re.compile(r"(?<![\w`*])(?:what|whatever|who|whoever|which)(?= (?:is|are|was|were|has|had|have|can|could|does|do|did|may|must|asks?|needs?|wants?|comes?|came|goes|went|holds?|lies|makes?|"
                      r"made|stands?|stood|belongs?|follows?|takes?|gives?|says?|the|an?|it|its|they|you|no|one|these|those|this|each|every|some|nobody|somebody|anybody|people)\b)", re.I)

def headless(prose: str) -> list:
    "Clauses without a noun, as in `it returns what is put back`; questions, and `which` behind a comma or a preposition, have their noun."
    sentences = re.split(r"(?<=[.!?:;])\s+|\n+", prose)
    clauses = [m for s in sentences if not s.rstrip().endswith("?") for m in HEADLESS.finditer(s)
               if not (m[0].lower() == "which" and re.search(r"(?:,|\b(?:in|on|of|for|by|to|at|with|from|\w+))\s*$", s[:m.start()]))]
    return [m.string[m.start():m.end() + 24] for m in clauses if not (m[0].lower() == "who" and re.search(r"\w,?\s*$", m.string[:m.start()]))]

def prose_row(path: Path) -> dict:
    "Words of a page, its headless clauses, and its identifiers (names in backticks); titles and links are left out."
    text = "\n".join(re.sub(r"```.*?```|\$[^$]+\$|^    .*$|^#.*$|\[[^]]*\]\([^)]*\)", " ", source(c), flags=re.S | re.M) for c in cells(path, "markdown"))
    words = len(re.findall(r"\w+", re.sub(r"`[^`]*`", " ", text)))
    return dict(words=words, headless=headless(text), names=len(re.findall(r"`[^`\n]+`", text)))

def test_headless_clauses_are_found():
    assert [clause[:12] for clause in headless("It stores what is put back. Whoever asks gets it. What is a prior? A set, which is small, is what you train on.")] == ["what is put ", "Whoever asks", "what you tra"]


if __name__ == "__main__":
    print(f"{'notebook':44}{'code':>6}{'prose':>7}{'median':>8}{'p90':>5}{'max':>5}{'words':>7}{'asserting':>11}{'shown':>7}{'kB':>6}")
    print(*map(style_row, NOTEBOOKS), sep="\n")
    print("guides: lines per code cell median <= 5, p90 <= 15, max about 40; 15-40 words of prose; >= 30 % asserting; <= 500 kB")
    prose = {name(path): prose_row(path) for path in NOTEBOOKS}
    print(f"\n{'page':44}{'words':>7}{'headless clauses':>18}{'per 1,000':>11}{'identifiers per 1,000':>23}")
    for page, f in prose.items():
        of = max(1, f["words"]) / 1000
        print(f"{page:44}{f['words']:7}{len(f['headless']):18}{len(f['headless']) / of:11.1f}{f['names'] / of:23.1f}")
    in_all = sum(f["words"] for f in prose.values()) / 1000
    print(f"{'in all':44}{1000 * in_all:7.0f}{(bare := sum(len(f['headless']) for f in prose.values())):18}{bare / in_all:11.1f}{sum(f['names'] for f in prose.values()) / in_all:23.1f}")
    if "--clauses" in sys.argv: print(*(f"{page}: … {clause} …" for page, f in prose.items() for clause in f["headless"]), sep="\n")
    figures = {path.stem: module_figures(path) for path in MODULES if path.stem not in ("_modidx", "__main__")}
    print(f"\n{'module':16}{'lines':>7}{'longest function':>30}{'>120':>6}{'parameters':>12}{'annotated':>11}{'lambdas':>9}{'private imports':>17}")
    for stem, f in figures.items():
        share = f"{f['annotated'] / max(1, f['parameters']):.0%}"
        print(f"{stem:16}{f['lines']:7}{f['longest']:>30}{f['long']:6}{f['parameters']:12}{share:>11}{f['lambdas']:9}{f['private']:17}")
    total = {k: sum(f[k] for f in figures.values()) for k in ("lines", "long", "parameters", "annotated", "lambdas", "private")}
    print(f"{'in all':16}{total['lines']:7}{'':30}{total['long']:6}{total['parameters']:12}{total['annotated'] / total['parameters']:11.0%}{total['lambdas']:9}{total['private']:17}")
