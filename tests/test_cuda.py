"""Whole runs on a real GPU, each beside the same run on the CPU: they take the same road and end at the same place but for rounding."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import features

from sr_distill import fitting
from sr_distill.core import rng
from sr_distill.data import Photos
from sr_distill.distill import distill, open_photos
from sr_distill.metrics import evaluate, upscale_image
from sr_distill.models import make_model, save_model
from sr_distill.procedural import Endless, Mixture, hand_written
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.train import Trainer, train
from test_contracts import NETWORKS, small

pytestmark = pytest.mark.cuda
DEVICE, AVIF = "cuda", "avif" if features.check("avif") else "webp"
PHOTOS = Photos.open("embedded").subset([0, 1, 2])
PIXELS = Recipe(size=48, steps=12, networks=2, real=4, pool="random", init="hardest")
OPTIONS = RunOptions(held_out=0, snapshots=2)


def teacher(): return make_model("srcnn", 2, width=8, generator=rng(3))
def network(): return make_model("edsr", 2, 2, 16, generator=rng(0))

# ---- training

SOURCES = {
    "photos": lambda: PHOTOS,
    "a program": lambda: Endless(hand_written(PHOTOS), 8, 96, 32),
    "a program with a teacher": lambda: Endless(hand_written(PHOTOS), 8, 96, 32, teacher=teacher()),
    "both": lambda: Mixture(PHOTOS, Endless(hand_written(PHOTOS), 8, 96, 32), .5),
}
CONFIG = TrainConfig(model="edsr", steps=60, batch=4, patch=32, lr=2e-3)

@pytest.mark.parametrize("source", SOURCES)
def test_a_training_loses_what_it_loses_on_the_cpu(source):
    losses = {d: [row["loss"] for row in train(network(), SOURCES[source](), CONFIG, device=d).history] for d in ("cpu", DEVICE)}
    assert np.allclose(losses["cpu"], losses[DEVICE], rtol=5e-3) and losses[DEVICE][-1] < losses[DEVICE][0]

@pytest.mark.parametrize("changes", [dict(), dict(clip=.1), dict(ema=.9)], ids=str)
def test_recorded_mixed_precision_loses_nearly_what_float32_loses(changes):
    config = replace(CONFIG, **changes)
    plain, mixed = (train(network(), PHOTOS, replace(config, amp=amp), device=DEVICE) for amp in (False, True))
    losses = [[row["loss"] for row in result.history] for result in (plain, mixed)]
    assert np.allclose(*losses, rtol=.05) and losses[0] != losses[1]
    assert next(mixed.model.parameters()).dtype == torch.float32
    made = Trainer(network().to(DEVICE), replace(config, amp=True), DEVICE)
    assert made.loss.forward.__qualname__.startswith("make_graphed_callables")   # recorded, in 16 bits too

@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_model_trains_recorded_or_not(name, amp, caplog):
    "A network that cannot be recorded says so and is trained all the same."
    caplog.set_level("INFO")
    net = small(name)
    config = TrainConfig(model=name, steps=8, batch=2, patch=32, lr=1e-3, amp=amp)
    history = train(net, PHOTOS, config, device=DEVICE).history
    assert np.isfinite(history[-1]["loss"])
    if not amp: assert abs(history[-1]["loss"] / train(small(name), PHOTOS, config, device="cpu").history[-1]["loss"] - 1) < .02
    print(name, "is not recorded" if "cannot be recorded" in caplog.text else "is recorded", caplog.text[-300:])

class Asks(torch.nn.Module):
    "A network that no graph can hold: it asks the CPU for a number in every pass."
    scale = 2
    def __init__(self): super().__init__(); self.up = torch.nn.ConvTranspose2d(3, 3, 4, 2, 1)
    def forward(self, x): return self.up(x) * (1 if x.mean().item() < 10 else 0)

def test_a_network_that_cannot_be_recorded_is_trained_all_the_same(caplog):
    caplog.set_level("INFO")
    history = train(Asks(), PHOTOS, replace(CONFIG, model="edsr", depth=None, width=None), device=DEVICE).history
    assert "Asks cannot be recorded as a CUDA graph" in caplog.text and history[-1]["loss"] < history[0]["loss"]
    again = train(network(), PHOTOS, CONFIG, device=DEVICE).history   # and the next one is recorded as if nothing had been
    assert np.isfinite(again[-1]["loss"])

# ---- distillation

SETS = {
    "magnitude": dict(objective="magnitude", target="hard"), "features": dict(objective="features"),
    "teacher's features": dict(objective="teacher-features", labels="teacher", teacher_steps=20), "bits": dict(format=AVIF, bit_weight=3. if AVIF == "avif" else 0.),
    "a sheet": dict(format="webp", sheet=True), "labels": dict(labels="teacher", teacher_steps=20),
    "in the loop": dict(pool="fresh", inner=1, outer=2),
}

@pytest.mark.parametrize("kind", SETS)
def test_a_distillation_ends_where_it_ends_on_the_cpu(kind, tmp_path):
    recipe = replace(PIXELS, **SETS[kind])
    cpu, gpu = (distill(PHOTOS, recipe, tmp_path / d, replace(OPTIONS, device=d)) for d in ("cpu", DEVICE))
    assert cpu.images.shape == gpu.images.shape and np.abs(cpu.images.astype(int) - gpu.images).mean() < .5

@pytest.mark.parametrize("fit", ["training", "late"])
def test_a_program_is_fitted_on_a_gpu(fit, tmp_path, monkeypatch):
    "The photos judge networks that the GPU trains; the changes that are tried first are those of the CPU."
    for name, value in (("TRIAL", fitting.TRIAL | dict(width=8, steps=30, batch=4)), ("JUDGES", 2), ("JUDGED", 48), ("DRAWN", dict(window=2, side=64)),
                        ("LEARNERS", dict(edsr=dict(depth=1, width=8), vdsr=dict(depth=2, width=8))), ("BEGUN", 30), ("GOING_ON", 10)):
        monkeypatch.setattr(fitting, name, value)
    made = distill(PHOTOS, Recipe(space="procedural", steps=4, fit=fit), tmp_path / "set", replace(OPTIONS, device=DEVICE))
    report = made.manifest["report"]["fit"]
    assert report["by"] == fit and report["before"] < -10 and report["after"] < report["before"] + .5

def test_a_set_that_stores_its_teacher_opens_and_trains(tmp_path):
    net = save_model(teacher(), tmp_path / "net")
    recipe = Recipe(space="procedural", share=.5, size=48, steps=0, init="random", labels=str(net), store="teacher", format="webp", views=.75)
    made = {d: distill(PHOTOS, recipe, tmp_path / d, replace(OPTIONS, device=d)) for d in ("cpu", DEVICE)}
    assert made["cpu"].budget == made[DEVICE].budget
    source = open_photos(tmp_path / DEVICE)
    losses = [[row["loss"] for row in train(network(), source, replace(CONFIG, steps=40), device=d).history] for d in ("cpu", DEVICE)]
    assert np.allclose(*losses, rtol=5e-3)

# ---- using the result

def test_scores_and_enlarged_pictures_are_those_of_the_cpu(tmp_path):
    net = train(network(), PHOTOS, CONFIG, device="cpu").model
    scores = {d: evaluate(net.to(d), PHOTOS, 2, lpips="none").mean for d in ("cpu", DEVICE)}
    assert all(abs(scores["cpu"][k] - scores[DEVICE][k]) < 1e-3 for k in ("psnr_y", "psnr_rgb", "ssim_rgb"))
    pictures = [upscale_image(net.to(d), PHOTOS.lr(0, 2), 2) for d in ("cpu", DEVICE)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1
