"""Small runs give the bits that they gave in the last release: what changes the code, but no result, shows here that it does not.

Floating-point sums differ from one kind of processor and one build of PyTorch to another, so `bits.json` keeps the hashes by
both, and a machine that is not in it skips these tests.  `python tests/test_bits.py` writes the hashes of this machine.
"""
import json
import platform
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sr_distill.core import json_sha256, read_json, rng, state_sha256
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.models import make_model
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.study import run_study, study_from
from sr_distill.train import train

KEPT = Path(__file__).with_name("bits.json")
SMALL = Recipe(size=32, networks=2, real=2, pool="random", steps=4)
RECIPES = {
    "layerwise": SMALL,
    "whole, SGD, a network that learns in between": replace(SMALL, objective="whole", optimizer="sgd", lr=10., pool="fresh", outer=2, inner=1),
    "magnitude, trajectory": replace(SMALL, objective="magnitude", pool="trajectory"),
    "features": replace(SMALL, objective="features", networks=3),
    "diverse, all photos, two images": replace(SMALL, init="diverse", grouping="all", ipc=2),
    "clusters, hard targets, noise": replace(SMALL, init="noise", grouping="cluster", clusters=2, target="hard"),
    "error start, trimmed, a VDSR": replace(SMALL, init="error", trim=5., network="vdsr", steps=1),
    "teacher's labels": replace(SMALL, steps=0, labels="teacher", teacher_steps=2),
}
TRAININGS = {
    "edsr": TrainConfig.for_model("edsr", depth=2, width=4, steps=6, patch=24),
    "vdsr by error": TrainConfig.for_model("vdsr", depth=3, width=4, steps=6, patch=24, sampling="error"),
}
STUDY = dict(photos="", held_out=1, seeds=1, ssim=False, sets=dict(hardest=dict(steps=0, size=32), all=dict(all=True)),
             models=dict(v=dict(model="vdsr", depth=2, width=4, steps=4, patch=24)))


def photos(folder: Path) -> Path:
    "Five small pictures of waves and edges, the same on every machine."
    from PIL import Image
    folder.mkdir(exist_ok=True)
    y, x = np.mgrid[:72, :80]
    for k in range(5):
        waves = [127 + 60 * ((x * (k + 2 + c) // 16 + y // 7) % 2) - (x * y * (k + 1) // 97 + 31 * c) % 61 for c in range(3)]
        Image.fromarray(np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)).save(folder / f"{k}.png")
    return folder

def machine() -> str:
    "What the last digits depend on: the build of PyTorch, and the processor, by which its libraries choose their code."
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", listed.read_text(encoding="utf-8")) if listed.exists() else []
    return f"torch {torch.__version__}, {names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"

def bits_of_set(name: str, folder: Path) -> str:
    made = distill(Photos.open(photos(folder / "photos")), RECIPES[name], folder / "set", RunOptions(device="cpu", held_out=0, chunk=2))
    return json_sha256([made.images.tolist(), made.trace.losses])

def bits_of_training(name: str, folder: Path) -> str:
    config = TRAININGS[name]
    net = make_model(config.model, config.scale, config.depth, config.width, generator=rng(0, "model"))
    made = train(net, Photos.open(photos(folder / "photos")), config, folder / "model", device="cpu")
    return state_sha256(made.model.state_dict())

def bits_of_study(folder: Path) -> str:
    results = run_study(study_from({**STUDY, "photos": str(photos(folder / "photos"))}), folder / "study", jobs=1)
    return json_sha256([[r["set"], r["test"], r["psnr_y"], r["psnr_rgb"]] for r in results.rows])

RUNS = {**{f"set: {name}": partial(bits_of_set, name) for name in RECIPES},
        **{f"training: {name}": partial(bits_of_training, name) for name in TRAININGS}, "study": bits_of_study}


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)   # as when the hashes were written
    yield
    torch.set_num_threads(threads)

@pytest.mark.parametrize("run", RUNS)
def test_a_small_run_keeps_its_bits(run, tmp_path, one_thread):
    kept = read_json(KEPT).get(machine())
    if kept is None: pytest.skip("no bits of this kind of processor and PyTorch are kept (python tests/test_bits.py writes them)")
    assert RUNS[run](tmp_path) == kept[run], f"{run}: other bits than in the last release"


if __name__ == "__main__":
    import tempfile
    torch.set_num_threads(1)
    found = {}
    for run, bits in RUNS.items():
        with tempfile.TemporaryDirectory() as folder: found[run] = bits(Path(folder))
        print(found[run][:12], run, file=sys.stderr)
    KEPT.write_text(json.dumps({**(read_json(KEPT) if KEPT.exists() else {}), machine(): found}, indent=1) + "\n", encoding="utf-8")
