"""Does a set of 350 kB still hold with a network and a training length that people use?  A study of a full-size EDSR on a GPU.

    python benchmarks/long_gpu.py PHOTOS OUT --tests VAL [SET5 ...] --seconds 300 --steps 20000 --jobs 3

PHOTOS is a folder of HR photos, each folder of --tests one to judge by.  EDSR with 16 blocks of 64 channels, batch 16, patches
of 48², mixed precision, on all the photos (drawn uniformly and by error) and on 350 kB: hard windows, a program and the teacher
that redraws both.  --set FOLDER takes that set ready-made.  One seed after another; no training begins after --seconds.  What is
done lies in OUT/long-DEVICE, so a second day goes on; OUT/long-DEVICE.json is written at the end (after a kill, the same command
with `--seconds .001` writes it).  The exit status is 75 while something is left to do.  --jobs processes share the GPU: a small
kernel of one leaves room for those of the others.
"""
import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sr_distill.core import write_json
from sr_distill.recipe import Recipe, TrainConfig
from sr_distill.study import run_study
from sr_distill.study_file import Model, Study, TrainingSet

STORED = Recipe(space="procedural", share=.5, init="hardest", size=64, steps=0, bytes="350kB", format="avif", labels="teacher", teacher_steps=20000,
                store="teacher")

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos", type=Path), p.add_argument("out", type=Path)
    p.add_argument("--tests", type=Path, nargs="+", required=True)
    p.add_argument("--set", type=Path, help="the stored-teacher set, if it was made before")
    p.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    p.add_argument("--seconds", type=float, default=0, help="0: no limit")
    p.add_argument("--steps", type=int, default=20000)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--jobs", type=int, default=3)
    p.add_argument("--tiny", action="store_true", help="a dry run: a few steps of a small model")
    args = p.parse_args()
    steps, depth, width = (8, 2, 8) if args.tiny else (args.steps, 16, 64)
    config = TrainConfig.for_model("edsr", depth=depth, width=width, steps=steps, batch=16, patch=48, amp=args.device == "cuda", checkpoint=10**6)
    stored = replace(STORED, teacher_steps=2, format="webp") if args.tiny else STORED
    sets = {"all photos, uniform": TrainingSet(), "all photos, by error": TrainingSet(sampling="error"),
            "program and hardest, stored teacher, AVIF, 350 kB": TrainingSet(folder=str(args.set)) if args.set else TrainingSet(recipe=stored, once=True)}
    study = Study(photos=str(args.photos), sets=sets, models={f"EDSR {depth}×{width}, steps {steps}": Model(config)}, seeds=args.seeds, ssim=False,
                  tests={folder.name: str(folder) for folder in args.tests})
    args.out.mkdir(parents=True, exist_ok=True)
    file, jobs = args.out / f"long-{args.device}.json", 1 if args.device == "cpu" else args.jobs
    results = run_study(study, args.out / f"long-{args.device}", jobs, args.seconds / 60, args.device)
    write_json(file, dict(device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu", torch=torch.__version__, jobs=jobs, config=asdict(config),
                          rows=results.rows, missing=results.missing, failed=results.failed))
    print(f"{file}: {len(results.missing)} trainings are left", *results.missing, sep="\n  ")
    return 75 if results.missing else 0

if __name__ == "__main__": sys.exit(main())
