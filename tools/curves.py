"""The measured curves that `sr_distill plan` reads: small sets beside all the photos, from the studies in nbs/results.

    make curves     writes sr_distill/curves.json, and nbs/results/plan_check.json by benchmarks/plan_check.py

Do that when a study of STUDIES has new results, and run the page nbs/tools/10b_advise.ipynb anew.

One entry for each network, scale and number of training steps; in it a point for each set, by its recipe, with its size
and the difference in PSNR-RGB to all the photos, drawn from in the way that suits the network better.
"""
import json
import statistics
from pathlib import Path

from sr_distill.advise import LARGEST
from sr_distill.recipe import Recipe, TrainConfig
from sr_distill.study import Results

REPO = Path(__file__).resolve().parents[1]
STUDIES = "budget", "models", "x4", "smallest", "long", "judge", "rivals", "longer", "networks"   # of the same photos and tests; what two of them have counts once
TRAINED = "model", "depth", "width", "scale", "steps"

def recipe_said(recipe: dict) -> dict:
    "What of a stored recipe differs from the defaults; its budget, bytes and seed belong to the point."
    full = Recipe.from_dict({**recipe, "seed": 0, "budget": None, "bytes": None})
    usual = Recipe(steps=1).to_dict()
    said = {k: v for k, v in full.to_dict().items() if v != usual[k] and k != "lr"} | {"steps": full.steps}
    return said | ({"lr": full.lr} if full.lr != full.usual_rate else {})

def point(results: Results, model: str, name: str, rival: str) -> dict:
    "A set beside all the photos: how it is made, its size, and the difference."
    p, about = results.paired(name, rival, model), results.about["sets"][name]
    one = next(r for r in results.rows if r["set"] == name)
    below = any(results.below_bicubic(name, model, t) for t in results.about["tests"])
    return dict(recipe=recipe_said(about["recipe"]), sampling=about["sampling"],
                share=round(one["pixels"], 6), bytes=round(one["bytes"], 6), gain=round(p["mean"], 3), se=round(p["se"], 3) if p["n"] > 1 else None,
                n=p["n"], **{k: v for k, v in dict(budget=about["recipe"]["budget"], limit=about["recipe"].get("bytes"), below=below).items() if v})

def stored(study: str, tests: list | None = None) -> Results:
    "The results of a study, of some of its tests or of all."
    found = Results.load(REPO / f"nbs/results/{study}.json")
    if tests is None: return found
    return Results([r for r in found.rows if r["test"] in tests], {**found.about, "tests": tests})

def curves(tests: list | None = None, studies: tuple = STUDIES) -> list:
    "All entries, judged by some of the tests or by all."
    found = {}
    for study in studies:
        results = stored(study, tests)
        for model, config in results.about["models"].items():
            rival = results.rival(model)
            if rival is None: continue
            config = TrainConfig.from_dict(config)
            key = tuple(getattr(config, k) for k in TRAINED)
            curve = found.setdefault(key, dict(zip(TRAINED, key), batch=config.batch, patch=config.patch, points=[]))
            drawn = results.about["sets"][rival]["sampling"]
            mean = statistics.mean(results.values(rival, model).values())
            if "all" not in curve or len(results.values(rival, model)) > curve["all"]["n"]:
                curve["all"] = dict(sampling=drawn, psnr_rgb=round(mean, 3), n=len(results.values(rival, model)))
            plain = statistics.mean(results.values("bicubic", model).values() or [0.])
            curve.setdefault("bicubic", round(plain, 3))
            for name, about in results.about["sets"].items():
                if not about["recipe"] or not results.values(name, model): continue
                if not Recipe.from_dict(about["recipe"]).chooses: continue   # a program alone has no size in pixels
                new = dict(point(results, model, name, rival), study=study)
                if new["share"] > 1.01 * LARGEST / 100: continue   # a set so large is not advised
                if new["n"] < 2 <= len(results.values(rival, model)): continue   # one training of a set says little
                same = [p for p in curve["points"] if all(p.get(k) == new.get(k) for k in ("recipe", "sampling", "budget", "limit"))]
                if not same: curve["points"].append(new)
    return [found[k] for k in sorted(found, key=lambda k: [x or 0 if i else x for i, x in enumerate(k)])]

def page(tests: list | None = None, studies: tuple = STUDIES) -> str:
    "The text of the file, judged by some of the tests or by all."
    results = {s: stored(s, tests).about for s in studies}
    about = results[studies[0]]
    assert all(r["photos_sha256"] == about["photos_sha256"] and set(r["tests"]) == set(about["tests"]) for r in results.values())
    head, entries = dict(photos=about["photos"], pixels=about["pixels"], tests=about["tests"]), []
    for c in curves(tests, studies):
        points = ",\n  ".join(json.dumps({k: v for k, v in p.items() if k != "budget"}, ensure_ascii=False) for p in c.pop("points"))
        entries.append(json.dumps(c, ensure_ascii=False)[:-1] + ', "points": [\n  ' + points + "]}")
    return json.dumps(head, ensure_ascii=False)[:-1] + ', "curves": [\n ' + ",\n ".join(entries) + "]}\n"

if __name__ == "__main__":
    text = page()
    (REPO / "sr_distill/curves.json").write_text(text, encoding="utf-8")
    print(f"{text.count('gain')} points, {len(text) / 1000:.0f} kB")
