"""Bits in the loss: the estimate follows the files, its gradient makes them smaller, and a budget holds what comes out."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import features

from sr_distill import distill as loop
from sr_distill.codec import bits_gradient, coded, estimated_bits
from sr_distill.core import to_tensor
from sr_distill.data import Photos, encode_image
from sr_distill.distill import distill, set_bytes
from sr_distill.recipe import Recipe, RunOptions, UserError

OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=0)
RECIPE = Recipe(size=48, steps=12, networks=1, pool="random", real=2, init="hardest", format="avif", bit_weight=30.)
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


@pytest.fixture
def photos(): return Photos.open("embedded").subset([0, 1])


@pytest.mark.parametrize("size", [(48, 48), (21, 30)])
def test_the_gradient_goes_straight_through_and_the_estimate_has_its_own(photos, size):
    x = to_tensor(photos[0][:size[0], :size[1]]).requires_grad_()
    seen = coded(x, 40)
    assert seen.shape == x.shape and .005 < float((seen - x).detach().abs().mean()) < .1
    assert torch.autograd.grad((3 * seen).sum(), x)[0].eq(3).all()
    y = x.detach().double()
    step = 1e-6 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (bits_gradient(y) * step).sum() * size[0] * size[1]
    assert torch.allclose(estimated_bits(y + step) - estimated_bits(y - step), 2 * slope, rtol=1e-2)


@needs_avif
def test_the_estimate_ranks_windows_as_the_files_do(photos):
    cuts = [u8[y:y+48, x:x+48] for u8 in photos for y in range(0, 240, 48) for x in range(0, 240, 48)]
    bits, files = [float(estimated_bits(to_tensor(u8)[0])) for u8 in cuts], [len(encode_image(u8, "avif", 75)) for u8 in cuts]
    assert np.corrcoef(bits, files)[0, 1] > .8


@needs_avif
def test_the_same_images_take_fewer_bytes_with_more_weight_and_a_cut_run_goes_on(photos, tmp_path, monkeypatch):
    made = {w: distill(photos, replace(RECIPE, bit_weight=w), tmp_path / str(w), OPTIONS) for w in (0., 30.)}
    taken = {w: set_bytes(m.folder)["images"] for w, m in made.items()}
    bits = made[30.].manifest["report"]["bits"]
    assert taken[30.] == bits["after"]["files"] < taken[0.] and bits["after"]["estimated"] < bits["before"]["estimated"]
    assert "bits" not in made[0.].manifest["report"] and f"{taken[30.]:,} after" in loop.summary(made[30.].manifest["report"])
    step, calls = loop.Run.step, []
    def stops(run):
        if len(calls) == 7: raise KeyboardInterrupt
        calls.append(step(run))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "step", stops)
        with pytest.raises(KeyboardInterrupt): distill(photos, RECIPE, tmp_path / "cut", replace(OPTIONS, checkpoint=3))
    assert np.array_equal(distill(photos, RECIPE, tmp_path / "cut", OPTIONS).images, made[30.].images)
    with pytest.raises(UserError, match="--bit-weight 30"): distill(photos, replace(RECIPE, bit_weight=9.), tmp_path / "30.0", OPTIONS)


@needs_avif
def test_a_budget_begins_with_more_and_ends_within(photos, tmp_path):
    made = {w: distill(photos, replace(RECIPE, bit_weight=w, bytes="8kB", steps=8), tmp_path / str(w), OPTIONS) for w in (0., 30.)}
    assert all(set_bytes(m.folder)["images"] <= 8000 for m in made.values()) and len(made[30.]) > len(made[0.])
    begun = 2 * made[30.].recipe.ipc
    assert made[30.].manifest["report"].get("left_out", 0) == begun - len(made[30.])
