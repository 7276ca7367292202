"""The demo, and what README.md and the docs show of it.

    python benchmarks/demo_results.py OUT

Runs `sr_distill demo` into OUT (or reads what is there), then writes nbs/results/demo.json and nbs/images/demo.jpg.
"""
import sys
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sr_distill.core import read_json, write_json
from sr_distill.data import Photos
from sr_distill.metrics import psnr, upscale_image
from sr_distill.demo import DEMO_RECIPE, demo
from sr_distill.widgets import busiest_crop

NBS = Path(__file__).resolve().parents[1] / "nbs"

def figure(result, held_out, path, rows=4, side=96):
    "Start and end of a few synthetic images, and one held-out crop before and after."
    trace, scale = result.sets["distilled"].trace, result.rows[0]["scale"]
    hr, lr = np.asarray(held_out.hr(0, scale)), np.asarray(held_out.lr(0, scale))
    pictures = {"bicubic": upscale_image("bicubic", lr, scale), "trained on\nall photos": upscale_image(result.models["all photos"], lr, scale),
                "trained on\nthe distilled set": upscale_image(result.models["distilled"], lr, scale), "original": hr}
    y, x, h, w = busiest_crop(pictures["bicubic"], hr, side)
    fig, axes = plt.subplots(2, 4, figsize=(8, 4.4))
    for column in range(4):
        pair = np.concatenate([trace.frame(0)[column], np.full((trace.frame(0).shape[1], 4, 3), 255, np.uint8), trace.frame(len(trace) - 1)[column]], 1)
        axes[0, column].imshow(pair); axes[0, column].set_title(f"step 0 → {trace.steps[-1]}", fontsize=8)
    for ax, (name, picture) in zip(axes[1], pictures.items()):
        note = "" if name == "original" else f"\n{psnr(picture, hr, scale, 'rgb'):.2f} dB"
        ax.imshow(picture[y:y+h, x:x+w], interpolation="nearest"); ax.set_title(name.replace("\n", " ") + note, fontsize=8)
    for ax in axes.flat: ax.axis("off")
    fig.tight_layout(pad=.4)
    fig.savefig(path, dpi=110, pil_kwargs=dict(quality=85))

def main():
    out = Path(sys.argv[1])
    result = demo(out)
    held_out = Photos.open("embedded").split(2, seed=DEMO_RECIPE.seed)[1]
    for folder in ("results", "images"): (NBS / folder).mkdir(exist_ok=True)
    write_json(NBS / "results/demo.json", read_json(out / "comparison.json"))
    figure(result, held_out, NBS / "images/demo.jpg")
    print(result)

if __name__ == "__main__": main()
