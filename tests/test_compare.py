"""Does a small set pay: the study that is written for the user, its sentence, and what is refused before any work."""
import html
import json
import logging
import os
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sr_distill as sd
from sr_distill.advise import LARGEST, advise, load_curves
from sr_distill.cli import main
from sr_distill.compare import ENOUGH, RECOMMENDED, TAUGHT, compare_config, comparison
from sr_distill.core import import_torchvision, read_json
from sr_distill.recipe import CompareOptions, UserError, expect_error, recipe_of
from sr_distill.study import Results, _cell_work, load_study
from sr_distill.study_file import Cell, study_from, study_text, tomllib

REPO = Path(__file__).resolve().parents[1]
TINY = ["--size", "24", "--budget", "20", "--model", "edsr", "--depth", "1", "--width", "4", "--steps", "2", "--batch", "1", "--patch", "16",
        "--seeds", "2", "--jobs", "1"]


def without_time(rows): return [{k: v for k, v in r.items() if k != "set_seconds"} for r in rows]

def toml(capsys, *args) -> str:
    assert main(["compare", *map(str, args), "--toml"]) == 0
    return capsys.readouterr().out


def test_the_command_and_its_study_file_give_the_same_rows(small_photos, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    photos = small_photos("abcdef")
    (tmp_path / "printed.toml").write_text(toml(capsys, photos, tmp_path / "out", *TINY), encoding="utf-8")
    assert not (tmp_path / "out").exists()   # --toml does no more
    assert main(["compare", str(photos), str(tmp_path / "out"), *TINY]) == 0
    told = capsys.readouterr().out
    assert "1 of the 6 photos judge" in caplog.text and caplog.text.index(": about ") < caplog.text.index("1 of 8 trainings")
    assert "| hardest windows, recommended" in told and ("measurable" in told or "Take " in told or "No verdict" in told)
    assert main(["study", str(tmp_path / "printed.toml"), str(tmp_path / "study"), "--jobs", "1"]) == 0
    mine, its = (Results.load(tmp_path / out / "results.json") for out in ("out", "study"))
    assert without_time(mine.rows) == without_time(its.rows) and len(mine.rows) == 1 + 4 * 2
    assert load_study(tmp_path / "out/study.toml") == load_study(tmp_path / "printed.toml")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<svg" in page and told.split("report:")[0].strip().splitlines()[-1][:30] in page


def test_it_goes_on_where_it_was_stopped(small_photos, tmp_path, capsys, monkeypatch):
    photos = small_photos("abcd")
    assert main(["compare", str(photos), str(tmp_path / "out"), *TINY, "--minutes", "0.000001"]) == 0
    assert "No verdict yet: 8 trainings to go" in capsys.readouterr().out
    save = Results.save
    def then_stop(results, folder):
        save(results, folder)
        if len(results.rows) > 3: raise KeyboardInterrupt
    monkeypatch.setattr(Results, "save", then_stop)
    assert main(["compare", str(photos), str(tmp_path / "out"), *TINY]) == 130
    monkeypatch.undo()
    before = Results.load(tmp_path / "out/results.json")
    assert 3 < len(before.rows) < 9 and before.missing
    answer = sd.compare(photos, tmp_path / "out", config=compare_config(model="edsr", depth=1, width=4, steps=2, batch=1, patch=16),
                        options=CompareOptions(size=24, budget=20., seeds=2, jobs=1))
    assert not answer.missing and len(answer.rows) == 9 and [r for r in answer.rows if r in before.rows] == before.rows


def test_photos_of_your_own_judge(small_photos, tmp_path):
    photos = small_photos("abc")
    judges = tmp_path / "judges"
    judges.mkdir()
    os.replace(photos / "c.png", judges / "x.png")
    said = comparison(photos, judges, options=CompareOptions(size=24))
    assert said["tests"] == {"judges": str(judges)} and "held_out" not in said
    os.link(photos / "a.png", judges / "y.png")
    assert "1 of these 2 photos are among" in (text := str(expect_error(UserError, comparison, photos, judges))) and "y for one" in text
    os.rename(judges, tmp_path / "mean")
    (tmp_path / "mean/y.png").unlink()
    assert list(comparison(photos, tmp_path / "mean", options=CompareOptions(size=24))["tests"]) == ["photos of mean"]


def test_what_cannot_be_answered_is_refused_before_any_work(small_photos, tmp_path, capsys):
    photos, out = small_photos("ab"), tmp_path / "out"
    def refused(*args, words):   # of a flag that is given twice the last counts
        assert main(["compare", str(photos), str(out), *TINY, *map(str, args)]) == 2
        assert words in (err := capsys.readouterr().err) and not out.exists(), err
    refused("--budget", 1, words="less than one window of 24²; give 16 or more")
    refused("--bytes", "350kB", words="both say how large a set is")
    refused("--bytes", "much", words="--bytes 'much' is no size")
    refused("--seeds", 0, words="--seeds 0 is too small")
    refused("--patch", 32, words="a smaller patch")
    refused("--held-out", tmp_path / "none", words="none: no such folder")
    refused("--lpips", "best", words="best")
    refused("--size", 25, words="multiple of --scale 2")
    (photos / "b.png").unlink()
    refused(words="give --held-out PHOTOS")


def test_every_setting_goes_into_the_file():
    config = compare_config(model="srcnn", scale=3, steps=5, lr=1e-4, loss="l1", clip=.5, seed=7, sampling="error", patch=24)
    study = study_from(tomllib.loads(study_text(comparison("embedded", "", config, CompareOptions(budget=3., seeds=4, ssim=True)))))
    model, = study.models.values()
    assert model.config == sd.TrainConfig(**{**config.to_dict(), "seed": 0, "sampling": "uniform"})
    assert (study.first_seed, study.seeds, study.ssim) == (7, 4, True) and {s.recipe.scale for s in study.sets.values() if s.recipe} == {3}
    assert all(s.sampling == "error" for s in study.sets.values() if s.recipe)
    best = next(s.recipe for n, s in study.sets.items() if RECOMMENDED in n)
    assert best == sd.recommended(3., 3)


def test_another_recommendation_is_a_set_of_its_own(monkeypatch, small_photos, tmp_path):
    from sr_distill import recipe
    def mixture(budget, scale, bytes, each, training, size=64): return sd.Recipe(space="procedural", share=.5, budget=budget, scale=scale, size=size, steps=0)
    monkeypatch.setattr(recipe, "recommended", mixture)
    study = study_from(comparison("embedded", options=CompareOptions(budget=2.)))
    assert list(study.sets)[2:] == ["random windows", "hardest windows", RECOMMENDED] and study.sets[RECOMMENDED].recipe == mixture(2., 2, None, True, 1200)
    config = compare_config(model="edsr", depth=1, width=4, steps=1, batch=2, patch=16)
    answer = sd.compare(small_photos("abc"), tmp_path / "out", config=config, options=CompareOptions(size=24, budget=30., seeds=1, jobs=1))
    assert not answer.failed and answer.name == RECOMMENDED and len(answer.rows) == 6


def test_a_teachers_labels_are_one_more_row(small_photos, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    photos, out, labels = small_photos("abcd"), tmp_path / "out", ["--seeds", "1", "--labels", "teacher", "--teacher-steps", "3"]
    (tmp_path / "own.toml").write_text(study_text(comparison(photos, "", compare_config(model="edsr", depth=1, width=4, steps=2, batch=1, patch=16), CompareOptions(size=24, budget=20., seeds=1))))
    assert main(["compare", str(photos), str(out), *TINY, *labels, "--toml"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert list(printed["sets"])[-1] == TAUGHT and printed["sets"][TAUGHT]["teacher_steps"] == 3
    own, asked = (study_from(said) for said in (tomllib.loads((tmp_path / "own.toml").read_text()), printed))
    assert {n: s for n, s in asked.sets.items() if n != TAUGHT} == own.sets   # without the option the study is what it was
    assert asked.sets[TAUGHT].recipe == sd.Recipe(init="downscaled", grouping="all", size=24, budget=20., steps=0, labels="teacher", teacher_steps=3)
    works = [_cell_work(asked, Cell(name, None, 0)) for name in list(asked.sets)[2:]]
    assert works[:-1] == [0] * (len(works) - 1) and works[-1] > 0   # the estimate counts the teacher
    assert main(["compare", str(photos), str(out), *TINY, *labels]) == 0
    said, results = capsys.readouterr().out, Results.load(out / "results.json")
    row, = (r for r in results.rows if r["set"] == TAUGHT)
    assert f"| {TAUGHT} (below bicubic) |" in said and html.escape(TAUGHT) in (out / "report.html").read_text(encoding="utf-8") and not results.failed
    assert row["pixels"] <= .2 and f"make and {len(results.rows) - 1} models" in caplog.text
    assert main(["compare", str(photos), str(out), *TINY, "--teacher-steps", "3"]) == 2 and "give --labels teacher" in capsys.readouterr().err


def test_a_network_of_spandrel(small_photos, tmp_path):
    import_torchvision()   # which spandrel imports
    pytest.importorskip("spandrel", reason="spandrel is missing (pip install spandrel)")
    config = compare_config(model="spandrel:Compact", depth=1, width=4, steps=1, batch=1, patch=16)
    answer = sd.compare(small_photos("abc"), tmp_path / "out", config=config, options=CompareOptions(size=24, budget=30., seeds=1, jobs=1))
    assert answer.model == "spandrel:Compact 1×4" and len(answer.rows) == 5 and "give --seeds 3" in answer.verdict or "No verdict" in answer.verdict
    assert read_json(tmp_path / "out/results.json")["about"]["models"]


@pytest.mark.parametrize("model", ENOUGH)
def test_what_is_called_enough_steps_was_enough_in_the_stored_studies(model):
    steps, batch, study = ENOUGH[model]
    results = Results.load(REPO / f"nbs/results/{study}.json")
    names = [n for n, c in results.about["models"].items() if (c["model"], c["steps"], c["batch"]) == (model, steps, batch) and c["scale"] == 2]
    sets = [(s, n) for n in names for s, about in results.about["sets"].items() if results.values(s, n)]
    large = [(s, n) for s, n in sets if not results.about["sets"][s]["recipe"]] or sets
    assert large and not any(results.below_bicubic(s, n, t) for s, n in large for t in results.about["tests"])


def test_too_few_steps_are_told_before_the_work(small_photos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert main(["compare", str(small_photos("abcd")), str(tmp_path / "out"), *TINY, "--minutes", "0.000001"]) == 0
    warned = "--steps 2 with --batch 1 may be too few"
    assert warned in caplog.text and caplog.text.index(warned) < caplog.text.index(": about ")
    assert "the shortest stored training of EDSR that ended above has 1,000 steps of 16 patches (study `paper_laptop`), so give --steps 16000 or more" in caplog.text


# ---- plan: the answer from measured curves

def test_the_curves_are_those_of_the_stored_results():
    stored = (REPO / "sr_distill/curves.json").read_text(encoding="utf-8")
    assert runpy.run_path(str(REPO / "tools/curves.py"))["page"]() == stored, "run python tools/curves.py"
    assert len(stored) < 50_000 and json.loads(stored)["photos"] == 40


@pytest.fixture(scope="module")
def shoot():
    "As many photos of nothing as the curves were measured on, and about as large."
    return sd.Photos.from_arrays(range(40), [np.zeros((1360, 1960), np.uint8)] * 40, "shoot")

VDSR, EDSR = dict(model="vdsr", depth=8, width=32, batch=16), dict(model="edsr", depth=4, width=32, batch=16)

@pytest.mark.parametrize("settings, budget, gain, all_photos", [
    (dict(EDSR, steps=1200), .7, .35, False), (dict(EDSR, steps=6000), .7, .15, False), (dict(EDSR, steps=6000), .05, -.83, True),
    (dict(VDSR, steps=6000), .7, .11, False), (dict(VDSR, steps=6000), None, .18, False), (dict(model="srcnn", batch=16, steps=6000), .7, .34, False),
    (dict(EDSR, steps=6000, scale=4), 8.88, .11, False)])
def test_at_a_measured_point_it_says_what_was_measured(shoot, settings, budget, gain, all_photos):
    found = advise(shoot, sd.TrainConfig.for_model(**settings), budget)
    assert found.measured and found.take_all == all_photos and abs(found.best.gain.mean - gain) < .02, found
    assert all(study in str(found) for study, _ in found.best.gain.basis)


def test_a_budget_below_one_window_of_each_photo_names_shrunk_photos(shoot):
    "As `distill` makes them; the hardest windows of 40 photos would have no room in it."
    config = sd.TrainConfig.for_model(**EDSR, steps=6000)
    small, enough = (advise(shoot, config, budget) for budget in (.06, .7))
    assert small.usual.init == "downscaled" and small.usual.grouping == "all" and enough.usual.init == "hardest"
    assert "--init downscaled" in str(small) and "hardest windows" not in str(small)
    commands = [line for line in str(small).splitlines() if "sr_distill distill" in line]
    assert len(commands) == len({line.split("sr_distill distill")[1] for line in commands})   # none is named twice

def test_what_it_prints_can_be_run(shoot):
    from sr_distill import cli
    for budget in (.3, 1.234, 8.):
        found = advise(shoot, compare_config(steps=2500), budget)
        make, train = found.commands.splitlines()
        said = cli.cli.commands["distill"].make_context("distill", shlex.split(make)[2:]).params
        assert recipe_of(cli.chosen(sd.Recipe, said)) == found.recipe
        if found.recipe.bytes: assert found.recipe == recipe_of(dict(bytes=found.recipe.bytes))   # the package's own set
        else: assert found.recipe.budget <= budget
        assert found.best.images * found.recipe.size**2 <= budget / 100 * shoot.pixels
        said = cli.cli.commands["train"].make_context("train", shlex.split(train)[2:]).params
        assert sd.TrainConfig.for_model(**cli.chosen(sd.TrainConfig, said)) == replace(found.config, sampling=found.best.sampling)
        assert {1200} < {steps for _, steps in found.best.gain.basis} and found.measured


def test_the_first_answer_is_the_best_and_its_commands_are_printed(shoot):
    "A small set with a teacher's labels was measured above all the photos, so nothing says: take all the photos."
    found = advise(shoot, sd.TrainConfig.for_model(**VDSR, steps=6000), .7)
    lines = str(found).splitlines()
    assert lines[1].startswith("Make this set: it should gain 0.11 ±") and "Take all" not in str(found)
    assert lines[3].startswith("sr_distill distill PHOTOS SET --init downscaled") and "--labels teacher" in lines[3]
    assert any(line.startswith("the package's own recipe") and "-0.21 ± 0.01 dB" in line for line in lines)
    worse = advise(shoot, sd.TrainConfig.for_model(**EDSR, steps=6000), .05)
    lines = str(worse).splitlines()
    assert lines[1].startswith("Take all the photos, drawn by error: ") and lines[2:5:2] == ["", ""]
    assert lines[3] == "sr_distill train PHOTOS MODEL --model edsr --depth 4 --width 32 --steps 6000 --batch 16 --sampling error"
    assert lines[5] == "its size: all 40 photos" and any(line.startswith("if it must be small: -0.83") for line in lines)


def test_one_training_that_lost_is_no_advice_for_a_small_set(shoot):
    found = advise(shoot, sd.TrainConfig.for_model(**EDSR, steps=20_000), .7)
    assert found.best.gain.n == 1 and found.commands.startswith("sr_distill train PHOTOS MODEL")
    assert found.sentence == "Take all the photos, drawn by error: the best set of this size came out -0.36 dB in one training."


OWN = dict(init="hardest", labels="own", program="fitted", steps=0)
BEST = {"edsr": OWN, "srcnn": OWN, "vdsr": dict(init="downscaled", labels="teacher", store="labels", steps=0)}   # 350 kB, 6,000 steps, study `rivals`


@pytest.mark.parametrize("settings", [EDSR, dict(model="srcnn", batch=16), VDSR])
def test_the_best_of_350_kb_comes_first_and_the_packages_own_is_named(shoot, monkeypatch, settings):
    from sr_distill import advise as page
    monkeypatch.setattr(page, "png_rate", lambda photos: 122e6 / 106.6e6)
    best = BEST[settings["model"]]
    for size in ({"bytes": "350kB"}, {}) if settings["model"] == "edsr" else ({"bytes": "350kB"},):
        found = advise(shoot, sd.TrainConfig.for_model(**settings, steps=6000), **size)
        assert found.measured and found.recipe.space == "procedural" and found.recipe.bytes <= 350_000, found
        assert {k: getattr(found.recipe, k) for k in best} == best, found
        assert found.usual == recipe_of({}) and f"{abs(found.usual_gain.mean):.2f}" in str(found) and not found.take_all
        assert ("the package's own recipe, AVIF windows beside a program" in str(found)) == (best != OWN)
        assert ("sr_distill distill PHOTOS SET --bytes 350kB\n" in found.commands or "sr_distill distill PHOTOS SET\n" in found.commands) == (best == OWN), found
    shorter = advise(shoot, sd.TrainConfig.for_model(**settings, steps=1200), bytes="350kB")
    assert shorter.usual_gain.n == 3 and "beside a program: not measured for this network, length and size" not in str(shorter)


def test_a_set_that_stores_its_teacher_is_named_if_its_time_does_not_count(shoot, monkeypatch):
    from sr_distill import advise as page
    monkeypatch.setattr(page, "png_rate", lambda photos: 122e6 / 106.6e6), monkeypatch.setattr(page, "WORTH", 0.)
    found = advise(shoot, sd.TrainConfig.for_model(**EDSR, steps=6000), bytes="350kB")
    assert found.recipe.store == "teacher" and "145 images of 32² beside a program and the teacher that enlarges them" in str(found)
    assert "about 350 kB as AVIF (0.29 % of the photos' bytes)" in str(found) and "--store teacher" in found.commands
    assert advise(shoot, found.config, bytes="349kB").recipe == sd.recommended(bytes=349_000, training=6000)   # the teacher needs its bytes
    assert advise(shoot, found.config, .7).recipe.store == "labels"   # a budget in pixels does not count a teacher


@pytest.mark.parametrize("size", [{"bytes": "350kB"}, {"budget": .7}])
@pytest.mark.parametrize("settings", [EDSR, dict(model="srcnn", batch=16)])
def test_a_set_of_fewer_windows_than_photos_is_asked_for_in_bytes(shoot, monkeypatch, settings, size):
    "A budget in per cent counts windows for each photo; the set of 50 kB that is best for a short training has 27 for 40."
    from sr_distill import advise as page
    monkeypatch.setattr(page, "png_rate", lambda photos: 122e6 / 106.6e6)
    found = advise(shoot, sd.TrainConfig.for_model(**settings, steps=1200), **size)
    assert found.plain.images < len(shoot) and f"{found.plain.gain.mean:.2f} ± " in str(found), found
    asked = re.search(r"^(?:without a teacher: .* dB: )?sr_distill distill PHOTOS SET --bytes (\d+)kB$", str(found), re.M)   # itself, or beside a set with a teacher
    assert asked and 35 <= int(asked[1]) <= 50, found
    curves = [c for c in page.load_curves() if (c.config.model, c.config.scale) == (settings["model"], 2)]
    few = page.candidates(curves, shoot, 1200, 26 * 64**2)
    assert found.plain.images == 27 and few and found.plain.recipe not in [c.recipe for c in few]   # one window less: too large


@pytest.mark.parametrize("settings, budget, words", [
    (dict(model="edsr", steps=1200), None, "EDSR ×2 (the nearest is EDSR 4×32 ×2)"), (dict(EDSR, scale=8), None, "EDSR 4×32 ×8 (the nearest is EDSR 4×32 ×4)"),
    (dict(EDSR, scale=3), None, "EDSR 4×32 ×3 (the nearest"),
    (dict(EDSR, steps=10**6), None, "1,000,000 training steps (the nearest are 60,000)"), (dict(EDSR, steps=300), None, "300 training steps (the nearest are 1,200)"),
    (dict(EDSR), .001, "sets of this size"), (dict(model="spandrel:RCAN"), None, "spandrel:RCAN ×2")])
def test_what_was_not_measured_is_said(shoot, settings, budget, words):
    found = advise(shoot, compare_config(**settings), budget)
    assert not found.measured and found.sentence.startswith("Not measured: ") and words in found.sentence
    assert "sr_distill compare PHOTOS" in str(found) and found.recipe.scale == found.config.scale


def test_a_budget_in_bytes(small_photos, tmp_path, shoot):
    photos, config = small_photos("abc"), compare_config(model="edsr", depth=1, width=4, steps=1, batch=1, patch=16)
    study = study_from(comparison(photos, "", config, CompareOptions(size=24, bytes="6kB")))
    assert {(s.recipe.bytes, s.recipe.budget, s.recipe.grouping) for s in study.sets.values() if s.recipe} == {(6000, None, "image")}
    assert study.sets[RECOMMENDED].recipe == sd.recommended(bytes=6000, size=24, training=1)
    answer = sd.compare(photos, tmp_path / "out", config=config, options=CompareOptions(size=24, bytes="6kB", seeds=1, jobs=1))
    assert not answer.failed and len(answer.rows) == 6
    for folder in (tmp_path / "out/sets").iterdir():
        if folder.is_dir(): assert 0 < sum(p.stat().st_size for p in (folder / "images").iterdir()) <= 6000
    assert "--bytes 20 is less than one window" in str(expect_error(UserError, comparison, photos, "", config, CompareOptions(size=24, bytes=20)))
    assert advise(shoot, bytes=10**9).recipe.bytes < 10**9   # no more than was measured


def test_plan_on_the_command_line(small_photos, capsys):
    photos = small_photos("ab")
    assert main(["plan", str(photos)]) == 0
    assert f"sr_distill distill {photos} SET" in (said := capsys.readouterr().out) and "Not measured: sets of this size" in said
    answers = []
    for steps in ("--steps", "--for-steps"): answers += [main(["plan", str(photos), steps, "6000"]), capsys.readouterr().out]
    assert answers[0] == answers[2] == 0 and answers[1] == answers[3] and "6,000 training steps" in answers[1]
    assert main(["plan", str(photos), "--budget", "0"]) == 2 and "--budget 0" in capsys.readouterr().err
    assert main(["plan", str(photos / "none")]) == 2 and "no such folder" in capsys.readouterr().err


def test_every_point_can_be_offered():
    points = [p for c in load_curves() for p in c.points]
    assert len(points) > 100 and all(0 < p.pixels <= 1.01 * LARGEST / 100 * 106603968 and p.recipe.budget is None for p in points)
