"""Ctrl-C and SIGTERM: the step at hand is saved, the exit code is 130, and the same command goes on to the same end."""
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sr_distill import core, distill as room, inversion, train as training
from sr_distill.cli import main

DISTIL = "--size 24 --networks 2 --real 4 --steps 12 --init random --pool random --device cpu --held-out 0 --checkpoint 100".split()
LATENT = "--size 32 --networks 1 --real 2 --steps 2 --init random --pool random --device cpu --held-out 0 --space latent --invert 9".split()
TRAIN = "--model vdsr --depth 2 --width 4 --steps 30 --batch 2 --patch 24 --device cpu --checkpoint 1000".split()
STUDY = """photos = "{photos}"
held_out = 1
seeds = 1
recipe = {{size = 24, networks = 1, real = 2, pool = "random"}}
sets = {{random = {{init = "random", steps = 0}}}}
models = {{v = {{model = "vdsr", depth = 2, width = 4, steps = 60, patch = 24, batch = 2, checkpoint = 1000}}}}
"""


@pytest.fixture
def folder(small_photos): return small_photos("abcd")

def at(monkeypatch, place, name, n, how=signal.SIGINT):
    "The n-th call of `place.name` begins with a signal."
    real, calls = getattr(place, name), []
    def fake(*a, **k):
        calls.append(1)
        if len(calls) == n: signal.raise_signal(how)
        return real(*a, **k)
    monkeypatch.setattr(place, name, fake)
    return calls

def files(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in (".png", ".safetensors", ".csv")}

@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_training(folder, tmp_path, monkeypatch, capsys, how):
    command = ["train", str(folder)]
    assert main([*command, str(tmp_path / "whole"), *TRAIN]) == 0
    with monkeypatch.context() as patch:
        at(patch, training.Trainer, "update", 4, how)
        assert main([*command, str(tmp_path / "cut"), *TRAIN]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert core.load_state(tmp_path / "cut/checkpoint.pt")["step"] == 4   # long before --checkpoint 1000
    assert main([*command, str(tmp_path / "cut"), *TRAIN]) == 0 and files(tmp_path / "cut") == files(tmp_path / "whole")

def test_distilling(folder, tmp_path, monkeypatch, capsys):
    assert main(["distill", str(folder), str(tmp_path / "whole"), *DISTIL]) == 0
    with monkeypatch.context() as patch:
        at(patch, room.Run, "step", 5)
        assert main(["distill", str(folder), str(tmp_path / "cut"), *DISTIL]) == 130
    assert core.load_state(tmp_path / "cut/.run/part-0000/checkpoint.pt")["done"] == 5 and "goes on" in capsys.readouterr().err
    assert main(["distill", str(folder), str(tmp_path / "cut"), *DISTIL]) == 0 and files(tmp_path / "cut") == files(tmp_path / "whole")

def test_inverting(tmp_path, monkeypatch):
    folder, noise = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for name in "abc": Image.fromarray(np.kron(noise.integers(0, 256, (12, 12, 3)), np.ones((6, 6, 1))).astype(np.uint8)).save(folder / f"{name}.png")
    from sr_distill import autoencoders, priors
    small = autoencoders.SmallConfig(channels=8, width=8, depth=1, steps=20, batch=2, crops=12)
    monkeypatch.setattr(priors, "embedded_prior", lambda photos: autoencoders.embedded_prior(photos, small))
    assert main(["distill", str(folder), str(tmp_path / "whole"), *LATENT]) == 0
    with monkeypatch.context() as patch:
        at(patch, inversion.Inversion, "step", 3)
        assert main(["distill", str(folder), str(tmp_path / "cut"), *LATENT]) == 130
    assert core.load_state(tmp_path / "cut/.run/part-0000/inversion.pt")["done"] == 3
    assert main(["distill", str(folder), str(tmp_path / "cut"), *LATENT]) == 0 and files(tmp_path / "cut") == files(tmp_path / "whole")

def test_a_teacher(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    command = ["distill", str(folder), str(tmp_path / "set"), "--size", "24", "--steps", "0", "--labels", "teacher", "--teacher-steps", "9", "--device", "cpu"]
    with monkeypatch.context() as patch:
        at(patch, training.Trainer, "update", 4)
        assert main(command) == 130
    checkpoint, = (tmp_path / "cache/teachers").glob("*/checkpoint.pt")
    assert core.load_state(checkpoint)["step"] == 4
    calls = at(monkeypatch, training.Trainer, "update", 0)
    assert main(command) == 0 and len(calls) == 5

@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study(folder, tmp_path, jobs, monkeypatch):
    (tmp_path / "s.toml").write_text(STUDY.format(photos=folder))
    script = tmp_path / "stopped.py"
    script.write_text("""
import os, signal, sys, time
from sr_distill import cli, train
update, calls, came = train.Trainer.update, [], []
def told_to_stop():
    "Signal the study, and wait until its signal is here: a worker that trained on could end before the study reacts."
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *a: (came.append(1), handler(*a)))
    os.kill(os.getppid() if sys.argv[-1] == "2" else os.getpid(), signal.SIGTERM)
    while not came: time.sleep(.01)
def fake(*a):
    calls.append(1)
    if len(calls) == 4: told_to_stop()
    return update(*a)
train.Trainer.update = fake
if __name__ == "__main__": sys.exit(cli.main(sys.argv[1:]))
""")
    # a worker is started anew and imports this file as the parent's main module: it sends the signal to its parent
    command = [sys.executable, script, "study", tmp_path / "s.toml", tmp_path / "out", "--jobs", str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 130 and "the same command goes on" in done.stderr, done.stderr
    checkpoint, = (tmp_path / "out/models").glob("*/checkpoint.pt")
    assert core.load_state(checkpoint)["step"] == 4
    assert main([str(a) for a in command[2:]]) == 0

def test_a_second_signal_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), core.interruptible() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
