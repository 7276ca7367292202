"""A curriculum: does it help when the share of each batch that a program draws changes during a training?

    OMP_NUM_THREADS=1 python benchmarks/curriculum.py SET --tests SET5 SET14 VAL [--steps 1200] [--seeds 3] [--model edsr]
                                                      [--orders "program first" "windows first"] [--json FILE]

SET holds chosen windows and a program (`sr_distill distill PHOTOS SET --space procedural --share 0.5 --init hardest --steps 0
--size 64 --bytes 350kB --format avif`), or is a ready-made one, `ready:350kB`.  Every order draws as many patches from the
program over the whole training as the constant share of a half does, and takes as many steps; `--orders` names the others.
Prints one row for each training and, for each order, the paired difference to the constant share with its standard error;
`--json` writes the rows to a file, as nbs/results/curriculum.json has them.
"""
import argparse
import json
import statistics
from dataclasses import replace

from leaves import DEPTHS, learn

from sr_distill.core import write_json
from sr_distill.procedural import EndlessSampler, MixedSampler, Mixture
from sr_distill.sets import open_photos

# share of the program in the first batch and in the last one; it changes evenly in between
ORDERS = {"constant": (.5, .5), "program first": (1., 0.), "windows first": (0., 1.)}


class Changing(EndlessSampler):
    "The program's part of each batch, whose share goes evenly from `begin` to `end`."
    def __init__(self, source, config, begin, end):
        super().__init__(source, config)
        self.begin, self.end = begin, end

    def drawn(self, t):
        "How many patches the program drew before batch `t`: the sum of the shares so far, in patches."
        return int(self.config.batch * (self.begin * t + (self.end - self.begin) * t**2 / (2 * self.config.steps)) + 1e-6)


class Ordered(Mixture):
    "A mixture whose share changes during a training."
    def __init__(self, source, begin, end):
        super().__init__(source.images, source.leaves, source.share)
        self.begin, self.end = begin, end

    def sampler(self, config):
        made = MixedSampler(self, config)
        made.leaves = Changing(self.leaves, replace(config, sampling="uniform"), self.begin, self.end)
        return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--model", choices=list(DEPTHS), default="edsr")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", nargs="+", choices=[o for o in ORDERS if o != "constant"], default=["program first", "windows first"])
    parser.add_argument("--json", help="write the rows to this file")
    args = parser.parse_args()
    source, rows = open_photos(args.set), []
    if not isinstance(source, Mixture): parser.error(f"{args.set} holds no mixture of windows and a program")
    found = {name: [] for name in ("constant", *args.orders)}
    for seed in range(args.seeds):
        for name, psnrs in found.items():
            psnrs.append(learn(Ordered(source, *ORDERS[name]), args.tests, args.model, args.steps, seed)["mean"])
            rows.append(dict(model=args.model, steps=args.steps, seed=seed, order=name, psnr_rgb=psnrs[-1]))
            print(json.dumps(rows[-1]), flush=True)
            if args.json: write_json(args.json, dict(rows=rows))
    for name in args.orders:
        gains = [a - b for a, b in zip(found[name], found["constant"])]
        error = statistics.stdev(gains) / len(gains)**.5 if len(gains) > 1 else None
        print(json.dumps(dict(order=name, minus="constant", mean=round(statistics.mean(gains), 3), standard_error=error and round(error, 3))), flush=True)


if __name__ == "__main__": main()
