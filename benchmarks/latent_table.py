"""The paper's Tables 4 and 5 on ten photos: what does distilling through a prior give, beside fair rivals of the same size?

    python benchmarks/latent_table.py PHOTOS PRIOR TESTS OUT [--seeds 3]

PHOTOS is a folder of HR photos (ten are taken, evenly), PRIOR a name or file of a prior (taef2), TESTS a folder with set5, set14 and
photos/val.  All sets hold ten images of 256², made at ×2; models are trained for equal steps, on one thread each.  Table 4: three
models at ×2.  Table 5: EDSR trained at ×4 on the same sets.  Every stage resumes.  Ends with tables in OUT/tables.md and results in
OUT/results.json; with --publish also in nbs/results/latent.json.
"""
import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sr_distill.core import rng, write_json
from sr_distill.data import Photos
from sr_distill.distill import distill, open_photos, summary
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.train import train

BASE = Recipe(size=256, init="downscaled", steps=100, invert=10)
MODELS = {"EDSR 4×32 ×2": ("edsr", 2, 4, 32, 400), "VDSR 8×32 ×2": ("vdsr", 2, 8, 32, 200), "SRCNN 9-1-5 ×2": ("srcnn", 2, None, None, 800),
          "EDSR 4×32 ×4": ("edsr", 4, 4, 32, 300)}   # name, scale, depth, width, steps
TESTS = {"Set5": "set5", "Set14": "set14", "photos/val": "photos/val"}

def recipes(prior, seed) -> dict:
    "Name of a set → its recipe; those without steps do not depend on the seed."
    latent = replace(BASE, space="latent", prior=prior)
    return {"downscaled": replace(BASE, steps=0), "hardest": replace(BASE, init="hardest", steps=0), "GAN inversion": replace(latent, steps=0),
            "latent distilled": replace(latent, seed=seed), "pixel distilled": replace(BASE, seed=seed)}

def stem(name, seed, recipe): return name.replace(" ", "-") + (f"-{seed}" if recipe.steps else "")

def score(job):
    "Train one model on one set with one seed and judge it on every test set."
    folder, tests, out, name, model, seed = job
    torch.set_num_threads(1)
    kind, scale, depth, width, steps = MODELS[model]
    file = out / "scores" / f"{Path(folder).name}-{kind}{scale}-{steps}-{seed}.json"
    if not file.exists():
        photos = open_photos(folder)
        if name == "all photos": photos = ten(photos)
        config = TrainConfig.for_model(kind, scale=scale, depth=depth, width=width, steps=steps, seed=seed)
        net = train(make_model(kind, scale, depth, width, generator=rng(seed, "model")), photos, config, device="cpu").model
        means = {test: evaluate(net, Photos.open(tests / place), scale, lpips="none").mean for test, place in TESTS.items()}
        write_json(file, {test: {k: v for k, v in mean.items() if v is not None} for test, mean in means.items()})
    return name, model, seed, json.loads(file.read_text())

def ten(photos): return photos.subset(np.linspace(0, len(photos) - 1, 10).astype(int).tolist())

def cell(runs, test):
    "Mean ± standard deviation of RGB PSNR over the seeds."
    values = [r[test]["psnr_rgb"] for r in runs]
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos", type=Path), p.add_argument("prior"), p.add_argument("tests", type=Path), p.add_argument("out", type=Path)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    p.add_argument("--publish", action="store_true")
    args = p.parse_args()
    for name in ("sets", "scores"): (args.out / name).mkdir(parents=True, exist_ok=True)
    photos, folders, about = ten(Photos.open(args.photos)), {}, {}
    for seed in range(args.seeds):
        folders["all photos", seed] = args.photos
        for name, recipe in recipes(args.prior, seed).items():
            began = time.time()
            s = distill(photos, recipe, args.out / "sets" / stem(name, seed, recipe), RunOptions(device="cpu"))
            folders[name, seed] = s.folder
            report = s.manifest["report"]
            about[stem(name, seed, recipe)] = dict(pixels=s.budget.shares["pixels"], bytes=s.budget.shares["bytes"], moved=report["moved"], matching_loss=report["matching_loss"], latent=report.get("latent"))
            print(f"{name}, seed {seed}: {s.budget.shares['pixels']:.2f} % of pixels, {s.budget.shares['bytes']:.2f} % of bytes. {summary(report)} This call {time.time() - began:.0f} s", flush=True)
    bicubic = {scale: {t: evaluate("bicubic", Photos.open(args.tests / place), scale, lpips="none").mean for t, place in TESTS.items()} for scale in (2, 4)}
    jobs = [(folders[name, seed], args.tests, args.out, name, model, seed) for seed in range(args.seeds) for model in args.models for name in ["all photos", *recipes(args.prior, 0)]]
    results = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, model, seed, scores in pool.map(score, jobs):
            results.setdefault((model, name), []).append(scores)
            print(f"{model}, {name}, seed {seed}: " + ", ".join(f"{t} {scores[t]['psnr_rgb']:.2f}" for t in TESTS), flush=True)
    lines = []
    for model in args.models:
        _, scale, _, _, steps = MODELS[model]
        lines += [f"\n**{model}**, {steps} steps, PSNR-RGB in dB, {args.seeds} seeds, mean ± standard deviation\n", "| trained on | " + " | ".join(TESTS) + " |", "|:--|" + "--:|" * len(TESTS),
                  "| bicubic | " + " | ".join(f"{bicubic[scale][t]['psnr_rgb']:.2f}" for t in TESTS) + " |"]
        lines += [f"| {name} | " + " | ".join(cell(results[model, name], t) for t in TESTS) + " |" for name in ["all photos", *recipes(args.prior, 0)]]
    (args.out / "tables.md").write_text("\n".join(lines) + "\n")
    stored = dict(recipe=BASE.to_dict(), prior=Path(args.prior).name, photos=photos.names, models={m: MODELS[m] for m in args.models}, seeds=args.seeds, sets=about,
                  bicubic={str(k): {t: m["psnr_rgb"] for t, m in v.items()} for k, v in bicubic.items()},
                  rows=[dict(model=m, set=n, psnr_rgb={t: [r[t]["psnr_rgb"] for r in runs] for t in TESTS}) for (m, n), runs in results.items()])
    write_json(args.out / "results.json", stored)
    if args.publish: write_json(Path(__file__).resolve().parents[1] / "nbs/results/latent.json", stored)
    print("\n".join(lines))

if __name__ == "__main__": main()
