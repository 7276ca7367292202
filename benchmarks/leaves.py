"""Dead leaves as training data: how fast they are drawn, what that costs a training step, and what networks learn.

    OMP_NUM_THREADS=1 python benchmarks/leaves.py PHOTOS --only rates     images and patches per second and core
    OMP_NUM_THREADS=1 python benchmarks/leaves.py PHOTOS --only steps     a training step, from a folder and from a program
                                                   [--share 0.5]           from a program for half of each batch, and a folder
                                                   [--set SET] [--amp]     from a set as it is, such as one that stores its teacher
    OMP_NUM_THREADS=1 python benchmarks/leaves.py PHOTOS --only train --tests SET5 SET14 VAL [--steps 1200] [--program FILE]

PHOTOS is a folder of HR photos: the program takes its colours from them (`hand_written`), and `steps` compares with them.
Seconds are those that the processor computed for this process, so that others on the machine count little.  `steps` takes
turns between both sources and gives the median ratio of wall times, which means something on an idle machine only, and of
computing, which is the ratio where no second core draws ahead.  `train`
prints one row with the mean PSNR-RGB of the test folders; --images N learns from N images in place of endless ones.
"""
import argparse
import json
import statistics
import time

import torch

from sr_distill import train as training
from sr_distill.core import rng
from sr_distill.data import Photos
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.procedural import Endless, Mixture, Program, ProgramPhotos, hand_written, patches, render
from sr_distill.recipe import TrainConfig
from sr_distill.sets import DistilledSet

DEPTHS = {"edsr": dict(depth=4, width=32), "vdsr": dict(depth=8, width=32), "srcnn": {}}
PATCH = 48


def sampler_of(photos, config):
    "A program's own sampler, or that of photos."
    return photos.sampler(config) if hasattr(photos, "sampler") else training.PatchSampler(photos, config)

def computed(work):
    "Seconds of this process's computing that `work` takes."
    begun = time.process_time()
    work()
    return time.process_time() - begun

def rates(program, images=40):
    "Images, fresh patches (each pixel once) and training patches (128 from an image) per second and core."
    render(program, 0), patches(program, 1)   # textures are made once
    spent = statistics.median(computed(lambda: render(program, k)) for k in range(images))
    cut = statistics.median(computed(lambda: patches(program, 1280, PATCH, first=10 * k, per_image=128)) for k in range(3))
    config = TrainConfig(model="edsr", batch=16, patch=PATCH)
    def batches():
        sampler = sampler_of(Endless(program, window=8), config)
        for t in range(80): sampler(t)
    return dict(ms_per_image=round(1e3 * spent, 2), fresh_patches=round(256**2 / PATCH**2 / spent), patches=round(1280 / cut),
                patches_with_lr=round(16 * 80 / computed(batches)))

def steps(source, photos, model, amp=False, rounds=5, count=40):
    "Median ratios of a training step: from `source`, a program or a set, and from the photos' cache."
    config = TrainConfig.for_model(model, batch=16, patch=PATCH, steps=10_000, amp=amp, **DEPTHS[model])
    for i in range(len(photos)): photos.lr(i, config.scale)
    def trainer_of(source):
        net = make_model(model, 2, config.depth, config.width, generator=rng(0, "weights"))
        return training.Trainer(net, config), sampler_of(source, config)
    pairs, t = [trainer_of(photos), trainer_of(source)], 0
    for trainer, sampler in pairs: trainer.update(*sampler(0))
    times, work = [[], []], [[], []]
    for _ in range(rounds):
        for k, (trainer, sampler) in enumerate(pairs):
            begun, computed_before = time.perf_counter(), time.process_time()
            for step in range(t + 1, t + 1 + count): trainer.update(*sampler(step))
            times[k].append((time.perf_counter() - begun) / count)
            work[k].append((time.process_time() - computed_before) / count)
        t += count
    ratios, computed_ratios = ([b / a for a, b in zip(*measured)] for measured in (times, work))
    return dict(model=model, source=repr(source), amp=amp, ratio_of_computing=round(statistics.median(computed_ratios), 3),
                ms_from_photos=round(1e3 * statistics.median(times[0]), 1),
                ms_from_source=round(1e3 * statistics.median(times[1]), 1), ratio=round(statistics.median(ratios), 3),
                ratios=[round(r, 3) for r in ratios])

def learn(source, tests, model, count, seed):
    "Mean PSNR-RGB of a network that learnt from `source`, for each test folder and over all."
    config = TrainConfig.for_model(model, batch=16, patch=PATCH, steps=count, seed=seed, **DEPTHS[model])
    net = make_model(model, 2, config.depth, config.width, generator=rng(seed, "weights"))
    return score(training.train(net, source, config).model, tests)

def score(model, tests):
    "PSNR-RGB of each test folder and the mean over folders."
    found = {folder.rstrip("/").split("/")[-1]: evaluate(model, Photos.open(folder), 2, None, "none").mean["psnr_rgb"] for folder in tests}
    return {**{k: round(v, 3) for k, v in found.items()}, "mean": round(statistics.mean(found.values()), 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--only", choices=("rates", "steps", "train"), default="rates")
    parser.add_argument("--program", help="a program.json; the hand-written one if not given")
    parser.add_argument("--tests", nargs="+", default=[])
    parser.add_argument("--model", choices=list(DEPTHS), default="edsr")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1., help="of each batch that the program draws, for steps")
    parser.add_argument("--set", help="a set in place of the program, for steps")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision, for steps")
    parser.add_argument("--images", type=int, help="learn from so many images of 256² in place of endless ones")
    parser.add_argument("--real", action="store_true", help="learn from the photos themselves")
    args = parser.parse_args()
    photos = Photos.open(args.photos)
    program = Program.load(args.program) if args.program else hand_written(photos, seed=11)
    about = dict(program=repr(program), torch=torch.__version__, threads=torch.get_num_threads())
    if args.only == "rates": row = rates(program)
    elif args.only == "steps":
        drawn = Endless(program) if args.share == 1 else Mixture(photos, Endless(program), args.share)
        row = steps(DistilledSet.load(args.set).photos if args.set else drawn, photos, args.model, args.amp)
    else:
        source = photos if args.real else ProgramPhotos(program, args.images) if args.images else Endless(program)
        row = dict(model=args.model, steps=args.steps, seed=args.seed, source=repr(source), **learn(source, args.tests, args.model, args.steps, args.seed))
    print(json.dumps(about | row))


if __name__ == "__main__": main()
