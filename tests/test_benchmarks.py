"""The script that spends a lent GPU's minutes, and what it calls: dry runs on the CPU, tiny.  No number of them is kept."""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

REPO = Path(__file__).resolve().parents[1]


def benchmark(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", REPO / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as script:
        script.syspath_prepend(REPO / "benchmarks")   # a script finds those beside it
        spec.loader.exec_module(module)
    return module

@pytest.fixture
def data(tmp_path):
    "photos/ and val/ with two noisy photos of 208²."
    for part in ("photos", "val"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for k in range(2):
            pixels = np.random.default_rng(k).integers(0, 256, (208, 208, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / part / f"{k}.png")
    return tmp_path / "data"

@pytest.fixture
def run(monkeypatch):
    "`run(name, *arguments, **names)` calls a benchmark's `main`, with other things under some names of its module."
    threads = torch.get_num_threads()
    def call(name, *arguments, **names):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module = benchmark(name)
        vars(module).update(names)
        return module.main()
    yield call
    torch.set_num_threads(threads)


# ---- the stages

STUB = """#!/usr/bin/env bash
[ "$1" = -c ] && exit 1   # "is pytest-xdist there?"
echo "$*" >> "$ASKED"
case " $FAILING " in
  *" $(basename "${1%.py}") "*) case $(basename "$1") in speed.py) exit 75;; stylegan_size.py) exec sleep 60;; *) exit 3;; esac;;
esac
"""

@pytest.fixture
def script(tmp_path, data):
    "`script(*options, failing=…)` runs gpu.sh with a program in Python's place that writes down what it was asked."
    if not shutil.which("bash") or not shutil.which("timeout"): pytest.skip("no bash or no timeout here")
    stub, asked = tmp_path / "stub", tmp_path / "asked"
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    def call(*options, failing="", out="out"):
        asked.write_text("", encoding="utf-8")
        env = {**os.environ, "PYTHON": str(stub), "ASKED": str(asked), "FAILING": failing}
        done = subprocess.run(["bash", REPO / "benchmarks/gpu.sh", data, tmp_path / out, *options], capture_output=True, text=True, env=env, timeout=60)
        stages = tmp_path / out / "stages.txt"
        return done, [line.split()[-1 if line.startswith("-m") else 0] for line in asked.read_text().splitlines()], stages.read_text().splitlines() if stages.exists() else []
    return call

def test_the_stages_come_in_order_and_another_day_goes_on(script, tmp_path, data):
    _, asked, said = script("--minutes", "0.1", failing="speed stylegan_size")   # 6 seconds for all of it
    assert [Path(a).stem for a in asked[1:]] == ["speed", "stylegan_size"]
    assert [line.split()[0] for line in said] == ["tests", "speed", "stylegan", "long"]
    assert said[0].startswith("tests ended well") and "is not through" in said[1] and "ran out of its" in said[2] and "not begun" in said[3]
    shutil.copytree(tmp_path / "out", data / "results")   # what came back from the machine is given to the next one
    done, asked, said = script("--minutes", "5", out="next")
    assert "tests: done on another day" in done.stdout and [Path(a).stem for a in asked] == ["speed", "stylegan_size", "long_gpu"]
    assert [line.split(" after")[0] for line in said[4:]] == ["speed ended well", "stylegan ended well", "long ended well"]

def test_a_stage_that_fails_does_not_stop_the_next(script):
    _, asked, said = script("--only", "speed", "long", failing="long_gpu")
    assert [Path(a).stem for a in asked] == ["speed", "long_gpu"] and "failed with 3" in said[1]

@pytest.mark.parametrize("options, message", [(["--only", "sped"], "no stage sped"), (["--hours", "3"], "unknown option --hours")])
def test_a_wrong_option_is_told_before_a_minute_is_spent(script, options, message):
    done, asked, said = script(*options)
    assert done.returncode == 2 and message in done.stdout and not asked and not said

def test_data_without_photos_is_told(script, data):
    shutil.rmtree(data / "val")
    done, asked, _ = script()
    assert done.returncode == 2 and "no folder val/" in done.stdout and not asked


# ---- what they call

def test_the_generator_is_measured_in_turn_and_all_ways_agree(run, tmp_path):
    options = ["--tiny", "--resolution", 32, "--ways", "before", "plain", "official", "--threads", 1, 2, "--rounds", 2]
    assert run("stylegan_size", tmp_path, *options) == 0
    found = json.loads((tmp_path / "stylegan-cpu.json").read_text(encoding="utf-8"))
    rows = {name: row for name, row in found.items() if "image_off" in row}
    assert set(rows) == {f"{way}{threads}" for way in ("before", "plain", "official") for threads in ("", ", 2 threads")}
    for row in rows.values(): assert row["rounds"] == len(row["all_cpu_seconds"]) == 2 and row["image_off"] < 1e-5 and row["gradient_off"] < 1e-4

def test_long_trainings_go_on_another_day(run, data, tmp_path):
    arguments = data / "photos", tmp_path, "--tests", data / "val", "--device", "cpu", "--tiny", "--seeds", 1
    assert run("long_gpu", *arguments, "--seconds", .001) == 75   # no time for any
    found = json.loads((tmp_path / "long-cpu.json").read_text(encoding="utf-8"))
    assert len(found["missing"]) == 3 and {r["set"] for r in found["rows"]} == {"bicubic"}
    assert run("long_gpu", *arguments) == 0
    found = json.loads((tmp_path / "long-cpu.json").read_text(encoding="utf-8"))
    assert [r["set"] for r in found["rows"]] == ["bicubic", "all photos, uniform", "all photos, by error", "program and hardest, stored teacher, AVIF, 350 kB"]
    assert not found["missing"] and found["config"]["depth"] == 2 and all(r["psnr_rgb"] > 5 for r in found["rows"])

def test_a_gpus_sections_run_on_a_cpu(run, data, tmp_path):
    arguments = data / "photos", tmp_path, "--gpu-sections", "--tiny", "--only", "scale", "shares"
    assert run("speed", *arguments) == 0
    found = json.loads((tmp_path / "speed-cpu.json").read_text(encoding="utf-8"))
    assert found["machine"]["device"] == "cpu" and set(found["scale"]) == {"TF32 False", "TF32 True"}
    share = found["shares"]["2 groups"]
    assert share["arithmetic"] > 0 and share["kernels"] > 100 and not (tmp_path / "speed-cuda.json").exists()


# ---- a curriculum

def test_a_curriculum_draws_as_much_from_the_program():
    "Every order takes half of all patches from the program; only when they come differs. The constant one is the set's own."
    from sr_distill.data import Photos
    from sr_distill.procedural import Endless, Mixture, hand_written
    from sr_distill.recipe import TrainConfig
    photos, bench = Photos.open("embedded").subset([0, 1]), benchmark("curriculum")
    source, config = Mixture(photos, Endless(hand_written(photos, seed=1), window=2), .5), TrainConfig(batch=4, patch=24, steps=40)
    counts = {}
    for name, shares in bench.ORDERS.items():
        sampler = bench.Ordered(source, *shares).sampler(config)
        drawn = [(sampler.draw(t)[:, 0] >= 0).sum() for t in range(config.steps)]
        counts[name] = [sum(drawn), sum(drawn[:20])]
        if name == "constant": assert all((sampler.draw(t) == source.sampler(config).draw(t)).all() for t in range(config.steps))
    assert counts == {"constant": [80, 40], "program first": [80, 60], "windows first": [80, 20]}

def test_a_curriculum_tells_paired_differences(run, data, monkeypatch, capsys):
    bench_rows = {"constant": 30., "program first": 29.5}
    def learn(source, tests, model, steps, seed):
        return dict(mean=bench_rows["program first" if source.begin == 1 else "constant"] + seed * (1 if source.begin == 1 else .8))
    run("curriculum", "ready:50kB", "--tests", data / "val", "--steps", 4, "--seeds", 3, "--orders", "program first", "--json", data / "rows.json", learn=learn)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert dict(rows=said[:-1]) == json.loads((data / "rows.json").read_text())
    assert [(r["seed"], r["order"]) for r in said[:-1]] == [(s, o) for s in range(3) for o in ("constant", "program first")]
    assert said[-1] == dict(order="program first", minus="constant", mean=-.3, standard_error=.115)

def test_a_curriculum_needs_windows_and_a_program(run, data, capsys):
    with pytest.raises(SystemExit): run("curriculum", data / "val", "--tests", data / "val")
    assert "holds no mixture of windows and a program" in capsys.readouterr().err
