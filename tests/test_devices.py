"""Each branch for a GPU, walked on the CPU: a test gives the CPU a GPU's `Policy`.  What only a real GPU can say is marked `cuda`."""
import dataclasses
import types

import numpy as np
import pytest
import torch

from sr_distill import convolution, core, distill as room, matching, parallel
from sr_distill.core import POLICIES, policy
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.matching import BankSource, GradientBank, Pieces, fresh_network, memory_for
from sr_distill.models import make_model
from sr_distill.patches import Groups
from sr_distill.pixel import PixelSpace, start_images
from sr_distill.recipe import Recipe, RunOptions, TrainConfig, UserError
from sr_distill.train import Trainer, train

RECIPE = Recipe(size=24, networks=2, real=4, steps=12, pool="random", init="random")
OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=2)


@pytest.fixture
def photos(small_photos): return Photos.open(small_photos("abcd"))

@pytest.fixture
def gpu(monkeypatch):
    "`gpu(free=…)`: from now on the CPU is used as a GPU with so many free bytes; returns what was asked of it."
    asked = types.SimpleNamespace(pinned=0, forgot=0, recorded=[])
    def record(loss, samples):
        asked.recorded.append([tuple(s.shape) for s in samples])
        return loss
    class Seen(core.Policy):
        def pin(self, x):
            asked.pinned += 1
            return x
    def begin(free=16 << 30, **changes):
        def forget(): asked.forgot += 1
        how = {f.name: getattr(POLICIES["cuda"], f.name) for f in dataclasses.fields(core.Policy)}
        how |= dict(fused=False, record=record, free=lambda device: (free, free), forget=forget, **changes)
        monkeypatch.setitem(POLICIES, "cpu", Seen(**how))
        return asked
    return begin


def moved(made): return [float((a != b).mean()) for a, b in zip(made.images, made.trace.frame(0))]

@pytest.mark.parametrize("free", [16 << 30, 0])   # real gradients in the GPU's memory, or fetched for each step
def test_every_part_is_matched_against_its_own_gradients(photos, tmp_path, monkeypatch, gpu, free):
    monkeypatch.setattr(room, "PART_BYTES", 1)   # a part for each group
    wanted = distill(photos, RECIPE, tmp_path / "cpu", OPTIONS)
    asked = gpu(free)
    made = distill(photos, RECIPE, tmp_path / "gpu", dataclasses.replace(OPTIONS, chunk=4))
    assert min(moved(made)) > .5 and len(moved(made)) == 4 and asked.pinned > 0
    assert np.abs(made.images.astype(int) - wanted.images).max() <= 1

@pytest.mark.cuda
def test_parts_on_a_real_gpu_are_those_of_the_cpu(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PART_BYTES", 1)
    wanted, made = (distill(photos, RECIPE, tmp_path / d, dataclasses.replace(OPTIONS, device=d)) for d in ("cpu", "cuda"))
    assert min(moved(made)) > .5 and np.abs(made.images.astype(int) - wanted.images).mean() < .1

def test_gradients_that_are_not_computed_yet_are_never_a_target(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    groups = Groups(photos, "image", 24, 12)
    bank = GradientBank(groups, RECIPE, matching.network_pool(RECIPE, photos)).build(0, 2)
    assert bank.targets(0, slice(0, 2))[0].abs().sum() > 0
    with pytest.raises(RuntimeError, match="not computed yet"): bank.targets(0)
    with pytest.raises(RuntimeError, match="not computed yet"): bank.targets(1, slice(1, 3))

def test_the_rows_of_a_part_stay_when_the_bank_goes_on(photos, gpu):
    gpu()
    groups = Groups(photos, "image", 24, 12)
    bank = GradientBank(groups, RECIPE, matching.network_pool(RECIPE, photos)).build(0, 2)
    first = BankSource(bank, 0, 2)
    first.start(0)
    before = [t.clone() for t in first.targets(slice(0, 2))]
    second = BankSource(bank.build(2, 4), 2, 4)
    second.start(0)
    assert first.rows and second.rows and all(a.equal(b) for a, b in zip(before, first.targets(slice(0, 2))))
    wanted = bank.targets(second.k, slice(2, 4))
    assert all(a.equal(b) and a.abs().sum() > 0 for a, b in zip(wanted, second.targets(slice(0, 2))))

def test_rows_that_do_not_fit_stay_on_the_disk(photos, gpu):
    gpu(free=100)
    bank = GradientBank(Groups(photos, "image", 24, 12), RECIPE, matching.network_pool(RECIPE, photos)).build()
    assert BankSource(bank).rows is None

def test_portions_and_memory(gpu):
    net = fresh_network(RECIPE)
    assert Pieces("cpu").size == 1
    cpu_bytes, cpu_memory = matching.image_bytes(net, 24), memory_for("cpu")
    gpu(free=1000)
    assert Pieces("cpu").size == 32 and memory_for("cpu") == 500 != cpu_memory and matching.image_bytes(net, 24) > 2 * cpu_bytes

def test_a_full_gpu_gives_its_memory_back(photos, tmp_path, monkeypatch, gpu):
    asked, match = gpu(), room.match
    def full(net, images, targets, metric, chunk, low):
        if chunk > 2: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return match(net, images, targets, metric, chunk, low)
    monkeypatch.setattr(room, "match", full)
    made = distill(photos, RECIPE, tmp_path / "out", dataclasses.replace(OPTIONS, chunk=8))
    assert asked.forgot == 2 and made.manifest["report"]["chunk"] == 2
    pieces = Pieces("cpu")
    pieces.halve()
    assert asked.forgot == 3 and pieces.size == 16

def test_one_item_after_another_and_one_ahead(gpu):
    gpu()
    import threading
    main, seen = threading.current_thread(), []
    assert parallel.in_parallel(lambda x: seen.append(threading.current_thread()) or x, range(3), "cpu") == [0, 1, 2] and set(seen) == {main}
    seen.clear()
    assert list(parallel.ahead(lambda x: seen.append(threading.current_thread()) or x, range(3), "cpu")) == [0, 1, 2] and main not in seen

def test_a_training_is_recorded_for_its_shapes_and_gives_the_same(photos, gpu):
    config = TrainConfig(model="vdsr", depth=2, width=4, steps=6, batch=2, patch=24)
    def made(): return train(make_model("vdsr", 2, 2, 4, generator=core.rng(0)), photos, config, device="cpu").history[-1]["loss"]
    wanted, asked = made(), gpu()
    assert abs(made() - wanted) < 1e-6 and asked.recorded == [[(2, 3, 12, 12), (2, 3, 24, 24)]]
    Trainer(make_model("vdsr", 2, 2, 4), dataclasses.replace(config, amp=True), "cpu")
    assert len(asked.recorded) == 2   # mixed precision is recorded too

def test_a_network_that_cannot_be_recorded_is_trained_all_the_same(photos, gpu, caplog):
    config = TrainConfig(model="vdsr", depth=2, width=4, steps=6, batch=2, patch=24)
    def made(): return train(make_model("vdsr", 2, 2, 4, generator=core.rng(0)), photos, config, device="cpu").history[-1]["loss"]
    wanted, _ = made(), gpu()
    def refuses(loss, samples): raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
    POLICIES["cpu"] = dataclasses.replace(POLICIES["cpu"], record=refuses)
    caplog.set_level("INFO")
    assert abs(made() - wanted) < 1e-6
    assert "VDSR cannot be recorded as a CUDA graph (CUDA error: operation not permitted when stream is capturing); Python launches" in caplog.text
    def full(loss, samples): raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    POLICIES["cpu"] = dataclasses.replace(POLICIES["cpu"], record=full)
    with pytest.raises(torch.cuda.OutOfMemoryError): made()   # a full GPU is another matter

def test_a_program_is_drawn_by_more_threads_for_a_gpu(photos, gpu):
    "The batches are the same; more images are drawn ahead."
    from sr_distill.procedural import Endless, EndlessSampler, hand_written
    config, source = TrainConfig(model="vdsr", depth=2, width=4, steps=9, batch=4, patch=24), Endless(hand_written(photos), 3, 48, 8)
    def drawn():
        sampler = source.sampler(config)
        return [sampler(t, "cpu") for t in range(6)], sampler.pool._max_workers, len(sampler.images)
    (wanted, one, few), _ = drawn(), gpu()
    found, threads, more = drawn()
    assert one == 1 < threads == EndlessSampler.THREADS and more == few + EndlessSampler.AHEAD * (threads - 1)
    assert all(a.equal(b) for w, f in zip(wanted, found) for a, b in zip(w, f))

def test_the_fused_optimiser_is_asked_for(gpu, photos):
    gpu(); POLICIES["cpu"] = dataclasses.replace(POLICIES["cpu"], fused=True)
    trainer = Trainer(make_model("vdsr", 2, 2, 4), TrainConfig(model="vdsr", depth=2, width=4, steps=1), "cpu")
    assert trainer.optimizer.defaults["fused"]

def test_images_travel_from_pinned_memory(gpu):
    asked = gpu()
    assert core.to_tensor(np.zeros((4, 4, 3), np.uint8)).shape == (1, 3, 4, 4) and asked.pinned == 1

class Waits(torch.Tensor):
    "A tensor that counts the times that a host waits for its device."
    count = 0
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("item", "__float__", "__int__", "__bool__", "tolist", "numpy", "cpu", "nonzero"): Waits.count += 1
        return super().__torch_function__(func, types, args, kwargs or {})

def test_a_step_never_waits_for_the_device(photos, gpu):
    gpu()
    groups = Groups(photos, "image", 24, 12)
    bank = GradientBank(groups, RECIPE, matching.network_pool(RECIPE, photos)).build()
    space = PixelSpace(start_images(groups, RECIPE))
    run = room.Run(space, RECIPE, BankSource(bank), "cpu", 4)
    run.step()   # the first step looks at the network once
    space.pixels, run.losses = space.pixels.as_subclass(Waits), run.losses.as_subclass(Waits)
    Waits.count = 0
    for _ in range(3): run.step()
    assert Waits.count == 0
    run.loss()
    assert Waits.count > 0   # the counter counts

def test_a_single_kernel_takes_the_road_of_a_gpu(gpu, monkeypatch):
    x, w, gy = (torch.randn(s, generator=core.rng(0, s)).double() for s in ((2, 5, 9, 9), (4, 5, 3, 3), (2, 4, 9, 9)))
    wanted = convolution.conv(x, w), convolution.weight_gradient(x, gy, 3)
    gpu()
    def never(*args): raise AssertionError("the road of a CPU")
    monkeypatch.setattr(convolution, "_conv_on_cpu", never)
    monkeypatch.setattr(convolution, "_weight_gradient_on_cpu", never)
    found = convolution.conv(x, w), convolution.weight_gradient(x, gy, 3)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted))

def test_which_gpu_is_picked(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(core.pick_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    for name in ("cuda:2", "cuda:x", "tpu"):
        with pytest.raises(UserError, match=name): core.pick_device(name)
    for rank, name in ((0, "cuda:0"), (1, "cuda:1"), (3, "cuda:1")):   # as torchrun says; more processes than GPUs share them
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert str(core.pick_device("auto")) == name and str(core.pick_device("cuda:0")) == "cuda:0"

def test_a_device_of_no_policy_is_used_with_care():
    assert not policy("meta").resident and not policy("meta").pinned
