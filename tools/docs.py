"""The documentation site in _docs/: with Quarto where it is installed, with nbconvert where it is not.

Both ways start from nbdev's own processing (hidden cells go, every export gets its API table) and end with the same
steps of tidy.py, so the pages say the same; the shell of the pages is described here for the second way only."""
import atexit
import gc
import html
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from collections import Counter
from functools import cache, cached_property
from pathlib import Path
from string import Template

import nbformat
import yaml
from jinja2 import pass_context
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

import readme
import runtime
import tidy

REPO = Path(__file__).resolve().parents[1]
PROC, SITE, SHELL = REPO / "_proc", REPO / "_docs", Path(__file__).with_name("page.html")
# latex2mathml knows only the right-hand form
SAME_TEX = {r"\arg": r"\operatorname{arg}", r"\operatorname*": r"\operatorname", r"\lVert": "‖", r"\rVert": "‖", "aligned": "align*"}
PANDOC_ATTRIBUTES = re.compile(r"(?<=\))\{(?:[.#]|\w+=)[^{}\n]*\}")  # as in [text](url){target="_blank"}


HEADING = re.compile(r'<h([23]) id="([^"]*)">(.*?)<a aria-label="Link to here"[^>]*>.*?</h\1>')

def inline(text: str) -> str:
    "A line of text as HTML; of Markdown it may have code in backticks."
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))

def plain(markup: str) -> str:
    "The words of a piece of HTML, without code and widgets."
    markup = re.sub(r"<(script|style|pre|svg|annotation|figure)\b.*?</\1>", " ", markup, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


LETTER = re.compile(r'<(mi|mn|mtext) mathvariant="(bold-italic|bold|italic|script|double-struck|fraktur|sans-serif|monospace)">(\w|&#x\w+;)</\1>')

def unicode_letter(match) -> str:
    "Browsers know no `mathvariant` any more: the letter of that form itself, as pandoc writes it."
    tag, form, letter = match[1], match[2], html.unescape(match[3])
    name, form = re.sub("LATIN |GREEK | LETTER", "", unicodedata.name(unicodedata.normalize("NFKC", letter))), form.upper().replace("BOLD-", "BOLD ")
    for pattern in (f"MATHEMATICAL {form} {name}", f"{form} {name}"):
        try: return f"<{tag}>{unicodedata.lookup(pattern)}</{tag}>"   # the second: those that Unicode had earlier, as ℝ
        except KeyError: pass
    return match[0]


class Renderer(IPythonRenderer):
    "Markdown to HTML with maths as MathML and pandoc's heading ids; `seen` counts those of the page."

    def __init__(self, seen: Counter, **options):
        super().__init__(**options)
        self.seen = seen

    def block_math(self, tex): return self.inline_math(tex, "block")

    def inline_math(self, tex, display="inline"):
        for name, known in SAME_TEX.items(): tex = re.sub(re.escape(name) + "(?![a-zA-Z])", lambda _: known, tex)
        html = mathml(tex.strip(), display=display)
        if bad := re.search(r">(\\\w+|&)<", html): raise ValueError(f"{bad[1]} is unknown to latex2mathml in: {tex}")
        return LETTER.sub(unicode_letter, html)

    def latex_environment(self, name, body): return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def heading(self, text, level, **attrs):
        anchor = re.sub(r"[^\w. -]", "", re.sub(r"<[^>]+>", "", text)).strip().lower().replace(" ", "-")
        self.seen[anchor] += 1
        if self.seen[anchor] > 1: anchor += f"-{self.seen[anchor] - 1}"
        return f'<h{level} id="{anchor}">{text}<a class="anchor" href="#{anchor}" aria-label="Link to here">#</a></h{level}>\n'


def described(markup: str, cell) -> str:
    "The HTML of a code cell; where an image has no alternative text, that of the cell."
    alt = cell.metadata.get("alt")
    return re.sub(r"<img(?![^>]* alt=)", lambda _: f'<img alt="{html.escape(alt)}"', markup) if alt else markup


class PageExporter(HTMLExporter):
    raw_template = "{% extends 'basic/index.html.j2' %}{% block codecell %}{{ super() | described(cell) }}{% endblock %}"

    def default_filters(self):
        yield from super().default_filters()
        yield "described", described
        yield "clean_html", lambda markup: markup   # the cells are our own: nothing to sanitise

    def from_notebook_node(self, *args, **kwargs):
        self.seen = Counter()
        return super().from_notebook_node(*args, **kwargs)

    @pass_context
    def markdown2html(self, context, source):
        return MarkdownWithMath(renderer=Renderer(self.seen, escape=False)).render(PANDOC_ATTRIBUTES.sub("", source))


@cache
def page_exporter() -> PageExporter:
    "The one exporter of all pages: it compiles its templates once."
    return PageExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True, optimistic_validation=True)


class Page:
    "One processed notebook: its front matter, its address, its body."

    def __init__(self, path: Path):
        self.notebook = nbformat.read(path, as_version=4)
        front = yaml.safe_load(self.notebook.cells.pop(0).source.strip().strip("-"))
        self.source = path.relative_to(PROC)
        self.address = self.source.with_name(front["output-file"])
        self.title, self.description = front["title"], front.get("description", "")

    @cached_property
    def body(self) -> str:
        for cell in self.notebook.cells:
            if alt := readme.alt_text(cell): cell.metadata["alt"] = alt
        self.notebook.cells = readme.reader_cells(self.notebook.cells)
        return page_exporter().from_notebook_node(self.notebook)[0]

    def contents(self) -> str:
        return "".join(f'<li class="h{level}"><a href="#{anchor}">{text}</a></li>' for level, anchor, text in HEADING.findall(self.body))

    def sections(self) -> list:
        "What the search knows of the page: heading, address and words of each part."
        head, *rest = HEADING.split(self.body)
        parts = [("", "", self.description + head), *((text, "#" + anchor, words) for _, anchor, text, words in zip(*[iter(rest)] * 4))]
        return [[self.title, plain(text), self.address.as_posix() + anchor, plain(words)] for text, anchor, words in parts]


# the folders of nbs/ in the order a reader needs, and what each is called in the sidebar
ROOMS = {
    "tutorials": "Tutorials",
    "method": "The method",
    "tools": "Tools",
    "engine": "The engine",
    "evidence": "Evidence",
}


def write_sidebar():
    "nbs/sidebar.yml, which Quarto reads too: the first page, then each of `ROOMS` with its notebooks by number."
    nbs = REPO / "nbs"
    contents = ["index.ipynb", "try_it.ipynb", "distil_here.ipynb"]
    for folder, title in ROOMS.items():
        found = [p.relative_to(nbs).as_posix() for p in sorted(nbs.joinpath(folder).glob("[0-9]*.ipynb"))]
        if found: contents.append(dict(section=title, contents=found))
    text = yaml.safe_dump(dict(website=dict(sidebar=dict(contents=contents))), sort_keys=False)
    (nbs / "sidebar.yml").write_text(text, encoding="utf-8")

def in_order(entries: list) -> list:
    return [Path(name) for entry in entries for name in (entry["contents"] if isinstance(entry, dict) else [entry])]


def sidebar(entries: list, pages: dict, here: Page) -> str:
    "The nested list in reading order, with addresses relative to `here`."
    rows = []
    for entry in entries:
        if isinstance(entry, dict):
            rows.append(f"<li><b>{entry['section']}</b>{sidebar(entry['contents'], pages, here)}</li>")
        else:
            page = pages[Path(entry)]
            current = ' aria-current="page"' if page is here else ""
            rows.append(f'<li><a href="{os.path.relpath(page.address, here.address.parent)}"{current}>{page.title}</a></li>')
    return f"<ul>{''.join(rows)}</ul>"


def process():
    "The notebooks in _proc/, as nbdev and tidy.py make them for both ways."
    shutil.rmtree(PROC, ignore_errors=True)   # else pages stay that are gone
    write_sidebar()
    refresh_quarto_yml()
    # At exit, the IPython shell of each notebook searches all that torch has made for garbage: what is frozen it passes over.
    atexit.register(gc.unfreeze)
    proc_nbs(n_workers=0)   # in this process: others would each import torch, and all of this file, again
    atexit.register(gc.freeze)
    found = {path.relative_to(PROC): path for path in sorted(PROC.rglob("*.ipynb"))}
    pages = {name: Page(path) for name, path in found.items()}
    steps = [(p.title, p.address.name, name.name) for name, p in pages.items() if name.parts[0] == "tutorials"]
    for name, path in found.items():
        nb, source = (nbformat.read(p, as_version=4) for p in (path, REPO / "nbs" / name))
        module = next((d.split()[1] for c in source.cells for d in readme.DIRECTIVE.findall(c.source) if d.startswith("default_exp ")), "")
        here = next((k for k, step in enumerate(steps) if name.parts == ("tutorials", step[2])), None)
        tidy.notebook(nb, source, module, "" if here is None else tidy.course(steps, here, get_config().git_url))
        nbformat.write(nb, path)


def quarto_docs():
    "The site that Quarto makes of _proc/."
    subprocess.run(["quarto", "render", "--no-cache"], cwd=PROC, check=True)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(PROC / SITE.name, SITE)


def nbconvert_docs():
    "The pages of the Quarto site in a small shell of our own."
    pages = {page.source: page for page in map(Page, sorted(PROC.rglob("*.ipynb")))}
    order = yaml.safe_load((PROC / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    row = [pages[name] for name in in_order(order)]
    not_pages = shutil.ignore_patterns("*.ipynb", "*.yml", "*.scss")
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(PROC, SITE, ignore=not_pages)
    shutil.copy(SHELL.with_name("site.css"), SITE)
    shell = Template(SHELL.read_text(encoding="utf-8"))
    cfg = get_config()
    for page in pages.values():
        folder = page.source.parent
        def address(link):
            target = Path(os.path.normpath(folder / link[1]))
            return f'href="{os.path.relpath(pages[target].address, folder)}' if target in pages else link[0]
        body = re.sub(r'href="(?!\w+:|#)([^"#]+\.ipynb)', address, page.body)
        body = body.replace(f'href="{cfg.doc_host}{cfg.doc_baseurl}/', f'href="{os.path.relpath(".", folder)}/')
        near = [row[k] if 0 <= k < len(row) else None for k in (row.index(page) - 1, row.index(page) + 1)]
        turn = "".join(f'<a rel="{rel}" href="{os.path.relpath(p.address, folder)}">{p.title}</a>' for rel, p in zip(("prev", "next"), near) if p)
        out = SITE / page.address
        out.write_text(shell.substitute(
            title=html.escape(page.title), description=html.escape(page.description.replace("`", "")), lead=inline(page.description), body=body, contents=page.contents(), turn=turn,
            card=f"{cfg.doc_host}{cfg.doc_baseurl}/images/social.jpg",
            sidebar=sidebar(order, pages, page), root=os.path.relpath(".", folder),
            site=cfg.title, repository=cfg.git_url), encoding="utf-8")
    known = json.dumps([part for page in row for part in page.sections()], ensure_ascii=False, separators=(",", ":"))
    (SITE / "search.js").write_text(f"window.KNOWN={known}", encoding="utf-8")
    print(f"{len(pages)} pages in {SITE.name}/, built with nbconvert; with Quarto installed, `make docs` builds the same pages with it")


def llms_txt():
    "A plain list of the pages for readers that are programs."
    cfg = get_config()
    pages = (Page(PROC / name) for name in in_order(yaml.safe_load((REPO / "nbs/sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]))
    rows = [f"- [{p.title}]({cfg.doc_host}{cfg.doc_baseurl}/{p.address.as_posix()}): {p.description}\n" for p in pages]
    (SITE / "llms.txt").write_text(f"# {cfg.title}\n\n> {cfg.description}\n\n{''.join(rows)}", encoding="utf-8")


def add_runtime():
    "ONNX Runtime Web for the page *Try it*; where it cannot be had, the page says so to its readers."
    try: "--no-runtime" in sys.argv or runtime.fetch()
    except SystemExit as e: print(f"{e}. Without it, the networks of the page Try it do not run.")
    if runtime.ready() and "--no-runtime" not in sys.argv: shutil.copytree(runtime.PLACE, SITE / "try/ort", dirs_exist_ok=True)


def tidy_pages():
    "What tidy.py does to every page."
    for path in SITE.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(tidy.page(text), encoding="utf-8")


# pages that had the address NAME.html before the notebooks went into folders
FORMER = """recipe core parallel job data patches models metrics train fourier convolution matching pixel procedural
    autoencoders safe_pickle kernels stylegan priors latent inversion labels distill widgets explore progress study demo cli
    speed prior_study paper_tables leaderboard survives""".split()
REDIRECT = Template("""<!doctype html>
<html lang="en-GB">
<meta charset="utf-8">
<title>$name has moved</title>
<link rel="canonical" href="$site/$new">
<meta http-equiv="refresh" content="0; url=$new">
<script>location.replace("$new" + location.hash)</script>
<p>This page has moved to <a href="$new">$new</a>.</p>
</html>
""")


def write_redirects():
    "At each address of `FORMER` that no page has any more, a page that leads to the one of the same name."
    cfg = get_config()
    for name in FORMER:
        if (SITE / f"{name}.html").exists(): continue
        found = [p.relative_to(SITE).as_posix() for p in SITE.glob(f"*/{name}.html") if p.parent.name != "tutorials"]
        if len(found) != 1: raise SystemExit(f"{name}.html: {len(found)} pages have this name now; see FORMER in tools/docs.py")
        text = REDIRECT.substitute(name=name, new=found[0], site=f"{cfg.doc_host}{cfg.doc_baseurl}")
        (SITE / f"{name}.html").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.chdir(REPO)
    warnings.filterwarnings("ignore", "Found cells containing imports", UserWarning)  # hidden set-up cells may
    readme.write()
    process()
    quarto_docs() if shutil.which("quarto") and "--nbconvert" not in sys.argv else nbconvert_docs()
    add_runtime()
    tidy_pages()
    write_redirects()
    llms_txt()
