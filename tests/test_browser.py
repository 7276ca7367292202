"""The widgets in a real browser: a report opened as a file, and a notebook in JupyterLab."""
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from sr_distill.widgets import Frames, before_after, html_page, player

REPO = Path(__file__).resolve().parents[1]
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-quic".split()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None: pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None: pytest.skip("playwright is missing (pip install playwright)")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "A page with two players and a comparer."
    y, x = np.mgrid[:64, :64]
    picture = lambda k: np.stack([np.uint8(127 + 120 * np.sin(x / (2 + i) + k)) for i in range(3)], 2)
    film = Frames(np.stack([np.stack([picture(k), picture(k + 9)]) for k in range(6)]), [0, 1, 3, 10, 30, 100], [(s, 1 / (1 + s)) for s in range(100)], ["<one>", "two"])
    wipe = before_after({"before": picture(0), "a label of some length": picture(1), "HR": picture(2)}, {"HR": "31.2 dB"}, "Which?")
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html_page("A report", player(film, "First"), player(film, "Second"), wipe), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(chromium, report):
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.problems = []
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.problems.append(r.url))
    page.goto(report)
    page.wait_for_selector('.srd-player[data-shown="100"]')
    yield page
    assert page.problems == []
    page.close()


def pixels(page): return page.evaluate("document.querySelector('.srd-stage canvas').toDataURL()")

def shown(page, step): page.wait_for_selector(f'.srd-player[data-shown="{step}"]', timeout=5000)


def test_slider_and_keys_show_another_frame(page):
    last = pixels(page)
    page.focus("[name=frame]")
    page.keyboard.press("Home")
    shown(page, 0)
    first = pixels(page)
    page.keyboard.press("ArrowRight")
    shown(page, 1)
    assert len({first, last, pixels(page)}) == 3
    assert page.locator(".srd-player").nth(1).get_attribute("data-shown") == "100"   # the other player stands still
    assert page.locator(".srd-now").first.inner_text() == "step 1 · loss 0.5"


def test_play_difference_and_enlarging(page):
    page.focus("[name=frame]")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    shown(page, 100)
    page.check("[name=diff] >> nth=0")
    page.keyboard.press("Shift+Tab")
    page.focus("[name=frame]")
    page.keyboard.press("Home")
    shown(page, 0)
    grey = page.evaluate("document.querySelector('.srd-stage canvas').getContext('2d').getImageData(5, 5, 1, 1).data[0]")
    assert abs(grey - 128) <= 2                                                       # no difference to itself
    assert page.locator(".srd-player >> nth=0 >> canvas:visible").count() == 2
    page.click(".srd-stage button >> nth=0")
    page.wait_for_function("document.querySelectorAll('.srd-player')[0].querySelectorAll('.srd-stage button:not([hidden])').length === 1")


def test_wipe_by_key_drag_and_choice(page):
    cut = lambda: page.evaluate("document.querySelector('.srd-wipe').style.getPropertyValue('--cut')")
    page.focus("[name=cut]")
    page.keyboard.press("ArrowLeft")
    assert cut() == "49%"
    pane = page.locator(".pane").first
    pane.scroll_into_view_if_needed()
    box = pane.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.up()
    assert 22 <= int(cut()[:-1]) <= 28
    page.select_option("[name=right]", label="HR")
    assert page.locator(".pane b.right").first.inner_text() == "HR"


def test_phone_has_no_sideways_scroll_and_every_control_a_name(page):
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    nameless = page.evaluate("[...document.querySelectorAll('input, select, button')].filter(e => !(e.labels?.length && e.labels[0].textContent.trim()) && !e.textContent.trim()).length")
    assert nameless == 0


def test_without_scripts_it_is_a_film_strip(chromium, report):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    assert page.locator(".srd-player >> nth=0 >> img.sheet:visible").count() == 6
    assert page.locator(".srd-panel:visible").count() == 0
    context.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab server over an empty folder: its folder, its address, its kernels' sessions."
    if importlib.util.find_spec("jupyterlab") is None: pytest.skip('jupyterlab is missing (pip install "sr_distill[lab]")')
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {name: str(folder / ".jupyter" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=t",
             "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", f"--ServerApp.root_dir={folder}"],
            cwd=folder, env={**os.environ, **own, "PYTHONPATH": str(REPO)}, stdout=log, stderr=subprocess.STDOUT)
        get = lambda path: json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}?token=t", timeout=5))
        try:
            wait(lambda: get("status"), 30, "JupyterLab's server")
            yield folder, f"http://127.0.0.1:{port}/lab/tree/{{}}?token=t&reset", lambda: get("sessions")
        finally:
            server.terminate()
            server.wait(20)


def wait(what, seconds, name):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if answer := what(): return answer
        except OSError: pass
        time.sleep(0.2)
    pytest.fail(f"{name} did not come within {seconds} s")


LIVE_RUN = '''
import time
def endless(view):
    for step in range(10**6):
        if view(step, 1 / (1 + step), film.frame(step % len(film)) if step % 10 == 0 else None): return step
        time.sleep(.01)
steps = await LiveView(film.names).run(endless)
print("stopped after", steps, "steps")
'''

def test_notebook_in_jupyterlab(chromium, lab):
    folder, address, sessions = lab
    notebook = json.loads((REPO / "nbs/12_widgets.ipynb").read_text(encoding="utf-8"))
    code = {"cell_type": "code", "id": "live", "metadata": {}, "execution_count": None, "outputs": [], "source": LIVE_RUN}
    for cell in notebook["cells"]: cell.update({"outputs": []} if cell["cell_type"] == "code" else {})
    (folder / "widgets.ipynb").write_text(json.dumps({**notebook, "cells": notebook["cells"] + [code]}), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(address.format("widgets.ipynb"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=40000)
    wait(lambda: sessions() and sessions()[0]["kernel"]["execution_state"] == "idle", 30, "an idle kernel")
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells")

    cell = page.locator(".jp-CodeCell", has_text="endless")
    stop = cell.locator('button.jupyter-button:has-text("Stop"):enabled')
    wait(lambda: page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 1e7)") or stop.count(), 60, "the last cell's Stop button")
    stop.click()
    cell.locator(".jp-OutputArea-output", has_text="stopped after").wait_for(timeout=15000)

    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.scroll_into_view_if_needed()
    picture = page.locator("img.widget-image").first
    before = picture.get_attribute("src")
    handle.focus()
    for _ in range(4): page.keyboard.press("ArrowLeft")
    wait(lambda: picture.get_attribute("src") != before, 15, "another frame")
    page.close()
