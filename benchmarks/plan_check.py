"""Is what `sr_distill plan` advises near the best of what was measured, before photos that had no part in its curves?

    python benchmarks/plan_check.py     writes nbs/results/plan_check.json

Each test is left out in turn: the curves are drawn from the other two, a set is advised for every network, length and
budget that was measured, and the test that had no say judges it beside the best set of the grid within the budget.
Labels are the photos' own.  What the advised set would gain between two measured sizes is read off the curve of the test.

A second check goes by other photos to learn from as well: `sr_distill study advice OUT` trains on a small grid of sets of
six photos that no network of the curves learnt from (hours on two cores; its results are in nbs/results/advice.json), and
T91 judges, which never judged the curves.  For each budget of the grid a set is advised from the curves that come with
the package, and the grid says how far it is behind.
"""
import json
import runpy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from sr_distill.advise import candidates, expected, load_curves
from sr_distill.core import write_json
from sr_distill.study_file import model_name

REPO = Path(__file__).resolve().parents[1]
BUDGETS = .05, .16, .7, 2, 8.88
GRID = .16, .7, 2, 8.88   # budgets of the study `advice`
TOOL = runpy.run_path(str(REPO / "tools/curves.py"))


class Shoot:
    "As many photos and pixels as the curves were measured on: all that an advice looks at."
    def __init__(self, about): self.count, self.pixels = about["photos"], about["pixels"]
    def __len__(self): return self.count


def curves_of(tests: list | None, studies: tuple = TOOL["STUDIES"]) -> tuple:
    "The curves of some studies, judged by some of their tests or by all."
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "curves.json").write_text(TOOL["page"](tests, studies), encoding="utf-8")
        return load_curves(Path(folder) / "curves.json")

def one_network(curves, like): return [c for c in curves if (c.config.model, c.config.scale) == (like.model, like.scale)]

def said(recipe) -> str:
    program = ("fitted " * (recipe.program == "fitted") + "program and ") * (recipe.space == "procedural")
    return f"{program}{recipe.init}, {recipe.steps} steps"

def judge(photos, test: str, known: list, truth: list, budgets: tuple) -> list:
    "A row for each network, length and budget: the set that the curves `known` advise, and the best one by the curves `truth`."
    rows = []
    for curve in truth:
        like, steps = curve.config, curve.config.steps
        for budget in budgets:
            most = budget / 100 * photos.pixels
            fitting = {(said(p.recipe), p.sampling, round(p.pixels)): p.gain for p in curve.points if p.pixels <= most and p.recipe.labels == "own"}
            advised = next(iter(candidates(one_network(known, like), photos, steps, most, "own")), None)
            if len(fitting) < 2 or advised is None: continue
            size = advised.images * advised.recipe.size**2
            got = expected(one_network(truth, like), advised.recipe, advised.sampling, size, steps)
            if got is None and advised.recipe.program == "fitted":   # a grid may have the program by hand only
                got = expected(one_network(truth, like), replace(advised.recipe, program="hand"), advised.sampling, size, steps)
            best = max(fitting, key=fitting.get)
            rows.append(dict(test=test, model=f"{model_name(like)} ×{like.scale}", steps=steps, budget=budget, grid=len(fitting),
                             advised=f"{said(advised.recipe)}, {advised.images} images", best=best[0],
                             behind=None if got is None else round(fitting[best] - got.mean, 3)))
    return rows


def summary(rows: list) -> dict:
    behind = [r["behind"] for r in rows if r["behind"] is not None]
    return dict(rows=len(behind), not_in_the_grid=len(rows) - len(behind), mean=round(statistics.mean(behind or [0.]), 3),
                worst=max(behind, default=0.), within_a_tenth=sum(b <= .1 for b in behind))

def main():
    page = json.loads((REPO / "sr_distill/curves.json").read_text(encoding="utf-8"))
    photos, rows = Shoot(page), []
    for test in page["tests"]:
        rows += judge(photos, test, curves_of([t for t in page["tests"] if t != test]), curves_of([test]), BUDGETS)
    about = TOOL["stored"]("advice").about
    others = judge(Shoot(about), "T91", load_curves(), curves_of(None, ("advice",)), GRID)
    found = dict(command="python benchmarks/plan_check.py", summary=summary(rows), rows=rows,
                 other_photos=dict(command="sr_distill study advice OUT", photos=about["photos"], summary=summary(others), rows=others))
    write_json(REPO / "nbs/results/plan_check.json", found)
    for r in rows + others:
        behind = "not in the grid" if r["behind"] is None else f"{r['behind']:+.3f} dB"
        print(f"{r['test']:11}{r['model']:14}{r['steps']:7}{r['budget']:6} %  {behind}  {r['advised']}; best: {r['best']}")
    for part in (found, found["other_photos"]): print(part["summary"])

if __name__ == "__main__": main()
