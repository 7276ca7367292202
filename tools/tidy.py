"""What both ways of building the site change: in nbdev's notebooks before they become pages, and in the pages after."""
import ast
import builtins
import copy
import html
import re
from urllib.parse import quote

from nbformat.v4 import new_markdown_cell

import readme

FENCE = re.compile(r"^([ \t]*)(```+|~~~+).*?^\1\2[ \t]*$", re.M | re.S)
LINKED_NAME = re.compile(r"\[(`[^`\n]*`)\]\([^)\s]*\)")
# a code block by indentation: it follows an empty line, and does not belong to a list
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}.*\n?|\n(?= {4}))+)")
BADGES = re.compile(r"^\[!\[Open in [^\n]*\n+", re.M)


def unlink_code(markdown: str) -> str:
    "nbdev links the names in backticks, those inside blocks of code too, where a link is only noise."
    return FENCE.sub(lambda block: LINKED_NAME.sub(r"\1", block[0]), markdown)


def language(code: str) -> str:
    try: ast.parse(code)
    except SyntaxError: return "bash"
    return "python"

def fence_code(markdown: str) -> str:
    "Indented blocks of code become fenced ones, which have colours and a button to copy them."
    def fenced(block):
        lines = [line[4:] for line in block[1].strip("\n").split("\n")]
        before = markdown[:block.start()].rstrip().rsplit("\n\n", 1)[-1].lstrip()
        if re.match(r"([-*+]|\d+\.) ", before): return block[0]
        code = "\n".join(lines)
        return f"```{language(code)}\n{code}\n```\n"
    parts, at = [], 0
    for known in FENCE.finditer(markdown):
        parts += [(False, markdown[at:known.start()]), (True, known[0])]
        at = known.end()
    parts.append((False, markdown[at:]))
    if len(parts) > 1: return "".join(text if is_code else fence_code(text) for is_code, text in parts)
    return INDENTED.sub(fenced, markdown)


# ---- imports and values that shown cells take from hidden ones

def _statements(source: str) -> list:
    "The statements of a cell, without the commands of IPython."
    lines = ["" if re.match(r"\s*[%!]", line) else line for line in source.split("\n")]
    try: return ast.parse("\n".join(lines)).body
    except SyntaxError: return []

def _names(tree, context) -> set:
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
    if context is ast.Store:
        found |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        found |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        found |= {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
    return found

def _bound(statement) -> set:
    "The names that a statement gives to the cells after it."
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)): return {statement.name}
    return _names(statement, ast.Store)

def _only(statement, wanted) -> str:
    "The text of a statement; of an import, only the names that are wanted."
    if not isinstance(statement, (ast.Import, ast.ImportFrom)): return ast.unparse(statement)
    short = copy.copy(statement)
    short.names = [a for a in statement.names if (a.asname or a.name).split(".")[0] in wanted]
    return ast.unparse(short)

def hidden_needs(cells: list, module: str = "") -> str:
    "The code that a reader lacks who copies the shown cells of a notebook: imports, and values that hidden cells make."
    shown, hidden = [], []   # statements; of hidden ones (statement, whether it is exported)
    for cell in cells:
        if cell.cell_type != "code": continue
        said = {d.split()[0] if d.startswith("export") else d for d in readme.DIRECTIVE.findall(cell.source)}
        if said & (readme.HIDDEN | {"echo: false"}):
            hidden += [(s, any(d.startswith("export") for d in said)) for s in _statements(readme.DIRECTIVE.sub("", cell.source))]
        else: shown += _statements(readme.DIRECTIVE.sub("", cell.source))
    known = set().union(set(dir(builtins)), *(_names(s, ast.Store) for s in shown))
    wanted = set().union(*(_names(s, ast.Load) for s in shown)) - known
    taken, own = [], set()
    for statement, exported in reversed(hidden):   # the last one that makes a name is the one that counts
        if not (binds := _bound(statement) & wanted): continue
        imports = isinstance(statement, (ast.Import, ast.ImportFrom))
        if exported and not imports: own |= binds
        else:
            taken.insert(0, (statement, binds))
            if not imports: wanted |= _names(statement, ast.Load) - known - _names(statement, ast.Store)
        wanted = wanted - binds
    lines = dict.fromkeys(_only(s, names) for s, names in taken if isinstance(s, (ast.Import, ast.ImportFrom)))
    if own and module: lines[f"from sr_distill.{module} import {', '.join(sorted(own))}"] = None
    return "\n".join([*lines, *(_only(s, names) for s, names in taken if not isinstance(s, (ast.Import, ast.ImportFrom)))])

def fold(code: str) -> str:
    return f"<details class=\"srd-needs\"><summary>Imports for the cells of this page</summary>\n\n```python\n{code}\n```\n\n</details>"


# ---- the course

def course(steps: list, here: int, repository: str, folder: str = "tutorials") -> str:
    "The path through the course at the top of a page: `steps` of (title, address, notebook), `here` this one."
    rows = []
    for k, (title, address, _) in enumerate(steps):
        state = ' aria-current="step"' if k == here else ' class="srd-before"' if k < here else ""
        rows.append(f'<li{state}><a href="{address}" title="{html.escape(title)}" aria-label="{k + 1}: {html.escape(title)}">{k + 1}</a></li>')
    place, project = f"{folder}/{steps[here][2]}", repository.removeprefix("https://github.com/")
    runs = [("Colab", f"https://colab.research.google.com/github/{project}/blob/main/nbs/{place}"),
            ("Binder", f"https://mybinder.org/v2/gh/{project}/main?labpath={quote('nbs/' + place, safe='')}")]
    links = " or ".join(f'<a href="{url}">{name}</a>' for name, url in runs)
    turns = "".join(f' · <a rel="{rel}" href="{steps[k][1]}">{said}</a>' for rel, k, said in (("prev", here - 1, "Previous"), ("next", here + 1, "Next")) if 0 <= k < len(steps))
    return (f'<div class="srd-course" role="navigation" aria-label="The course">\n<ol>{"".join(rows)}</ol>\n'
            f'<p>Page {here + 1} of {len(steps)} of the course{turns} · Edit and run it in {links}</p>\n</div>')


def notebook(nb, source, module: str = "", path: str = ""):
    "Change the processed notebook `nb`, made from the notebook `source` of nbs/; `path` is the HTML that stands at its top."
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = fence_code(unlink_code(cell.source))
            if path: cell.source = BADGES.sub("", cell.source)
        for output in cell.get("outputs", []):
            if said := output.get("data", {}).get("text/markdown"):
                output["data"]["text/markdown"] = unlink_code("".join(said))
    first = next((k for k, c in enumerate(nb.cells) if c.cell_type == "code"), None)
    if first is not None and (code := hidden_needs(source.cells, module)): nb.cells.insert(first, new_markdown_cell(fold(code)))
    if path: nb.cells.insert(1, new_markdown_cell(path))
    if nb.nbformat_minor < 5:
        for cell in nb.cells: cell.pop("id", None)


# ---- pages

# Quarto puts these before the output of Jupyter's widgets, which the pages do not have: our own need nothing
LOADED = re.compile(r"<script\b[^>]*\bsrc=[\"'](?:https?:)?//[^\"']*(?:require|jquery)[^\"']*[\"'][^>]*>\s*</script>\s*", re.I)
DEFINED = re.compile(r"<script\b[^>]*>\s*define\(\s*['\"]jquery['\"](?:(?!</script>).)*</script>\s*", re.I | re.S)

def page(text: str) -> str:
    "A rendered page without the scripts of other hosts."
    return DEFINED.sub("", LOADED.sub("", text))
