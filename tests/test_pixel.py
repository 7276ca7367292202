"""Starts: the score by loss on any grid, margins, and the largest seeds."""
import numpy as np
import pytest
import torch, torch.nn.functional as F

from sr_distill import pixel
from sr_distill.core import rng, to_tensor
from sr_distill.data import Photos, downscale, upscale
from sr_distill.models import make_model
from sr_distill.patches import Groups, window_means, windows
from sr_distill.pixel import start_images
from sr_distill.recipe import Recipe


@pytest.fixture
def tall():
    "A photo of more than one strip, with sides that are no multiples."
    noise = np.random.default_rng(0).integers(0, 256, (701, 65, 3), dtype=np.uint8)
    return Photos.from_arrays(["tall"], [noise // 2 + np.roll(noise, 1, 0) // 4 + np.roll(noise, 1, 1) // 4])


class Far(torch.nn.Module):
    "Bicubic, moved down by 24 pixels: what it answers at a place depends on pixels that far away."
    def __init__(self, scale):
        super().__init__()
        self.scale, self.margin = scale, 24 // scale + 2
    def forward(self, lr): return F.pad(upscale(lr, self.scale), (0, 0, 24, 0))[..., :lr.shape[2] * self.scale, :]


@pytest.mark.parametrize("make", [lambda scale: make_model("srcnn", scale, generator=rng(0)), Far])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_strips_leave_no_seam_in_the_loss(tall, monkeypatch, make, scale):
    net = make(scale)
    monkeypatch.setattr(pixel, "_scout", lambda *a: net)
    height, width = (side // scale * scale for side in tall.sizes[0])
    hr = to_tensor(tall[0][:height, :width])
    with torch.no_grad(): error = (net(downscale(hr, scale)) - hr).square().mean(1)[0].numpy()
    ys, xs = windows(height, 24, 12), windows(width, 24, 12)
    assert np.allclose(pixel.score_loss(Groups(tall, "all", 24, 12), Recipe(scale=scale, size=24))(0, ys, xs), window_means(error, ys, xs, 24), rtol=.01)   # the reduction itself reaches a little further


def test_start_by_loss_at_scale_3(tall, monkeypatch):
    monkeypatch.setattr(pixel, "SCOUT_STEPS", 2)
    assert start_images(Groups(tall, "image", 24, 12), Recipe(init="loss", scale=3, size=24, ipc=2)).shape == (2, 24, 24, 3)


def test_the_largest_seeds(tall):
    for seed in (2**32, 2**70):
        assert len(start_images(Groups(tall, "cluster", 24, 12, 3, seed), Recipe(init="diverse", grouping="cluster", clusters=3, size=24, seed=seed))) == 3


@pytest.mark.parametrize("init", ["loss", "gradient"])
def test_clusters_share_the_map_of_a_photo(monkeypatch, init):
    groups, recipe, seen = Groups(Photos.open("embedded").subset([0, 1]), "cluster", 48, 24, 3), Recipe(init=init, grouping="cluster", clusters=3, size=48), []
    plain = lambda groups, recipe: lambda p, ys, xs: seen.append(p) or np.outer(np.arange(len(ys)) + 1., np.arange(len(xs)) + p + 1.)
    monkeypatch.setitem(pixel.INITS._entries, init, plain)
    assert len(start_images(groups, recipe)) == 3 and sorted(seen) == sorted(set(seen))
