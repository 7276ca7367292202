"Training: patches from odd photos, exact resume after kill -9, full disks, and what is refused."
import errno
import math
import os
import time
from dataclasses import replace

import forks
import numpy as np
import pytest
import torch

import sr_distill.core
import sr_distill.train as room
from sr_distill.core import POLICIES, read_json, rng, to_uint8, write_json
from sr_distill.data import Photos, make_lr
from sr_distill.metrics import evaluate
from sr_distill.models import init_weights, load_model, make_model, load_into
from sr_distill.recipe import RunError, TrainConfig, UserError
from sr_distill.train import PatchSampler, Trainer, learning_rate, train, validate

RUN = dict(steps=60, batch=2, patch=24, ema=.9, clip=1., checkpoint=7, validate=25)


@pytest.fixture(autouse=True)
def one_thread():
    "Two threads on a busy machine wait for each other most of the time."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos(n=3, seed=0, **sizes):
    "Smooth random photos of odd sizes; the last one is grey."
    draw = np.random.default_rng(seed)
    noise = [draw.integers(0, 256, (sizes.get("h", 31 + 6 * k), sizes.get("w", 47 - 5 * k), 3), dtype=np.uint8) for k in range(n)]
    arrays = [(a // 2 + np.roll(a, 1, 0) // 4 + np.roll(a, 1, 1) // 4) for a in noise]
    arrays[-1] = arrays[-1][..., 0]
    return Photos.from_arrays([f"p{k}" for k in range(n)], arrays)

def model(name="vdsr", seed=0):
    return make_model(name, 2, None if name == "srcnn" else 3, 6, generator=rng(seed, "weights"))

def weights(m): return torch.cat([p.detach().flatten() for p in m.parameters()])

def files(out): return {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".safetensors", ".csv")}


@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_patches_lie_on_the_grid_and_reach_every_corner(scale):
    config = TrainConfig(scale=scale, patch=2 * 12, batch=64) if scale != 3 else TrainConfig(scale=3, patch=24, batch=64)
    set_, side = photos(), config.patch // scale
    sampler = PatchSampler(set_, config)
    places = np.concatenate([sampler.draw(t) for t in range(100)])
    for i, (h, w) in enumerate(set_.sizes):
        rows, columns = places[places[:, 0] == i, 1], places[places[:, 0] == i, 2]
        assert (rows.min(), columns.min()) == (0, 0)
        assert (rows.max(), columns.max()) == (h // scale - side, w // scale - side)
    assert set(places[:, 3]) == set(range(8))
    lr, hr = sampler(5)
    for k, (i, y, x, s) in enumerate(sampler.draw(5)):
        small = make_lr(set_[i], scale)[y:y + side, x:x + side]
        large = set_[i][y * scale:(y + side) * scale, x * scale:(x + side) * scale]
        assert (to_uint8(lr)[k] == room.symmetry(small, s)).all() and (to_uint8(hr)[k] == room.symmetry(large, s)).all()


def test_every_position_is_equally_likely():
    set_ = Photos.from_arrays(["a", "b"], [np.zeros((16, 20, 3), np.uint8), np.zeros((18, 16, 3), np.uint8)])
    sampler = PatchSampler(set_, TrainConfig(patch=16, batch=1000))
    places, counts = np.unique(np.concatenate([sampler.draw(t)[:, :3] for t in range(20)]), axis=0, return_counts=True)
    assert len(places) == 3 + 2 and np.abs(counts / 20_000 - .2).max() < .015


def test_a_photo_as_large_as_the_patch_is_enough_and_a_smaller_one_is_named():
    exact = photos(1, h=24, w=24)
    assert PatchSampler(exact, TrainConfig(patch=24, batch=3))(0)[1].shape == (3, 3, 24, 24)
    with pytest.raises(UserError, match="p0: is 24x24.*--patch"):
        train(model(), exact, TrainConfig(patch=26))


def test_a_patch_of_odd_lr_size_and_an_odd_photo():
    lr, hr = PatchSampler(photos(), TrainConfig(scale=3, patch=15, batch=2))(0)
    assert lr.shape == (2, 3, 5, 5) and hr.shape == (2, 3, 15, 15)


@pytest.mark.parametrize("schedule", ("onecycle", "cosine", "constant"))
@pytest.mark.parametrize("steps", (1, 2, 3, 10))
def test_learning_rate_is_positive_and_at_most_lr(schedule, steps):
    config = TrainConfig(steps=steps, schedule=schedule, lr=.5)
    rates = [learning_rate(config, t) for t in range(steps)]
    assert all(0 < r <= .5 for r in rates) and (schedule != "constant" or set(rates) == {.5})


@pytest.mark.parametrize("loss", ("l1", "mse"))
def test_a_step_is_adams(loss):
    config = TrainConfig(steps=5, loss=loss, schedule="constant", lr=1e-3)
    lr, hr = PatchSampler(photos(), TrainConfig(patch=24, batch=2))(0)
    ours, theirs = Trainer(model(), config), model()
    adam = torch.optim.Adam(theirs.parameters(), 1e-3)
    for _ in range(3):
        ours.update(lr, hr)
        error = theirs(lr) - hr
        adam.zero_grad()
        (error.abs() if loss == "l1" else error**2).mean().backward()
        adam.step()
    assert torch.allclose(weights(ours.model), weights(theirs), atol=1e-6)
    assert len(ours.losses) == ours.step == 3


def test_ema_is_what_is_validated_and_returned():
    config = TrainConfig(steps=10, batch=2, patch=24, ema=.99)
    plain, smooth = (train(model(), photos(), c, val=photos(seed=1)) for c in (TrainConfig(steps=10, batch=2, patch=24), config))
    assert not weights(plain.model).equal(weights(smooth.model))
    for r in (plain, smooth):
        assert r.history[-1]["val_psnr_y"] == validate(r.model, photos(seed=1), 2)


def test_validate_agrees_with_evaluate_on_grey_and_colour():
    held, m = photos(4), model()
    for which in ("bicubic", m):
        assert validate(which, held, 2) == pytest.approx(evaluate(which, held, 2, lpips="none").mean["psnr_y"], abs=1e-9)


def test_training_needs_no_global_random_state_and_leaves_it_alone():
    torch.manual_seed(1)
    a = train(model(), photos(), TrainConfig(steps=8, batch=2, patch=24))
    before = torch.get_rng_state()
    b = train(model(), photos(), TrainConfig(steps=8, batch=2, patch=24))
    assert torch.get_rng_state().equal(before) and weights(a.model).equal(weights(b.model))
    c = train(model(), photos(), TrainConfig(steps=8, batch=2, patch=24, seed=1))
    assert not weights(a.model).equal(weights(c.model))


@pytest.mark.parametrize("name, stop_at", [("vdsr", 1), ("vdsr", 7), ("vdsr", 8), ("vdsr", 59), ("vdsr", 60), ("srcnn", 33), ("edsr", 33)])
def test_resume_is_exact_wherever_the_run_stops(tmp_path, name, stop_at):
    def stop(step, loss, images):
        if step == stop_at: raise KeyboardInterrupt
    set_, config, val = photos(), TrainConfig(model=name, **RUN), photos(seed=1)
    whole = train(model(name), set_, config, tmp_path/"whole", val)
    with pytest.raises(KeyboardInterrupt):
        train(model(name), set_, config, tmp_path/"cut", val, callback=stop)
    resumed = train(model(name), set_, config, tmp_path/"cut", val)
    assert files(tmp_path/"cut") == files(tmp_path/"whole") and resumed.history == whole.history
    assert not (tmp_path/"cut"/room.CHECKPOINT).exists()


@pytest.mark.parametrize("step", ("save_model", "unlink"))
def test_a_crash_between_the_last_files_is_repaired(tmp_path, monkeypatch, step):
    def crash(*args, **kwargs): raise KeyboardInterrupt
    set_, config = photos(), TrainConfig(**RUN)
    train(model(), set_, config, tmp_path/"whole")
    with monkeypatch.context() as patch:
        if step == "save_model": patch.setattr(room, "save_model", crash)
        else: patch.setattr(room.Path, "unlink", lambda self, **kw: crash() if self.name == room.CHECKPOINT else os.unlink(self) if self.exists() else None)
        with pytest.raises(KeyboardInterrupt): train(model(), set_, config, tmp_path/"cut")
    assert (tmp_path/"cut"/room.CHECKPOINT).exists()
    train(model(), set_, config, tmp_path/"cut")
    assert files(tmp_path/"cut") == files(tmp_path/"whole") and not (tmp_path/"cut"/room.CHECKPOINT).exists()


@pytest.mark.apart
def test_kill_minus_nine_at_any_moment(tmp_path):
    "Killed three times at unforeseen moments, resumed at another number of threads, the files are the same."
    whole, cut, killed = tmp_path/"whole", tmp_path/"cut", 0
    config = TrainConfig(**{**RUN, "model": "edsr", "steps": 84, "validate": 0})
    def start(out, threads=1): return forks.fork(lambda: train(model("edsr"), photos(), config, out) and None, tmp_path/"log", threads)
    assert start(whole).wait() == 0
    for delay in (0., .01, .03):
        file, process = cut/room.CHECKPOINT, start(cut, threads=1 + (killed > 0))
        stamp = file.stat().st_mtime_ns if file.exists() else 0
        while process.poll() is None:   # let it get further than the last one
            if file.exists() and file.stat().st_mtime_ns != stamp: break
            time.sleep(.001)
        process.wait(delay)
        killed += process.kill()
    assert killed >= 1
    assert start(cut, threads=2).wait() == 0   # the number in the checkpoint counts
    assert files(cut) == files(whole)
    assert not (cut/room.CHECKPOINT).exists() and load_model(cut).config["name"] == "edsr"


def test_threads_are_put_back(tmp_path):
    before = torch.get_num_threads()
    train(model(), photos(), TrainConfig(**RUN), tmp_path/"a")
    with pytest.raises(ZeroDivisionError):
        train(model(), photos(), TrainConfig(**RUN), tmp_path/"b", callback=lambda step, loss, images: 1 / (step != 9))
    torch.set_num_threads(before + 1)
    try:
        seen = []
        train(model(), photos(), TrainConfig(**RUN), tmp_path/"b", callback=lambda *a: seen.append(torch.get_num_threads()))
        assert set(seen) == {before} and torch.get_num_threads() == before + 1
    finally: torch.set_num_threads(before)


@pytest.fixture
def half_done(tmp_path):
    def stop(step, loss, images):
        if step == 30: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(model(), photos(), TrainConfig(**RUN), tmp_path/"out", callback=stop)
    return tmp_path/"out"

@pytest.mark.parametrize("finish", (False, True))
def test_another_run_on_the_same_folder_is_refused(half_done, finish):
    config = TrainConfig(**RUN)
    if finish: train(model(), photos(), config, half_done)
    kept = {p.name: p.read_bytes() for p in half_done.iterdir()}
    cases = [(model(), photos(), TrainConfig(**{**RUN, "lr": .5}), None, "--lr 0.001.* 0.5"),
             (model(), photos(seed=5), config, None, "photos"), (model(), photos(), config, photos(), "validation"),
             (make_model("vdsr", 2, 3, 8), photos(), config, None, "another network")]
    for m, set_, c, val, words in cases:
        with pytest.raises(UserError, match=words): train(m, set_, c, half_done, val)
    assert {p.name: p.read_bytes() for p in half_done.iterdir()} == kept
    train(model(), photos(), TrainConfig(**{**RUN, "checkpoint": 11}), half_done)   # this one changes no result


def test_a_finished_run_returns_at_once(tmp_path):
    first = train(model(), photos(), TrainConfig(**RUN), tmp_path, photos(seed=1))
    again = train(model(), photos(), TrainConfig(**RUN), tmp_path, photos(seed=1), callback=lambda *a: 1 / 0)
    assert weights(again.model).equal(weights(first.model)) and again.history == first.history
    (tmp_path/"history.csv").unlink()
    with pytest.raises(UserError, match="history.csv"): train(model(), photos(), TrainConfig(**RUN), tmp_path, photos(seed=1))


def test_a_damaged_checkpoint_is_named(half_done):
    (half_done/room.CHECKPOINT).write_bytes((half_done/room.CHECKPOINT).read_bytes()[:999])
    with pytest.raises(UserError, match="checkpoint.pt.*delete"): train(model(), photos(), TrainConfig(**RUN), half_done)


def test_a_folder_with_a_foreign_model_is_refused(tmp_path):
    (tmp_path/"config.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="not trained here"): train(model(), photos(), TrainConfig(**RUN), tmp_path)


def test_validation_photos_are_looked_at_first(tmp_path):
    for small, words in ((Photos.from_arrays(["thin"], [np.zeros((30, 5, 3), np.uint8)]), "thin: is 5x30"), (photos().subset([]), "holds no photos")):
        with pytest.raises(UserError, match=words): train(model(), photos(), TrainConfig(**RUN), tmp_path/"out", val=small, callback=lambda *step: pytest.fail("training came first"))


def test_a_training_in_a_log_writes_lines(tmp_path, monkeypatch, capsys, caplog):
    "An estimate, then step, steps, loss and time left, not on standard output; seldom with a callback, as in a study."
    from sr_distill.cli import main
    from sr_distill.job import LogLines
    caplog.set_level("INFO")
    for name in ("FIRST", "OFTEN"): monkeypatch.setattr(LogLines, name, 0.)
    asked = ["train", "embedded", str(tmp_path / "a"), "--model", "srcnn", "--steps", "40", "--batch", "1", "--patch", "16", "--device", "cpu"]
    assert main(asked) == 0
    lines = [message for message in caplog.messages if message.startswith("train: ")]
    assert lines[0].startswith("train: 40 steps, about ") and len(lines) == 10 and "train: " not in capsys.readouterr().out
    assert lines[-1].startswith("train: step 36 of 40, loss 0.") and lines[-1].endswith(" left")
    config = TrainConfig.for_model("srcnn", steps=10, batch=1, patch=16)
    caplog.clear()
    train(make_model("srcnn", 2), photos(), config, callback=lambda *args: None)
    assert not caplog.messages
    monkeypatch.setattr(LogLines, "SELDOM", 0.)   # but after half a minute: a study of long trainings is not silent
    train(make_model("srcnn", 2), photos(), config, callback=lambda *args: None)
    assert "train: 10 steps, about " in caplog.messages[0]


def test_a_network_that_does_not_enlarge_yet_is_told(tmp_path, capsys):
    from sr_distill.cli import main
    asked = lambda out, model, steps: ["train", "embedded", str(tmp_path / out), "--model", model, "--width", "8", "--depth", "1" if model == "edsr" else "4", "--steps", str(steps), "--batch", "4", "--patch", "16", "--device", "cpu"]
    assert main(asked("a", "edsr", 1)) == 0 and "dB below bicubic enlargement: it has not learnt to enlarge yet" in capsys.readouterr().out
    assert main(asked("b", "vdsr", 60)) == 0 and "below bicubic" not in capsys.readouterr().out
    assert main(["train", "ready:50kB", str(tmp_path / "c"), *asked("c", "edsr", 1)[3:]]) == 0 and "has not learnt" in capsys.readouterr().out   # a program draws some


def test_the_lead_is_that_of_the_stored_network():
    "Judged as it enlarges, without dropout or statistics of the batch, and left as it was."
    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.norm, self.drop = 2, torch.nn.BatchNorm2d(3), torch.nn.Dropout(.5)
        def forward(self, x): return torch.nn.functional.interpolate(self.drop(self.norm(x)), scale_factor=2)
    net, config = Moody().train(), TrainConfig.for_model("vdsr", steps=3, batch=2, patch=16)
    leads = [room.lead_over_bicubic(net, photos(), config) for _ in range(2)]
    assert leads[0] == leads[1] < 0 and net.training and not net.norm.num_batches_tracked


def test_a_helper_that_is_spoilt_learns_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path))
    learn = lambda: weights(room.helper_network("teachers", model(), photos(), TrainConfig(**{**RUN, "steps": 3})))
    first, folder = learn(), next(p for p in (tmp_path/"teachers").iterdir() if p.is_dir())
    for spoil in (lambda: (folder/"model.safetensors").write_bytes(b"cut"), lambda: (folder/"config.json").unlink()):
        spoil()
        assert learn().equal(first) and "it is made anew" in caplog.text
    other = weights(room.helper_network("teachers", model(seed=5), photos(), TrainConfig(**{**RUN, "steps": 3})))
    assert not other.equal(first) and learn().equal(first)   # another beginning, another network


class Own(torch.nn.Sequential):
    "A network of the user's own; without arguments it says nothing about itself."
    def __init__(self, width=8, scale=2, **config):
        super().__init__(torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.PReLU(width), torch.nn.Conv2d(width, 12, 3, padding=1), torch.nn.PixelShuffle(2))
        if scale: self.scale = scale
        if config: self.config = config
        init_weights(self, rng(0, "own"))

@pytest.mark.parametrize("config", [{}, dict(filters=8), dict(name="own", width=8)])
def test_a_network_of_ones_own_is_stored_goes_on_and_is_judged(tmp_path, config):
    from sr_distill.metrics import evaluate
    set_, settings = photos(), TrainConfig(**RUN)
    whole = train(Own(**config), set_, settings, tmp_path/"whole").model
    def stop(step, loss, images):
        if step == 17: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(Own(**config), set_, settings, tmp_path/"cut", callback=stop)
    assert weights(train(Own(**config), set_, settings, tmp_path/"cut").model).equal(weights(whole))
    again = train(Own(**config), set_, settings, tmp_path/"cut", callback=lambda *a: 1 / 0).model
    assert weights(again).equal(weights(whole)) and load_into(Own(), tmp_path/"cut") and evaluate(again, photos(seed=1), 2, lpips="none").mean["psnr_y"] > 5
    with pytest.raises(UserError, match="load_into"): load_model(tmp_path/"cut")
    with pytest.raises(UserError, match="do not fit"): load_into(Own(width=4), tmp_path/"cut")
    assert "load_into" in (tmp_path/"cut/README.md").read_text()

def test_what_a_network_lacks_is_said_before_the_first_step(tmp_path):
    never = dict(callback=lambda *a: 1 / 0, device="cpu")
    with pytest.raises(UserError, match="attribute `scale`"): train(Own(scale=None), photos(), TrainConfig(**RUN), tmp_path/"a", **never)
    class Same(torch.nn.Conv2d): scale = 2
    with pytest.raises(UserError, match="does not enlarge by 2"): train(Same(3, 3, 3, padding=1), photos(), TrainConfig(**RUN), tmp_path/"b", **never)
    class Fixed(torch.nn.Upsample): scale = 2
    with pytest.raises(UserError, match="no weights"): train(Fixed(scale_factor=2), photos(), TrainConfig(**RUN), tmp_path/"c", **never)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_goes_on_on_another_device():
    "Fused Adam wants `step` beside the weights: a GPU's run that goes on from a CPU's checkpoint."
    weight = torch.ones(3, requires_grad=True)
    cpu = torch.optim.Adam([weight], fused=False)
    weight.sum().backward(); cpu.step()
    state = cpu.state_dict()
    there = torch.optim.Adam([torch.ones(3, device="meta", requires_grad=True)])
    there.param_groups[0]["fused"] = True
    sr_distill.core.restore_optimizer(there, state)
    assert there.param_groups[0]["fused"] and {t.device.type for s in there.state.values() for t in s.values()} == {"meta"}


def test_the_average_has_the_running_statistics_of_the_model():
    net = model()
    net.register_buffer("seen", torch.zeros(()))
    def count(net, *rest): net.seen += net.training
    net.register_forward_hook(count)
    assert train(net, photos(), TrainConfig(**{**RUN, "steps": 5, "validate": 0})).model.seen > 0


def test_the_folder_of_somebody_else_stays_as_it_is(tmp_path):
    (tmp_path/"README.md").write_text("my project")
    with pytest.raises(UserError, match="README.md"): train(model(), photos(), TrainConfig(**RUN), tmp_path)
    assert (tmp_path/"README.md").read_text() == "my project"


def test_numbers_of_numpy_are_numbers(tmp_path):
    "A loop over np.arange trains what a loop over range does, and can store it."
    nets = [model() for _ in range(2)]
    for k, (net, seed) in enumerate(zip(nets, (1, np.int64(1)))): train(net, photos(), TrainConfig(**{**RUN, "steps": 3, "ema": np.float32(.5)}, seed=seed), tmp_path/str(k))
    assert weights(nets[0]).equal(weights(nets[1])) and read_json(tmp_path/"1/config.json")["training"]["seed"] == 1


def test_a_folder_in_use_is_refused(tmp_path):
    with sr_distill.core.folder_lock(tmp_path), pytest.raises(UserError, match="another"):
        train(model(), photos(), TrainConfig(**RUN), tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(half_done, monkeypatch):
    kept = (half_done/room.CHECKPOINT).read_bytes()
    def full(state, path): raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match="checkpoint.pt"): train(model(), photos(), TrainConfig(**RUN), half_done)
    assert (half_done/room.CHECKPOINT).read_bytes() == kept and sorted(p.name for p in half_done.iterdir()) == [".lock", "checkpoint.pt"]
    def full_too(*a): raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_too)
        with pytest.raises(RunError, match="No space left"): train(model(), photos(), TrainConfig(**RUN), half_done)
    train(model(), photos(), TrainConfig(**RUN), half_done)
    assert (half_done/"model.safetensors").exists()


@pytest.mark.parametrize("checkpoint", (1, 7, 500))
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, checkpoint):
    config = TrainConfig(**{**RUN, "lr": 1e18, "schedule": "constant", "clip": 0., "ema": 0., "checkpoint": checkpoint, "validate": 0})
    with pytest.raises(RunError, match="step .*--lr") as e: train(model(), photos(), config, tmp_path)
    assert e.value.exit_code == 1 and "\n" not in str(e.value)
    file = tmp_path/room.CHECKPOINT
    if file.exists(): assert all(t.isfinite().all() for t in sr_distill.core.load_state(file)["model"].values())
    with pytest.raises(RunError, match="no checkpoint"): train(model(), photos(), config)


def test_mixed_precision_on_the_cpu_goes_on_where_it_stopped(tmp_path):
    config = TrainConfig(**{**RUN, "validate": 0, "amp": True})
    done = train(model(), photos(), config, device="cpu")
    assert not weights(done.model).equal(weights(train(model(), photos(), replace(config, amp=False), device="cpu").model))
    class Stop:
        stopped = False
        def __call__(self, step, loss, images): self.stopped = step == 9
    with pytest.raises(RunError, match="stopped at step 9"): train(model(), photos(), config, tmp_path, callback=Stop())
    assert weights(train(model(), photos(), config, tmp_path).model).equal(weights(done.model))
    assert {p.dtype for p in done.model.parameters()} == {torch.float32}


def test_a_device_without_half_precision_refuses_it_and_scales_must_agree(monkeypatch):
    with monkeypatch.context() as m:
        m.setitem(POLICIES, "cpu", replace(POLICIES["cpu"], half=None))
        with pytest.raises(UserError, match="--amp works on CUDA and on the CPU"):
            train(model(), photos(), TrainConfig(amp=True), device="cpu")
    with pytest.raises(UserError, match="--scale"): train(model(), photos(), TrainConfig(scale=4))
    with pytest.raises(UserError, match="--lr 0 moves no weights"): train(model(), photos(), TrainConfig(lr=0.), device="cpu")
    for given in (dict(model="edsr"), dict(depth=20), dict(width=64), dict(model="srcnn", depth=3)):   # config.json would contradict itself
        with pytest.raises(UserError, match="make them equal"): train(model(), photos(), TrainConfig(**given))
    wide = make_model("srcnn-955", 2, width=8)
    with pytest.raises(UserError, match="--model srcnn: .* srcnn-955"): train(wide, photos(), TrainConfig(model="srcnn"))
    train(wide, photos(), TrainConfig(model="srcnn-955", width=8, steps=1, batch=1, patch=16))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"): train(model(), photos(), TrainConfig(), device="cuda")


def test_float32_is_float32_whatever_pytorch_allows(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    train(model(), photos(), TrainConfig(steps=2, batch=1, patch=16), callback=lambda *a: seen.append(torch.backends.cudnn.allow_tf32))
    assert seen == [False, False] and torch.backends.cudnn.allow_tf32


def test_config_lists_every_photo(tmp_path):
    train(model(), photos(), TrainConfig(steps=1, batch=1, patch=16), tmp_path, photos(2, seed=1))
    about = read_json(tmp_path / "config.json")
    assert about["photos"]["each"] == photos().sha256 and about["validation"]["each"] == photos(2, seed=1).sha256


def test_a_finished_run_in_half_precision_is_read_without_cuda(tmp_path):
    config = TrainConfig(**{**RUN, "validate": 0})
    done = train(model(), photos(), config, tmp_path, device="cpu")
    stored = read_json(tmp_path / "config.json")
    stored["training"]["amp"] = True
    write_json(tmp_path / "config.json", stored)
    again = train(model(), photos(), replace(config, amp=True), tmp_path, device="cpu")
    assert weights(again.model).equal(weights(done.model))


def test_losses_are_read_every_twentieth_step():
    rows = []
    result = train(model(), photos(), TrainConfig(**{**RUN, "steps": 47, "validate": 0}), callback=lambda *said: rows.append(said))
    assert [r["step"] for r in result.history] == [20, 40, 47] and [step for step, *_ in rows] == list(range(1, 48))
    assert [(s, loss) for s, loss, _ in rows if loss is not None] == [(r["step"], r["loss"]) for r in result.history]
    assert {images for *_, images in rows} == {None}
    assert all(math.isfinite(r["loss"]) and "val_psnr_y" not in r for r in result.history)


def test_a_callback_stops_a_training(tmp_path):
    "After the step at hand, which is saved; the same call then ends as an undisturbed one does."
    class Stop:
        stopped = False
        def __call__(self, step, loss, images): self.stopped = step == 9
    config = TrainConfig(**{**RUN, "validate": 0})
    with pytest.raises(RunError, match="stopped at step 9; start the same run again"): train(model(), photos(), config, tmp_path, callback=Stop())
    seen = []
    again = train(model(), photos(), config, tmp_path, callback=lambda step, *_: seen.append(step))
    assert seen[0] == 10 and weights(again.model).equal(weights(train(model(), photos(), config).model))
    with pytest.raises(RunError, match="stopped at step 9; without a folder `out` nothing is kept"): train(model(), photos(), config, callback=Stop())


@pytest.mark.cuda
def test_cuda(tmp_path):
    config = TrainConfig(**{**RUN, "model": "edsr", "amp": True, "steps": 100})
    result = train(model("edsr"), photos(), config, tmp_path, photos(seed=1), device="cuda")
    assert result.history[-1]["loss"] < result.history[0]["loss"] and next(result.model.parameters()).is_cuda
    again = train(model("edsr"), photos(), config, tmp_path, photos(seed=1), device="cpu")
    assert weights(again.model).equal(weights(result.model).cpu())


@pytest.mark.cuda
def test_recorded_steps_are_the_steps_of_the_cpu(tmp_path):
    config = TrainConfig(**{**RUN, "model": "edsr", "steps": 60, "validate": 0, "clip": 0.1})
    losses = [[row["loss"] for row in train(model("edsr"), photos(), config, device=d).history] for d in ("cpu", "cuda")]
    assert np.allclose(*losses, rtol=1e-3)
