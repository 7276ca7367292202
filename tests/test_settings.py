"""Settings outlive versions: one more option makes no finished set, model or study unknown."""
import copy
import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from sr_distill import study
from sr_distill.recipe import Recipe, RunOptions, TrainConfig, option
from sr_distill.study import Cell, Results

STORED = sorted((Path(__file__).resolve().parents[1] / "nbs/results").glob("*.json"))
STUDIES = [p for p in STORED if {"about", "rows"} <= json.loads(p.read_text(encoding="utf-8")).keys() and "sets" in json.loads(p.read_text(encoding="utf-8"))["about"]]


@dataclass(frozen=True)
class NextRecipe(Recipe):
    dither: int = option(0, "an option of the next version", low=0)

@dataclass(frozen=True)
class NextConfig(TrainConfig):
    warmup: int = option(0, "an option of the next version", low=0)


@pytest.mark.parametrize("now, following", [(Recipe, NextRecipe), (TrainConfig, NextConfig)])
def test_a_new_option_changes_no_name(now, following):
    first = {k: v for k, v in now().to_dict().items() if k in now.ALWAYS}   # the options of version 0.1 count always, later ones if they are used
    assert now().key() == following().key() == first
    extra, = {f.name for f in fields(following)} - {f.name for f in fields(now)}
    assert following(**{extra: 3}).key() == {**first, extra: 3}
    assert following().difference(now().to_dict()) == "" and f"`--{extra} 3`" in following(**{extra: 3}).difference(now().to_dict())
    assert "does not know" in now().difference(following(**{extra: 3}).to_dict())

def test_every_group_of_options_is_such_settings():
    for cls in (Recipe, TrainConfig, RunOptions): assert cls.from_dict(cls().to_dict()) == cls()

def test_the_difference_has_both_values():
    said = Recipe(steps=88).difference(Recipe(steps=300).to_dict())
    assert said == "was made with `--steps 300`; this command says `--steps 88`"

def test_there_are_stored_studies(): assert len(STUDIES) >= 9

@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_stored_results_stay_known_to_the_next_version(path, monkeypatch):
    "Nothing of them would be computed again."
    monkeypatch.setattr(study, "Recipe", NextRecipe), monkeypatch.setattr(study, "TrainConfig", NextConfig)
    old = Results.load(path)
    about = copy.deepcopy(old.about)   # as the next version describes the same study
    for model in about["models"].values(): model["warmup"] = 0
    for of_set in about["sets"].values():
        for kind in ("recipe", "labels"):
            if of_set.get(kind): of_set[kind]["dither"] = 0
    about.setdefault("ssim", True)
    about.setdefault("contents", {name: {} for name in about["sets"]})
    cells = {Cell(r["set"], r["model"], r["seed"]) for r in old.rows if r["set"] != "bicubic"}
    known = study._known_rows(old, about, sorted(cells, key=str))
    assert cells and len(cells - known.keys()) == 0
    about["models"] = {name: {**model, "warmup": 7} for name, model in about["models"].items()}
    assert not study._known_rows(old, about, sorted(cells, key=str))   # another value is another study
