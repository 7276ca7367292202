"""Is what `sr_distill plan` advises near the best of what was measured, before photos that had no part in its curves?

    python benchmarks/plan_check.py     writes nbs/results/plan_check.json

Each test is left out in turn: the curves are drawn from the other two, a set is advised for every network, length and
budget that was measured, and the test that had no say judges it beside the best set of the grid within the budget.
Labels are the photos' own.  What the advised set would gain between two measured sizes is read off the curve of the test.
`sr_distill study advice OUT` is the longer check: other photos to learn from as well, hours on two cores.
"""
import json
import runpy
import statistics
import tempfile
from pathlib import Path

from sr_distill.advise import candidates, expected, load_curves
from sr_distill.core import write_json
from sr_distill.study_file import model_name

REPO = Path(__file__).resolve().parents[1]
BUDGETS = .05, .16, .7, 2, 8.88
TOOL = runpy.run_path(str(REPO / "tools/curves.py"))


class Shoot:
    "As many photos and pixels as the curves were measured on: all that an advice looks at."
    def __init__(self, about): self.count, self.pixels = about["photos"], about["pixels"]
    def __len__(self): return self.count


def curves_of(tests: list) -> tuple:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "curves.json").write_text(TOOL["page"](tests), encoding="utf-8")
        return load_curves(Path(folder) / "curves.json")

def one_network(curves, like): return [c for c in curves if (c.config.model, c.config.scale) == (like.model, like.scale)]

def judge(photos, left_out: str, rest: list) -> list:
    "A row for each network, length and budget: the advised set and the best one, before the test that was left out."
    known, truth, rows = curves_of(rest), curves_of([left_out]), []
    for curve in truth:
        like, steps = curve.config, curve.config.steps
        for budget in BUDGETS:
            most = budget / 100 * photos.pixels
            fitting = {(p.recipe.init, p.recipe.steps, p.sampling, round(p.pixels)): p.gain for p in curve.points
                       if p.pixels <= most and p.recipe.labels == "own"}
            advised = next(iter(candidates(one_network(known, like), photos, steps, most, "own")), None)
            if len(fitting) < 2 or advised is None: continue
            got = expected(one_network(truth, like), advised.recipe, advised.sampling, advised.images * advised.recipe.size**2, steps)
            best = max(fitting, key=fitting.get)
            rows.append(dict(test=left_out, model=f"{model_name(like)} ×{like.scale}", steps=steps, budget=budget, grid=len(fitting),
                             advised=f"{advised.recipe.init}, {advised.recipe.steps} steps, {advised.images} images", best=f"{best[0]}, {best[1]} steps",
                             behind=round(fitting[best] - got.mean, 3)))
    return rows


def main():
    page = json.loads((REPO / "sr_distill/curves.json").read_text(encoding="utf-8"))
    rows = [row for test in page["tests"] for row in judge(Shoot(page), test, [t for t in page["tests"] if t != test])]
    behind = [r["behind"] for r in rows]
    summary = dict(rows=len(rows), mean=round(statistics.mean(behind), 3), worst=max(behind), within_a_tenth=sum(b <= .1 for b in behind))
    write_json(REPO / "nbs/results/plan_check.json", dict(command="python benchmarks/plan_check.py", summary=summary, rows=rows))
    for r in rows: print(f"{r['test']:11}{r['model']:14}{r['steps']:7}{r['budget']:6} %  {r['behind']:+.3f} dB  {r['advised']}; best: {r['best']}")
    print(summary)

if __name__ == "__main__": main()
