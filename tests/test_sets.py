"""A stored set as others receive it: every file, every byte told, nothing beside the images that a loader could take for one; and output that ends no job."""
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_distill import metrics
from sr_distill.autoencoders import TinyAutoencoder
from sr_distill.cli import main
from sr_distill.core import read_json, rng
from sr_distill.data import Photos
from sr_distill.demo import Comparison, verdict
from sr_distill.distill import DistilledSet, distill, set_bytes, set_files
from sr_distill.metrics import LPIPS, Evaluation, evaluate
from sr_distill.models import init_weights, make_model
from sr_distill.recipe import Recipe, RunOptions
from sr_distill.study import Results

RECIPE = Recipe(size=24, networks=1, real=2, steps=4, pool="random", init="random")
OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=3)
TINY = "--size 24 --networks 1 --real 2 --steps 2 --pool random --init random --device cpu --held-out 0".split()


@pytest.fixture
def photos(small_photos): return Photos.open(small_photos("ab"))

@pytest.fixture
def latent_set(photos, tmp_path):
    torch.manual_seed(0)
    prior = TinyAutoencoder(4, width=8)
    for part in ("encoder", "decoder"): torch.save(getattr(prior, part).state_dict(), tmp_path / f"tae_{part}.pth")
    recipe = replace(RECIPE, space="latent", prior=str(tmp_path / "tae_encoder.pth"), steps=1, invert=1)
    return distill(photos, recipe, tmp_path / "latent", OPTIONS)

def size(path): return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


# ---- files and bytes

def test_every_byte_on_the_disk_is_told(photos, tmp_path, capsys):
    made = distill(photos, RECIPE, tmp_path / "set", replace(OPTIONS, lr_images=True))
    parts, known = set_bytes(made.folder), {p for paths in set_files(made.folder).values() for p in paths}
    assert {p for p in made.folder.rglob("*") if p.is_file() and p.name != ".lock"} == known and sum(parts.values()) == sum(p.stat().st_size for p in known)
    assert made.manifest["stored_bytes"] == {k: v for k, v in parts.items() if k != "card and manifest"}
    total = f"{sum(parts.values()):,} bytes"
    assert main(["inspect", str(made.folder)]) == 0 and total in capsys.readouterr().out

def test_the_last_lines_of_a_distillation_tell_them_too(small_photos, tmp_path, capsys):
    assert main(["distill", str(small_photos("ab")), str(tmp_path / "set"), *TINY]) == 0
    assert f"{sum(set_bytes(tmp_path / 'set').values()):,} bytes" in capsys.readouterr().out

def test_no_trace_on_request(photos, tmp_path):
    made = distill(photos, RECIPE, tmp_path / "set", replace(OPTIONS, snapshots=0))
    again = DistilledSet.load(made.folder)
    assert made.trace is again.trace is None and not list(made.folder.glob("trace*"))
    assert (again.images == distill(photos, RECIPE, tmp_path / "other", OPTIONS).images).all()

def test_the_trace_is_no_archive_for_others(photos, tmp_path):
    made = distill(photos, RECIPE, tmp_path / "set", OPTIONS)
    assert not zipfile.is_zipfile(made.folder / "trace.safetensors") and made.trace.frame(0).shape == (2, 24, 24, 3)
    assert [p for p in made.folder.rglob("*") if p.suffix in (".png", ".jpg", ".zip", ".tar", ".gz")] == sorted(made.folder.glob("images/*.png"))

def test_a_copy_has_every_file(photos, tmp_path, latent_set):
    with_lr = distill(photos, RECIPE, tmp_path / "lr", replace(OPTIONS, lr_images=True))
    for made in (latent_set, with_lr):
        copy = DistilledSet.load(made.folder).save(tmp_path / f"copy of {made.folder.name}")
        names = lambda folder: {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
        assert names(copy.folder) == names(made.folder)
        assert all((copy.folder / n).read_bytes() == (made.folder / n).read_bytes() for n in names(made.folder) if n != "manifest.json")

def test_metrics_of_a_set_in_memory(photos, tmp_path):
    made = replace(distill(photos, RECIPE, tmp_path / "set", OPTIONS), folder=None)
    made.add_metrics(dict(psnr_y=1.)); made.add_metrics(dict(psnr_y=1.))
    assert made.manifest["metrics"] == [dict(psnr_y=1.)] and read_json(tmp_path / "set/manifest.json")["metrics"] == []


# ---- output

ODD = "sr_distill demo — ×2 ², é, 富士山"

def child(*commands, encoding="utf-8", stdout=subprocess.PIPE):
    "One process that carries out commands and ends with the highest exit code."
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    code = f"import sys; from sr_distill.cli import main; sys.exit(max(map(main, {[list(map(str, c)) for c in commands]!r})))"
    return subprocess.run([sys.executable, "-c", code], env=env, stdout=stdout, stderr=subprocess.PIPE)

@pytest.mark.parametrize("encoding", ["gbk", "cp932", "cp1251", "cp437", "ascii"])
def test_any_code_page(encoding, small_photos, tmp_path):
    names = small_photos(["富士山", "Łódź"])
    done = child(["evaluate", "bicubic", names, "--lpips", "none", "--json", tmp_path / "x.json"], ["distill", names, tmp_path / "set", *TINY], ["inspect", tmp_path / "set"], encoding=encoding)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"Logging error" not in done.stderr, done.stderr
    assert "PSNR" in (said := done.stdout.decode(encoding)) and ("富士山" in said) == (encoding in ("gbk", "cp932")) and ("Lodz" in said) == (encoding in ("ascii", "cp1251", "cp932"))
    assert {r["name"] for r in json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["images"]} == {"富士山", "Łódź"} and (tmp_path / "set/manifest.json").exists()

@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")
def test_a_full_disk_behind_the_output(small_photos, tmp_path):
    "On an ASCII stream, which click would write past `sys.stdout`."
    with open("/dev/full", "w") as full: done = child(["distill", small_photos("ab"), tmp_path / "set", *TINY], ["--help"], encoding="ascii", stdout=full)
    assert done.returncode == 0 and (tmp_path / "set/manifest.json").exists() and b"Exception" not in done.stderr, done.stderr
    assert b"could not be written" in done.stderr and b"the files that were written are complete" in done.stderr

@pytest.mark.skipif(sys.platform == "win32", reason="pipes close otherwise on Windows")
def test_a_reader_that_went_away(small_photos, tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone: done = child(["distill", small_photos("ab"), tmp_path / "set", *TINY], ["--help"], encoding="ascii", stdout=gone)
    assert done.returncode == 0 and (tmp_path / "set/manifest.json").exists() and b"Broken" not in done.stderr and b"written" not in done.stderr, done.stderr

@pytest.mark.skipif(sys.platform == "win32", reason="a shell that closes the output")
def test_no_output_at_all(small_photos, tmp_path):
    "Both streams are closed, as by a job scheduler: Python's `sys.stdout` is None then."
    command = shlex.join([sys.executable, "-m", "sr_distill", "distill", str(small_photos("ab")), str(tmp_path / "set"), *TINY])
    assert subprocess.run(f"{command} >&- 2>&-", shell=True).returncode == 0 and (tmp_path / "set/manifest.json").exists()

def test_scores_that_cannot_be_saved_are_on_the_screen(small_photos, tmp_path, monkeypatch, capsys):
    "And those that can be are saved before they are printed."
    scores = tmp_path / "scores.json"
    call = ["evaluate", "bicubic", str(small_photos("ab")), "--lpips", "none", "--json", str(scores)]
    monkeypatch.setattr(Evaluation, "__str__", lambda self: f"saved: {scores.exists()}")
    assert main(call) == 0 and "saved: True" in capsys.readouterr().out
    scores.unlink()
    monkeypatch.setattr(Evaluation, "save", lambda *args: 1 / 0)
    assert main(call) == 1 and "saved: False" in capsys.readouterr().out


# ---- judged beside bicubic

def test_a_model_is_shown_beside_bicubic(photos):
    found = evaluate(make_model("vdsr", 2, 2, 4, generator=rng(0)), photos, 2, lpips="none", beside=True)
    plain = evaluate("bicubic", photos, 2, lpips="none").mean
    assert found.bicubic == plain and found.gain["psnr_y"] == found.mean["psnr_y"] - plain["psnr_y"] and found.gain["lpips"] is None
    lines = str(found).splitlines()
    assert lines[-2].startswith("bicubic") and lines[-1].startswith("gain") and re.search(r"[+-]0\.\d\d", lines[-1])
    assert evaluate("bicubic", photos, 2, lpips="none", beside=True).bicubic is None and evaluate("bicubic", photos, 2, lpips="none").gain == {}

def test_a_model_below_bicubic_says_so(photos):
    untrained = init_weights(make_model("srcnn", 2), rng(0))
    found = evaluate(untrained, photos, 2, lpips="none", beside=True)
    assert found.gain["psnr_y"] < 0 and "below bicubic" in str(found) and "Train it for more steps" in found._repr_html_()

def test_below_bicubic_in_one_of_the_two_figures_counts():
    "A short training on photos gains in PSNR-Y and loses in PSNR-RGB; a lead over it in RGB is no triumph."
    mean = dict(psnr_y=33.68, psnr_rgb=31.80, ssim_y=.93, ssim_rgb=.91, lpips=None)
    def scored(y, rgb): return Evaluation("set5", 2, 2, "bicubic", None, "", [dict(mean, name="a", psnr_y=y, psnr_rgb=rgb)], bicubic=mean)
    said = metrics.side_by_side({"photos": scored(33.82, 31.37), "set": scored(35.07, 32.97)})
    assert "Below bicubic: photos by 0.43 dB" in said and "-0.43 dB" in said and "set by" not in said and "0.43 dB below bicubic" in str(scored(33.82, 31.37))

def test_several_models_side_by_side(small_photos, tmp_path, capsys):
    folder = str(small_photos("ab"))
    for name, model in (("one", "vdsr"), ("two", "srcnn")):
        assert main(["train", folder, str(tmp_path / name), "--model", model, "--steps", "2", "--patch", "24", "--batch", "1", "--device", "cpu", *(["--depth", "2", "--width", "4"] if model == "vdsr" else [])]) == 0
    capsys.readouterr()
    models = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["evaluate", *models, "bicubic", folder, "--lpips", "none", "--json", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[-3:]] == ["bicubic", *models] and "gain, PSNR-Y" in said and " dB" in said and f"Below bicubic: " in said
    stored = read_json(tmp_path / "x.json")
    assert set(stored["models"]) == set(models) and stored["models"][models[0]]["gain"].keys() == metrics.METRICS.keys()
    assert main(["evaluate", *models, folder, "--lpips", "none", "--json", str(tmp_path / "x.json")]) == 0   # its own scores may be replaced

def test_models_of_two_scales_are_refused(small_photos, tmp_path, capsys):
    folder = str(small_photos("ab"))
    for scale in ("2", "3"): assert main(["train", folder, str(tmp_path / scale), "--model", "srcnn", "--scale", scale, "--steps", "1", "--patch", "24", "--batch", "1", "--device", "cpu"]) == 0
    assert main(["evaluate", str(tmp_path / "2"), str(tmp_path / "3"), folder]) == 2 and "different factors" in capsys.readouterr().err

def rows(**psnr):
    made = [dict(set=k.replace("_", " "), family=k, model="m", architecture="m", scale=2, steps=9, seed=s, test="t", psnr_y=v, psnr_rgb=v, ssim_y=.9, ssim_rgb=.9, lpips=None) for k, v in psnr.items() for s in ((0, 1, 2) if k != "bicubic" else (0,))]
    return Results(made, dict(tests=["t"], lpips="none", sets={"all photos": dict(recipe=None), "distilled": dict(recipe=dict(steps=3))}, photos=2, title=""))

def test_no_triumph_over_a_rival_that_is_below_bicubic():
    "The set leads by 1.4 dB because the photos' model has not learnt to enlarge: that is no finding."
    results = rows(bicubic=33., all_photos=32., distilled=33.4)
    assert results.below_bicubic("all photos", "m") and not results.below_bicubic("distilled", "m")
    assert results.beside_all("m")[1][-1] == "no finding: all photos is below bicubic" and "all photos (below bicubic)" in results.markdown()
    behind = rows(bicubic=33., all_photos=33.2, distilled=32.4)
    assert behind.beside_all("m")[1][-1] == "worse"                    # that is a finding
    fair = rows(bicubic=31., all_photos=32., distilled=33.4)
    assert "below" not in fair.markdown() and fair.beside_all("m")[1][-1] == "better"

def test_the_demo_gives_no_verdict_then():
    results = rows(bicubic=33., all_photos=32., random_crops=33.1, distilled=33.4)
    results.rows = [r for r in results.rows if r["seed"] == 0]
    assert verdict(Comparison(results, None, {}, {})).startswith("No verdict: the model that learnt from all photos is below bicubic")


# ---- LPIPS

@pytest.mark.parametrize("package", ["lpips", "torchvision"])
def test_why_there_is_no_lpips(monkeypatch, tmp_path, package):
    "Weights that are not here are another reason than a package that is not installed."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "no backbone weights" in LPIPS("auto").reason and "--lpips alex" in LPIPS("auto").reason
    monkeypatch.setitem(sys.modules, package, None)
    for net in ("auto", "squeeze"): assert LPIPS(net).net is None and LPIPS(net).reason == f"the package {package} is not installed (pip install {package})"
    assert f"no LPIPS: the package {package}" in str(evaluate("bicubic", Photos.from_arrays(["a"], [np.full((60, 60, 3), 9, np.uint8)]), 2))

def test_a_package_that_is_broken(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "lpips.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    assert "the package lpips cannot be imported (No module named 'nothing_of_this_name')" in LPIPS("squeeze").reason


# ---- budgets

def test_a_budget_that_is_not_used_up_is_explained_in_a_study():
    results = rows(bicubic=31., all_photos=32., distilled=33.4)
    results.about["sets"]["distilled"]["recipe"]["budget"] = .2
    for r in results.rows:
        if r["set"] == "distilled": r.update(pixels=.00141, bytes=.002)
    note = "A budget is an upper limit, because every group gets the same number of whole images: 0.2 % made 0.141 %."
    assert note in results.markdown() and note in results.html()
    results.about["sets"]["distilled"]["recipe"]["budget"] = .141
    assert not results.notes("m")

def test_a_study_says_what_below_bicubic_means():
    results = rows(bicubic=33., all_photos=32., distilled=33.4)
    assert results.notes("m") == ["Below bicubic enlargement on at least one test, in PSNR-RGB: the networks of 1 of 2 sets. These networks have learnt too little, so a lead over them means little. Train for more steps."]


def test_a_loss_of_zero_has_no_per_cent():
    "An objective of one's own may be 0 at the start."
    from sr_distill.sets import summary
    said = summary(dict(matching_loss=dict(networks=2, groups=1, mine=dict(before=0., after=.5), whole=dict(before=1., after=.5))))
    assert "0 before, 0.5 after." in said and "1 before, 0.5 after (-50%)." in said


def test_a_set_by_an_objective_that_is_not_known_here_is_read(tmp_path):
    "It was distilled with an objective of somebody's own; to inspect it, to train on it and to export it needs none."
    from sr_distill.core import write_json
    from sr_distill.export import export_set
    from sr_distill.sets import describe, open_photos
    photos = Photos.open("embedded").subset([0, 1])
    distill(photos, Recipe(size=24, steps=2, networks=2, real=2, pool="random"), tmp_path / "set", RunOptions(device="cpu", held_out=0, snapshots=2))
    manifest = read_json(tmp_path / "set/manifest.json")
    write_json(tmp_path / "set/manifest.json", {**manifest, "recipe": {**manifest["recipe"], "objective": "angle"}})
    made = DistilledSet.load(tmp_path / "set")
    assert len(made) == 2 and made.trace.turns == [] and describe(tmp_path / "set").startswith("valid distilled set") and len(open_photos(tmp_path / "set")) == 2
    export_set(tmp_path / "set", tmp_path / "out", "folders")
