"""What full trainings say of a few numbers of the fitted program, on windows of the training photos alone.

    python benchmarks/longer_look.py PHOTOS nbs/results/longer_look.json

Each row is one SRCNN (or --network), trained for 6,000 steps on what a program draws, and its PSNR-RGB on windows of 128² of 20 of the photos: three at random
places of each photo, and the three hardest ones. A stopped run goes on where it was. About 20 minutes on one core.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from sr_distill.core import read_json, rng, write_json
from sr_distill.data import Photos, make_lr
from sr_distill.fitting import DRAWN, EACH, JUDGED, LEARNERS, _judges
from sr_distill.metrics import psnr, upscale_image
from sr_distill.models import make_model
from sr_distill.patches import Groups
from sr_distill.pixel import start_images
from sr_distill.procedural import Endless, fitted_worlds, hand_written
from sr_distill.recipe import Recipe, TrainConfig
from sr_distill.train import Trainer

SHIPPED = Path(__file__).resolve().parents[1] / "sr_distill/fitted.json"
FOUND = "as the search left it"
CHANGES = {"by hand": None, FOUND: {}, "spread 40": dict(spread=40.), "spread 40, noise 0": dict(spread=40., noise=0.),
           "spread 40, noise 0, blur 0.4": dict(spread=40., noise=0., blur=.4)}
SEEDS = 0, 1

def programs(photos):
    "The programs by the names of `CHANGES`."
    by_hand, found = hand_written(photos), read_json(SHIPPED)["searched"]
    worlds = tuple(replace(world, **found) for world in fitted_worlds())
    return {name: by_hand if new is None else replace(by_hand, worlds=tuple(replace(world, **new) for world in worlds))
            for name, new in CHANGES.items()}

def hardest(photos):
    "The hardest windows, a list for each photo that judges."
    mine = range(0, len(photos), max(2, len(photos) // 20))
    groups = Groups(photos, "image", JUDGED, 32)
    images = start_images(groups, Recipe(size=JUDGED, steps=0, ipc=EACH), mine)
    return [[(make_lr(hr, 2), hr) for hr in images[k:k + EACH]] for k in range(0, len(images), EACH)]

def score(net, windows):
    "The mean PSNR-RGB over all windows."
    return float(np.mean([psnr(upscale_image(net, lr, 2), hr, 2, "rgb") for photo in windows for lr, hr in photo]))

def learnt(program, name, seed, steps):
    "The network after its training on the program."
    config = TrainConfig.for_model(name, **LEARNERS.get(name, {}), steps=steps, batch=16, patch=48, seed=seed, amp=True)
    net = make_model(name, 2, config.depth, config.width, generator=rng(seed, "weights"))
    trainer, sampler = Trainer(net, config, "cpu"), Endless(program, **DRAWN).sampler(config)
    for step in range(steps): trainer.update(*sampler(step, trainer.device))
    return net.eval()

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", choices=("srcnn", *LEARNERS), default="srcnn")
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()
    photos = Photos.open(args.photos)
    judged = dict(random=_judges(photos, 2, 0, False, "bicubic"), hardest=hardest(photos))
    stored = read_json(args.out) if args.out.exists() else dict(photos_sha256=photos.fingerprint, rows=[])
    if stored["photos_sha256"] != photos.fingerprint: raise SystemExit(f"{args.out}: holds rows of other photos; give another file")
    rows = stored["rows"]
    for name, program in programs(photos).items():
        for seed in SEEDS:
            key = dict(program=name, network=args.network, steps=args.steps, seed=seed)
            if any(key.items() <= row.items() for row in rows): continue
            net = learnt(program, args.network, seed, args.steps)
            rows.append(key | {windows: score(net, of) for windows, of in judged.items()})
            print(rows[-1], flush=True)
            write_json(args.out, dict(photos_sha256=photos.fingerprint, rows=rows))

if __name__ == "__main__": main()
