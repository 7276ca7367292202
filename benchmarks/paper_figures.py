"""The paper's Figures 3 and 4: how images evolve over the steps, and what trained models make of a photo; and the leaderboard's smallest set.

    python benchmarks/paper_figures.py evolution PHOTOS --publish      five recipes on two photos: nbs/images/paper-evolution.webp
    python benchmarks/paper_figures.py crops OUT VAL --publish         nbs/images/paper-crops.webp
    python benchmarks/paper_figures.py smallest OUT PHOTOS --publish   nbs/images/paper-smallest.webp

PHOTOS and VAL are the folders photos/train and photos/val; only photos that are CC0 are shown.  OUT is a folder that
`sr_distill study prior OUT` filled, for crops (its EDSRs for ×4 are asked), or `sr_distill study smallest OUT`, for smallest.
Without --publish the figures are written into the working folder.
"""
import argparse, csv, io, json, math, os
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt, numpy as np
from PIL import Image

from sr_distill.core import atomic_write, cache_dir, shared_dir
from sr_distill.data import Photos
from sr_distill.distill import DistilledSet, distill
from sr_distill.job import cache_key
from sr_distill.metrics import psnr, upscale_image
from sr_distill.models import load_model
from sr_distill.patches import window_errors
from sr_distill.recipe import Recipe

TRAIN, VAL = ("0004", "0006"), ("0001", "0003")   # kitten-on-lawn and motherboard-circuits; judged by two of the tests
COMMON = dict(size=128, objective="whole", networks=6, steps=100)
RECIPES = {"noise, random networks": dict(init="noise", pool="random"), "downscaled, random networks": dict(init="downscaled", pool="random"),
           "downscaled, trained networks": dict(init="downscaled"), "hardest, magnitude, hard target": dict(init="hardest", objective="magnitude", target="hard", lr=.003),
           "latents, trained networks": dict(space="latent", init="downscaled", invert=10)}
TRAINED = ("all photos", "downscaled", "hardest crops", "inversion", "latent distilled", "pixel distilled")

def evolution(folder, prior, columns=6):
    "A line per recipe, for each photo a column per snapshot, log-spaced from the start to the last step."
    photos = Photos.open(folder)
    photos = photos.subset([photos.names.index(n) for n in TRAIN])
    fig, axes = plt.subplots(len(RECIPES), columns * len(TRAIN), figsize=(.95 * columns * len(TRAIN), 1.2 * len(RECIPES)), layout="constrained")
    for line, (name, given) in zip(axes, RECIPES.items()):
        recipe = Recipe(**{**COMMON, **given, **({"prior": str(prior)} if given.get("space") else {})})
        trace = distill(photos, recipe, cache_dir()/"figures"/cache_key(photos.fingerprint, recipe)[:20]).trace   # made once
        wanted = {min(range(len(trace)), key=lambda k: abs(trace.steps[k] - s)) for s in (0, 3, 10, 30, 60, 100)}
        for j in range(len(TRAIN)):
            for ax, k in zip(line[j * columns:], sorted(wanted)): ax.imshow(trace.frame(k)[j]); ax.set_title(f"\nstep {trace.steps[k]}", fontsize=6)
        for ax in line: ax.axis("off")
        line[0].text(0, 1.19, name, transform=line[0].transAxes, fontsize=7, fontweight="bold").set_in_layout(False)
    return fig

def crops(out, folder, side=160, scale=4):
    "A line per photo: its hardest window as it is, enlarged by bicubic, and by an EDSR trained on each set."
    rows = [r for r in json.loads((out/"results.json").read_text())["rows"] if r["scale"] == scale and "model_folder" in r]
    seed = max(r["seed"] for r in rows)
    models = {"bicubic": "bicubic", **{n: load_model(out/"models"/next(r["model_folder"] for r in rows if (r["set"], r["seed"]) == (n, seed))) for n in TRAINED}}
    photos = Photos.open(folder)
    fig, axes = plt.subplots(len(VAL), 1 + len(models), figsize=(1.4 * (1 + len(models)), 1.7 * len(VAL)), layout="constrained")
    for line, name in zip(axes, VAL):
        i = photos.names.index(name)
        hr, lr = np.asarray(photos.hr(i, scale)), np.asarray(photos.lr(i, scale))
        ys, xs = (np.arange(0, n - side + 1, side // 2) for n in hr.shape[:2])
        y, x = np.unravel_index(np.argmax(window_errors(photos, i, scale, ys, xs, side)), (len(ys), len(xs)))
        cut = lambda image: np.ascontiguousarray(image[ys[y]:ys[y] + side, xs[x]:xs[x] + side])
        for ax, (label, image) in zip(line, {"photo": hr, **{n: upscale_image(m, lr, scale) for n, m in models.items()}}.items()):
            ax.imshow(cut(image)); ax.axis("off")
            value = psnr(cut(image), cut(hr), 0, "rgb")
            ax.set_title(label + (f"\n{value:.2f} dB" if math.isfinite(value) else "\n"), fontsize=7)
    return fig

def smallest(out, folder, steps=(0, 10, 60, 600)):
    "A column per image of the distilled set of seed 0: the photo made small, the image after some steps, and what the teacher makes of the last."
    row = next(r for r in json.loads((out/"results.json").read_text())["rows"] if (r["set"], r["seed"]) == ("distilled", 0))
    made = DistilledSet.load(out/"sets"/row["folder"])
    shown = sorted(f.name for f in folder.glob("*.png"))[:row["images"]]   # the start takes photos in the order of their names
    free = {r["file"] for r in csv.DictReader((folder.parent/"manifest.csv").open()) if r["split"] == "train" and r["licence"].startswith("CC0")}
    assert free.issuperset(shown), "a photo of the set is not CC0"
    near = [min(range(len(made.trace)), key=lambda k: abs(made.trace.steps[k] - s)) for s in steps]
    lines = {f"step {made.trace.steps[k]}" if k else "photo, shrunk": made.trace.frame(k) for k in near}
    lines["stored"] = [made.photos[i] for i in range(row["images"])]
    fig, axes = plt.subplots(len(lines), row["images"], figsize=(.8 * row["images"] + 1, .84 * len(lines)), layout="constrained")
    for line, (name, images) in zip(axes, lines.items()):
        for ax, image in zip(line, images): ax.imshow(image); ax.set_xticks([]); ax.set_yticks([])
        line[0].set_ylabel(name.replace(", ", ",\n").replace(" ", "\n"), fontsize=15, rotation=0, ha="right", va="center")
    return fig

def store(fig, name, publish):
    png, small = io.BytesIO(), io.BytesIO()
    fig.savefig(png, dpi=130); plt.close(fig)
    Image.open(png).convert("RGB").save(small, "WEBP", quality=80)
    file = (Path(__file__).parents[1]/"nbs/images" if publish else Path("."))/name
    atomic_write(file, small.getvalue())
    print(f"{os.path.relpath(file)}: {len(small.getvalue()) / 1e3:.0f} kB")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("figure", choices=("evolution", "crops", "smallest")), p.add_argument("folders", nargs="+", type=Path)
    p.add_argument("--publish", action="store_true")
    args = p.parse_args()
    if args.figure == "evolution": fig = evolution(*args.folders, shared_dir()/"data/weights/taef2_encoder.pth")
    else: fig = {"crops": crops, "smallest": smallest}[args.figure](*args.folders)
    store(fig, f"paper-{args.figure}.webp", args.publish)

if __name__ == "__main__": main()
