"""The site that `make docs` builds without Quarto: every link resolves, nothing is asked of another host."""
import collections
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from nbformat.v4 import new_code_cell

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tidy():
    "tools/tidy.py, as tools/docs.py imports it."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "tools")
        import tidy
        yield tidy
        for name in ("tidy", "readme"): sys.modules.pop(name, None)


class Links(HTMLParser):
    "Where a page points to, and where it can be pointed at."

    def __init__(self, path: Path | str):
        super().__init__()
        self.ids, self.links, self.loads, self.alts, self.moved_to = collections.Counter(), [], [], [], None
        self.feed(path if isinstance(path, str) else path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.update([attrs["id"]] if "id" in attrs else [])
        if tag == "meta" and attrs.get("http-equiv") == "refresh": self.moved_to = attrs["content"].split("url=")[1]
        if tag == "img": self.alts.append(attrs.get("alt") or "")
        if tag == "a" and "href" in attrs: self.links.append(attrs["href"])
        self.loads += [url for url in (attrs.get("src"), attrs.get("href") if tag == "link" else None) if url]


@pytest.fixture(scope="module")
def every_page(site): return {path: Links(path) for path in site.rglob("*.html")}

@pytest.fixture(scope="module")
def pages(every_page):
    "All but those that only lead to another one."
    return {path: page for path, page in every_page.items() if not page.moved_to}


def test_every_notebook_has_a_page(site, pages):
    assert len(pages) == len(list(site.parent.glob("nbs/**/*.ipynb")))
    assert (site / "index.html") in pages and len(re.findall(r"^- \[", (site / "llms.txt").read_text(), re.M)) == len(pages)


def test_every_link_resolves(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            url = urlsplit(link)
            if url.scheme: continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor_is_there = not url.fragment or target not in pages or url.fragment in pages[target].ids
            if not target.is_file() or not anchor_is_there: dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead, dead


def test_every_former_address_leads_to_its_page(site, every_page, pages):
    "Addresses that others have linked to; a page may move into another folder, and must then be found from its former address."
    former = """recipe core parallel job data patches models metrics train fourier convolution matching pixel procedural
        autoencoders safe_pickle kernels stylegan priors latent inversion labels distill widgets explore progress study demo cli
        speed prior_study paper_tables leaderboard survives""".split()
    for name in former:
        address = site / f"{name}.html"
        assert address in every_page, f"{name}.html is gone"
        target = address.parent / (every_page[address].moved_to or address.name)
        assert target in pages and target.name == address.name
    for path, page in every_page.items():
        assert not page.moved_to or f'href="https://sr-distill.github.io/sr_distill/{page.moved_to}"' in path.read_text(encoding="utf-8")


def strangers(page): return [url for url in page.loads if urlsplit(url).scheme in ("http", "https") or url.startswith("//")]

def test_nothing_comes_from_another_host(pages):
    assert not [url for page in pages.values() for url in strangers(page)]


# what Quarto writes before the output of a Jupyter cell, and one script of the page's own
QUARTO = """<!DOCTYPE html>
<html><head><link href="../site_libs/bootstrap/bootstrap.min.css" rel="stylesheet" class="quarto-color-scheme">
<script src="../site_libs/quarto-nav/headroom.min.js"></script>
<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" integrity="sha512-c3Nl8+7g4LMSTdrm621y7kf9v3SDPnhxLNhcjFJbKECVnmZHTdo+IRO05sNLTH/D3vA6u1X32ehoLC7WFVdheg==" crossorigin="anonymous"></script>
<script src="https://cdnjs.cloudflare.com/ajax/libs/jquery/3.5.1/jquery.min.js" integrity="sha512-bLT0Qm9VnAYZDflyKcBaQ2gg0hSYNQrJ8RilYldYQ1FxQYoCLtUjuuRuZo+fjqhx/qtq/1itJ0C2ejDxltZVFg==" crossorigin="anonymous" data-relocate-top="true"></script>
<script type="application/javascript">define('jquery', [],function() {return window.jQuery;})</script>
</head><body><main><script>{ const own = "jquery" }</script><p>Text</p></main></body></html>"""

def test_pages_of_quarto_load_nothing_from_another_host(tidy):
    "The last step of tools/docs.py, on a page as Quarto writes it."
    assert len(strangers(Links(QUARTO))) == 2
    page = tidy.page(QUARTO)
    assert not strangers(Links(page)) and "define(" not in page
    assert "headroom" in page and "const own" in page and "<p>Text</p>" in page and tidy.page(page) == page


def test_settings_of_quarto():
    settings = yaml.safe_load((REPO / "_quarto.yml").read_text(encoding="utf-8"))
    assert settings["format"]["html"]["keep-md"] and settings["format"]["html"]["respect-user-color-scheme"]   # the first: Quarto before 1.10.15
    assert settings["website"]["repo-subdir"] == "nbs"
    for name in (settings["website"]["image"], settings["website"]["favicon"]): assert (REPO / "nbs" / name).is_file()
    workflow = yaml.safe_load((REPO / ".github/workflows/docs.yml").read_text(encoding="utf-8"))
    quarto, = (s for s in workflow["jobs"]["docs"]["steps"] if "quarto-actions/setup" in s.get("uses", ""))
    assert re.fullmatch(r"\d+\.\d+\.\d+", quarto["with"]["version"])


def test_no_id_twice(site, pages):
    twice = {path.relative_to(site).as_posix(): again for path, page in pages.items() if (again := [name for name, n in page.ids.items() if n > 1])}
    assert not twice


def test_code_has_no_links(pages):
    for path in pages:
        blocks = re.findall(r"<pre\b.*?</pre>", path.read_text(encoding="utf-8"), re.S)
        assert not [b for b in blocks if re.search(r"`\]\((?:http|\.\.)", b)], path.name


def test_maths_has_letters_of_their_own(site):
    "Chromium knows no script or double-struck letters but those of Unicode."
    assert "<mi>𝒮</mi>" in (site / "method/matching.html").read_text(encoding="utf-8") and "<mi>𝔼</mi>" in (site / "method/distill.html").read_text(encoding="utf-8")
    for path in site.rglob("*.html"): assert not re.search(r'mathvariant="(?!normal)[^"]*">\w</mi>', path.read_text(encoding="utf-8")), path.name


def test_lead_shows_code_as_code(site, pages):
    for path in pages:
        lead = re.search(r'<p class="lead">(.*?)</p>', path.read_text(encoding="utf-8"), re.S)
        assert lead and "`" not in lead[1], path.name
    assert "<code>distill</code>" in (site / "tools/cli.html").read_text(encoding="utf-8").split("</h1>")[1].split("</p>")[0]


def test_indented_code_becomes_a_block(tidy):
    commands = "From the shell:\n\n    sr_distill export MODEL model.onnx\n    sr_distill --help\n\nand then\n\n    import sr_distill\n"
    assert tidy.fence_code(commands) == ("From the shell:\n\n```bash\nsr_distill export MODEL model.onnx\nsr_distill --help\n```\n\nand then\n\n"
                                         "```python\nimport sr_distill\n```\n")
    for other in ("- a list\n\n    and what belongs to it\n", "```\na\n\n    b\n```\n", "no\n    code\n"): assert tidy.fence_code(other) == other


def test_reader_gets_what_hidden_cells_import(tidy):
    cells = [new_code_cell(text) for text in ("#| hide\nimport tempfile, os\nfrom pathlib import Path\nfolder = Path(tempfile.mkdtemp())",
                                              "#| export\nimport numpy as np, torch\ndef twice(x): return 2 * np.asarray(x)",
                                              "#| hide\n%pip install x\nassert twice(1) == 2", "import math\nprint(twice(folder), math.pi)")]
    assert tidy.hidden_needs(cells, "double") == ("import tempfile\nfrom pathlib import Path\nfrom sr_distill.double import twice\n"
                                                  "folder = Path(tempfile.mkdtemp())")
    assert tidy.hidden_needs(cells[3:]) == ""

def test_shown_cells_lack_no_name(tidy):
    "In every notebook, what the shown cells read was made by them, by what stands folded above them, or by Python."
    import ast
    import nbformat
    lacking = {}
    for path in (REPO / "nbs").rglob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        needs = tidy.hidden_needs(cells, "module")
        directives = tidy.readme.DIRECTIVE
        shown = [c.source for c in cells if c.cell_type == "code" and not any(d in tidy.readme.HIDDEN | {"echo: false"} or d.startswith("export") for d in directives.findall(c.source))]
        parts = [ast.parse(needs), *(s for text in shown for s in tidy._statements(text))]
        made = set(tidy.builtins.__dict__).union({"__file__", "get_ipython", "display"}, *(tidy._names(part, ast.Store) for part in parts))
        if lack := set().union(*(tidy._names(part, ast.Load) for part in parts)) - made: lacking[path.name] = lack
    assert not lacking


def test_course_is_a_path(site):
    steps = sorted((REPO / "nbs/tutorials").glob("[0-9]*.ipynb"))
    for k, step in enumerate(steps):
        text = (site / f"tutorials/{step.stem.partition('_')[2]}.html").read_text(encoding="utf-8")
        path = text[text.index('class="srd-course"'):].split("</div>")[0]
        assert path.count("<li") == len(steps) and path.count('aria-current="step"') == 1 and f"Page {k + 1} of {len(steps)}" in path
        assert ('rel="prev"' in path) == (k > 0) and ('rel="next"' in path) == (k < len(steps) - 1)
        assert f"colab.research.google.com/github/sr-distill/sr_distill/blob/main/nbs/tutorials/{step.name}" in path and "mybinder.org" in path
        assert "Open in Colab" not in text


def test_every_image_has_an_alternative_text(site, pages):
    bare = {path.relative_to(site).as_posix(): n for path, page in pages.items() if (n := sum(not alt.strip() or alt.startswith("No description") for alt in page.alts))}
    assert not bare, f"give the cell of each figure a line `#| fig-alt: …`: {bare}"
    assert "fig-alt" not in "".join(path.read_text(encoding="utf-8") for path in pages)


def test_maths_is_mathml(pages):
    for path in pages:
        prose = re.sub(r"<(pre|code|script|annotation)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert "$$" not in prose and "\\begin{" not in prose, path.name


def test_pages_are_in_reading_order(site):
    text = (site / "tutorials/first_set.html").read_text(encoding="utf-8")
    titles = re.findall(r"<li><a href=[^>]*>(.*?)</a></li>", text[text.index('<nav id="pages"'):text.index("<main>")])
    assert titles[:2] == ["sr_distill", "Try it"] and titles.index("Your first distilled set") < titles.index("What gradient matching sees") < titles.index("Data") < titles.index("Matching") < titles.index("Explorers") < titles.index("Recipe") < titles.index("Core") < titles.index("What it costs")
    order = re.findall(r'<li><a href="([^"]*)"', text[text.index('<nav id="pages"'):text.index("<main>")])
    here = order.index("first_set.html")
    turn = text[text.index('<p class="turn">'):]
    assert f'<a rel="prev" href="{order[here - 1]}">' in turn and f'<a rel="next" href="{order[here + 1]}">' in turn
    links = re.findall(r"\]\(.*?/sr_distill/(.*?\.html)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert links[:2] == ["index.html", "try_it.html"] and "tutorials/first_set.html" in links


def test_search_knows_every_page_and_its_sections(site, pages):
    known = json.loads((site / "search.js").read_text(encoding="utf-8").removeprefix("window.KNOWN="))
    assert {address.split("#")[0] for _, _, address, _ in known} == {path.relative_to(site).as_posix() for path in pages}
    dead = [address for _, _, address, _ in known if "#" in address and address.split("#")[1] not in pages[site / address.split("#")[0]].ids]
    assert not dead and not [words for *_, words in known if "base64" in words]


def test_every_page_has_its_card(site, pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert re.search(r'og:image" content="https://[^"]*/images/social.jpg"', text) and "og:title" in text
    assert (site / "images/social.jpg").stat().st_size < 100_000
