"Several processes under torchrun: the same set and the same model as one process, also when one of them dies."
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image, features
from safetensors.torch import load_file

from sr_distill import autoencoders, core, priors
from sr_distill.cli import main
from sr_distill.labels import redraw
from sr_distill.models import make_model
from sr_distill.parallel import Ranks, ranks
from sr_distill.recipe import TrainConfig, UserError
from sr_distill.train import Trainer

DISTIL = ["--size", "24", "--networks", "2", "--real", "4", "--device", "cpu", "--checkpoint", "2", "--held-out", "0", "--ipc", "2", "--init", "random"]
ROUGH = "blur:0.5-1.5+noise:2-10+jpeg:40-90"
EDSR = ["--model", "edsr", "--depth", 2, "--width", 8, "--batch", 4, "--patch", 24, "--device", "cpu"]


@pytest.fixture
def folder(small_photos): return small_photos("abcde")

def under_torchrun(script, cache, *args):
    "What two processes that torchrun starts with this script come to: (exit code, what they said)."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "SR_DISTILL_CACHE": str(cache)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, [script, *args])]
    ended = subprocess.run(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    return ended.returncode, ended.stdout

def run(processes, cache, *args, threads=1, do=main):
    "The same of so many processes that are forked, each with the variables of torchrun; in the files beside the cache is what they said."
    log = cache.with_name(f"{processes} {args[0]}.log")
    team = forks.team(processes, lambda: do([*map(str, args)]), log, threads=threads, SR_DISTILL_CACHE=str(cache))
    codes = [p.wait() for p in team]
    return max(map(abs, codes)), "".join(p.said for p in team)

def done(*args, **how):
    code, said = run(*args, **how)
    assert code == 0, said
    return said

def files(out: Path) -> dict:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in (".png", ".safetensors")}


QUICK = """
import runpy, sys
from sr_distill import matching
matching.TRAJECTORY_STEPS = 16
sys.argv[0] = "sr_distill"
runpy.run_module("sr_distill", run_name="__main__")
"""

@pytest.mark.apart
def test_two_processes_give_the_set_that_one_gives(folder, tmp_path, monkeypatch):
    "Bit for bit, each from an empty cache, with different numbers of threads; the first process alone speaks."
    monkeypatch.setattr("sr_distill.matching.TRAJECTORY_STEPS", 16)
    (tmp_path / "quick.py").write_text(QUICK)
    done(1, tmp_path / "cache1", "distill", folder, tmp_path / "one", *DISTIL, "--steps", 12, threads=2)
    code, said = under_torchrun(tmp_path / "quick.py", tmp_path / "cache2", "distill", folder, tmp_path / "two", *DISTIL, "--steps", 12)
    assert code == 0, said
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two and len(one) == 11
    assert said.count("10 images of 24²") == 1 and core.read_json(tmp_path / "two/manifest.json")["report"]["processes"] == 2
    assert not (tmp_path / "two/.run").exists()


@pytest.mark.apart
@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_two_processes_weigh_bits_as_one_does(folder, tmp_path):
    options = [*DISTIL, "--pool", "random", "--steps", "4", "--format", "avif", "--bit-weight", "30"]
    for n in (1, 2): done(n, tmp_path / f"cache{n}", "distill", folder, tmp_path / str(n), *options)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name / "images").iterdir()} for name in "12")
    about, report = (core.read_json(tmp_path / name / "manifest.json")["report"] for name in "12")
    assert one == two and len(one) > 3 and about["bits"] == report["bits"] and (about["processes"], report["processes"]) == (1, 2)


@pytest.mark.apart
def test_two_processes_share_latents_under_a_degradation(folder, tmp_path, monkeypatch):
    "Blur, noise, JPEG and an eightfold reduction are drawn for an image of the whole set, whichever process matches it."
    small = autoencoders.SmallConfig(channels=8, width=8, depth=1, steps=20, batch=2, crops=12)
    monkeypatch.setattr(priors, "embedded_prior", functools.partial(autoencoders.embedded_prior, config=small))
    for photo in folder.iterdir():   # the prior learns from crops of 64²
        with Image.open(photo) as image: image.resize((72, 72)).save(photo)
    hard = ["--space", "latent", "--size", 32, "--invert", 3, "--scale", 8, "--degradation", ROUGH, "--networks", 1, "--real", 2,
            "--steps", 3, "--init", "random", "--pool", "random", "--ipc", 2, "--held-out", 0, "--device", "cpu"]
    for n in (1, 2): done(n, tmp_path / f"cache{n}", "distill", folder, tmp_path / str(n), *hard)
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    assert one == two and "latents.safetensors" in one and len(one) > 8
    assert core.read_json(tmp_path / "2/manifest.json")["report"]["processes"] == 2


KILLED = """
import os, runpy, signal, sys
from sr_distill import distill
step = distill.Run.step
def until_the_eleventh(run):
    if os.environ["RANK"] == "1" and run.done == 11: os.kill(os.getpid(), signal.SIGKILL)
    step(run)
distill.Run.step = until_the_eleventh
sys.argv[0] = "sr_distill"
runpy.run_module("sr_distill", run_name="__main__")
"""

@pytest.mark.apart
def test_a_process_that_dies_loses_its_unfinished_steps_only(folder, tmp_path):
    "The second of two processes is killed before its twelfth step; its last checkpoint is of the tenth."
    args = ("distill", folder)
    (tmp_path / "killed.py").write_text(KILLED)
    options = [*DISTIL, "--steps", 30, "--pool", "random"]
    done(1, tmp_path / "cache", *args, tmp_path / "whole", *options)
    code, _ = under_torchrun(tmp_path / "killed.py", tmp_path / "cache", *args, tmp_path / "cut", *options)
    assert code != 0 and not (tmp_path / "cut/manifest.json").exists()
    assert core.load_state(tmp_path / "cut/.run/part-0001/checkpoint.pt")["done"] == 10
    done(1, tmp_path / "cache", *args, tmp_path / "cut", *options)   # goes on in one process: the parts stay what they are
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.apart
def test_training_shares_the_batch(folder, tmp_path):
    "The model of two processes is that of one to 1e-5, and each writes one history."
    args = [*EDSR, "--steps", 40, "--val", folder, "--checkpoint", 15, "--ema", .9, "--degradation", ROUGH]
    done(1, tmp_path / "cache", "train", folder, tmp_path / "one", *args)
    done(2, tmp_path / "cache", "train", folder, tmp_path / "two", *args)
    one, two = (torch.cat([v.flatten() for v in load_file(tmp_path / name / "model.safetensors").values()]) for name in ("one", "two"))
    assert (one - two).norm() / one.norm() < 1e-5
    one, two = (np.loadtxt(tmp_path / name / "history.csv", delimiter=",", skiprows=2) for name in ("one", "two"))
    assert np.allclose(one, two, rtol=1e-4) and one[-1] > 5   # the last column is PSNR-Y


@pytest.mark.apart
def test_what_several_processes_cannot_do_is_said(folder, tmp_path):
    code, said = run(2, tmp_path / "cache", "evaluate", "bicubic", folder)
    assert code and "start it without torchrun" in said
    code, said = run(2, tmp_path / "cache", "distill", folder, tmp_path / "out", *DISTIL, "--outer", 3, "--inner", 2)
    assert code and "--inner trains each network on all synthetic images together" in said
    with pytest.raises(UserError, match="--batch 5 cannot be shared evenly by 2"): Trainer(torch.nn.Module(), TrainConfig(batch=5), "cpu", Ranks(0, 2))


def test_variables_without_torchrun_are_explained(monkeypatch):
    ranks.cache_clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="start them with torchrun"): ranks()
    monkeypatch.undo()
    assert ranks().size == 1


CLOSED = """
import atexit, os, runpy, socket, sys, time
starter = os.getpid()
def gloo():
    names = []
    for task in os.listdir("/proc/self/task"):
        try: names.append(open(f"/proc/self/task/{task}/comm").read())
        except OSError: pass   # a thread that ended just now
    return sum("gloo" in name for name in names)
def said(when): sys.stdout.write(f"{when}: {gloo()} threads\\n")
def left():            # registered first, called last
    until = time.time() + 300
    while gloo() and time.time() < until: time.sleep(.01)   # what was joined is listed a moment longer
    said("left")
atexit.register(lambda: os.getpid() == starter or left())
import torch.distributed as dist   # once for the two; what is imported later, when they are connected, may keep the connection open
assert "torch.distributed.nn" not in sys.modules
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]))
team = []
for rank in "01":
    os.environ["RANK"] = rank
    team.append(os.fork())
    if not team[-1]: break
else: sys.exit(any([os.waitpid(pid, 0)[1] for pid in team]))
end = dist.destroy_process_group
dist.destroy_process_group = lambda: (said("open"), end())
sys.argv[0] = "sr_distill"
runpy.run_module("sr_distill", run_name="__main__")
"""

@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the names of threads need /proc")
@pytest.mark.skipif(Version(torch.__version__) < Version("2.11"), reason="PyTorch 2.6 gives gloo's threads no names")
def test_what_was_connected_is_closed_at_the_end(folder, tmp_path):
    "No thread that talks to the other rank is left at exit: one that lets go of a tensor while the interpreter ends aborts the process."
    command, env = map(str, [sys.executable, "-c", CLOSED, "train", folder, tmp_path / "out", *EDSR, "--steps", 2]), {**os.environ, "TQDM_DISABLE": "1"}
    ended = subprocess.run([*command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    said = ended.stdout
    assert ended.returncode == 0, said
    assert said.count("left: 0 threads") == said.count("open: ") == 2 and "open: 0 threads" not in said, said


NEW = """
import torch
if CHANGE: torch.backends.PLACE.fp32_precision = "tf32"
from sr_distill.parallel import arithmetic, precision
conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
said = lambda: ["tf32" if p.fp32_precision == "tf32" else "full" for p in (conv, matmul)]   # "none" and "ieee" are one
before = said()
with precision():
    inside, plain = said(), arithmetic("cuda")
    with precision(tf32=True): rounded = arithmetic("cuda")
    assert said() == inside
assert "tf32" not in inside and (plain, rounded) == ("cuda", "cuda-tf32") and said() == before, (inside, plain, rounded, said(), before)
"""

@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has only the older settings")
@pytest.mark.parametrize("place", ("", "fp32_precision", "cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision"))
def test_precision_knows_both_of_pytorchs_settings(place):
    "Once a program has used the newer ones, PyTorch refuses to read the older."
    script = NEW.replace("if CHANGE: torch.backends.PLACE.fp32_precision", f"torch.backends.{place}" if place else "unchanged")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_leave_the_precision_as_it_was():
    "Blocks of several threads end in another order than they began."
    before, threads = torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(10): redraw(np.zeros((8, 24, 24, 3), np.uint8), make_model("srcnn", 2))
    finally: torch.set_num_threads(threads)
    assert torch.backends.cudnn.allow_tf32 == before


LOST = """
import os, sys
from sr_distill import parallel
from sr_distill.recipe import RunError
parallel.PATIENCE = 2.
team = parallel.ranks()
team.wait()
if team.rank == 1: os._exit(7)
try: team.wait()
except RunError as e: print(team.rank, e, flush=True)
os._exit(0)
"""

def test_the_rank_that_ended_is_named(tmp_path):
    "Three processes without a starter that would end them all: the second goes away, the others say which."
    (tmp_path / "lost.py").write_text(LOST)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    team = [subprocess.Popen([sys.executable, tmp_path / "lost.py"], env={**env, "RANK": str(r)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for r in range(3)]
    said = [p.communicate(timeout=600)[0] for p in team]
    for r in (0, 2):
        assert f"no answer from rank 1 ({socket.gethostname()}, process {team[1].pid});" in said[r] and "rank 0 (" not in said[r] and "rank 2 (" not in said[r], said
        assert "start the same command again" in said[r]
