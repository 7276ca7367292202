"Metrics: formulas against float64 references, bad input, tiles against the whole image, LR folders, JSON."
import json
import math
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from hypothesis import given, settings, strategies as st

from sr_distill.core import rng, to_tensor, to_uint8
from sr_distill.data import Photos, make_lr, upscale
from sr_distill.metrics import LPIPS, Evaluation, _cuts, backbone_file, evaluate, luma, psnr, ssim, upscale_image
from sr_distill.models import make_model
from sr_distill.recipe import METRICS, RunError, UserError


def picture(h=60, w=72, seed=0, channels=3):
    "A smooth random uint8 image."
    x = torch.rand(1, channels, max(2, h // 6), max(2, w // 6), generator=rng(seed))
    a = to_uint8(torch.nn.functional.interpolate(x, size=(h, w), mode="bilinear").expand(-1, 3, -1, -1))[0]
    return a if channels == 3 else a[..., 0]


def noisy(a, seed=1):
    return np.clip(a + np.random.default_rng(seed).integers(-20, 21, a.shape), 0, 255).astype(np.uint8)


# formulas

def test_luma_is_the_published_formula():
    a = picture()
    r, g, b = (a[..., k].astype(np.float64) for k in range(3))
    assert np.allclose(luma(a), (65.481 * r + 128.553 * g + 24.966 * b) / 255 + 16, rtol=0, atol=1e-9)
    assert luma(a).dtype == np.float64


@pytest.mark.parametrize("border", (0, 2, 8))
@pytest.mark.parametrize("channel", ("y", "rgb"))
def test_psnr_against_a_reference(border, channel):
    a, b = picture(), noisy(picture())
    inner = np.s_[border:60 - border, border:72 - border]
    x, y = (luma(i)[inner] if channel == "y" else i[inner].astype(float) for i in (a, b))
    assert math.isclose(psnr(b, a, border, channel), 20 * math.log10(255 / math.sqrt(((x - y)**2).sum() / x.size)), rel_tol=1e-12)


def ssim_reference(x, y):
    "Wang's SSIM by an explicit loop over all places of the window."
    g = np.exp(-np.arange(-5, 6)**2 / 4.5)
    g = np.outer(g, g) / g.sum()**2
    c1, c2, values = 6.5025, 58.5225, []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            p, q = x[i:i + 11, j:j + 11], y[i:i + 11, j:j + 11]
            m, n = (g * p).sum(), (g * q).sum()
            v, w, c = (g * (p - m)**2).sum(), (g * (q - n)**2).sum(), (g * (p - m) * (q - n)).sum()
            values.append((2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (v + w + c2)))
    return np.mean(values)


def test_ssim_against_a_reference():
    a, b = picture(30, 40), noisy(picture(30, 40))
    assert math.isclose(ssim(b, a, 3), ssim_reference(luma(b)[3:-3, 3:-3], luma(a)[3:-3, 3:-3]), rel_tol=1e-9)
    per_channel = [ssim_reference(b[3:-3, 3:-3, k].astype(float), a[3:-3, 3:-3, k].astype(float)) for k in range(3)]
    assert math.isclose(ssim(b, a, 3, "rgb"), np.mean(per_channel), rel_tol=1e-9)


@pytest.mark.parametrize("metric, best", [(psnr, math.inf), (ssim, 1.0)])
def test_equal_images(metric, best):
    a = picture()
    for channel in ("y", "rgb"):
        assert metric(a, a, 2, channel) == best
        assert metric(a, noisy(a), 2, channel) < best


@pytest.mark.parametrize("metric", (psnr, ssim))
def test_grey_layouts_are_one(metric):
    a, b = picture(channels=1), noisy(picture(channels=1))
    values = {metric(x, y, 2, c) for x, y in ((a, b), (a[..., None], b[..., None]), (a[..., None], b)) for c in ("y", "rgb")}
    assert len(values) == 1


A = picture()

@pytest.mark.parametrize("metric", (psnr, ssim))
@pytest.mark.parametrize("sr, hr, border, channel", [
    (A[1:], A, 2, "y"), (A, A[..., 0], 2, "y"), (A.astype(float), A, 2, "y"), (A / 255, A / 255, 2, "y"), (A.astype(np.int64), A, 2, "y"),
    (A, A, 30, "y"), (A, A, -1, "y"), (A, A, 2, "Y!"), (A[None], A[None], 2, "y"), (A[..., :2], A[..., :2], 2, "y"), (A[0, 0], A[0, 0], 0, "y")])
def test_what_cannot_be_compared(metric, sr, hr, border, channel):
    with pytest.raises(ValueError):
        metric(sr, hr, border, channel)


def test_memory_maps_and_views_are_fine(tmp_path):
    np.save(tmp_path/"a.npy", A)
    a = np.load(tmp_path/"a.npy", mmap_mode="r")
    assert psnr(a[::-1], A[::-1], 2) == math.inf and ssim(a, A, 2) == 1


# LPIPS

@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path/"nowhere"))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")   # nothing listens there
    monkeypatch.setattr(urllib.request, "_opener", None)   # Python keeps the first opener of a process, with the proxies of that moment
    return tmp_path/"nowhere"


def test_auto_never_downloads(no_weights, monkeypatch):
    def forbidden(*a, **kw): raise AssertionError("tried to download")
    monkeypatch.setattr(torch.hub, "download_url_to_file", forbidden)
    absent = LPIPS("auto")
    assert absent.net is None and "no backbone weights" in absent.reason and absent(A, A) is None


def test_failed_download_is_a_named_absence(no_weights):
    absent = LPIPS("squeeze")
    assert absent.net is None and "could not be downloaded" in absent.reason and "\n" not in absent.reason
    assert "squeezenet" in absent.reason and absent(A, A) is None


def test_damaged_weights_are_a_named_absence(no_weights):
    file = backbone_file("alex")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not weights")
    absent = LPIPS("auto")
    assert absent.net is None and str(file) in absent.reason and "cannot be loaded" in absent.reason


@pytest.fixture(scope="session")
def squeeze(shared):
    shared("data/weights/torch_home")
    metric = LPIPS("squeeze")
    assert metric.net == "squeeze", metric.reason
    return metric


def test_lpips_equals_the_package(squeeze):
    a, b = picture(130, 141), noisy(picture(130, 141))
    with torch.no_grad(): reference = squeeze.model(to_tensor(b) * 2 - 1, to_tensor(a) * 2 - 1).item()
    assert math.isclose(squeeze(b, a), reference, rel_tol=1e-4) and squeeze(a, a) == 0


def test_lpips_input(squeeze):
    grey = picture(64, 64, channels=1)
    assert squeeze(noisy(grey), grey) == squeeze(np.stack([noisy(grey)] * 3, -1), np.stack([grey] * 3, -1))
    for a, b in ((A, A[1:]), (A[:20], A[:20])):
        with pytest.raises(ValueError): squeeze(a, b)
    tiny = picture(32, 32)
    assert squeeze(noisy(tiny), tiny) > 0


# tiles

@given(st.integers(1, 500), st.integers(1, 500))
@settings(max_examples=200, deadline=None)
def test_cuts_cover_without_overlap(length, size):
    cuts = _cuts(length, size)
    assert cuts[0][0] == 0 and cuts[-1][1] == length
    assert all(a[1] == b[0] for a, b in zip(cuts, cuts[1:])) and all(0 < b - a <= size for a, b in cuts)


@pytest.mark.parametrize("name, size", [("bicubic", {}), ("srcnn", {}), ("vdsr", dict(depth=6)), ("edsr", dict(depth=3))])
@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_tiles_equal_the_whole_image(name, size, scale):
    model = name if name == "bicubic" else make_model(name, scale, width=8, generator=rng(3), **size)
    lr = picture(67, 45)
    whole, tiled = (upscale_image(model, lr, scale, tile).astype(int) for tile in (10_000, 23 * scale))
    assert whole.shape == (67 * scale, 45 * scale, 3)
    assert np.abs(whole - tiled).max() <= 1 and (whole != tiled).mean() < 1e-4


def test_tiles_of_one_pixel():
    model = make_model("srcnn", 2, width=4, generator=rng(0))
    lr = picture(9, 7)
    assert np.abs(upscale_image(model, lr, 2, 1).astype(int) - upscale_image(model, lr, 2)).max() <= 1


def test_grey_in_grey_out():
    lr = picture(20, 24, channels=1)
    model = make_model("vdsr", 3, depth=3, width=4, generator=rng(0))
    with torch.no_grad(): reference = model(to_tensor(np.stack([lr] * 3, -1))).mean(1, keepdim=True)
    assert (upscale_image(model, lr, 3) == to_uint8(reference)[0, ..., 0]).all()


def test_the_model_is_left_as_it_was():
    model = make_model("vdsr", 2, depth=3, width=4).train()
    evaluate(model, Photos.from_arrays(["a"], [A]), 2, lpips="none")
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_foreign_networks_are_taken_whole():
    class Nearest(torch.nn.Module):
        def forward(self, x): return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    lr = picture(30, 30)
    assert (upscale_image(Nearest(), lr, 2, tile=8) == lr.repeat(2, 0).repeat(2, 1)).all()


# evaluate

def test_rows_are_the_metrics():
    photos = Photos.from_arrays(["a", "b"], [picture(61, 73), picture(64, 80, 5)])
    result = evaluate("bicubic", photos, 3, lpips="none")
    hr = picture(61, 73)[:60, :72]
    sr = to_uint8(upscale(to_tensor(make_lr(hr, 3)), 3))[0]
    row = result.rows[0]
    assert row == {"name": "a", "psnr_y": psnr(sr, hr, 3), "psnr_rgb": psnr(sr, hr, 3, "rgb"), "ssim_y": ssim(sr, hr, 3),
                   "ssim_rgb": ssim(sr, hr, 3, "rgb"), "lpips": None}
    assert result.mean["psnr_y"] == np.mean([r["psnr_y"] for r in result.rows]) and result.mean["lpips"] is None
    assert result.border == result.scale == 3 and result.lpips_reason


def test_lr_folder(tmp_path):
    hr = picture(64, 80)
    (tmp_path/"hr").mkdir(), (tmp_path/"lr/X2").mkdir(parents=True)
    Image.fromarray(hr).save(tmp_path/"hr/a.png")
    Image.fromarray(255 - make_lr(hr, 2)).save(tmp_path/"lr/X2/ax2.png")
    photos = Photos.open(tmp_path/"hr")
    given, made = (evaluate("bicubic", photos, 2, lr_dir, lpips="none") for lr_dir in (tmp_path/"lr", None))
    assert given.mean["psnr_y"] < 20 < made.mean["psnr_y"]
    assert given.lr_source == str(tmp_path/"lr") and made.lr_source == "bicubic" and given.dataset == "hr"
    with pytest.raises(UserError, match="a"): evaluate("bicubic", photos, 4, tmp_path/"lr", lpips="none")


def test_grey_file_with_colour_lr(tmp_path):
    grey = picture(64, 80, channels=1)
    (tmp_path/"hr").mkdir(), (tmp_path/"lr").mkdir()
    Image.fromarray(grey).save(tmp_path/"hr/g.png")
    Image.fromarray(np.stack([make_lr(grey, 2)] * 3, -1)).save(tmp_path/"lr/g.png")
    photos = Photos.open(tmp_path/"hr")
    assert evaluate("bicubic", photos, 2, tmp_path/"lr", lpips="none").mean == evaluate("bicubic", photos, 2, lpips="none").mean


@pytest.mark.parametrize("model, arrays", [("bicubc", [A]), (None, [A]), ("bicubic", []), ("bicubic", [A, picture(12, 40)])])
def test_bad_input_is_found_first(model, arrays):
    with pytest.raises(UserError) as e:
        evaluate(model, Photos.from_arrays([f"p{k}" for k in range(len(arrays))], arrays), 2, lpips="none")
    assert "\n" not in str(e.value)


def test_wrong_scale_and_missing_device():
    photos = Photos.from_arrays(["a"], [A])
    with pytest.raises(UserError, match="3"): evaluate(make_model("srcnn", 3, width=4), photos, 2, lpips="none")
    with pytest.raises(UserError, match="5"): evaluate("bicubic", photos, 5, lpips="none")
    with pytest.raises(UserError): evaluate("bicubic", photos, 2, lpips="none", device="abacus")


def test_only_bytes_are_enlarged():
    for bad in (A / 255, A[None], np.stack([A[..., 0]] * 4, -1)):
        with pytest.raises(UserError, match="uint8"): upscale_image("bicubic", bad, 2)


def test_lpips_needs_no_float64_of_mps(squeeze):
    "Apple's GPU has none; this runs where there is no such GPU, so nothing can have gone there."
    b, a = (picture(40, 48, seed=k) for k in (0, 1))
    assert LPIPS("squeeze", "mps")(b, a) == squeeze(b, a)


def test_a_model_of_nans_is_an_error():
    model = make_model("srcnn", width=4)
    with torch.no_grad(): model.body[0].weight.fill_(math.nan)
    with pytest.raises(RunError, match="a"): evaluate(model, Photos.from_arrays(["a"], [A]), 2, lpips="none")


def test_lpips_column_is_absent_when_a_photo_is_too_small(squeeze):
    photos = Photos.from_arrays(["big", "small"], [picture(64, 64), picture(30, 64)])
    result = evaluate("bicubic", photos, 2, lpips=squeeze)
    assert result.lpips_net is None and "small" in result.lpips_reason and result.mean["lpips"] is None
    assert squeeze.net == "squeeze"


def test_json_layout(tmp_path):
    rows = [{"name": "a", "psnr_y": math.inf, "psnr_rgb": 30., "ssim_y": 1., "ssim_rgb": .9, "lpips": None}]
    e = Evaluation("set", 2, 2, "bicubic", None, "none here", rows)
    e.save(tmp_path/"e.json")
    d = json.loads((tmp_path/"e.json").read_text())
    assert set(d) == {"dataset", "scale", "border", "lr_source", "lpips_net", "mean", "notes", "images"}
    assert set(d["mean"]) == set(METRICS) and set(d["images"][0]) == {"name", *METRICS}
    assert d["mean"]["psnr_y"] == "inf" and d["mean"]["lpips"] is None and d["lpips_net"] is None


def test_tables_escape_and_stay_small():
    rows = [{"name": f"<b>{k}</b>", "psnr_y": 30., "psnr_rgb": 29., "ssim_y": .9, "ssim_rgb": .9, "lpips": .1} for k in range(800)]
    e = Evaluation("<i>set</i>", 2, 2, "bicubic", "squeeze", "", rows)
    page = e._repr_html_()
    assert "<b>" not in page and "<i>" not in page and len(page) < 20_000 and "LPIPS (squeeze)" in page
    assert "760 more" in str(e) and "30.00" in str(e)


# the protocol's figures

@pytest.mark.parametrize("name, scale, db, similarity", [
    ("set5", 2, 33.68, .9304), ("set5", 4, 28.43, .8113), ("set14", 2, 30.235, .8692), ("set14", 4, 26.00, .7030)])
def test_bicubic_reproduces_the_protocol(shared, name, scale, db, similarity):
    photos = Photos.open(shared(f"data/{name}"))
    made = evaluate("bicubic", photos, scale, lpips="none").mean
    given = evaluate("bicubic", photos, scale, shared(f"data/{name}/LR_bicubic"), lpips="none").mean
    for m in (made, given): assert abs(m["psnr_y"] - db) < .03 and abs(m["ssim_y"] - similarity) < .001


def test_a_long_evaluation_says_how_far_it_is(monkeypatch, caplog):
    "Where no bar is drawn, lines on the photos done; short ones are silent."
    from sr_distill.job import LogLines
    caplog.set_level("INFO")
    for name in ("FIRST", "OFTEN", "SELDOM"): monkeypatch.setattr(LogLines, name, 0.)
    ramp = np.tile(np.arange(2000, dtype=np.uint8)[None, :, None], (1300, 1, 3))
    evaluate("bicubic", Photos.from_arrays("abcdefghijkl", [ramp] * 12), lpips="none", ssim=False)
    told = [m for m in caplog.messages if m.startswith("evaluate: ")]
    assert told[0].startswith("evaluate: 12 photos, about ") and told[-1].startswith("evaluate: photo ") and told[-1].endswith(" left")
    caplog.clear()
    evaluate("bicubic", Photos.from_arrays("ab", [ramp[:80, :80]] * 2), lpips="none", ssim=False)
    assert not caplog.messages
