"""Windows, budgets and groups as properties of any size, not of the sizes a page shows."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sr_distill import patches
from sr_distill.core import rng
from sr_distill.data import Photos
from sr_distill.patches import Budget, Groups, ipc_for_budget, kmeans, window_errors, window_means, windows
from sr_distill.recipe import UserError

sides = st.integers(1, 400)


@given(length=sides, size=sides, stride=sides)
def test_windows_cover_every_pixel_and_stay_inside(length, size, stride):
    if size > length:
        with pytest.raises(UserError): windows(length, size, stride)
        return
    starts = windows(length, size, stride)
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == length - size
    if stride <= size: assert np.union1d([], np.concatenate([np.arange(s, s + size) for s in starts])).size == length
    assert all(b - a <= stride for a, b in zip(starts, starts[1:]))


def test_div2k_has_the_customary_number_of_sub_images():
    assert len(windows(2040, 480, 240)) * len(windows(1356, 480, 240)) == 8 * 5
    assert windows(1356, 480, 240)[-2:] == [720, 876]


@given(percent=st.floats(.01, 100), groups=st.integers(1, 900), size=st.integers(16, 512), pixels=st.integers(10**5, 10**10))
def test_budget_target_is_the_largest_not_above(percent, groups, size, pixels):
    limit = percent / 100 * pixels
    try: ipc = ipc_for_budget(percent, groups, size, pixels)
    except UserError:
        assert groups * size**2 > limit * (1 - 1e-6)
        return
    assert groups * size**2 * ipc <= limit * (1 + 1e-6) and groups * size**2 * (ipc + 1) > limit * (1 - 1e-6)


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(st.integers(20, 60), st.integers(20, 60)), size=st.integers(1, 20), seed=st.integers(0, 9))
def test_window_means_equal_the_plain_mean(shape, size, seed):
    a = np.random.default_rng(seed).normal(size=shape)
    ys, xs = windows(shape[0], size, 7), windows(shape[1], size, 7)
    plain = [[a[y:y+size, x:x+size].mean() for x in xs] for y in ys]
    assert np.allclose(window_means(a, ys, xs, size), plain, atol=1e-9)


@pytest.fixture(scope="module")
def photos():
    noise = np.random.default_rng(0)
    return Photos.from_arrays("abc", [noise.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((40, 56), (33, 64), (70, 48))])


@pytest.mark.parametrize("grouping", ["image", "cluster", "all"])
def test_every_window_is_in_exactly_one_group(photos, grouping):
    groups = Groups(photos, grouping, size=16, stride=8, clusters=4)
    numbers = np.concatenate([groups.numbers(g) for g in range(len(groups))])
    assert sorted(numbers) == list(range(groups.first[-1]))
    places = [groups.where(k) for k in numbers]
    assert len(set(places)) == len(places)
    for g in range(len(groups)): assert {groups.where(k)[0] for k in groups.numbers(g)} == set(groups.photos_of(g))


def test_samples_are_a_function_of_the_generator(photos):
    groups = Groups(photos, "all", size=16, stride=8)
    draw = lambda seed: groups.sample(0, 10, rng(seed, "x"))
    assert (draw(0) == draw(0)).all() and (draw(0) != draw(1)).any() and len(set(draw(0))) == 10
    for number in draw(0):
        p, y, x = groups.where(number)
        assert np.allclose(groups.cut([number])[0].permute(1, 2, 0).numpy() * 255, photos[p][y:y+16, x:x+16], atol=1e-3)


def test_groups_name_the_photo_that_is_too_small(photos):
    with pytest.raises(UserError, match="b"): Groups(photos, "image", size=34, stride=8)


def test_kmeans_is_seeded():
    z = np.random.default_rng(0).normal(size=(200, 3))
    assert (kmeans(z, 5, 0) == kmeans(z, 5, 0)).all()
    assert set(kmeans(z, 5, 1 << 32)) == set(range(5)) and (kmeans(z, 5, 1 << 32) != kmeans(z, 5, 0)).any()   # larger than NumPy's seeds


def test_cached_errors_know_the_decoder(photos, monkeypatch):
    errors = lambda: window_errors(photos, 0, 2, [0], [0], 16)[0, 0]
    first = errors()
    monkeypatch.setattr(patches, "error_map", lambda u8, scale: np.ones(u8.shape[:2], np.float32))
    assert errors() == first
    monkeypatch.setattr(patches, "DECODER", -1)
    assert errors() == 1


def test_budget_shares():
    b = Budget(2, 200, 50, 4, 1000, 500)
    assert b.shares == dict(images=50, pixels=20, bytes=10) and "10 %" in b._repr_html_()
