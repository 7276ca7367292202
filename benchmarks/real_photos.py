"""The main job on real photos: distil them, then train three models on the results and on their rivals.

    python benchmarks/real_photos.py SHARED OUT [--seeds 3]

SHARED is a folder that holds photos/train, photos/val, set5 and set14.  Every stage resumes, so the
same command goes on where it stopped; it ends with a table, `table.md` and `results.json` in OUT.  Each model is trained
on one thread.
"""
import argparse, json, os, resource, statistics, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from sr_distill.core import rng, write_json
from sr_distill.data import Photos
from sr_distill.distill import distill, open_photos, summary
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.train import train

SMALL = Recipe(size=64, steps=300, networks=8, real=24)
LARGE = Recipe(size=192, steps=100, networks=4, real=3)
RECIPES = {
    "downscaled 64²": replace(SMALL, init="downscaled", steps=0),
    "downscaled 64², distilled": replace(SMALL, init="downscaled"),
    "hardest 64²": replace(SMALL, init="hardest", steps=0),
    "hardest 64², distilled": replace(SMALL, init="hardest"),
    "hardest 192²": replace(LARGE, steps=0),
    "hardest 192², distilled": LARGE,
}
MODELS = {"VDSR 8×32": ("vdsr", 8, 32, 300), "EDSR 4×32": ("edsr", 4, 32, 800), "SRCNN 9-1-5": ("srcnn", None, None, 2500)}   # name, depth, width, steps
TESTS = {"Set5": "set5", "Set14": "set14", "photos/val": "photos/val"}

def slug(name): return name.replace("²", "").replace(", ", "-").replace(" ", "-")

def distil_all(photos, out, only):
    "Every set, with what it cost in seconds and memory."
    for name, recipe in RECIPES.items():
        if only not in name: continue
        began = time.time()
        s = distill(photos, recipe, out / "sets" / slug(name), RunOptions(device="cpu"))
        print(f"{name}: {s.budget}; {summary(s.manifest['report'])} This call {time.time() - began:.0f} s, "
              f"peak resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)

def score(job):
    "Train one model on one set with one seed and evaluate it on every test set."
    shared, out, name, model, seed = job
    torch.set_num_threads(1)
    kind, depth, width, steps = MODELS[model]
    file = out / "scores" / f"{slug(name)}-{kind}-{steps}-{seed}.json"
    if not file.exists():
        photos = open_photos(shared / "photos/train" if name == "all photos" else out / "sets" / slug(name))
        config = TrainConfig.for_model(kind, depth=depth, width=width, steps=steps, batch=8, patch=48, seed=seed)
        net = train(make_model(kind, 2, depth, width, generator=rng(seed, "model")), photos, config, device="cpu").model
        means = {test: evaluate(net, Photos.open(shared / folder), 2, lpips="none").mean for test, folder in TESTS.items()}
        write_json(file, {test: {k: v for k, v in mean.items() if v is not None} for test, mean in means.items()})
    return name, model, seed, json.loads(file.read_text())

def table(results, bicubic):
    "Markdown: mean ± standard deviation over seeds of PSNR-RGB, one row per model and set."
    lines = ["| model | trained on | " + " | ".join(f"{t} RGB dB" for t in TESTS) + " |", "|:--|:--|" + "--:|" * len(TESTS)]
    lines.append("| – | bicubic | " + " | ".join(f"{bicubic[t]['psnr_rgb']:.2f}" for t in TESTS) + " |")
    for (model, name), runs in results.items():
        values = {t: [r[t]["psnr_rgb"] for r in runs] for t in TESTS}
        cell = lambda v: f"{statistics.mean(v):.2f} ± {statistics.stdev(v) if len(v) > 1 else 0:.2f}"
        lines.append(f"| {model} | {name} | " + " | ".join(cell(values[t]) for t in TESTS) + " |")
    return "\n".join(lines)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shared", type=Path), p.add_argument("out", type=Path)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--workers", type=int, default=os.cpu_count(), help="models trained at once")
    p.add_argument("--train", action="store_true", help="distil nothing, train on the sets that are there")
    p.add_argument("--only", default="", help="distil only the sets with this in their name, and train nothing")
    args = p.parse_args()
    for folder in ("sets", "scores"): (args.out / folder).mkdir(parents=True, exist_ok=True)
    if not args.train: distil_all(Photos.open(args.shared / "photos/train"), args.out, args.only)
    if args.only: return
    names = ["all photos", *(n for n in RECIPES if (args.out / "sets" / slug(n) / "manifest.json").exists())]
    bicubic = {t: evaluate("bicubic", Photos.open(args.shared / folder), 2, lpips="none").mean for t, folder in TESTS.items()}
    jobs = [(args.shared, args.out, n, m, s) for s in range(args.seeds) for m in MODELS for n in names]
    results = {}
    with ProcessPoolExecutor(args.workers) as pool:
        for name, model, seed, scores in pool.map(score, jobs):
            results.setdefault((model, name), []).append(scores)
            print(f"{model}, {name}, seed {seed}: " + ", ".join(f"{t} {scores[t]['psnr_rgb']:.2f}" for t in TESTS), flush=True)
    ordered = {(m, n): results[m, n] for m in MODELS for n in names}
    text = table(ordered, bicubic)
    (args.out / "table.md").write_text(text + "\n")
    write_json(args.out / "results.json", dict(models=MODELS, seeds=args.seeds, bicubic=bicubic, rows=[dict(model=m, set=n, runs=r) for (m, n), r in ordered.items()]))
    print("\n" + text)

if __name__ == "__main__": main()
