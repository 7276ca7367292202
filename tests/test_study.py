"""A study: the same digits in one process and in two, going on after a kill and from its results alone, bad files refused by name."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sr_distill.cli import main
from sr_distill.recipe import Recipe, UserError, expect_error
from sr_distill.study import Results, load_study, run_study, tomllib

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
    "`file(steps)` writes the study of three photos, one of them held out."
    folder = small_photos("abc")
    def write(steps=4):
        (tmp_path / "tiny.toml").write_text(FILE.format(photos=folder, steps=steps))
        return tmp_path / "tiny.toml"
    return write


def without_time(rows): return [{k: v for k, v in r.items() if k != "set_seconds"} for r in rows]


def test_two_processes_give_the_digits_of_one(file, tmp_path):
    study = load_study(file())
    one, two = run_study(study, tmp_path / "one", jobs=1), run_study(study, tmp_path / "two", jobs=2)
    assert not one.missing and len(one.rows) == 2 + 5 * 2 and without_time(one.rows) == without_time(two.rows)
    for out in ("one", "two"): assert len([p for p in (tmp_path / out / "sets").iterdir() if p.is_dir()]) == 2   # ways to draw share a set


def test_killed_and_gone_on(file, tmp_path):
    study, out = load_study(file(150)), tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-m", "sr_distill", "study", file(150), out, "--jobs", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (out / "results.json").exists() and len(Results.load(out / "results.json").rows) > 3: break
            assert child.poll() is None
            time.sleep(.1)
        else: pytest.fail("no result after a minute")
    finally: os.kill(child.pid, signal.SIGKILL); child.wait()
    assert Results.load(out / "results.json").missing
    went_on, whole = run_study(study, out, jobs=1), run_study(study, tmp_path / "whole", jobs=1)
    assert not went_on.missing and without_time(went_on.rows) == without_time(whole.rows)


def test_the_command_leaves_tables_and_a_report(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", str(file()), str(out), "--jobs", "1", "--minutes", "0.000001"]) == 0       # nothing but bicubic
    assert len(json.loads((out / "results.json").read_text())["missing"]) == 10
    assert main(["study", str(file()), str(out), "--jobs", "1"]) == 0
    assert main(["study", str(file()), str(out), "--scale", "huge"]) == 2 and "has no scale 'huge'; leave --scale out" in capsys.readouterr().err
    assert {"results.json", "results.csv", "tables.md", "report.html"} <= {p.name for p in out.iterdir()}
    assert "16 training steps" not in capsys.readouterr().out and "distilled" in (out / "tables.md").read_text()


def test_other_settings_are_computed_again(file, tmp_path):
    first = run_study(load_study(file(4)), tmp_path / "out", jobs=1)
    again = run_study(load_study(file(5)), tmp_path / "out", jobs=1)
    differ = {r["model"] for r, s in zip(first.rows, again.rows) if r["psnr_rgb"] != s["psnr_rgb"]}
    assert differ == {"VDSR"} and not again.missing


@pytest.mark.parametrize("old, new, words", [
    ("[models]", "[modles]", ["'modles' is unknown"]), ("steps = 2, pool", 'init = "best", pool', ["set 'distilled'", "'best' is unknown"]),
    ("steps = 3", "stepz = 3", ["model 'EDSR'", "'stepz'"]), ("held_out = 1", "", ["no judge"]), ("seeds = 1", "seeds = ", ["no readable TOML"]),
])
def test_bad_files(file, tmp_path, capsys, old, new, words):
    path = file()
    path.write_text(path.read_text().replace(old, new))
    assert main(["study", str(path), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words) and "tiny.toml" in err and not (tmp_path / "out").exists(), err


def test_every_study_of_the_package_is_well_formed(monkeypatch, tmp_path):
    from importlib.resources import files
    monkeypatch.setenv("SR_DISTILL_SHARED", str(tmp_path))
    names = [f.name[:-5] for f in (files("sr_distill") / "studies").iterdir() if f.name.endswith(".toml")]
    scales = {"paper": ("quick", "laptop", "paper")}
    for name, scale in [(n, s) for n in names for s in ("", *scales.get(n, ()))]:
        study = load_study(name, scale)
        assert study.title and study.tests and any(s.recipe is None for s in study.sets.values()) and any(s.recipe and not s.recipe.steps for s in study.sets.values()), name
        for s in study.sets.values(): assert s.recipe is None or isinstance(s.for_seed(2), Recipe)
    assert {s for n in names for s in tomllib.loads((files("sr_distill") / f"studies/{n}.toml").read_text(encoding="utf-8")).get("scales", {})} == set(scales["paper"])
    assert load_study("paper", "quick").photos == "embedded" and load_study("paper", "paper").tests["DIV2K"] == "div2k-valid"
    assert "prior" in names and "prior" in str(expect_error(UserError, load_study, "nowhere"))
