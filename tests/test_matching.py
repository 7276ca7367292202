"""Formulas against float64 references written out by hand, every road to the pixel gradient, and what a bank survives."""
import contextlib
import math
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from sr_distill import core, matching
from sr_distill.convolution import conv, rerouted
from sr_distill.core import rng
from sr_distill.data import Photos
from sr_distill.fourier import LocalFourier
from sr_distill.matching import (BankSource, GradientBank, LiveSource, Pieces, choose_chunk, dc_loss, flatten, fresh_network, gradient, group_gradients,
                                 image_bytes, match, network_pool, sr_loss, unflatten)
from sr_distill.models import EDSR, SRCNN, VDSR, init_weights, save_model
from sr_distill.parallel import precision
from sr_distill.patches import Groups
from sr_distill.recipe import Recipe, UserError


def tensors(seed, *shapes): return [torch.randn(s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for s in shapes]

SHAPES = ((8, 3, 3, 3), (8,), (3, 8, 1, 1), (3,))


def test_whole_cosine_by_hand():
    a, b = tensors(0, *SHAPES), tensors(1, *SHAPES)
    x, y = (np.concatenate([t.numpy().ravel() for t in g]) for g in (a, b))
    assert float(dc_loss(a, b)) == pytest.approx(1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), abs=1e-12)


def test_layerwise_by_hand_ignores_biases():
    a, b = tensors(0, *SHAPES), tensors(1, *SHAPES)
    total = 0
    for s, r in zip(a, b):
        if s.ndim == 1: continue
        for i in range(len(s)):
            x, y = s[i].numpy().ravel(), r[i].numpy().ravel()
            total += 1 - x @ y / math.sqrt((x @ x) * (y @ y))
    assert float(dc_loss(a, b, "layerwise")) == pytest.approx(total, abs=1e-10)
    a[1] += 100
    assert float(dc_loss(a, b, "layerwise")) == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("metric", ["whole", "layerwise"])
def test_gradient_of_the_loss(metric):
    real = tensors(1, *SHAPES)
    syn = [t.requires_grad_() for t in tensors(0, *SHAPES)]
    assert torch.autograd.gradcheck(lambda *g: dc_loss(list(g), real, metric), syn)


@pytest.mark.parametrize("metric", ["whole", "layerwise"])
def test_pixel_gradient_by_finite_differences(metric):
    net = init_weights(SRCNN(widths=(4, 3)), rng(9)).double()
    x = torch.rand(1, 2, 3, 12, 12, dtype=torch.float64, generator=rng(0))
    target = [t.detach() for t in group_gradients(net, torch.rand(1, 2, 3, 12, 12, dtype=torch.float64, generator=rng(1)))]
    _, dx = match(net, x, target, metric, 2)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=rng(2))
    f = lambda e: float(match(net, x + e * direction, target, metric, 2)[0])
    assert (f(1e-6) - f(-1e-6)) / 2e-6 == pytest.approx(float((dx * direction).sum()), rel=2e-4)


@pytest.mark.parametrize("make", [lambda: SRCNN(widths=(8, 4)), lambda: VDSR(depth=3, width=6), lambda: EDSR(depth=1, width=6)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_every_chunk_gives_the_same_pixel_gradient(make, dtype, tolerance):
    net = init_weights(make(), rng(9)).to(dtype)
    x = torch.rand(3, 4, 3, 16, 16, generator=rng(0)).to(dtype)
    target = [t.detach() for t in group_gradients(net, torch.rand(3, 4, 3, 16, 16, generator=rng(1)).to(dtype))]
    distance, dx = match(net, x, target, "layerwise", 4)
    for chunk in (1, 3, 8, 100):
        d, g = match(net, x, target, "layerwise", chunk)
        assert (d - distance).norm() / distance.norm() < tolerance and (g - dx).norm() / dx.norm() < tolerance


NETS = [lambda: SRCNN(widths=(8, 4)), lambda: SRCNN(kernels=(9, 5, 5), widths=(6, 9)), lambda: VDSR(depth=3, width=6), lambda: EDSR(depth=1, width=6), lambda: EDSR(scale=4, depth=1, width=5)]

@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_all_groups_in_one_pass_equal_pytorchs_own_gradients(make, dtype, tolerance):
    "The road that a GPU takes, walked on the CPU, against nothing of ours: plain autograd, one group after another."
    net = init_weights(make(), rng(9)).to(dtype)
    x, real = (torch.rand(3, 2, 3, 16, 16, generator=rng(s)).to(dtype) for s in (0, 1))
    plain = lambda images, **how: list(torch.autograd.grad(sr_loss(net, images), list(net.parameters()), **how))
    close = lambda a, b: float((a - b).norm() / b.norm()) < tolerance
    targets = [torch.stack(t) for t in zip(*(plain(r) for r in real))]
    for a, b in zip(group_gradients(net, real), targets): assert close(a, b)
    expected = []
    for images, g in zip(x, range(3)):
        images = images.clone().requires_grad_()
        distance = dc_loss(plain(images, create_graph=True), [t[g] for t in targets], "layerwise")
        expected.append((distance.detach(), torch.autograd.grad(distance, images)[0]))
    for road in (lambda: matching._all_groups(net, x, targets, "layerwise"), lambda: match(net, x, targets, "layerwise", 2), lambda: match(net, x, targets, "layerwise", 1)):
        distance, dx = road()
        assert close(distance, torch.stack([d for d, _ in expected])) and close(dx, torch.stack([g for _, g in expected]))


def test_the_number_of_threads_changes_no_bit():
    net, threads, found = init_weights(SRCNN(), rng(9)), torch.get_num_threads(), []
    x = torch.rand(5, 2, 3, 40, 40, generator=rng(0))
    try:
        torch.set_num_threads(1)
        target = [t.detach() for t in group_gradients(net, x.flip(0))]
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            roads = [match(net, x, target, "layerwise", chunk) for chunk in (2, 1)]
            found.append([t for road in roads for t in road] + [matching.mean_gradient(net, np.arange(5), lambda p: x[torch.from_numpy(p), 0])])
    finally: torch.set_num_threads(threads)
    assert all(a.equal(b) for other in found[1:] for a, b in zip(found[0], other))


def test_a_strided_convolution_stays_what_it_is():
    "Only ordinary layers are rerouted; a network with others still works."
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1, groups=2), torch.nn.Conv2d(4, 2, 3, padding=1)).double()
    x, grads = torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=rng(0)), []
    for block in (contextlib.nullcontext(), rerouted()):
        with block: y = net(x)
        grads.append(torch.autograd.grad(y.square().mean(), list(net.parameters())))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*grads)) and type(y.grad_fn).__name__ == "_ReroutedLayerBackward"


def test_mean_square_error_takes_the_unrounded_lr():
    x = torch.rand(1, 3, 8, 8, generator=rng(0)).requires_grad_()
    sr_loss(init_weights(SRCNN(widths=(4, 2)), rng(9)), x).backward()
    assert x.grad.abs().min() > 0


def test_flatten_and_back():
    net = SRCNN(widths=(4, 2))
    g = gradient(net, torch.rand(2, 3, 8, 8))
    assert all(a[0].equal(b) for a, b in zip(unflatten(flatten(g)[None], net), g))


def test_chunk_follows_memory():
    net = SRCNN()
    assert choose_chunk(net, 64, memory=10 * image_bytes(net, 64)) == 10
    assert image_bytes(net, 128) == pytest.approx(4 * image_bytes(net, 64), rel=.01)
    assert image_bytes(VDSR(), 64) > 5 * image_bytes(net, 64)
    features = LocalFourier(features=4, sizes=(3, 9), generator=rng(0))   # no padding: the outputs of 24² are of 22² and 16²
    assert image_bytes(features, 24) == 3 * 4 * 4 * (22**2 + 16**2)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    photos = Photos.from_arrays(["a", "b"], [noise.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(2)])
    recipe = Recipe(size=16, real=3, networks=2, pool="random")
    return Groups(photos, "image", 16, 8), recipe, network_pool(recipe, photos)


def test_bank_is_resumed_and_repaired(small, monkeypatch):
    groups, recipe, states = small
    whole = GradientBank(groups, recipe, states).build()
    rows, folder = whole.file.rows.copy(), whole.file.folder
    done = np.lib.format.open_memmap(folder / "done.npy", mode="r+")
    done[1, 0] = 0; whole.file.rows[1, 0] = 7; done.flush(); whole.file.rows.flush()
    calls = []
    row = GradientBank._row
    monkeypatch.setattr(GradientBank, "_row", lambda bank, k, g: calls.append((k, g)) or row(bank, k, g))
    assert (GradientBank(groups, recipe, states).build().file.rows == rows).all() and calls == [(1, 0)]
    (folder / "rows.npy").write_bytes(b"half")
    assert (GradientBank(groups, recipe, states).build().file.rows == rows).all(), "a damaged file was taken for whole"


def test_a_bias_counts_with_a_kernel_for_each_group():
    x, w, bias = torch.randn(4, 3, 9, 9, generator=rng(0, "x")), torch.randn(2, 5, 3, 3, 3, generator=rng(0, "w")), torch.randn(5, generator=rng(0, "b"))
    alone = torch.cat([torch.nn.functional.conv2d(part, kernel, bias, padding=1) for part, kernel in zip(x.split(2), w)])
    assert torch.allclose(conv(x, w, bias), alone, atol=1e-5)


def test_bank_that_does_not_fit_on_the_disk_is_refused_first(small, monkeypatch):
    groups, recipe, states = small
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(1000, 0, 1000))
    with pytest.raises(UserError, match="SR_DISTILL_CACHE"): GradientBank(groups, recipe, states).build()


def test_processes_fill_in_rows_of_their_own(small):
    groups, recipe, states = small
    bank = GradientBank(groups, recipe, states).build(1, 2)
    assert (bank.file.done > 0).tolist() == [[False, True], [False, True]] and (bank.file.rows[:, 0] == 0).all() and (bank.file.rows[:, 1] != 0).any()
    source = BankSource(bank, first=1)
    source.start(0)
    assert source.targets(slice(0, 1))[0].equal(bank.targets(source.k, slice(1, 2))[0])


def test_bank_key_depends_on_everything(small):
    groups, recipe, states = small
    key = lambda g=groups, r=recipe, s=states, **k: GradientBank(g, r, s, **k).key
    others = [key(groups.subset([0])), key(r=Recipe(size=16, real=4, networks=2, pool="random")), key(s=states[:1]), key(stream="other"),
              key(Groups(groups.photos, "image", 16, 4))]
    swapped = [{k: v.flip(0) for k, v in s.items()} for s in states]   # other networks of the same sums
    assert len({key(), key(s=swapped), *others}) == 7


def test_bank_key_is_the_same_on_any_number_of_threads(small):
    groups, threads, keys = small[0], torch.get_num_threads(), set()
    recipe = Recipe(size=16, real=4, networks=1, pool="random", network="vdsr")   # sums of its layers depend on how they are shared out
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            keys.add(GradientBank(groups, recipe, [matching.fresh_network(recipe, 0).state_dict()]).key)
    finally: torch.set_num_threads(threads)
    assert len(keys) == 1


def test_keys_tell_devices_apart_and_a_cpu_needs_no_mention(small, monkeypatch):
    groups, recipe, states = small
    bank = lambda device="cpu": GradientBank(groups, recipe, states, device=device).key
    def runs():
        matching.trajectories(recipe, groups.photos, {"lesson": 1})
        return {p.name for p in (core.cache_dir() / "trajectories").iterdir() if p.is_dir()}
    monkeypatch.setattr(matching, "train", lambda net, photos, config, device, callback: callback(200, None, net))
    cpu, kept = bank(), runs()
    with precision(tf32=True): assert bank() == cpu and runs() == kept   # CUDA's rounding is nothing to a CPU
    keys = [cpu, bank("meta")]
    for name in ("cuda", "cuda-tf32"):
        monkeypatch.setattr(matching, "arithmetic", lambda device: name)
        keys.append(bank())
        assert len(runs() - kept) == 1
        kept = runs()
    assert len(set(keys)) == 4


def test_sources_agree_on_the_first_visit(small):
    groups, recipe, states = small
    live = LiveSource(groups, Recipe(size=16, real=0, pool="random", networks=2, outer=2, inner=1), states)
    bank = BankSource(GradientBank(groups, Recipe(size=16, real=0, pool="random", networks=2), states).build())
    live.start(0); bank.k = 0; bank.bank.networks[0]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(live.targets(slice(0, 2)), bank.targets(slice(0, 2))))


def test_pool_from_a_trained_model(small, tmp_path):
    groups, _, _ = small
    save_model(SRCNN(), tmp_path / "m")
    assert len(network_pool(Recipe(pool=str(tmp_path / "m")), groups.photos)) == 1
    with pytest.raises(UserError, match="of this recipe"): network_pool(Recipe(pool=str(tmp_path / "m"), scale=3), groups.photos)
    with pytest.raises(UserError, match="no such folder"): network_pool(Recipe(pool="nowhere"), groups.photos)


def test_fresh_networks_differ_by_name_and_seed():
    first = lambda r, *n: next(fresh_network(r, *n).parameters())
    assert first(Recipe(), 1).equal(first(Recipe(), 1))
    assert not first(Recipe(), 1).equal(first(Recipe(seed=1), 1)) and not first(Recipe(), 1).equal(first(Recipe(), 2))


def test_momentum_lasts_as_long_as_a_network(small):
    "Two inner calls of one step each are two steps of one SGD, and a new network starts without its past."
    groups, _, states = small
    recipe, x = Recipe(size=16, pool="random", networks=2, outer=3, inner=1), torch.rand(4, 3, 16, 16, generator=rng(0))
    net = fresh_network(recipe)
    net.load_state_dict(states[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=.01, momentum=.5)
    for _ in range(2):
        for p, g in zip(net.parameters(), gradient(net, x)): p.grad = g
        optimizer.step()
    live = LiveSource(groups, recipe, states)
    for step in range(2): live.start(step); live.finish(step, x)
    far = lambda a, b: float((flatten(a) - flatten(b)).detach().norm())
    assert far(live.net.parameters(), net.parameters()) < 1e-3 * far(net.parameters(), states[0].values())
    assert live.optimizer.state_dict()["state"] and live.start(3) and not live.optimizer.state_dict()["state"]


def test_held_out_loss_takes_a_group_in_pieces(small, monkeypatch):
    "However many images a group has, a CPU core takes one at a time, and a GPU without room fewer."
    groups, recipe, states = small
    bank, x = GradientBank(groups, recipe, states).build(), torch.rand(2, 5, 3, 16, 16, generator=rng(0))
    whole = {m: np.mean([float(dc_loss(gradient(bank.networks[k], x[g]), [t[g] for t in bank.targets(k)], m)) for k in range(2) for g in range(2)]) for m in ("whole", "layerwise")}
    sizes, plain, room = [], matching.gradient, 9
    def narrow(net, hr, create_graph=False, lr=None):
        sizes.append(len(hr))
        if len(hr) > room: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return plain(net, hr, create_graph, lr)
    monkeypatch.setattr(matching, "gradient", narrow)
    assert matching.held_out_loss(x, bank) == pytest.approx(whole, rel=1e-4) and set(sizes) == {1}
    one = matching.held_out_loss(x[:1], bank)   # a single group, as --grouping all has it
    mean, room = matching.mean_gradient, 2
    monkeypatch.setattr(matching, "mean_gradient", lambda net, numbers, load, statistic, low: mean(net, numbers, load, Pieces("cpu", 32), statistic, low))
    sizes.clear()
    assert matching.held_out_loss(x[:1], bank) == pytest.approx(one, rel=1e-4) and {5, 2} <= set(sizes)


def test_a_bank_remembers_that_the_memory_was_full(small, monkeypatch, caplog):
    groups, recipe, states = small
    plain, sizes = matching.gradient, []
    def narrow(net, hr, create_graph=False, lr=None):
        sizes.append(len(hr))
        if len(hr) > 1: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return plain(net, hr, create_graph)
    monkeypatch.setattr(matching, "gradient", narrow)
    bank = GradientBank(groups, recipe, states)
    bank.pieces = Pieces("cuda")
    assert bank.build().file.rows.any() and bank.pieces.size == 1
    assert sum(n > 1 for n in sizes) < 6 and len(caplog.records) < 8   # 32, 16, … 2, once


def test_a_trajectory_has_as_many_networks_as_were_asked_for():
    marks = matching._marks
    assert marks(5).tolist() == np.geomspace(10, 200, 5).round().tolist() and marks(1).tolist() == [10]
    for n in (2, 50, 100, 191): assert len(set(marks(n))) == n and (np.diff(marks(n)) > 0).all() and marks(n)[[0, -1]].tolist() == [10, 200]
    with pytest.raises(UserError, match="room for 191 networks"): marks(192)


def test_memory_is_what_the_container_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("sr_distill.memory.CONTAINER", tmp_path / "memory.max")
    host = matching.machine_memory()
    for limit, memory in (("max", host), ("1000000", 10**6), (str(2 * host), host)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert matching.machine_memory() == memory
    monkeypatch.delattr(os, "sysconf", raising=False)   # Windows
    assert matching.machine_memory() == 8 << 30 and matching.memory_for("cpu") >= 1


def test_old_banks_make_room(small, monkeypatch):
    groups, recipe, states = small
    old, new = (GradientBank(groups, recipe, states, stream).build() for stream in ("old", "new"))
    os.utime(old.file.folder, (1, 1))
    monkeypatch.setenv("SR_DISTILL_CACHE_GB", str(1.5 * new.file.nbytes / 1e9))
    third = GradientBank(groups, recipe, states, "third").build()
    assert not old.file.folder.exists() and new.file.folder.exists() and third.file.folder.exists() and (third.file.rows != 0).any()
