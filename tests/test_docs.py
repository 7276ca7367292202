"""The site that `make docs` builds without Quarto: every link resolves, nothing is asked of another host."""
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Links(HTMLParser):
    "Where a page points to, and where it can be pointed at."

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.alts, self.moved_to = set(), [], [], [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
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


def test_nothing_comes_from_another_host(pages):
    assert not [url for page in pages.values() for url in page.loads if urlsplit(url).scheme in ("http", "https") or url.startswith("//")]


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
    assert titles[:3] == ["sr_distill", "Your first distilled set", "What gradient matching sees"] and titles.index("Data") < titles.index("Matching") < titles.index("Explorers") < titles.index("Recipe") < titles.index("Core") < titles.index("What it costs")
    assert '<a rel="prev" href="../index.html">' in text and '<a rel="next" href="gradient_matching.html">' in text
    links = re.findall(r"\]\(.*?/sr_distill/(.*?\.html)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert links[:2] == ["index.html", "tutorials/first_set.html"]


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
