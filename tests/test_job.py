"""The folder of a run and the cache: what another process takes away, what is damaged, what another version wrote."""
import os

import pytest

from sr_distill import core, job
from sr_distill.job import Job, cache_folder, cache_key, cached
from sr_distill.recipe import RunError, TrainConfig, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))

def test_files_that_vanish_are_no_concern_of_the_cache(tmp_path):
    "Another process renames its half-written file, or deletes the folder, between two looks."
    for name in ("kept", "busy", "going", "old"): (tmp_path / name).mkdir()
    for name in ("busy", "old"): (tmp_path / name / "rows.npy").write_bytes(bytes(100))
    (tmp_path / "busy/.rows.npy.1.2.tmp").symlink_to("gone")
    (tmp_path / "going/rows.npy").symlink_to("gone")   # listed, but not there
    os.utime(tmp_path / "old", (1, 1))
    job.prune(tmp_path / "kept", 150)
    assert {p.name for p in tmp_path.iterdir() if p.name[0] != "."} == {"kept", "busy", "going"}

def test_what_is_being_made_is_not_pruned(tmp_path):
    for name in ("kept", "busy", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.npy").write_bytes(bytes(100))
    with core.file_lock(tmp_path / "busy"): job.prune(tmp_path / "kept", 0)
    assert {p.name for p in tmp_path.iterdir() if p.name[0] != "."} == {"kept", "busy"}


def test_a_training_in_the_cache_goes_on(tmp_path):
    "A half-done folder is given to `make` as it is, and only a message that names the folder costs it."
    def half(folder):
        (folder / "checkpoint.pt").write_text("step 3")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): cached("teachers", "a" * 40, half)
    assert cached("teachers", "a" * 40, lambda folder: (folder / "checkpoint.pt").read_text()) == "step 3"
    for kind, message in ((UserError, "photo.png: is gone"), (RunError, f"{cache_folder('teachers', 'a' * 40)}: the disk is full")):
        def fails(folder): raise kind(message)
        with pytest.raises(kind): cached("teachers", "a" * 40, fails)
        assert (cache_folder("teachers", "a" * 40) / "checkpoint.pt").exists()


def test_the_first_failure_of_an_entry_is_told(tmp_path):
    calls = []
    def fails(folder):
        calls.append(1)
        raise UserError(f"{folder}: needs more room")
    with pytest.raises(UserError, match="more room"): cached("banks", "b" * 40, fails)
    assert len(calls) == 1


def test_keys_of_caches_stay_what_they_were():
    "What earlier versions left in the cache is found again."
    config = TrainConfig(steps=7)
    then = {k: config.to_dict()[k] for k in TrainConfig.ALWAYS}   # the options of version 0.1
    assert cache_key("photos", "cpu", config) == core.json_sha256(["photos", "cpu", then])


def test_identity_of_another_version_and_of_nobody(tmp_path):
    mine = Job(tmp_path, dict(training=TrainConfig(), start="a", photos="b"))
    old = {k: v for k, v in mine.stored.items() if k != "start"}
    old["training"].pop("ema")
    assert mine.is_same(old) and not mine.is_same({**old, "photos": "c"}) and not mine.is_same({})
    mine.save(step=1)
    core.save_state(mine.checkpoint, dict(step=1, identity="0f3a"))
    with pytest.raises(UserError, match="checkpoint.pt: does not say"): mine.load()
    mine.checkpoint.write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged"): mine.load()
    with pytest.raises(UserError, match="another start; give another folder"): mine.check({**mine.stored, "start": "z"})



