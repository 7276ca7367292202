"""The paper's Figures 3 and 4 from a finished `sr_distill study paper OUT`: how images evolve, and what trained models make of a photo.

    python benchmarks/paper_figures.py OUT VAL --publish     nbs/images/paper-evolution.webp, nbs/images/paper-crops.webp

OUT holds the study's sets and models, VAL the photos that it was judged by.  Only photos that are CC0 are shown.
"""
import argparse, io, json, math
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt, numpy as np
from PIL import Image

from sr_distill.core import atomic_write
from sr_distill.data import Photos
from sr_distill.distill import DistilledSet
from sr_distill.metrics import psnr, upscale_image
from sr_distill.models import load_model
from sr_distill.patches import window_errors

IMAGES = Path(__file__).parents[1]/"nbs/images"
GROUP, VAL = "0004", ("0001", "0003")   # kitten-on-lawn among the photos; judged by two of the tests
EVOLVE = ("noise init, IPC 1", "downscaled init, random networks", "downscaled init, trained networks", "hardest init, magnitude, hard target", "latent distillation, large")
TRAINED = ("original", "downscaled, small", "hardest, small", "downscaled init, trained networks", "GAN inversion, large", "latent distillation, large")

def row_of(rows, name): return next(r for r in rows if r["set"] == name and r["seed"] == 0)

def evolution(out, rows, columns=7):
    "A line per set, a column per snapshot, log-spaced from the start to the last step."
    fig, axes = plt.subplots(len(EVOLVE), columns, figsize=(1.35 * columns, 1.55 * len(EVOLVE)), layout="constrained")
    for line, name in zip(axes, EVOLVE):
        trace = DistilledSet.load(out/"sets"/row_of(rows, name)["folder"]).trace
        image = next(i for i, n in enumerate(trace.names) if n.startswith(GROUP))
        wanted = np.unique(np.round(np.geomspace(1, len(trace), columns)).astype(int) - 1)
        frames = sorted({*wanted, *range(len(trace))}, key=lambda k: (k not in wanted, k))[:columns]
        for ax, k in zip(line, sorted(frames)):
            ax.imshow(trace.frame(k)[image]); ax.set_title(f"step {trace.steps[k]}", fontsize=7)
        for ax in line: ax.axis("off")
        line[0].text(0, 1.22, name, transform=line[0].transAxes, fontsize=8, fontweight="bold")
    return fig

def crops(out, rows, folder, side=160, scale=4):
    "A line per photo: its hardest window as it is, enlarged by bicubic, and by an EDSR trained on each set."
    photos = Photos.open(folder)
    fig, axes = plt.subplots(len(VAL), 2 + len(TRAINED), figsize=(1.5 * (2 + len(TRAINED)), 1.8 * len(VAL)), layout="constrained")
    for line, name in zip(axes, VAL):
        i = photos.names.index(name)
        hr, lr = np.asarray(photos.hr(i, scale)), np.asarray(photos.lr(i, scale))
        ys, xs = (np.arange(0, n - side + 1, side // 2) for n in hr.shape[:2])
        y, x = np.unravel_index(np.argmax(window_errors(photos, i, scale, ys, xs, side)), (len(ys), len(xs)))
        cut = lambda image: image[ys[y]:ys[y] + side, xs[x]:xs[x] + side]
        models = {"bicubic": "bicubic", **{n: load_model(out/"models"/next(r["model_folder"] for r in rows if r["set"] == n and r["model"] == "EDSR ×4" and r["seed"] == 0)) for n in TRAINED}}
        pictures = {"photo": hr, **{n: upscale_image(m, lr, scale) for n, m in models.items()}}
        for ax, (label, image) in zip(line, pictures.items()):
            shown = cut(image)
            ax.imshow(shown); ax.axis("off")
            value = psnr(np.ascontiguousarray(shown), np.ascontiguousarray(cut(hr)), 0, "rgb")
            ax.set_title(label.replace(", ", ",\n").replace("networks,\n", "networks, ") + (f"\n{value:.2f} dB" if math.isfinite(value) else "\n"), fontsize=6.5)
    return fig

def webp(fig, quality=80):
    png, small = io.BytesIO(), io.BytesIO()
    fig.savefig(png, dpi=130); plt.close(fig)
    Image.open(png).convert("RGB").save(small, "WEBP", quality=quality)
    return small.getvalue()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path), p.add_argument("val", type=Path)
    p.add_argument("--publish", action="store_true", help="write into nbs/images instead of OUT")
    args = p.parse_args()
    rows = json.loads((args.out/"results.json").read_text())["rows"]
    rows = [r for r in rows if "model_folder" in r]
    place = IMAGES if args.publish else args.out
    for name, make in (("paper-evolution", lambda: evolution(args.out, rows)), ("paper-crops", lambda: crops(args.out, rows, args.val))):
        data = webp(make())
        atomic_write(place/f"{name}.webp", data)
        print(f"{place/name}.webp: {len(data) / 1e3:.0f} kB")

if __name__ == "__main__": main()
