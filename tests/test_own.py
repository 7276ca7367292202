"""Entries of one's own, from outside the package: each is one file of a stranger, and nothing in sr_distill is touched."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_distill.cli import main
from sr_distill.data import Photos
from sr_distill.recipe import Recipe, RunOptions, TrainConfig, UserError

OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=0)


@pytest.fixture
def photos(): return Photos.open("embedded").subset([0, 1])

@pytest.fixture
def theirs(tmp_path, monkeypatch):
    "A function that imports the source of a stranger's module; what it registered is forgotten afterwards."
    from sr_distill import recipe
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))   # no LPIPS
    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        return __import__(name)
    yield write
    for registry in recipe.REGISTRIES:
        for name in registry.added: registry.forget(name)
    for name in [p.stem for p in tmp_path.glob("*.py")]: sys.modules.pop(name, None)


def installed(folder, source, entry_points):
    "A package `theirs` of one module, as pip leaves it, and photos/one.png: (environment of a process that sees it, file of its entry points)."
    (folder / "theirs.py").write_text(source)
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / "photos").mkdir()
    Image.fromarray(Photos.open("embedded")[0][:64, :64]).save(folder / "photos/one.png")
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    return dict(os.environ, PYTHONPATH=path, TORCH_HOME=str(folder)), info / "entry_points.txt"


def test_a_package_that_is_installed_meanwhile_is_known_at_once(tmp_path, monkeypatch):
    "What installed packages offer is read once for as long as no place of packages changes."
    from sr_distill import recipe
    monkeypatch.syspath_prepend(tmp_path)
    assert "later" not in recipe.METRICS
    info = tmp_path / "later-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sr_distill.metrics]\nlater = later:Later\n")
    assert "later" in recipe.METRICS and [*recipe.METRICS].count("later") == 1
    before = recipe._entry_points.cache_info().misses
    for _ in range(3): Recipe()
    assert recipe._entry_points.cache_info().misses - before <= len(recipe.REGISTRIES)


# ---------------------------------------------------------------- a prior

COSINES = '''
import torch
from torch import nn
from sr_distill.priors import Prior, register_prior

@register_prior("cosines")
class Cosines(Prior):
    multiple = 8
    def __init__(self, keep=4):
        super().__init__()
        waves = torch.cos(torch.pi / 8 * torch.arange(keep)[:, None] * (torch.arange(8) + .5))
        self.squares = nn.Parameter(torch.einsum("ay,bx->abyx", waves, waves).reshape(-1, 1, 8, 8).repeat(3, 1, 1, 1))
    def latent_shape(self, size): return len(self.squares), *(s // 8 for s in self.check_size(size))
    def paint(self, latents): return nn.functional.conv_transpose2d(latents, self.squares, stride=8, groups=3) + .5
    @classmethod
    def from_weights(cls, weights, name):
        prior = cls(round((len(weights["squares"]) / 3)**.5))
        prior.load_state_dict(weights)
        return prior

class Squares(Prior):
    "One colour per square, and the mean of the photos beneath: made of photos, cannot be tuned."
    multiple = 8
    def __init__(self, mean):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).view(3, 1, 1))
    def latent_shape(self, size): return 3, *(s // 8 for s in self.check_size(size))
    def paint(self, latents): return (latents + self.mean).repeat_interleave(8, 2).repeat_interleave(8, 3)

@register_prior("squares")
def squares(photos, device):
    assert str(device) == "cpu"
    return Squares(sum(p.mean((0, 1)) / 255 for p in photos) / len(photos))
'''
LATENT = dict(space="latent", size=32, steps=3, networks=1, pool="random", real=4, invert=20)


def test_a_prior_of_ones_own(theirs, photos, tmp_path):
    from sr_distill.distill import DistilledSet, distill
    from sr_distill.latent import Latents
    from sr_distill.priors import PRIORS, load_prior
    from test_contracts import test_a_prior_paints_what_it_says, test_the_identity_of_a_prior_is_that_of_its_weights
    mine = theirs("their_prior", COSINES)
    assert list(PRIORS)[0] == "embedded" and list(PRIORS)[-2:] == ["cosines", "squares"]
    prior = load_prior("cosines")
    test_a_prior_paints_what_it_says(prior)
    test_the_identity_of_a_prior_is_that_of_its_weights(load_prior("cosines"))
    made = distill(photos, Recipe(**LATENT, prior="cosines", tune=3), tmp_path / "set", OPTIONS)
    about = made.manifest["report"]["latent"]
    assert about["prior"]["kind"] == "Cosines" and about["inversion"]["tuned"] and about["stored"]["decoder_inside"]
    assert all(np.diff([about["inversion"]["mean"][k] for k in ("start", "latents", "tuning")]) > 0)
    assert (DistilledSet.load(tmp_path / "set").images == made.images).all()
    stored = Latents.load(tmp_path / "set/latents.safetensors")   # its decoder came along
    assert type(stored.prior) is mine.Cosines and stored.base == prior.identity != stored.prior.identity
    assert np.abs(stored.render().astype(int) - made.images).max() <= 1
    again = tmp_path / "again.safetensors"
    stored.save(again)
    assert (Latents.load(again).render() == Latents.load(again, "cosines").render()).all()


def test_a_prior_made_of_photos(theirs, photos, tmp_path):
    from sr_distill.distill import distill
    from sr_distill.latent import Latents
    from sr_distill.priors import load_prior
    theirs("their_prior", COSINES)
    prior = load_prior("squares", photos)
    made = distill(photos, Recipe(**LATENT, prior="squares"), tmp_path / "set", OPTIONS)
    path = tmp_path / "set/latents.safetensors"
    assert made.manifest["report"]["latent"]["prior"]["identity"] == prior.identity and prior.name == "squares"
    assert np.abs(Latents.load(path, prior).render().astype(int) - made.images).max() <= 1
    with pytest.raises(UserError, match=rf"'squares' with the hash {prior.identity[:12]}.*load_prior\('squares', photos\)"): Latents.load(path)
    with pytest.raises(UserError, match="belong to the prior squares"): Latents.load(path, load_prior("squares", photos.subset([0])))
    with pytest.raises(UserError, match="trained on photos"): load_prior("squares")
    for changes, message in ((dict(size=36), "multiples of 8"), (dict(tune=3), "no weights that could be tuned"), (dict(layer=1), "no layers")):
        with pytest.raises(UserError, match=message): distill(photos, Recipe(**{**LATENT, **changes}, prior="squares"), tmp_path / "other", OPTIONS)


def test_a_reader_without_the_prior_is_told(theirs, photos, tmp_path):
    "The stranger's file names the prior; whoever has not registered it learns what to do."
    from sr_distill.latent import Latents
    from sr_distill.priors import PRIORS, load_prior
    theirs("their_prior", COSINES)
    prior = load_prior("cosines")
    import torch
    Latents(prior, torch.randn(2, 48, 2, 2), 16).save(tmp_path / "l.safetensors")
    PRIORS.forget("cosines")
    with pytest.raises(UserError, match=f"prior 'cosines' with the hash {prior.identity[:12]}, whose class is not registered here"): Latents.load(tmp_path / "l.safetensors")
    assert len(Latents.load(tmp_path / "l.safetensors", prior)) == 2


def test_a_prior_of_other_code_is_another_run(theirs, photos, tmp_path):
    from sr_distill.distill import distill
    theirs("their_prior", COSINES)
    recipe = Recipe(**{**LATENT, "steps": 1, "invert": 1}, prior="cosines")
    first = distill(photos, recipe, tmp_path / "set", OPTIONS)
    assert (distill(photos, recipe, tmp_path / "set", OPTIONS).images == first.images).all()
    theirs("their_other_prior", COSINES.replace("+ .5\n    @classmethod", "+ .4\n    @classmethod"))   # the same weights, painted darker
    with pytest.raises(UserError, match="code of --prior cosines"): distill(photos, recipe, tmp_path / "set", OPTIONS)


def test_what_is_no_prior_is_told(theirs):
    from sr_distill.priors import Prior, load_prior, register_prior
    theirs("their_wrong_prior", "from sr_distill.priors import register_prior\n@register_prior('wrong')\ndef wrong(): return {}\n")
    with pytest.raises(UserError, match="'wrong' is a dict; register a function that returns a Prior"): load_prior("wrong")
    with pytest.raises(UserError, match="comes with sr_distill"): register_prior("taesd")(dict)
    with pytest.raises(TypeError, match="abstract"): type("Half", (Prior,), dict(paint=lambda self, z: z))()


# ---------------------------------------------------------------- a metric

WORST = '''
import numpy as np
import sr_distill as sd

@sd.register_metric("worst", title="worst error", lower=True, digits=0)
def worst(sr, hr):
    assert sr.shape == hr.shape and sr.shape[2:] == (3,) and sr.dtype == np.uint8
    return np.abs(sr.astype(int) - hr).max()
'''

def test_a_metric_of_ones_own(theirs, photos, tmp_path):
    "A column of `evaluate`, of its file, and of every row and table of a study; lower is better there too."
    import sr_distill as sd
    from sr_distill.study import Model, Study, TrainingSet, run_study, write_tables
    grey = Photos.from_arrays(["grey"], [np.ascontiguousarray(photos[0][:64, :64, 0])], "grey")
    before = sd.evaluate("bicubic", photos, lpips="none")
    theirs("their_metric", WORST)
    found = sd.evaluate("bicubic", photos, lpips="none", beside=True)
    assert list(found.mean) == [*before.mean, "worst"] and found.to_dict()["images"][0]["worst"] > 1
    assert "worst error" in str(found) and "worst error" in found._repr_html_() and "worst" not in str(before)
    assert sd.evaluate("bicubic", grey, lpips="none").mean["worst"] > 0
    config = sd.TrainConfig("srcnn", width=4, steps=2, batch=2, patch=16)
    study = Study("embedded", {"all": TrainingSet(None)}, {"small": Model(config)}, {"held out": ""}, seeds=1, held_out=1, lpips="none")
    results = run_study(study, tmp_path / "study", jobs=1)
    write_tables(results, tmp_path / "study")
    assert all(row["worst"] > 0 for row in results.rows) and "worst error" in (tmp_path / "study/tables.md").read_text()
    assert results.rival("small", metric="worst") == "all"


def test_a_metric_that_fails(theirs, photos):
    import sr_distill as sd
    theirs("their_metric", "import sr_distill as sd\n@sd.register_metric('bad')\ndef bad(sr, hr): return len(sr) / 0\n")
    with pytest.raises(UserError, match="the metric 'bad' fails"): sd.evaluate("bicubic", photos, lpips="none")


def test_a_metric_of_an_installed_package(tmp_path):
    "The command line shows it; one that cannot be loaded is named with its package."
    env, points = installed(tmp_path, WORST, "[sr_distill.metrics]\nworst = theirs:worst\n")
    command = [sys.executable, "-m", "sr_distill", "evaluate", "bicubic", str(tmp_path / "photos"), "--lpips=none", "--device=cpu"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and "worst error" in ended.stdout, ended.stderr
    points.write_text("[sr_distill.metrics]\nworst = no_such_module:worst\n")
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and "metric 'worst' of the package theirs cannot be loaded" in ended.stderr, ended.stderr


# ---------------------------------------------------------------- an objective, a statistic, a start

ANGLES = '''
import numpy as np, torch
import torch.nn.functional as F
import sr_distill as sd
from sr_distill.patches import window_means

@sd.register_objective("angles")
def angles(s, r):
    "The largest angle between the gradients of two layers."
    cosines = [F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(s, r) if a.ndim > 1]
    return torch.acos(torch.stack(cosines) * .999).max()

@sd.register_statistic("colours", learns=False)
def colours(net, hr): return [F.adaptive_avg_pool2d(hr, 4).mean(0)]

@sd.register_objective("colours", statistic="colours")
def squares(s, r): return (s[0] - r[0]).square().sum()

@sd.register_start("grey")
def grey(groups, g, recipe):
    return np.full((recipe.ipc, recipe.size, recipe.size, 3), 128, np.uint8)

@sd.register_start("dark", score=True, ranked=True)
def dark(groups, recipe):
    return lambda p, ys, xs: window_means(255 - groups.photos[p].mean(-1).astype(np.float32), ys, xs, recipe.size)
'''
SMALL = dict(size=24, networks=2, pool="random", real=4, steps=4, init="random")


def test_an_objective_of_ones_own(theirs, photos, tmp_path, monkeypatch):
    from sr_distill.distill import DistilledSet, distill
    from sr_distill.recipe import OBJECTIVES
    monkeypatch.setattr("sr_distill.matching.TRAJECTORY_STEPS", 16)   # of the held-out networks
    theirs("their_objective", ANGLES)
    assert list(OBJECTIVES)[-2:] == ["angles", "colours"]
    made = distill(photos, Recipe(**SMALL, objective="angles"), tmp_path / "set", RunOptions(device="cpu", held_out=2))
    losses = made.manifest["report"]["matching_loss"]
    assert list(losses)[2:] == ["whole", "layerwise", "angles"] and made.manifest["report"]["moved"]["share"] > .3
    assert (DistilledSet.load(tmp_path / "set").images == made.images).all()
    again = distill(photos, Recipe(**SMALL, objective="angles"), tmp_path / "again", OPTIONS)
    assert (again.images == made.images).all()
    plain = distill(photos, Recipe(**SMALL), tmp_path / "plain", OPTIONS)
    assert (plain.images != made.images).any()


def test_an_objective_of_a_statistic_of_ones_own(theirs, photos, tmp_path, monkeypatch):
    from sr_distill.distill import distill
    monkeypatch.setattr("sr_distill.matching.TRAJECTORY_STEPS", 16)
    theirs("their_objective", ANGLES)
    for changes in (dict(), dict(ipc=3, grouping="all")):
        recipe = Recipe(**{**SMALL, "steps": 40, **changes}, objective="colours")
        made = distill(photos, recipe, tmp_path / f"{len(changes)}", RunOptions(device="cpu", held_out=1))
        losses = [loss for _, loss in made.trace.losses]
        assert losses[-1] < .5 * losses[0] and [*made.manifest["report"]["matching_loss"]][2:] == ["whole", "layerwise"]
    with pytest.raises(UserError, match="do not learn"): Recipe(**SMALL, objective="colours", outer=2)


@pytest.mark.parametrize("init, changes", [("grey", {}), ("dark", {}), ("dark", dict(trim=5., grouping="cluster", clusters=2)), ("dark", dict(ipc=3))])
def test_a_start_of_ones_own(theirs, photos, tmp_path, init, changes):
    from sr_distill.distill import distill
    theirs("their_start", ANGLES)
    recipe = Recipe(**{**SMALL, "init": init, "steps": 0, **changes})
    made = distill(photos, recipe, tmp_path / "set", OPTIONS)
    assert made.images.mean() == 128 if init == "grey" else made.images.mean() < np.mean([p.mean() for p in photos])
    with pytest.raises(UserError, match="means nothing to --init grey"): Recipe(init="grey", trim=1.)
    if init == "dark":
        with pytest.raises(UserError, match="that do not overlap|sub-images"): distill(photos, Recipe(**{**SMALL, "init": init, "ipc": 9999}), tmp_path / "no", OPTIONS)


def test_other_code_under_the_same_name_is_another_run(theirs, photos, tmp_path):
    from sr_distill.distill import distill
    theirs("their_code", ANGLES)
    recipe = Recipe(**{**SMALL, "init": "grey"}, objective="angles")
    first = distill(photos, recipe, tmp_path / "set", OPTIONS)
    assert (distill(photos, recipe, tmp_path / "set", OPTIONS).images == first.images).all()
    theirs("their_changed_code", ANGLES.replace("* .999", "* .99"))
    with pytest.raises(UserError, match="code of --objective angles"): distill(photos, recipe, tmp_path / "set", OPTIONS)
    theirs("their_code_again", ANGLES)
    assert (distill(photos, recipe, tmp_path / "set", OPTIONS).images == first.images).all()
    theirs("their_start_changed", ANGLES.replace("128", "127"))
    with pytest.raises(UserError, match="code of --init grey"): distill(photos, recipe, tmp_path / "set", OPTIONS)


def test_a_set_is_read_where_its_objective_is_not_known(theirs, photos, tmp_path):
    from sr_distill.distill import DistilledSet, describe, distill
    from sr_distill.recipe import INITS, OBJECTIVES
    theirs("their_objective", ANGLES)
    made = distill(photos, Recipe(**{**SMALL, "init": "grey"}, objective="angles"), tmp_path / "set", OPTIONS)
    OBJECTIVES.forget("angles"); INITS.forget("grey")
    with pytest.raises(UserError, match="angles"): Recipe(objective="angles")
    assert (DistilledSet.load(tmp_path / "set").images == made.images).all() and "angles" in describe(tmp_path / "set")


def test_a_prior_and_a_start_of_an_installed_package(tmp_path):
    "The command line knows them by their entry points; nothing was imported by hand; the contract tests pick them up."
    env, _ = installed(tmp_path, COSINES + ANGLES, "[sr_distill.priors]\ncosines = theirs:Cosines\n[sr_distill.starts]\ngrey = theirs:grey\n")
    asked = [f"--{k}={v}" for k, v in dict(LATENT, steps=1, invert=2, prior="cosines", init="grey").items()]
    def run(*command):
        ended = subprocess.run([sys.executable, "-m", *map(str, command)], env=env, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout
    run("sr_distill", "distill", tmp_path / "photos", tmp_path / "set", "--device=cpu", "--held-out=0", *asked)
    about = json.loads((tmp_path / "set/manifest.json").read_text())
    assert (tmp_path / "set/latents.safetensors").exists() and (about["recipe"]["prior"], about["recipe"]["init"]) == ("cosines", "grey")
    said = run("pytest", "-v", "-n", "0", "-p", "no:cacheprovider", "-k", "prior and cosines or start and grey", Path(__file__).with_name("test_contracts.py"))
    assert len(re.findall(r"::test_\w*prior\w*\[cosines.* PASSED", said)) == 2 and re.search(r"::test_every_start\[.*grey.* PASSED", said), said


def test_the_page_on_objectives_can_be_followed(tmp_path, monkeypatch, capsys):
    "Its file, script, `pyproject.toml` and commands, copied as they stand: a set and its loss curve, from Python and from the shell."
    pytest.importorskip("setuptools", minversion="70.1", reason="setuptools is missing (pip install setuptools)")
    repo = Path(__file__).parents[1]
    page = ["".join(c["source"]) for c in json.loads((repo / "nbs/method/08_matching.ipynb").read_text(encoding="utf-8"))["cells"]]
    at = next(k for k, t in enumerate(page) if "def mine(" in t)
    function, prose = "\n\n".join(page[at - 1:at + 1]), next(t for t in page if "```toml" in t)   # with its imports
    script, project, commands = (re.search(rf"```{kind}\n(.*?)```", prose, re.S)[1] for kind in ("python", "toml", "sh"))
    env, _ = installed(tmp_path, "", "")   # for its photos
    mine = tmp_path / "FOLDER"
    mine.mkdir()
    (mine / "mine.py").write_text(function)
    monkeypatch.chdir(tmp_path)
    for written, quick in (("size=48, steps=60, networks=4, real=8", ", ".join(f"{k}={v!r}" for k, v in SMALL.items())), ("PHOTOS", "photos"),
                           ('"mine_set")', '"mine_set", sd.RunOptions(device="cpu", held_out=0))\n    player(small.trace)')):
        assert written in script
        script = script.replace(written, quick)
    (mine / "script.py").write_text(script)
    def run(*command):
        ended = subprocess.run([sys.executable, *map(str, command)], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return ended.returncode, ended.stdout + ended.stderr
    code, said = run(mine / "script.py")
    assert code == 0 and (tmp_path / "mine_set/manifest.json").exists() and (tmp_path / "loss.png").exists(), said

    (mine / "pyproject.toml").write_text(project)
    install, distil, inspect = (line.split() for line in commands.splitlines())
    distil[-1:] = [distil[-1], "--device=cpu", "--held-out=0", *(f"--{k}={v}" for k, v in SMALL.items())]
    distil = ["photos" if word == "PHOTOS" else word for word in distil]
    code, said = main(distil[1:]), capsys.readouterr().err   # here, where it is not installed
    assert code == 2 and "'mine' is unknown; choose one of: whole" in said and "install a package that offers it" in said
    code, said = run("-m", *install, "--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", tmp_path)
    assert code == 0, said
    code, said = run("-m", *distil)
    assert code == 0, said
    contracts = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", "objective and mine", str(Path(__file__).with_name("test_contracts.py"))]
    both = f"import sys, pytest\nfrom sr_distill.cli import main\nsys.exit(main() or pytest.main({contracts!r}))"
    code, said = run("-c", both, *inspect[1:])
    film = (tmp_path / "FILE.html").read_text(encoding="utf-8")
    assert code == 0 and "the objective 'mine'" in film.replace("&#x27;", "'") and "not registered" not in film, said
    assert re.search(r"^\d+ passed", said, re.M), said   # the contract tests pick it up


# ---------------------------------------------------------------- in a study of several processes

SUMS = '''
import sr_distill as sd

@sd.register_objective("sums")
def sums(s, r): return sum((a - b).square().sum() for a, b in zip(s, r))
'''

def own_study(photos):
    from sr_distill.study import Model, Study, TrainingSet
    quick = Recipe(size=24, steps=2, networks=1, pool="random", real=2, objective="sums")
    config = TrainConfig("srcnn", width=4, steps=2, batch=2, patch=16)
    return Study(str(photos), {"mine": TrainingSet(quick)}, {"small": Model(config)}, {"held out": ""}, seeds=1, held_out=1, ssim=False)

def test_worker_processes_know_what_a_module_registered(theirs, small_photos, tmp_path):
    from sr_distill.study import run_study
    theirs("their_sums", SUMS)
    found = run_study(own_study(small_photos("abc")), tmp_path / "two", jobs=2)
    assert not found.failed and not found.missing and len(found.rows) == 2

def test_what_a_notebook_registered_needs_one_process(theirs, small_photos, tmp_path):
    from sr_distill.recipe import OBJECTIVES
    from sr_distill.study import run_study
    mine = theirs("their_sums", SUMS).sums
    mine.__module__ = "__main__"
    study = own_study(small_photos("abc"))
    with pytest.raises(UserError, match="objective 'sums' is defined in a notebook or script.*jobs=1"): run_study(study, tmp_path / "out", jobs=2)
    assert not (tmp_path / "out").exists() and OBJECTIVES["sums"] is mine

def test_a_module_that_a_worker_cannot_import_is_named(tmp_path):
    from sr_distill.study import Cell, Task
    said = Task(None, tmp_path, Cell("mine", None, 0), "cpu", {}, ("their_missing_module",)).carry_out()
    assert "'their_missing_module'" in said and "--jobs 1" in said
