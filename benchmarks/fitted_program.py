"""The numbers of a fitted program, as the package ships them for `Recipe(program="fitted")`.

    sr_distill distill PHOTOS SET --space procedural --steps 96 --fit late
    python benchmarks/fitted_program.py SET --then spread=40 noise=0 blur=0.4

Writes sr_distill/fitted.json: the worlds of the program in SET, without its colours, how it was made, and the objective after each step. `--then`
changes numbers of all worlds afterwards; benchmarks/longer_look.py shows why these. The values of the search are kept beside them.
"""
import argparse
from dataclasses import asdict, replace
from pathlib import Path

from sr_distill.core import write_json
from sr_distill.distill import DistilledSet

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set")
    parser.add_argument("--then", nargs="*", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    made, then = DistilledSet.load(args.set), {name: float(value) for name, value in (one.split("=") for one in args.then)}
    recipe, about = made.recipe, made.manifest
    how = dict(steps=recipe.steps, fit=recipe.fit, seed=recipe.seed, photos=len(about["sources"]), photos_sha256=about["photos"])
    if then and len(made.program.worlds) > 1: raise SystemExit("--then is for a program of one world")
    searched = {name: getattr(made.program.worlds[0], name) for name in then}   # the values that `--then` replaces
    write_json(Path(__file__).resolve().parents[1] / "sr_distill/fitted.json",
               dict(how=how, report=about["report"]["fit"], losses=[loss for _, loss in made.trace.losses], searched=searched,
                    worlds=[asdict(replace(world, **then)) for world in made.program.worlds]))

if __name__ == "__main__": main()
