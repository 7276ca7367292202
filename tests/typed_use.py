"""What people write, for pyright (`pyrightconfig.json`): no call of the public API may look wrong to an editor."""
from pathlib import Path

import numpy as np
import torch

import sr_distill as sd


def the_main_job(folder: Path) -> float:
    photos, held_out = sd.Photos.open("embedded").split(2, seed=0)
    small = sd.distill(photos, sd.Recipe(size=48, steps=20, budget=1.5, layer=None), folder / "set", sd.RunOptions(device="cpu"))
    config = sd.TrainConfig.for_model("vdsr", depth=4, width=16, steps=100, patch=32)
    network = sd.make_model("vdsr", scale=2, depth=4, width=16, generator=sd.rng(0, "model"))
    model: torch.nn.Module = sd.train(network, small.photos, config, folder / "model", val=held_out).model
    scores = sd.evaluate(model, held_out, scale=2, lpips="none", beside=True)
    return scores.mean["psnr_y"] - sd.evaluate("bicubic", held_out, lr_dir=str(folder)).mean["psnr_y"]


class Watch:
    "A callback: it looks at the loss and stops the run."
    stopped = False
    def __call__(self, step: int, loss: float | None, images: np.ndarray | None): self.stopped = loss is not None and loss < .01


def watched(folder: str) -> None:
    photos = sd.Photos.open("embedded")
    sd.distill(photos, sd.Recipe(), folder, callback=Watch())
    sd.train(sd.make_model("srcnn"), photos, sd.TrainConfig("srcnn"), callback=Watch())


@sd.register_model("tiny")
class Tiny(torch.nn.Module):
    def __init__(self, scale: int = 2):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 3 * scale * scale, 3, padding=1)
        self.scale = scale
    def forward(self, lr: torch.Tensor) -> torch.Tensor: return torch.nn.functional.pixel_shuffle(self.body(lr), self.scale)


@sd.register_metric("worst", lower=True)
def worst(sr: np.ndarray, hr: np.ndarray) -> float: return float(np.abs(sr.astype(int) - hr).max())


@sd.register_objective("mine")
def mine(s: list[torch.Tensor], r: list[torch.Tensor]) -> torch.Tensor: return sum(((a - b)**2).sum() for a, b in zip(s, r)) + torch.zeros(())


def more(folder: Path) -> None:
    model = sd.load_model(folder / "model")
    sd.save_model(model, folder / "copy", note="a copy")
    sd.upscale(model, folder / "photo.png", folder / "large")
    stored = sd.DistilledSet.load(folder / "set")
    print(len(stored), stored.photos.fingerprint, Tiny(3).scale, worst(stored.images[0], stored.images[0]))
    sd.study(folder / "study.toml", folder / "out", jobs=1)
    try: sd.Recipe.from_dict({"steps": -1})
    except sd.UserError as e: raise SystemExit(e.exit_code) from None
