"""A small part of the fault harness and of the fuzzing, for every run of the tests; `--long` makes it as long as on the page."""
import json
import os
import sys
import zipfile

import faults
import fuzz
import numpy as np
import pytest
from PIL import Image

from sr_distill import core, data, distill, matching, priors, recipe
from sr_distill.recipe import RunError, UserError

pytestmark = pytest.mark.apart   # jobs are forked from a warm parent, which must have no threads yet
QUICK = ["train", "photo cache", "download weights", "gradient bank"]   # the jobs that take a third of a second


@pytest.fixture(scope="module")
def survey(long):
    with faults.workshop() as place: yield faults.Survey(place, jobs=list(faults.JOBS) if long else QUICK)

@pytest.fixture(autouse=True)
def all_survived(request):
    "Whatever a test did to the survey must have been survived."
    yield
    if "survey" in request.fixturenames:
        survey = request.getfixturevalue("survey")
        failures, survey.failures = survey.failures, []
        assert not failures, "\n".join(failures)


def test_killed_at_any_moment(survey, long):
    faults.kills(survey, 200 if long else 8)
    assert sum(survey.counts.values()) >= 8

def test_killed_before_a_file_operation(survey, long): faults.boundaries(survey, 1 if long else 40)
def test_no_space(survey, long): faults.full_disk(survey, 1 if long else 30, 12 if long else 2)
def test_damaged_files(survey, long): faults.damage(survey, 300 if long else 12)
def test_jumping_clock(survey, long): faults.clock(survey, 30 if long else 4)
def test_two_processes(survey, long): faults.intruders(survey, 30 if long else 4)
def test_read_only(survey): faults.read_only(survey)

def test_a_job_that_leaves_something_else_is_noticed(survey):
    "The harness can fail: a changed bit, a missing file and a file too many."
    with survey.trial("train") as place:
        faults.finish("train", place)
        survey.compare("train", place, "undisturbed")
        assert not survey.failures
        (place.out / "history.csv").write_text("another")
        (place.out / ".x.1.tmp").touch()
        survey.compare("train", place, "disturbed")
        assert "2 files differ" in survey.failures.pop()
        survey.refused("train", faults.finish("train", place, lambda: 1 / 0), "a bug")
        assert "ZeroDivisionError" in survey.failures.pop()

def test_mutated_files(long):
    counts, failures = fuzz.fuzz(12_000 if long else 300, seed=1)
    assert not failures, "\n\n".join(failures.values())
    assert len(counts) >= 20 and sum(c["fine"] for c in counts.values()) > 10


# ---- what the harness found, each as a test of its own

def test_a_changed_bit_in_a_checkpoint_is_noticed(tmp_path):
    import torch
    core.save_state(tmp_path / "x.pt", dict(pixels=torch.arange(1000.)))
    content = bytearray((tmp_path / "x.pt").read_bytes())
    content[content.index(torch.arange(500., 510.).numpy().tobytes())] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"): core.load_state(tmp_path / "x.pt")

def test_a_changed_bit_in_the_photo_cache_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    folder = faults.make_photos(tmp_path / "photos")
    before = np.array(data.Photos.open(folder)[1])
    for path in (tmp_path / "cache/decoded").glob("*.npy"):
        content = bytearray(path.read_bytes())
        content[-20] ^= 4
        path.write_bytes(content)
    data._cache_at.cache_clear()   # as another process
    assert (data.Photos.open(folder)[1] == before).all()

def test_two_processes_may_not_share_rows_that_are_not_there(tmp_path, monkeypatch):
    "Rows marked as done in a file of zeros – two processes that made the bank at once – are computed."
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    which = recipe.Recipe(size=16, networks=2, real=2)
    from sr_distill.patches import Groups
    groups = Groups(data.Photos.open(faults.make_photos(tmp_path / "photos")), "image", 16, 8)
    make = lambda: matching.GradientBank(groups, which, [matching.fresh_network(which, k).state_dict() for k in range(2)]).build()
    first = make()
    rows = np.array(first.file.rows)
    first.file.rows[:] = 0
    assert (make().file.rows == rows).all() and rows.any()

def test_another_number_of_snapshots_does_not_strand_a_run(tmp_path):
    "A run that was started with --snapshots 5 goes on with what it has, whatever is asked for later."
    photos, which = data.Photos.open(faults.make_photos(tmp_path / "photos")), recipe.Recipe(size=16, networks=2, real=2, steps=8, pool="random")
    class Stop:
        stopped = False
        def __call__(self, step, loss, images): self.stopped = step >= 4
    options = lambda n: recipe.RunOptions(device="cpu", checkpoint=2, held_out=0, snapshots=n)
    with pytest.raises(RunError, match="stopped at step"): distill.distill(photos, which, tmp_path / "out", options(5), Stop())
    done = distill.distill(photos, which, tmp_path / "out", options(9))
    whole = distill.distill(photos, which, tmp_path / "whole", options(5))
    assert done.trace.steps == whole.trace.steps and (done.images == whole.images).all()
    assert (tmp_path / "out/trace.safetensors").read_bytes() == (tmp_path / "whole/trace.safetensors").read_bytes()

def test_a_download_killed_after_its_last_byte_ends(tmp_path):
    with faults.workshop() as place:
        sha = place.table["weights"]["sha256"]
        path = priors.fetch_weights(f"{place.url}/weights.bin", tmp_path / "w.bin", sha)
        os.rename(path, tmp_path / "w.bin.part")
        assert core.file_sha256(priors.fetch_weights(f"{place.url}/weights.bin", path, sha)) == sha
        path.write_bytes(b"spoilt")
        assert core.file_sha256(priors.fetch_weights(f"{place.url}/weights.bin", path, sha)) == sha


def test_a_disk_that_fills_up_at_the_last_moment_of_a_download_is_told(survey):
    with survey.trial("download weights") as place:
        child = faults.finish("download weights", place, faults.before_operation(0, faults.no_space, ["replace"]))
        assert survey.refused("download weights", child, "no space for the last rename", "weights.bin: could not be written")
        survey.completes("download weights", place, "no space for the last rename")

def test_a_study_sweeps_what_a_killed_one_left_half_written(tmp_path):
    with faults.workshop() as place:
        here = place.at(tmp_path / "here")
        left = [here.out / ".results.json.1.2.tmp", here.out / "scores/.x.json.1.2.tmp"]
        for p in left: p.parent.mkdir(parents=True, exist_ok=True); p.touch()
        assert faults.finish("study", here).code == 0
        assert not any(p.exists() for p in left) and (here.out / "results.json").exists()

@pytest.mark.parametrize("name", ["rows.npy", "done.npy"])
def test_a_bank_with_more_bytes_than_it_has_rows_for_is_made_anew(survey, name):
    with survey.trial("gradient bank") as place:
        faults.finish("gradient bank", place)
        with next(place.cache.rglob(name)).open("ab") as f: f.write(bytes(512))
        survey.completes("gradient bank", place, "a longer file")


# ---- bombs and traps

@pytest.mark.parametrize("kind, size", [("png", (50_000, 50_000)), ("png", (1_000_000, 1_000)), ("png", (2**31 - 1, 2**31 - 1)), ("png", (1, 2**31 - 1)), ("tif", (50_000, 50_000))])
def test_image_bombs(tmp_path, kind, size):
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(fuzz.bomb(*size, kind))
    before = faults.memory() if sys.platform == "linux" else 0
    with pytest.raises(UserError, match="bomb"): data.decode_image(path)
    if before: assert faults.memory() - before < 200

def test_trace_bomb(tmp_path):
    "A readable trace of kilobytes that would unpack to 50 MB is refused for being compressed."
    about = json.dumps(dict(steps=[0], losses=[], names=["a"]))
    for padding, refused in ((50_000_000, True), (0, False)):
        kind = zipfile.ZIP_DEFLATED if padding else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / "trace.zip", "w", kind) as z: z.writestr("trace.json", " " * padding + about)
        assert (tmp_path / "trace.zip").stat().st_size < 100_000
        if refused:
            with pytest.raises(UserError, match="no readable trace"): distill.Trace(tmp_path / "trace.zip")
        else: assert len(distill.Trace(tmp_path / "trace.zip")) == 1

def test_model_bombs(tmp_path):
    "Settings that ask for a model of terabytes beside weights of kilobytes."
    from sr_distill.models import load_model, make_model, save_model
    save_model(make_model("vdsr", 2, 3, 4), tmp_path)
    about = core.read_json(tmp_path / "config.json")
    for change in (dict(width=10**6), dict(depth=10**9), dict(width=20_000), dict(width=10**30)):
        core.write_json(tmp_path / "config.json", dict(about, model={**about["model"], **change}))
        before = faults.memory() if sys.platform == "linux" else 0
        with pytest.raises(UserError): load_model(tmp_path)
        if before: assert faults.memory() - before < 200

@pytest.mark.parametrize("entry, mode", [("../evil.png", 0o100644), ("/evil.png", 0o100644), ("a/../../evil.png", 0o100644), ("C:\\evil.png", 0o100644), ("..\\evil.png", 0o100644), ("link.png", 0o120777), ("device.png", 0o060666), ("pipe.png", 0o010666)])
def test_archives_that_reach_elsewhere(tmp_path, entry, mode):
    "Zip slip, links and devices: nothing is unpacked."
    info = zipfile.ZipInfo(entry)
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z: z.writestr("good.png", b"1"), z.writestr(info, b"/etc/passwd")
    with pytest.raises(UserError, match="unsafe to unpack"): data._unzip_to(tmp_path / "x.zip", tmp_path / "deep" / "x", 1000)
    assert {p.name for p in tmp_path.rglob("*")} <= {"x.zip"}

def test_encrypted_and_strange_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z: z.writestr("a.png", b"12345")
    content = (tmp_path / "x.zip").read_bytes()
    for change in ((6, 1), (8, 99)):   # the flag of encryption; a way of packing that is unknown
        spoilt = bytearray(content)
        spoilt[change[0]] = spoilt[content.index(b"PK\1\2") + change[0] + 2] = change[1]
        (tmp_path / "x.zip").write_bytes(spoilt)
        with pytest.raises(RunError, match="could not be unpacked"): data._unzip_to(tmp_path / "x.zip", tmp_path / "x", 1000)

@pytest.mark.parametrize("file", ["../secret.png", "/etc/passwd", "images/../../secret.png", "images/..", "images/sub/x.png", "images\\..\\x.png", "images/\0.png", "images/a.png\n", "", None, 7, ["images/a.png"]])
def test_manifests_that_reach_elsewhere(tmp_path, file):
    photos = data.Photos.open(faults.make_photos(tmp_path / "photos"))
    distill.distill(photos, recipe.Recipe(size=16, steps=0), tmp_path / "set")
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    manifest = core.read_json(tmp_path / "set/manifest.json")
    manifest["images"][0] = dict(file=file, sha256=core.file_sha256(tmp_path / "secret.png"), bytes=1)
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError) as e: distill.DistilledSet.load(tmp_path / "set")
    assert "manifest" in str(e.value) or "is missing" in str(e.value)

def test_only_a_prior_of_a_known_name_is_loaded_by_a_file(tmp_path):
    "What latents say about their prior opens no file and asks no host."
    from sr_distill import latent
    from safetensors.torch import save
    import torch
    for name in ("kl:someone/model", "/etc/passwd", str(tmp_path)):
        about = dict(format=latent.STORED, prior=name, identity="", base="", size="16", bits="32", layer="")
        (tmp_path / "x.safetensors").write_bytes(save({"latents": torch.zeros(1, 4, 2, 2)}, {"sr_distill": json.dumps(about)}))
        with pytest.raises(UserError, match="load that prior yourself"): latent.load_latents(tmp_path / "x.safetensors")
