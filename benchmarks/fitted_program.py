"""The numbers of a fitted program, as the package ships them for `Recipe(program="fitted")`.

    sr_distill distill PHOTOS SET --space procedural --steps 96 --fit late
    python benchmarks/fitted_program.py SET

Writes sr_distill/fitted.json: the worlds of the program in SET, without its colours, how it was made, and the objective after each step.
"""
import sys
from dataclasses import asdict
from pathlib import Path

from sr_distill.core import write_json
from sr_distill.distill import DistilledSet

def main():
    made = DistilledSet.load(sys.argv[1])
    recipe, about = made.recipe, made.manifest
    how = dict(steps=recipe.steps, fit=recipe.fit, seed=recipe.seed, photos=len(about["sources"]), photos_sha256=about["photos"])
    write_json(Path(__file__).resolve().parents[1] / "sr_distill/fitted.json",
               dict(how=how, report=about["report"]["fit"], losses=[loss for _, loss in made.trace.losses], worlds=[asdict(world) for world in made.program.worlds]))

if __name__ == "__main__": main()
