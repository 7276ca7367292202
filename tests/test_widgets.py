"""What the widgets page should not show: odd traces, hostile texts, bounds that must hold for every run."""
import itertools
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sr_distill.recipe import Recipe, RunOptions, UserError
from sr_distill.widgets import Frames, Html, LossCurve, before_after, contact_sheet, evolution, html_page, log_spaced, player, thumbnails


def film(snapshots=5, images=3, height=24, width=24, **more):
    pixels = np.random.default_rng(0).integers(0, 256, (snapshots, images, height, width, 3), dtype=np.uint8)
    return Frames(pixels, list(range(0, 10 * snapshots, 10)), **more)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200, unique=True), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_log_spaced_keeps_the_ends_and_the_order(steps, count):
    steps = sorted(steps)
    kept = log_spaced(steps, count)
    assert kept[0] == 0 and kept[-1] == len(steps) - 1
    assert kept == sorted(set(kept)) and len(kept) <= max(2, count)


@pytest.mark.parametrize("shape", [(1, 1, 24, 24), (2, 1, 7, 130), (3, 9, 16, 16), (20, 12, 64, 64)])
def test_player_takes_any_trace(shape):
    html = player(film(*shape), snapshots=100, images=100, max_bytes=150_000)
    assert 1 <= html.count("<figure ") <= shape[0]
    assert len(html) < 180_000 or html.count("<figure ") <= 2


@pytest.mark.parametrize("losses", [[], [(0, 1.0)], [(0, float("nan")), (1, None)], [(0, 2.0), (1, 2.0)], [(0, -1.0), (9, 1.0)], [(s, 0.0) for s in range(500)]])
def test_curve_takes_any_loss(losses):
    html = player(film(losses=losses))
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html).lower()
    x, y, _ = LossCurve(losses).place(10**6)
    assert 0 <= x <= 100 and 0 <= y <= 100


def test_sheet_is_row_by_row():
    images = film(1, 11).frame(0)
    sheet = contact_sheet(images)
    assert sheet.shape == (48, 192, 3) and (sheet[24:, 24:48] == images[9]).all()
    assert (thumbnails(images) == images).all()


def test_every_text_is_escaped():
    bad = '"><script>alert(1)</script>'
    image = film().frame(0)[0]
    pieces = [player(film(names=[bad] * 3), bad), before_after({bad: image, "b": image}, {bad: bad}, bad), html_page(bad, bad)]
    assert not any("<script>alert" in piece for piece in pieces)
    assert "<script>alert" not in html_page("x", *pieces)


def test_no_other_host():
    image = film().frame(0)[0]
    page = html_page("x", player(film()), before_after({"a": image, "b": image}))
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)\)|https?:""", page)
    assert addresses and all(a.startswith("data:") for pair in addresses for a in pair if a)


def test_before_after_says_what_is_wrong():
    image = film().frame(0)[0]
    with pytest.raises(UserError, match="two or more images of one shape"): before_after({"a": image})
    with pytest.raises(UserError, match="crop them"): before_after({"a": image, "b": image[:9]})


def test_evolution_is_static_where_nobody_can_click(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert isinstance(evolution(film()), Html)
    assert repr(evolution(film())).startswith("<Html, ")


@pytest.fixture
def view():
    pytest.importorskip("ipywidgets", reason="the live forms need ipywidgets")
    from sr_distill.widgets import LiveView
    view = LiveView()
    yield view
    view.close()


def test_live_view_draws_at_most_four_times_a_second(view, monkeypatch):
    drawn, frame, now = [], film().frame(0), 100.0
    monkeypatch.setattr("sr_distill.widgets.time", SimpleNamespace(monotonic=lambda: now))   # a clock of its own: a busy machine moves the real one
    monkeypatch.setattr(view.screen, "draw", lambda *_: drawn.append(now))
    for _ in range(700):
        now += 0.001
        view(0, 1.0, frame)
    assert 2 <= len(drawn) <= 4 and np.diff(drawn).min() >= view.every


def test_live_view_stays_bounded(view):
    for step in range(1000): view(step, 1.0, film(1, 1).frame(0))
    assert len(view.trace) <= 101 and view.trace.steps[0] == 0 and view.trace.steps[-1] == 999


def test_stopping_ends_the_thread(view):
    begun = threading.Event()
    def loop(v):
        for step in itertools.count():
            begun.set()
            v(step, None)
            if v.stopped: return "stopped"

    view.run(loop)
    begun.wait()
    view.button.click()
    assert view.result() == "stopped"
    for thread in threading.enumerate():
        if thread.name == "sr_distill run": thread.join()
    assert "sr_distill run" not in [t.name for t in threading.enumerate()]


def test_the_curve_ends_at_the_last_step():
    curve = LossCurve([(s, 1 / s) for s in range(1, 1001)])
    assert "steps 0 to 1000<" in curve.svg() and curve.place(1000)[0] == 100 > curve.place(999)[0]


def test_a_bench_names_its_images_and_takes_any_callback():
    from sr_distill.data import Photos
    from sr_distill.explore import Bench
    photos, seen = Photos.open("embedded").subset([0, 1]), []
    bench = Bench(photos, Recipe(size=32, steps=2, networks=1, real=2, pool="random", grouping="all", ipc=3))
    assert bench.names == ["all-0_000", "all-0_001", "all-0_002"] and bench.run(lambda step, loss, images: seen.append(step)).done == 2 and seen == [0, 1, 2]
    assert Bench(photos, Recipe(size=32, networks=1, real=2, pool="random", budget=5.)).recipe.ipc > 1
    with pytest.raises(UserError, match="--labels teacher"): Bench(photos, Recipe(labels="teacher"))


def test_the_film_of_gradients_has_the_target_of_the_run(tmp_path, monkeypatch):
    from sr_distill import explore
    from sr_distill.data import Photos
    from sr_distill.distill import distill
    photos, asked = Photos.open("embedded").subset([0]), []
    small = distill(photos, Recipe(size=32, steps=2, networks=1, real=4, pool="random", target="hard"), tmp_path / "set", RunOptions(device="cpu", held_out=0))
    real = explore.sample_real
    monkeypatch.setattr(explore, "sample_real", lambda groups, g, recipe, generator: asked.append(recipe.target) or real(groups, g, recipe, generator))
    explore.gradient_film(small, photos)
    assert asked == ["hard"]
