"""Does a small set still hold at a training length and a model size that people use?  Full-size EDSR, then SPAN, one training after another.

    python benchmarks/long_gpu.py PHOTOS VAL OUT --seconds 300 --steps 30000

PHOTOS is a folder of HR photos, VAL one of photos to be judged by.  EDSR with 16 blocks of 64 channels, batch 16, patches of
96², on all the photos (drawn uniformly and by error), on the hardest windows and on those distilled, at 2 and at 8.88 per
cent of the pixels.  All sets come first with one seed, then with the next; SPAN follows where spandrel is installed.  A training that would not end within
--seconds is not begun; rows that are there (OUT/long-DEVICE.json) are not made again and the sets lie in OUT/sets-DEVICE, so
a second day goes on.  The exit status is 75 while something is left to do.
"""
import argparse
import importlib.util
import itertools
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sr_distill.core import rng, write_json
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.train import train

CHOSEN = Recipe(init="hardest", size=96, steps=0)
DISTILLED = replace(CHOSEN, steps=100, networks=6, objective="magnitude", target="hard", lr=.003)
SETS = {"all photos, uniform": (None, "uniform"), "all photos, by error": (None, "error"),
        "hardest, 2 %": (replace(CHOSEN, budget=2), "uniform"), "distilled, 2 %": (replace(DISTILLED, budget=2), "uniform"),
        "hardest, 8.88 %": (replace(CHOSEN, budget=8.88), "uniform"), "distilled, 8.88 %": (replace(DISTILLED, budget=8.88), "uniform")}

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos", type=Path), p.add_argument("val", type=Path), p.add_argument("out", type=Path)
    p.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    p.add_argument("--seconds", type=float, default=1e9)
    p.add_argument("--steps", type=int, default=30000)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--float32", action="store_true", help="no mixed precision")
    p.add_argument("--tiny", action="store_true", help="a dry run: a few steps of a small model")
    args = p.parse_args()
    began, file = time.perf_counter(), args.out / f"long-{args.device}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else dict(rows=[])
    photos, val = Photos.open(args.photos), Photos.open(args.val)
    steps, depth, width = (8, 2, 8) if args.tiny else (args.steps, 16, 64)
    amp = args.device == "cuda" and not args.float32
    sizes = {"edsr": dict(depth=depth, width=width), "spandrel:SPAN": dict(width=8) if args.tiny else {}}
    if importlib.util.find_spec("spandrel") is None: sizes.pop("spandrel:SPAN"), print("no SPAN: pip install spandrel")
    configs = {model: TrainConfig.for_model(model, **size, **dict(steps=steps, batch=16, patch=96, lr=4e-4, amp=amp, checkpoint=10**6))
               for model, size in sizes.items()}
    known |= dict(config=asdict(configs["edsr"]), device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu", torch=torch.__version__,
                  photos=len(photos), pixels=photos.pixels, val=len(val), sets={k: r and asdict(r) for k, (r, _) in SETS.items()})
    def left(): return args.seconds - (time.perf_counter() - began)
    def done(*what): return any((r.get("model", "edsr"), r["set"], r["seed"], r["steps"]) == (*what, steps) for r in known["rows"])
    made, longest = {}, {}
    for model, seed in itertools.product(configs, range(args.seeds)):
        for name, (recipe, sampling) in SETS.items():
            if done(model, name, seed): continue
            if left() < 1.1 * longest.get(model, 0):
                print(f"{left():.0f} s are left, a training takes {longest[model]:.0f} s: the rest is for another day")
                return 75
            if recipe and name not in made:   # a set is made once, with seed 0: what differs is the training
                recipe = replace(recipe, steps=min(recipe.steps, 2), networks=2, budget=20) if args.tiny else recipe
                t = time.perf_counter()
                folder = args.out / f"sets-{args.device}" / name.replace(" %", "").replace(", ", "-")
                made[name] = distill(photos, recipe, folder, RunOptions(device=args.device, held_out=0))
                print(f"{name}: made in {time.perf_counter() - t:.0f} s", flush=True)
            source, t = made[name].photos if recipe else photos, time.perf_counter()
            net = make_model(model, 2, **sizes[model], generator=rng(seed, "weights"))
            result = train(net, source, replace(configs[model], seed=seed, sampling=sampling), device=args.device)
            seconds = time.perf_counter() - t
            scores = evaluate(result.model, val, 2, lpips="none", ssim=False)
            longest[model] = max(longest.get(model, 0), time.perf_counter() - t)
            known["rows"].append(dict(model=model, set=name, seed=seed, steps=steps, sampling=sampling, images=len(source), pixels=source.pixels / photos.pixels,
                                      seconds=seconds, psnr_y=scores.mean["psnr_y"], psnr_rgb=scores.mean["psnr_rgb"], loss=result.history[-1]["loss"]))
            write_json(file, known)
            print(known["rows"][-1], flush=True)
    return 0

if __name__ == "__main__": sys.exit(main())
