"""The trials that the page "Distil it here" reports: its own JavaScript, in Chromium, on its own photos.

    python benchmarks/distil_here.py [--seeds 2]

Writes nbs/try/sheet-NAME.jpg, 64 windows of each photo side by side, and nbs/try/distil.json: for each photo and seed, the
matching loss at the start and at the end, and the PSNR of networks trained on the distilled image and on its rivals.  Needs playwright.
"""
import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from sr_distill.core import write_json

TRY = Path(__file__).resolve().parents[1] / "nbs/try"
PHOTOS = json.loads((TRY / "networks.json").read_text(encoding="utf-8"))["offered"]
SETTINGS = dict(objective="whole", start="hardest", rounds=40, ages=[5, 30, 80], trainings=4, rivalSteps=200)   # as in distil.txt
TRIAL = """({windows, ...settings}) => {
    const engine = srdEngine(), rounds = [], unseen = [], mean = list => list.reduce((a, b) => a + b, 0) / list.length;
    let pool, end;
    for (const news of engine.distil({...settings, windows: windows.map(w => Float32Array.from(w))})) {
        pool = news.pool ?? pool;
        if (news.stage === "distil") (rounds[Math.floor(news.step / pool)] ??= []).push(news.L);
        if (news.unseen) unseen.push(mean(news.unseen));
    }
    for (end of engine.rivals());
    return {pool: [mean(rounds[0]), mean(rounds.at(-1))], unseen: [unseen[0], unseen.at(-1)], bicubic: end.bicubic, ...end.scores};
}"""

def sheet(photo: np.ndarray, side: int = 32, across: int = 8) -> np.ndarray:
    "Windows of a regular grid, drawn at random, in a square."
    grid = [photo[y:y + side, x:x + side] for y in range(0, len(photo) - side + 1, side) for x in range(0, photo.shape[1] - side + 1, side)]
    chosen = [grid[k] for k in np.random.default_rng(0).permutation(len(grid))[:across ** 2]]
    return np.vstack([np.hstack(chosen[k:k + across]) for k in range(0, across ** 2, across)])

def windows(picture: np.ndarray, side: int = 32) -> list:
    "The windows of a sheet, each as 3 × side × side numbers in 0..1."
    n = len(picture) // side
    return (picture.reshape(n, side, n, side, 3).transpose(0, 2, 4, 1, 3).reshape(n * n, -1) / 255).tolist()

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    trials = []
    with sync_playwright() as p:
        page = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.add_script_tag(path=TRY / "distil_engine.js")
        for name in PHOTOS: Image.fromarray(sheet(np.asarray(Image.open(TRY / f"{name}.jpg")))).save(TRY / f"sheet-{name}.jpg", quality=90)
        for seed in range(args.seeds):
            order = page.evaluate("seed => srdEngine().random(seed).shuffle(Array.from({length: 64}, (_, k) => k))", seed)   # as the page draws
            for name in PHOTOS:
                found = windows(np.asarray(Image.open(TRY / f"sheet-{name}.jpg")))
                trials.append(dict(photo=name, seed=seed, **page.evaluate(TRIAL, dict(SETTINGS, seed=seed, windows=[found[k] for k in order]))))
                print(trials[-1], flush=True)
                write_json(TRY / "distil.json", dict(SETTINGS, trials=trials))

if __name__ == "__main__": main()
