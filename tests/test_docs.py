"""The site that `make docs` builds without Quarto: every link resolves, nothing is asked of another host."""
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Links(HTMLParser):
    "Where a page points to, and where it can be pointed at."

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and "href" in attrs: self.links.append(attrs["href"])
        self.loads += [url for url in (attrs.get("src"), attrs.get("href") if tag == "link" else None) if url]


@pytest.fixture(scope="module")
def site(repo_copy):
    done = subprocess.run([sys.executable, "tools/docs.py", "--nbconvert"], cwd=repo_copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return repo_copy / "_docs"


@pytest.fixture(scope="module")
def pages(site): return {path: Links(path) for path in site.rglob("*.html")}


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


def test_nothing_comes_from_another_host(pages):
    assert not [url for page in pages.values() for url in page.loads if urlsplit(url).scheme in ("http", "https") or url.startswith("//")]


def test_maths_is_mathml(pages):
    for path in pages:
        prose = re.sub(r"<(pre|code|script|annotation)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert "$$" not in prose and "\\begin{" not in prose, path.name
