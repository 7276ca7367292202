"""A study: the same digits in one process and in two, going on after a kill and from its results alone, bad files refused by name."""
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sr_distill import study as module
from sr_distill.cli import main
from sr_distill.core import read_json, rng
from sr_distill.data import Photos
from sr_distill.demo import line_up, run_line_up, write_report
from sr_distill.models import make_model, save_model
from sr_distill.recipe import Recipe, RunError, TrainConfig, UserError, expect_error
from sr_distill.study import Results, finding, load_study, run_study, study_from, write_tables
from sr_distill.study_file import tomllib

FILE = """
title = "Tiny"
photos = "{photos}"
held_out = 1
seeds = 1
[recipe]
size = 24
real = 2
networks = 1
[sets]
"all photos" = {{all = true}}
"by error" = {{all = true, sampling = "error"}}
hardest = {{init = "hardest", steps = 0}}
"hardest, by error" = {{init = "hardest", steps = 0, sampling = "error"}}
distilled = {{steps = 2, pool = "random"}}
[training]
batch = 2
patch = 16
[models]
VDSR = {{model = "vdsr", depth = 3, width = 8, steps = {steps}}}
EDSR = {{model = "edsr", depth = 1, width = 8, steps = 3}}
"""


@pytest.fixture
def file(small_photos, tmp_path):
    "`file(steps)` writes the study of three photos, one of them held out; without some lines if they hold certain words."
    folder = small_photos("abc")
    def write(steps=4, without="nothing"):
        lines = FILE.format(photos=folder, steps=steps).splitlines(True)
        (tmp_path / "tiny.toml").write_text("".join(line for line in lines if without not in line))
        return tmp_path / "tiny.toml"
    return write

@pytest.fixture
def forked(monkeypatch):
    "Worker processes are forked from one that has imported PyTorch, as for the notebooks: a start costs no seconds."
    try: from test_notebooks import FRESH
    except ImportError: return   # no nbdev here: each is started anew
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda how: FRESH)


def without_time(rows): return [{k: v for k, v in r.items() if k != "set_seconds"} for r in rows]


def test_two_processes_give_the_digits_of_one(file, tmp_path, forked):
    study = load_study(file())
    one, two = run_study(study, tmp_path / "one", jobs=1), run_study(study, tmp_path / "two", jobs=2)
    assert not one.missing and len(one.rows) == 2 + 5 * 2 and without_time(one.rows) == without_time(two.rows)
    for out in ("one", "two"): assert len([p for p in (tmp_path / out / "sets").iterdir() if p.is_dir()]) == 2   # ways to draw share a set


KILLED = """
import os, signal, sys
from sr_distill import cli, study
save = study.Results.save
def then_die(results, folder):
    save(results, folder)
    if len(results.rows) > 3: os.kill(os.getpid(), signal.SIGKILL)
study.Results.save = then_die
cli.main(sys.argv[1:])
"""

def test_killed_and_gone_on(file, tmp_path):
    "Killed as soon as four rows are stored."
    path, out = file(without="by error"), tmp_path / "out"
    study = load_study(path)
    child = subprocess.run([sys.executable, "-c", KILLED, "study", path, out, "--jobs", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL and len(Results.load(out / "results.json").rows) > 3
    assert Results.load(out / "results.json").missing
    went_on, whole = run_study(study, out, jobs=1), run_study(study, tmp_path / "whole", jobs=1)
    assert not went_on.missing and without_time(went_on.rows) == without_time(whole.rows)


def test_the_command_leaves_tables_and_a_report(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", str(file()), str(out), "--jobs", "1", "--minutes", "0.000001"]) == 0       # nothing but bicubic
    assert "10 cells not done yet: all photos; VDSR; seed 0 | " in capsys.readouterr().out
    assert len(json.loads((out / "results.json").read_text())["missing"]) == 10
    assert main(["study", str(file()), str(out), "--jobs", "1"]) == 0
    assert "all photos" in (said := capsys.readouterr().out) and "16 training steps" not in said
    assert main(["study", str(file()), str(out), "--scale", "huge"]) == 2 and "has no scale 'huge'; leave --scale out" in capsys.readouterr().err
    assert {"results.json", "results.csv", "tables.md", "report.html"} <= {p.name for p in out.iterdir()}
    assert "distilled" in (out / "tables.md").read_text()


def test_photos_are_looked_at_anew_and_stay_what_they_were(file, tmp_path, monkeypatch):
    study = load_study(file())
    before = run_study(study, tmp_path / "out", jobs=1, minutes=1e-9).about   # it trains nothing
    Image.fromarray(np.full((48, 48, 3), 99, np.uint8)).save(tmp_path / "d.png")
    os.replace(tmp_path / "d.png", Path(study.photos) / "d.png")
    about = run_study(study, tmp_path / "other", jobs=1, minutes=1e-9).about
    assert about["photos"] == before["photos"] + 1 and about["photos_sha256"] != before["photos_sha256"]
    opened = module._photos_of
    def one_less(study):   # as a process sees it that starts after somebody removed a photo
        photos, held = opened(study)
        return photos.subset(range(1, len(photos))), held
    content = module._content(study)
    monkeypatch.setattr(module, "_photos_of", one_less)
    task = module.Task(study, tmp_path / "other", study.cells[0], "cpu", content)
    assert "are not what they were" in task.carry_out()
    monkeypatch.setattr(module, "_photos_of", lambda study: study.open())
    shutil.rmtree(study.photos)
    assert str(study.photos) in task.carry_out()   # told, and no end of the study


def test_other_settings_are_computed_again(file, tmp_path):
    first = run_study(load_study(file(4)), tmp_path / "out", jobs=1)
    again = run_study(load_study(file(5)), tmp_path / "out", jobs=1)
    differ = {r["model"] for r, s in zip(first.rows, again.rows) if r["psnr_rgb"] != s["psnr_rgb"]}
    assert differ == {"VDSR"} and not again.missing


@pytest.mark.parametrize("old, new, words", [
    ("[models]", "[modles]", ["'modles' is unknown"]), ("steps = 2, pool", 'init = "best", pool', ["set 'distilled'", "'best' is unknown"]),
    ("steps = 3", "stepz = 3", ["model 'EDSR'", "'stepz'"]), ("held_out = 1", "", ["has no tests"]), ("seeds = 1", "seeds = ", ["no readable TOML"]),
    ("seeds = 1", 'seeds = "3"', ["seeds '3'", "whole number"]), ("seeds = 1", "seeds = 0", ["seeds 0"]), ("seeds = 1", "count = -1", ["count -1"]),
    ("held_out = 1", 'held_out = "1"', ["held_out '1'"]), ("seeds = 1", 'lpips = "best"', ["lpips 'best'", "squeeze"]), ("seeds = 1", 'ssim = "no"', ["ssim 'no'"]),
    ("seeds = 1", 'tests = "x"', ["'tests' is no table"]), ("seeds = 1", "tests.a = 3", ["test 'a'", "'3'"]), ("[recipe]", "recipe = 3\n[scales]", ["'recipe' is no table"]),
    ("hardest = {", "a = 3\nhardest = {", ["set 'a'", "'3'"]), ("[models]", '[models]\na = "edsr"', ["model 'a'", "'edsr'"]), ("steps = 2, pool", "prior = 3, pool", ["set 'distilled'", "prior '3'"]),
    ("steps = 2, pool", 'once = "yes", pool', ["set 'distilled'", "once 'yes'"]), ('{model = "edsr",', "{", ["model 'EDSR'", "no 'model'"]),
    ("batch = 2", "batch = 2\nseed = 5", ["model 'VDSR'", "no 'seed'"]), ("batch = 2", 'batch = 2\nsampling = "error"', ["'sampling'", "each set"]), ("batch = 2", "batch = 2\nvalidate = 9", ["no 'validate'"]),
    ("real = 2", "real = 2\nseed = 7", ["no 'seed'"]), ("patch = 16", "patch = 32", ["set 'hardest'", "24²", "32²"]), ("steps = 2, pool", 'labels = "/no/such", pool', ["set 'distilled'", "labels '/no/such'"]),
    ("hardest = {", "bicubic = {all = true}\nhardest = {", ["set 'bicubic'", "another name"]), ("[models]", '[tests]\nmean = "x"\n[models]', ["test 'mean'"]), ("[models]", '[tests]\n"held out" = "x"\n[models]', ["test 'held out'"]),
])
def test_bad_files(file, tmp_path, capsys, old, new, words):
    path = file()
    path.write_text(path.read_text().replace(old, new))
    assert main(["study", str(path), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words) and "tiny.toml" in err and not (tmp_path / "out").exists(), err


@pytest.mark.parametrize("said, words", [(dict(sets=["a"]), "'sets' is no table"), (dict(photos=3), "entry 'photos': '3'"), (dict(models="edsr"), "'models' is no table"), (dict(scales=3), "'scales' is no table")])
def test_entries_of_another_kind(said, words):
    good = dict(photos="embedded", held_out=1, sets=dict(all=dict(all=True)), models=dict(edsr=dict(model="edsr")))
    assert words in str(expect_error(UserError, study_from, {**good, **said}, "mine.toml")) and study_from(good).seeds == 3


def test_a_study_takes_no_photo_twice():
    study = study_from(dict(photos="embedded", count=999, held_out=1, sets=dict(all=dict(all=True)), models=dict(edsr=dict(model="edsr"))))
    assert "count is 999" in str(expect_error(UserError, study.open))


def test_a_gpu_is_one_for_all(monkeypatch, file, tmp_path, capsys):
    monkeypatch.setattr(module, "pick_device", lambda name: SimpleNamespace(type="cpu" if name == "auto" else name))
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(7)), raising=False)
    assert [module._processes(0, d) for d in ("cpu", "auto", "cuda")] == [7, 7, 1] and module._processes(3, "cuda") == 3
    assert main(["study", str(file()), str(tmp_path / "out"), "--jobs", "-1"]) == 2 and "--jobs -1 is too small" in capsys.readouterr().err


@pytest.fixture
def little(small_photos):
    "`little(seeds=2)` is a study of two sets and two models, changed as it says."
    photos = str(small_photos("abc"))
    def make(**said):
        model = dict(depth=1, width=8, steps=2, batch=1, patch=16)
        sets, models = dict(hardest=dict(init="hardest"), random=dict(init="random")), dict(EDSR=dict(model="edsr", **model), VDSR=dict(model="vdsr", **{**model, "depth": 2}))
        return study_from({**dict(photos=photos, held_out=1, seeds=1, ssim=False, recipe=dict(size=24, steps=0), sets=sets, models=models), **said})
    return make


def test_a_killed_worker_ends_it_and_what_is_finished_is_kept(little, tmp_path, monkeypatch):
    class Pool:   # of one process, killed in its fourth task
        tasks = 0
        def __init__(self, *args, **kwargs): pass
        def __enter__(self): return self
        def __exit__(self, *error): pass
        def submit(self, task, argument):
            self.tasks, future = self.tasks + 1, Future()
            future.set_exception(BrokenProcessPool("terminated abruptly")) if self.tasks > 3 else future.set_result(task(argument))
            return future
    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    error = str(expect_error(RunError, run_study, little(), tmp_path / "out", 2))
    kept = Results.load(tmp_path / "out/results.json")
    assert "killed" in error and "--jobs" in error and len(kept.rows) == 2 + 1 and len(kept.missing) == 3
    assert not run_study(little(), tmp_path / "out", jobs=1).missing


def test_a_cell_with_an_error_that_nobody_foresaw(little, tmp_path, monkeypatch, capsys):
    real = module.train
    def train(net, *args, **kwargs):
        if net.config["name"] == "edsr": raise ValueError("no such luck")
        return real(net, *args, **kwargs)
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "load_study", lambda *args: little())
    monkeypatch.setattr(module, "write_tables", lambda *args: None)
    assert main(["study", "x.toml", str(tmp_path / "out"), "--jobs", "1"]) == 1
    err, found = capsys.readouterr().err, Results.load(tmp_path / "out/results.json")
    assert "2 cells failed" in err and "ValueError: no such luck (test_study.py, line" in err and "should not happen" not in err
    assert len(found.failed) == 2 and {(r["set"], r["model"]) for r in found.rows if r["set"] != "bicubic"} == {("hardest", "VDSR"), ("random", "VDSR")}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_set_that_fails_is_made_once_and_told_by_its_cells(little, tmp_path, jobs, caplog, forked):
    study = little(sets=dict(hardest=dict(init="hardest"), greedy=dict(init="random", ipc=9999)))
    found = run_study(study, tmp_path / "out", jobs=jobs)
    assert set(found.failed) == {"greedy; EDSR; seed 0", "greedy; VDSR; seed 0"} == set(found.missing) and all("--ipc 9999" in why for why in found.failed.values())
    assert sum("greedy; seed 0: " in r.message for r in caplog.records) == 1 and not [p for p in (tmp_path / "out/sets").iterdir() if p.name.startswith("random")]   # refused before any work
    assert {(r["set"], r["model"]) for r in found.rows if r["set"] != "bicubic"} == {("hardest", "EDSR"), ("hardest", "VDSR")}


def test_a_study_takes_no_folder_of_somebody_else(little, tmp_path):
    (tmp_path / "mine").mkdir(); (tmp_path / "mine/results.csv").write_text("my own")
    assert "'results.csv'" in str(expect_error(UserError, run_study, little(), tmp_path / "mine", 1)) and (tmp_path / "mine/results.csv").read_text() == "my own"
    run_study(little(), tmp_path / "out", jobs=1, minutes=1e-9)
    assert "other photos" in str(expect_error(UserError, run_study, little(count=2), tmp_path / "out", 1))
    for said, words in ((dict(recipe=dict(size=24, steps=0, budget=.01)), "set 'hardest': budget 0.01"), (dict(tests=dict(x=str(tmp_path / "mine"))), "mine: holds no")):
        assert words in str(expect_error(UserError, run_study, little(**said), tmp_path / "new", 1)) and not (tmp_path / "new").exists()
    for minutes in (-1, float("nan")): assert "--minutes" in str(expect_error(UserError, run_study, little(), tmp_path / "out", 1, minutes))


def test_all_sets_that_cannot_be_made_are_refused_before_any_work(little, tmp_path):
    save_model(make_model("edsr", 2, 1, 8), tmp_path / "edsr")
    sets = dict(large=dict(init="hardest", size=96), pooled=dict(init="random", steps=3, pool=str(tmp_path / "edsr")),
                labelled=dict(init="random", labels=str(tmp_path / "none")), fine=dict(init="random"))
    (tmp_path / "none").mkdir()
    said = str(expect_error(UserError, run_study, little(sets=sets), tmp_path / "out", 1))
    assert all(f"set {name!r}: " in said for name in ("large", "pooled", "labelled")) and "'fine'" not in said and not (tmp_path / "out").exists()
    patches = little(sets={"all photos": dict(all=True)}, models=dict(v=dict(model="vdsr", depth=1, width=4, steps=2, patch=512)))
    assert "set 'all photos': " in str(expect_error(UserError, run_study, patches, tmp_path / "out", 1)) and not (tmp_path / "out").exists()


def test_what_all_sets_share_is_for_those_that_use_it():
    said = dict(photos="embedded", held_out=1, recipe=dict(lr=.02, lr_latents=.1, trim=1, invert=3), models=dict(m=dict(model="srcnn")))
    sets = study_from({**said, "sets": dict(a=dict(all=True), p=dict(), d=dict(init="diverse"), l=dict(space="latent"))}).sets
    assert (sets["p"].recipe.lr, sets["p"].recipe.trim, sets["d"].recipe.trim, sets["l"].recipe.lr_latents, sets["l"].recipe.lr) == (.02, 1, 0, .1, .01)
    for wrong in (dict(space="latent", lr=.5), dict(lr_latents=.2), dict(init="diverse", trim=2)):   # said by the set itself
        assert "leave it out" in str(expect_error(UserError, study_from, {**said, "sets": dict(s=wrong)}))


def test_bad_photos_are_left_out_where_one_says_so(little, tmp_path, capsys):
    study = little()
    (tmp_path / "photos/z.png").write_text("no photo")
    module._photos_here.clear()
    assert "--skip-bad" in str(expect_error(UserError, run_study, study, tmp_path / "out", 1))
    (tmp_path / "s.toml").write_text(f'photos = "{tmp_path / "photos"}"\nheld_out = 1\nseeds = 1\nssim = false\n[sets]\na = {{all = true}}\n[models]\nm = {{model = "edsr", depth = 1, width = 8, steps = 2, batch = 1, patch = 16}}\n')
    assert main(["study", str(tmp_path / "s.toml"), str(tmp_path / "out"), "--skip-bad", "--jobs", "1"]) == 0 and len(Results.load(tmp_path / "out/results.json").rows) == 2


def test_rows_that_are_known_have_the_names_of_today(little, tmp_path):
    sets = lambda family: dict(a=dict(init="hardest", family=family), b=dict(init="random"))
    first, again = (run_study(little(sets=sets(f)), tmp_path / "out", jobs=1) for f in ("old", "new"))
    assert {r["family"] for r in first.rows} == {"bicubic", "old", "b"} and {r["family"] for r in again.rows} == {"bicubic", "new", "b"}
    assert [r["psnr_rgb"] for r in first.rows] == [r["psnr_rgb"] for r in again.rows]


def test_the_seed_makes_what_has_chance_in_it():
    sets = dict(a=dict(init="hardest"), b=dict(init="hardest", grouping="cluster"), c=dict(init="random"), d=dict(init="random", once=True), e=dict(all=True, labels="teacher"), f=dict(all=True), g=dict(init="hardest", labels="teacher"))
    study = study_from(dict(photos="embedded", held_out=1, recipe=dict(steps=0), sets=sets, models=dict(m=dict(model="srcnn"))))
    seeds = {n: s.for_seed(2) and s.for_seed(2).seed for n, s in study.sets.items()}
    assert seeds == dict(a=0, b=2, c=2, d=0, e=2, f=None, g=2) and study.sets["e"].making(1) != study.sets["g"].making(1)


def test_all_photos_are_labelled_once_and_by_who_is_needed(little, tmp_path, monkeypatch, forked):
    net = save_model(make_model("srcnn", 2, generator=rng(0, "net")), tmp_path / "net")
    model = dict(model="edsr", depth=1, width=8, steps=2, batch=1, patch=16)
    study = little(seeds=2, sets=dict(all=dict(all=True, labels=str(net)), small=dict(init="hardest")), models=dict(A=model, B=model))
    first = run_study(study, tmp_path / "out", jobs=2)
    rows = [r for r in first.rows if r["set"] == "all"]
    assert len({r["folder"] for r in rows}) == len({r["set_seconds"] for r in rows}) == 1 and {r["images"] for r in rows} == {2}
    monkeypatch.setattr(module, "get_teacher", lambda *args: pytest.fail("all labels are there"))
    for f in (tmp_path / "out/models").iterdir(): f.rename(tmp_path / f.name) if f.name == rows[0]["model_folder"] else None
    for f in (tmp_path / "out/scores").iterdir(): f.unlink()
    (tmp_path / "out/results.json").unlink()
    assert [r["psnr_rgb"] for r in run_study(study, tmp_path / "out", jobs=1).rows] == [r["psnr_rgb"] for r in first.rows]


def test_what_is_lower_is_better_for_lpips_and_a_start_has_its_own_network():
    def recipe(**said): return dict(recipe=Recipe(**said).to_dict(), sampling="uniform")
    sets = dict(other=recipe(init="loss", steps=0, network="vdsr"), mine=recipe(init="loss", steps=0), distilled=recipe(init="loss", steps=5))
    rows = [dict(set=s, family=s, model="m", seed=k, test="t", psnr_rgb=30., lpips=v + .001 * k) for s, v in (("other", .5), ("mine", .2), ("distilled", .1)) for k in range(3)]
    found = Results(rows, dict(tests=["t"], sets=sets))
    assert found.start("distilled") == "mine" and found.gains("m", "t", "lpips")[1][-1] == "better"


def test_the_rival_is_all_the_photos_drawn_the_better_way_with_their_own_pixels():
    plain, teacher = dict(recipe=None, sampling="uniform"), Recipe(labels="teacher").to_dict()
    sets = dict(uniform=plain, error=plain, labelled=dict(plain, labels=teacher), small=dict(recipe=Recipe().to_dict(), sampling="uniform"))
    score = dict(uniform=30., error=31., labelled=33., small=32., bicubic=29.)
    rows = [dict(set=s, family=s, model="m", seed=k, test="t", psnr_rgb=v + k, lpips=1 / v) for s, v in score.items() for k in range(3)]
    found = Results(rows, dict(tests=["t"], sets=sets))
    assert found.rival("m") == found.rival("m", metric="lpips") == "error" and found.rival("n") is None and len(found.beside_all("n")) == 1
    assert [(line[0], line[1], line[2], line[-1]) for line in found.beside_all("m")[1:]] == [("uniform", "error", "-1.000 ± 0.000", "worse"), ("labelled", "error", "+2.000 ± 0.000", "better"), ("small", "error", "+1.000 ± 0.000", "better")]
    assert [line[-1] for line in found.beside_all("m", metric="lpips")[1:]] == ["worse", "better", "better"]   # lower is better
    two = [dict(set=s, family=s, model="m", seed=k, test="t", psnr_rgb=v + k * (s == "error") / 4) for s, v in score.items() for k in range(2)]   # ± 0.125
    assert dict((line[0], line[-1]) for line in Results(two, dict(tests=["t"], sets=sets)).beside_all("m")[1:]) == {"uniform": "two seeds cannot tell", "labelled": "better", "small": "two seeds cannot tell"}


def test_a_flat_photo_has_infinite_psnr(little, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / "flat/white.png")
    study = little(held_out=0, tests=dict(white=str(tmp_path / "flat")), seeds=2)
    found = run_study(study, tmp_path / "out", jobs=1)
    assert not found.missing and found.rows[0]["psnr_rgb"] == float("inf") and '"psnr_rgb": "inf"' in (tmp_path / "out/results.json").read_text()
    assert found.rows == Results.load(tmp_path / "out/results.json").rows == run_study(study, tmp_path / "out", jobs=1).rows
    for r in found.rows:
        if r["model"] == "EDSR": r["psnr_rgb"] = float("inf") if r["seed"] else 40.
    write_tables(found, tmp_path / "out")
    assert "| inf |" in (tmp_path / "out/tables.md").read_text() and finding(found.paired("hardest", "random", "EDSR")) == "not shown"


def test_the_demo_on_flat_photos(tmp_path):
    (tmp_path / "flat").mkdir()
    for name in "abc": Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(tmp_path / f"flat/{name}.png")
    rows, config = {"all photos": None, "hardest crops": Recipe(size=24, steps=0)}, TrainConfig(model="edsr", depth=1, width=8, steps=1, batch=1, patch=16)
    result = run_line_up(tmp_path / "flat", rows, config, tmp_path / "out", 1, "none", 1)
    write_report(result, tmp_path / "out/report.html")
    assert result.rows[0]["psnr_rgb"] == float("inf") and read_json(tmp_path / "out/comparison.json")["rows"][0]["psnr_rgb"] == "inf"


def test_the_demo_trains_with_the_seed_and_the_sampling_of_its_settings(small_photos, tmp_path):
    rows, config = {"all photos": None, "chosen": Recipe(size=24, steps=0, init="random", seed=3)}, TrainConfig(model="edsr", depth=1, width=8, steps=1, batch=1, patch=16, seed=3, sampling="error")
    result = run_line_up(small_photos("abc"), rows, config, tmp_path / "out", 1, "none", 1)
    said = [read_json(p / "config.json")["training"] for p in (tmp_path / "out/models").iterdir() if p.is_dir()]
    assert {(t["seed"], t["sampling"]) for t in said} == {(3, "error")} and result.sets["chosen"].recipe.seed == 3
    for wrong, words in ((dict(seed=4), "--seed is 3"), (dict(validate=1), "--validate 1"), (dict(patch=32), "no patch of 32²")):
        assert words in str(expect_error(UserError, run_line_up, tmp_path / "photos", rows, replace(config, **wrong), tmp_path / "other", 1, "none", 1)) and not (tmp_path / "other").exists()
    assert line_up(Recipe(trim=1.))["hardest crops"].trim == 1 and line_up(Recipe(trim=1.))["downscaled"].trim == 0 and line_up(Recipe(space="latent", ipc=2))["random crops"] == Recipe(init="random", steps=0, ipc=2)


def test_the_page_of_the_demo_says_what_failed(small_photos, tmp_path):
    rows, config = {"all photos": None, "too many": Recipe(size=24, steps=0, ipc=9999)}, TrainConfig(model="edsr", depth=1, width=8, steps=1, batch=1, patch=16)
    result = run_line_up(small_photos("abc"), rows, config, tmp_path / "out", 1, "none", 1)
    write_report(result, tmp_path / "out/report.html")
    assert all("failed: too many; EDSR 1×8; seed 0: --ipc 9999" in text for text in (repr(result), (tmp_path / "out/report.html").read_text()))


def test_auto_is_the_backbone_that_is_here_by_name(little, tmp_path, monkeypatch):
    here, judged, real = "", [], module.evaluate
    def evaluate(model, photos, scale, lpips, **settings):
        judged.append(lpips)
        return SimpleNamespace(mean={**real(model, photos, scale, lpips="none", **settings).mean, "lpips": None if lpips == "none" else .25})
    monkeypatch.setattr(module, "evaluate", evaluate)
    monkeypatch.setattr(module, "LPIPS", lambda net: SimpleNamespace(net=here if net in ("auto", here) else None, reason="no file"))
    def run(lpips="auto"):
        judged.clear()
        return run_study(little(lpips=lpips), tmp_path / "out", jobs=1)
    bare = run()
    assert bare.about["lpips"] == "none" and {r["lpips"] for r in bare.rows} == {None} and set(judged) == {"none"}
    here = "squeeze"                                                         # its weights came later
    full = run()
    assert full.about["lpips"] == "squeeze" and {r["lpips"] for r in full.rows} == {.25} and set(judged) == {"squeeze"}
    assert "LPIPS (squeeze)" in full.markdown(("lpips",)) and "LPIPS (squeeze)" in full.markdown(("psnr_rgb", "lpips"))
    assert run() == full == run("squeeze") and not judged                    # the same under its name
    assert 'lpips = "vgg": no file' in str(expect_error(UserError, run, "vgg"))   # what is asked for by name is not left out


def test_a_teacher_is_what_its_folder_holds(little, tmp_path, monkeypatch):
    def teacher(folder, seed): save_model(make_model("edsr", 2, 1, 8, generator=rng(seed, "teacher")), tmp_path / folder)
    def made(folder):
        monkeypatch.setenv("TEACHERS", str(tmp_path / folder))
        study = little(sets={"own": dict(init="hardest"), "taught": dict(init="hardest", labels="$TEACHERS/edsr")}, models=dict(EDSR=dict(model="edsr", depth=1, width=8, steps=2, batch=1, patch=16)))
        return {r["set"]: r["model_folder"] for r in run_study(study, out, jobs=1).rows if r["set"] != "bicubic"}
    out = tmp_path / "out"
    for folder, seed in (("a/edsr", 0), ("b/edsr", 1), ("c/edsr", 0)): teacher(folder, seed)
    first = made("a")
    written = (out / "results.json").read_text()
    assert str(tmp_path) not in written and len(json.loads(written)["about"]["contents"]["taught"]["labels"]) == 64
    other = made("b")                                                        # another teacher of the same name
    assert first["own"] == other["own"] and first["taught"] != other["taught"]
    assert made("c") == first                                                # the same one in another place
    teacher("c/edsr", 1)
    assert made("c") == other                                                # which holds another one now
    old = json.loads((out / "results.json").read_text())
    del old["about"]["contents"]                                             # as older versions wrote it
    (out / "results.json").write_text(json.dumps(old))
    monkeypatch.setattr(module, "make_set", None)
    assert made("c") == other


def test_a_pool_is_treated_as_a_prior(little, tmp_path, monkeypatch):
    monkeypatch.setenv("NETS", str(tmp_path))
    net = save_model(make_model("srcnn", 2, generator=rng(0, "net")), tmp_path / "net")
    study = little(sets=dict(pooled=dict(steps=2, pool="$NETS/net"), named=dict(space="latent", prior="taef2", pool="random"), taught=dict(labels="teacher")))
    about = module._about(study, study.open()[0])
    assert study.sets["pooled"].recipe.pool == str(net) and about["sets"]["pooled"]["recipe"]["pool"] == "net"
    assert about["contents"]["pooled"].keys() == {"pool"} and about["contents"]["named"] == about["contents"]["taught"] == {}


def test_every_study_of_the_package_is_well_formed(monkeypatch, tmp_path):
    from importlib.resources import files
    monkeypatch.setenv("SR_DISTILL_SHARED", str(tmp_path))
    names = [f.name[:-5] for f in (files("sr_distill") / "studies").iterdir() if f.name.endswith(".toml")]
    scales = {"paper": ("quick", "laptop", "paper")}
    for name, scale in [(n, s) for n in names for s in ("", *scales.get(n, ()))]:
        study = load_study(name, scale)
        assert study.title and study.tests and any(s.recipe and not s.recipe.steps for s in study.sets.values()), name
        assert name == "ablation" or any(s.recipe is None for s in study.sets.values()), name   # that one compares recipes alone
        for s in study.sets.values(): assert s.recipe is None or isinstance(s.for_seed(2), Recipe)
    assert {s for n in names for s in tomllib.loads((files("sr_distill") / f"studies/{n}.toml").read_text(encoding="utf-8")).get("scales", {})} == set(scales["paper"])
    assert load_study("paper", "quick").photos == "embedded" and load_study("paper", "paper").tests["DIV2K"] == "div2k-valid"
    assert "prior" in names and "prior" in str(expect_error(UserError, load_study, "nowhere"))


def test_a_study_keeps_its_name_beside_a_folder_of_that_name(monkeypatch, tmp_path):
    "`sr_distill study budget budget` makes the folder that the same command must not take for the study when it goes on."
    monkeypatch.chdir(tmp_path), monkeypatch.setenv("SR_DISTILL_SHARED", str(tmp_path))
    (tmp_path / "budget").mkdir()
    assert load_study("budget").title


def test_a_study_refuses_what_a_recipe_would_ignore():
    "A set of a study is checked as what a user says, all the photos with labels too."
    said = dict(photos="embedded", held_out=1, models=dict(m=dict(model="srcnn", steps=2)))
    for ignored, name in ((dict(init="diverse", trim=1), "trim 1"), (dict(tune=50), "tune 50"), (dict(teacher_steps=9), "teacher_steps 9"), (dict(all=True, teacher_steps=9), "teacher_steps 9")):
        assert name in str(expect_error(UserError, study_from, {**said, "sets": dict(a=ignored)}))


def test_a_folder_of_anybody_is_a_set(small_photos, tmp_path):
    photos, theirs = small_photos("abc"), tmp_path / "theirs"
    shutil.copytree(photos, theirs)
    (theirs / "c.png").unlink()
    file = tmp_path / "s.toml"
    file.write_text(f'photos = "{photos}"\nseeds = 1\nssim = false\nheld_out = 1\n[sets]\n"all" = {{all = true}}\n"anybody" = {{folder = "{theirs}"}}\n'
                    '[models]\n"EDSR" = {model = "edsr", depth = 1, width = 8, steps = 1, batch = 1, patch = 16}\n')
    assert main(["study", str(file), str(tmp_path / "out"), "--jobs", "1", "--set", str(theirs)]) == 0
    found = Results.load(tmp_path / "out/results.json")
    row = next(r for r in found.rows if r["set"] == "anybody")
    assert row["images"] == 2 and row["bytes"] > 0 and found.rival("EDSR") == "all" and theirs.name in found.unique("set")
    assert found.about["sets"]["anybody"]["sha256"] == Photos.open(theirs).fingerprint
    file.write_text(file.read_text().replace("folder =", "all = true, folder ="))
    with pytest.raises(UserError, match="as it is"): load_study(file)
