"""A training step in float32 and in mixed precision (`--amp`), in turns on one device, and what networks learn with each.

    python benchmarks/precision.py PHOTOS [--device cpu]                 the ratio of a step's time, for three networks
    python benchmarks/precision.py PHOTOS --tests SET5 SET14 --steps 1200 [--seeds 3]
                                                                         the paired difference in PSNR-RGB as well

PHOTOS is a folder of HR photos. A ratio above 1 says that mixed precision is faster here.
"""
import argparse
import statistics
import time

import torch

from sr_distill.core import pick_device, rng
from sr_distill.data import Photos
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.recipe import TrainConfig
from sr_distill.train import PatchSampler, Trainer, train

SIZES = {"edsr": dict(depth=4, width=32), "vdsr": dict(depth=8, width=32), "srcnn": {}}


def config_of(model, **more): return TrainConfig.for_model(model, batch=16, patch=48, **SIZES[model], **more)

def seconds(trainer, batch):
    "Wall time of one step."
    def wait(): torch.cuda.synchronize() if trainer.device.type == "cuda" else None
    wait()
    begun = time.perf_counter()
    trainer.update(*batch)
    wait()
    return time.perf_counter() - begun

def step_ratio(photos, model, device, count=15):
    "Median of float32's time for a step divided by that of mixed precision, taken in turns."
    configs = [config_of(model, amp=amp, steps=10_000) for amp in (False, True)]
    trainers = [Trainer(make_model(model, 2, **SIZES[model], generator=rng(0)), c, device) for c in configs]
    batch = PatchSampler(photos, configs[0])(0, device)
    pairs = [[seconds(t, batch) for t in trainers] for _ in range(count + 3)][3:]   # the first steps prepare
    return statistics.median(a / b for a, b in pairs)

def psnr(photos, tests, model, device, steps, seed, amp):
    network = make_model(model, 2, **SIZES[model], generator=rng(seed))
    config = config_of(model, steps=steps, seed=seed, sampling="error", amp=amp)
    done = train(network, photos, config, device=device).model
    return statistics.mean(evaluate(done, test, 2, lpips="none").mean["psnr_rgb"] for test in tests)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos")
    p.add_argument("--device", default="auto")
    p.add_argument("--tests", nargs="*", default=[])
    p.add_argument("--steps", type=int, default=1200)
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args()
    photos, tests, device = Photos.open(args.photos), [Photos.open(t) for t in args.tests], pick_device(args.device)
    for model in SIZES:
        print(f"{model}: a step in mixed precision is {step_ratio(photos, model, device):.2f} times as fast on {device}", flush=True)
        if tests:
            gains = [psnr(photos, tests, model, device, args.steps, seed, True)
                     - psnr(photos, tests, model, device, args.steps, seed, False) for seed in range(args.seeds)]
            print(f"{model}: {args.steps:,} steps, mixed precision against float32: "
                  + ", ".join(f"{g:+.3f}" for g in gains) + f"; mean {statistics.mean(gains):+.3f} dB", flush=True)
