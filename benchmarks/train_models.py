"""Does every model train?  SRCNN, a small VDSR and a small EDSR on a folder of photos, scored on Set5 ×2.

    OMP_NUM_THREADS=1 python benchmarks/train_models.py PHOTOS SET5 [--models srcnn vdsr edsr] [--out DIR]

PHOTOS is a folder of HR photos, SET5 the folder of Set5's HR images; LR files are taken from SET5/LR_bicubic
where it is there (MATLAB's), and made by bicubic otherwise.  Prints a Markdown table; with --out, trained models
are kept and a killed run goes on.  Minutes are wall time; the share of it that the process computed stands beside.
"""
import argparse
import time
from pathlib import Path

import torch

from sr_distill.core import rng
from sr_distill.data import Photos
from sr_distill.metrics import evaluate
from sr_distill.models import count_parameters, make_model
from sr_distill.recipe import TrainConfig
from sr_distill.train import train

RUNS = {   # beside the settings of TrainConfig.for_model
    "srcnn": dict(),
    "vdsr": dict(depth=8, width=32, steps=800),
    "edsr": dict(depth=4, width=32, steps=2000),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos"), parser.add_argument("set5")
    parser.add_argument("--models", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--device", default="cpu"), parser.add_argument("--seed", type=int, default=0), parser.add_argument("--out")
    args = parser.parse_args()
    photos, set5 = Photos.open(args.photos), Photos.open(args.set5)
    for i in range(len(photos)): photos.lr(i, 2)   # made once, kept in the cache: not part of the training time
    lr_dir = next((d for d in [Path(args.set5)/"LR_bicubic"] if d.is_dir()), None)
    score = lambda model: evaluate(model, set5, 2, lr_dir, "none").mean["psnr_y"]
    bicubic = score("bicubic")
    print(f"{photos!r}, {args.device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, seed {args.seed}\n")
    print("| model | parameters | steps | minutes (computing) | Set5 ×2 PSNR-Y | bicubic | gain |\n|---|---|---|---|---|---|---|")
    for name in args.models:
        config = TrainConfig.for_model(name, seed=args.seed, **RUNS[name])
        model = make_model(name, 2, config.depth, config.width, generator=rng(config.seed, "weights"))
        begun = time.process_time()
        result = train(model, photos, config, args.out and Path(args.out)/name, device=args.device)
        computing, psnr = time.process_time() - begun, score(result.model)
        size = "9-1-5" if name == "srcnn" else f"{config.depth}×{config.width}"
        print(f"| {name.upper()} {size} | {count_parameters(model):,} | {config.steps} | {result.seconds / 60:.1f} ({computing / 60:.1f}) | "
              f"{psnr:.2f} | {bicubic:.2f} | {psnr - bicubic:+.2f} |", flush=True)


if __name__ == "__main__": main()
