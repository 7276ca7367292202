"""What every entry of a registry must keep: a new model, objective, start, prior or space is covered here without a new test."""
import contextlib
import copy
import importlib.util
import dataclasses
import functools
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sr_distill.autoencoders import KLAutoencoder, Prior, SmallAutoencoder, SmallConfig, TinyAutoencoder
from sr_distill.core import POLICIES, import_torchvision, rng
from sr_distill.data import Photos
from sr_distill.latent import Latents, LatentSpace, Rates, SmallDecoder, TinyDecoder, generator_weights
from sr_distill.matching import dc_loss, gradient, group_gradients, match, obstacle, statistic_of
from sr_distill.metrics import upscale_image
from sr_distill.models import init_weights, load_model, make_model, save_model
from sr_distill.patches import Groups
from sr_distill.pixel import PixelSpace, start_images
from sr_distill.priors import load_prior, needs_photos
from sr_distill.recipe import INITS, MODELS, OBJECTIVES, PRIORS, SCALES, Recipe, UserError
from sr_distill.stylegan import StyleGANXL, xl_config

# those of spandrel only where that is installed; tests/test_nets.py has more of them
NETWORKS = [name for name in MODELS if not name.startswith("spandrel:") or importlib.util.find_spec("spandrel")]

GPU = dataclasses.replace(POLICIES["cuda"], pinned=False, record=None, fused=False, free=lambda device: (16 << 30, 16 << 30), forget=lambda: None)


@pytest.fixture(scope="module")
def photos():
    noise = np.random.default_rng(0)
    def picture(k):
        rough = np.kron(noise.integers(0, 256, (12, 12, 3)), np.ones((6, 6, 1)))
        return (0.7 * rough + 0.3 * noise.integers(0, 256, rough.shape)).astype(np.uint8)
    return Photos.from_arrays("abcd", [picture(k) for k in range(4)])


def small(name, scale=2, stream="model"):
    "A model of the registry, small where it has a size."
    if name.startswith("spandrel:"):
        import_torchvision()
        pytest.importorskip("spandrel", reason="spandrel is missing (pip install spandrel)")
    for sizes in (dict(depth=2, width=12), dict(width=12), dict(depth=1, width=18), {}):
        try: return make_model(name, scale, generator=rng(0, stream), **sizes)
        except (UserError, TypeError): pass
    raise AssertionError(name)

def relative(a, b): return float((a - b).norm() / b.norm().clamp_min(1e-12))


# ---- models

@pytest.mark.parametrize("name", NETWORKS)
def test_weights_depend_on_the_generator_alone(name):
    torch.manual_seed(1)
    one = small(name).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = small(name).state_dict()
    assert torch.get_rng_state().equal(before) and all(one[k].equal(two[k]) for k in one)
    other = small(name, stream="another").state_dict()
    assert any(not one[k].equal(other[k]) for k in one)

@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_model_enlarges_and_knows_its_reach(name, scale):
    net = small(name, scale)
    assert net.scale == scale and net(torch.rand(2, 3, 10, 12)).shape == (2, 3, 10 * scale, 12 * scale) and (net.margin is None or net.margin >= 0)

@pytest.mark.parametrize("name", NETWORKS)
def test_one_pass_is_one_group_at_a_time(name):
    net, images = small(name).double(), torch.rand(3, 2, 3, 16, 16, generator=rng(0, "images")).double()
    if name.startswith("spandrel:") and obstacle(net): return   # they go group by group, and a line says so
    assert not obstacle(net)
    alone = [torch.stack(g) for g in zip(*(gradient(net, x) for x in images))]
    assert all(relative(a, b) < 1e-9 for a, b in zip(group_gradients(net, images), alone))

@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_are_the_whole(name):
    net, lr = small(name), np.random.default_rng(1).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    whole, tiled = (upscale_image(net, lr, 2, tile=tile).astype(int) for tile in (4096, 48))
    assert abs(whole - tiled).max() <= 1

@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_loaded_a_model_is_the_same(name, tmp_path):
    net = small(name)
    again = load_model(save_model(net, tmp_path))
    assert again.config == net.config and all(a.equal(b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))


# ---- layers that a network of one's own may have

class Own(nn.Module):
    scale, margin = 2, 8
    def __init__(self, *layers): super().__init__(); self.body = nn.Sequential(*layers, nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    def forward(self, x): return self.body(x)

class Norm(nn.Module):
    def __init__(self): super().__init__(); self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
    def forward(self, x): return self.mix(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

class Gate(nn.Module):
    def __init__(self): super().__init__(); self.conv, self.by = nn.Conv2d(8, 8, 3, padding=1), nn.Parameter(torch.tensor([.5]))
    def reset_parameters(self): self.by.data.fill_(.5)
    def forward(self, x): return x + self.by * self.conv(x).relu()

class Twice(nn.Module):
    "One layer, used two times."
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x): return self.conv(self.conv(x).relu())

class Outside(nn.Module):
    "A weight that is also used outside its layer."
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x): return self.conv(x) * (1 + self.conv.weight.square().mean())

class Tied(nn.Module):
    "Two layers that share their weight."
    def __init__(self): super().__init__(); self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)); self.b.weight = self.a.weight
    def forward(self, x): return self.b(self.a(x).relu())

def head(**how): return nn.Conv2d(3, 8, 3, **{"padding": 1, **how})

LAYERS = {
    "plain": [head(), nn.Tanh()], "1x1": [head(), nn.Conv2d(8, 8, 1)], "no bias": [head(bias=False), nn.ReLU()], "PReLU": [head(), nn.PReLU(8)],
    "transposed": [head(stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, 2, 1)], "strided": [head(stride=2), nn.Upsample(scale_factor=2)],
    "reflect padding": [head(padding_mode="reflect")], "replicate padding": [head(padding_mode="replicate")], "no padding": [nn.ReflectionPad2d(1), head(padding=0)],
    "depthwise": [head(), nn.Conv2d(8, 8, 3, padding=1, groups=8)], "dilated": [head(padding=2, dilation=2)], "padding='same'": [head(padding="same")],
    "even kernel": [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 2)], "oblong kernel": [nn.Conv2d(3, 8, (1, 3), padding=(0, 1))],
    "LayerNorm and Linear": [head(), Norm()], "GroupNorm": [head(), nn.GroupNorm(2, 8)], "InstanceNorm": [head(), nn.InstanceNorm2d(8)],
    "learnt InstanceNorm": [head(), nn.InstanceNorm2d(8, affine=True)], "BatchNorm": [head(), nn.BatchNorm2d(8)], "BatchNorm without weights": [head(), nn.BatchNorm2d(8, affine=False)],
    "learnt scalar": [head(), Gate()], "used twice": [head(), Twice()], "used outside": [head(), Outside()], "tied": [head(), Tied()],
    "spectral norm": [nn.utils.parametrizations.spectral_norm(head())], "weight norm": [nn.utils.parametrizations.weight_norm(head())],
}

@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("groups", [3, 8])   # 8: as many as the network is wide
def test_every_layer_gives_the_same_numbers_on_a_gpu(kind, groups, monkeypatch):
    net = Own(*copy.deepcopy(LAYERS[kind])).double()
    images = torch.rand(groups, 1, 3, 16, 16, generator=rng(0, kind)).double()
    targets = [torch.randn(groups, *p.shape, generator=rng(1, kind)).double() for p in net.parameters()]
    if "spectral" in kind: net.eval()   # its power iteration changes at each look
    wanted = match(net, images, targets, "whole", groups)
    monkeypatch.setitem(POLICIES, "cpu", GPU)
    for chunk in (groups, 2):
        found = match(net, images, targets, "whole", chunk)
        assert relative(found[0], wanted[0]) < 1e-6 and relative(found[1], wanted[1]) < 1e-6

@pytest.mark.cuda
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_gives_the_same_numbers_on_a_real_gpu(kind):
    net = Own(*copy.deepcopy(LAYERS[kind])).double().eval()
    images = torch.rand(8, 1, 3, 16, 16, generator=rng(0, kind)).double()
    targets = [torch.randn(8, *p.shape, generator=rng(1, kind)).double() for p in net.parameters()]
    wanted = match(net, images, targets, "whole", 8)
    found = match(net.cuda(), images.cuda(), [t.cuda() for t in targets], "whole", 8)
    assert relative(found[0].cpu(), wanted[0]) < 1e-6 and relative(found[1].cpu(), wanted[1]) < 1e-6

def matched(name, device="cpu"):
    "Distances and their gradient for two groups of an image of 32², in float64; the CPU's random numbers on every device."
    net, images = small(name).double(), torch.rand(2, 1, 3, 32, 32, generator=rng(0, "images")).double()
    targets = [torch.randn(2, *p.shape, generator=rng(1, "targets")).double().to(device) for p in net.parameters()]
    return [t.cpu() for t in match(net.to(device), images.to(device), targets, "whole", 8)]

@pytest.mark.parametrize("name", NETWORKS)
def test_every_model_is_matched_as_by_plain_calls(name, monkeypatch):
    found = matched(name)
    monkeypatch.setattr("sr_distill.matching.rerouted", lambda twice=False: contextlib.nullcontext())
    assert all(relative(a, b) < 1e-9 for a, b in zip(found, matched(name)))

@pytest.mark.cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_every_model_is_matched_on_a_real_gpu_as_on_the_cpu(name):
    "In one pass or, where a network does not allow it, group by group."
    assert all(relative(a, b) < 1e-6 for a, b in zip(matched(name, "cuda"), matched(name)))

def test_the_reason_for_the_slow_way_names_the_layer(caplog):
    caplog.set_level("INFO")
    assert "body.1 (PReLU)" in obstacle(Own(head(), nn.PReLU(8))) and "PReLU" in caplog.text
    caplog.clear()
    assert not obstacle(Own(head(), nn.Tanh())) and not caplog.text

@pytest.mark.parametrize("kind", [k for k in LAYERS if "norm" not in k.split()])
def test_a_generator_fixes_the_weights_of_every_layer(kind):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = Own(*copy.deepcopy(LAYERS[kind]))
        before = torch.get_rng_state()
        states.append(init_weights(net, rng(0, "model")).state_dict())
        assert torch.get_rng_state().equal(before)
    assert all(states[0][k].equal(states[1][k]) for k in states[0])

def test_a_layer_that_no_generator_can_draw_is_refused_by_name():
    class Strange(nn.Module):
        def __init__(self): super().__init__(); self.scale_of_it = nn.Parameter(torch.randn(3))
        def forward(self, x): return x
    with pytest.raises(UserError, match=r"body\.1 \(Strange\)"): init_weights(Own(head(), Strange()), rng(0))


# ---- objectives

def statistics(name, groups, per=1, dtype=torch.float32):
    "A network of an objective's own kind, images of some groups, and the statistic of each group in it."
    statistic = statistic_of(name)
    net = statistic.network(Recipe(network="srcnn"), "contract").to(dtype)
    images = torch.rand(groups, per, 3, 16, 16, generator=rng(0, "objective")).to(dtype)
    found = [statistic.of(net, x) for x in images]
    assert [t.shape for t in found[0]] == [*statistic.shapes(net)]
    return net, images, [torch.stack(same).detach() for same in zip(*found)]

@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_smallest_at_equality(name):
    _, _, found = statistics(name, 2)
    one, other = ([g[k] for g in found] for k in (0, 1))
    assert float(dc_loss(one, one, name)) <= float(dc_loss(other, one, name))
    scaled = [torch.nn.functional.normalize(g.flatten(1), dim=1).view_as(g) if g.ndim > 1 else g for g in one]
    alive = [g + (g.flatten(1).norm(dim=1).view(-1, *[1] * (g.ndim - 1)) == 0) if g.ndim > 1 else g for g in scaled]   # a filter that does not move has no direction
    if name in OBJECTIVES.own: assert abs(float(dc_loss(alive, alive, name))) < 1e-4

@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_of_many_groups_is_that_of_each(name):
    _, _, found = statistics(name, 4)
    target = [g.roll(1, 0) for g in found]
    together = torch.vmap(lambda s, r: dc_loss(s, r, name))(found, target)
    alone = torch.stack([dc_loss([g[k] for g in found], [t[k] for t in target], name) for k in range(4)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_statistic_of_two_batches_is_the_mean_of_theirs(name):
    net, images, found = statistics(name, 2, 3, torch.float64)
    both = statistic_of(name).of(net, images.flatten(0, 1))
    for one, two in zip(both, found): assert relative(one, two.mean(0)) < 1e-9

@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("way", ["cpu", "gpu"])
def test_the_chunk_does_not_change_an_objective(name, way, monkeypatch):
    if way == "gpu": monkeypatch.setitem(POLICIES, "cpu", GPU)
    net, images, found = statistics(name, 2, 4, torch.float64)
    targets = [g.flip(0) for g in found]
    results = [match(net, images, targets, name, chunk) for chunk in (1, 3, 4, 8)]
    for r in results[1:]: assert relative(r[0], results[0][0]) < 1e-9 and relative(r[1], results[0][1]) < 1e-6

class Waits(TorchDispatchMode):
    "Counts the calls for which a host has to wait for a GPU, wherever they are made."
    def __init__(self): super().__init__(); self.count = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("chunk", [8, 2, 1])   # all groups in one pass, in two, and each group in pieces
def test_an_objective_never_waits_for_a_gpu(name, chunk, monkeypatch):
    monkeypatch.setitem(POLICIES, "cpu", GPU)
    net, images, found = statistics(name, 4, 2)
    targets = [g.flip(0) for g in found]
    statistic_of(name).one_pass(net)   # a network is looked at once
    with Waits() as waits: match(net, images, targets, name, chunk)
    assert waits.count == 0
    with waits: float(images.sum())
    assert waits.count == 1   # the counter counts


# ---- starts

@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("grouping", ["image", "all"])
def test_every_start(init, grouping, photos, monkeypatch):
    monkeypatch.setattr("sr_distill.pixel.SCOUT_STEPS", 4)
    recipe = Recipe(init=init, grouping=grouping, size=24, ipc=2, network="srcnn")
    groups = Groups(photos, grouping, 24, 12)
    one, two = (start_images(groups, recipe) for _ in range(2))
    assert one.shape == (len(groups) * 2, 24, 24, 3) and one.dtype == np.uint8 and (one == two).all()
    assert (start_images(groups, recipe, [len(groups) - 1]) == one[-2:]).all()   # a group's images do not depend on the others


# ---- priors and spaces

KINDS = {
    "embedded": lambda: SmallAutoencoder(SmallConfig(channels=4, width=8, depth=1), "small"),
    "tiny": lambda: TinyAutoencoder(width=8),
    "decoder of an embedded one": lambda: SmallDecoder(generator_weights(KINDS["embedded"]()), "small"),
    "decoder of a tiny one": lambda: TinyDecoder(generator_weights(KINDS["tiny"]()), "tiny"),
    "stylegan": lambda: StyleGANXL(xl_config(16, c_dim=0, layers=(3, 3), channel_max=2)),
}

def others(registry): return [name for name in registry if not getattr(registry[name], "__module__", "").startswith("sr_distill.")]
KINDS |= {name: functools.partial(load_prior, name) for name in others(PRIORS) if not needs_photos(name)}   # of installed packages

def test_every_class_of_prior_is_here():
    def below(cls): return {cls, *(c for sub in cls.__subclasses__() for c in below(sub))}
    ours = {c for c in below(Prior) - {Prior} if c.__module__.startswith("sr_distill.") and not inspect.isabstract(c)}
    assert ours <= {type(make()) for make in KINDS.values()} | {KLAutoencoder}, "add the new prior to KINDS"   # the last needs the package diffusers

@pytest.fixture(params=KINDS)
def prior(request):
    torch.manual_seed(0)
    return KINDS[request.param]().eval()

def side(prior): return prior.resolution or 16 // prior.multiple * prior.multiple or prior.multiple

def test_a_prior_paints_what_it_says(prior):
    size = side(prior)
    z = torch.randn(2, *prior.latent_shape(size), generator=rng(0)).requires_grad_()
    images = prior.decode(z)
    assert images.shape == (2, 3, size, size) and bool((images >= 0).all()) and bool((images <= 1).all())
    painted = prior.paint(z)
    grad, = torch.autograd.grad(painted.square().sum(), z)
    assert torch.isfinite(grad).all() and grad.abs().sum() > 0 and painted.detach().equal(prior.paint(z).detach())
    assert torch.allclose(prior.decode(z[1:]), images[1:], atol=1e-5)   # images do not depend on each other
    if prior.encodes: assert prior.encode(images.detach()).shape == z.shape
    else:
        with pytest.raises(UserError, match="encoder"): prior.encode(images.detach())

def test_the_identity_of_a_prior_is_that_of_its_weights(prior):
    before = prior.identity
    assert copy.deepcopy(prior).identity == before
    with torch.no_grad(): next(p for p in prior.parameters() if p.numel()).add_(.5)
    assert prior.identity != before

def spaces(prior):
    start = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    yield PixelSpace(start)
    yield LatentSpace(Latents(copy.deepcopy(prior), torch.randn(4, *prior.latent_shape(side(prior)), generator=rng(0)), side(prior)), Rates(.01, 0, 0), 2)

@pytest.mark.parametrize("way", ["cpu", "gpu"])
def test_every_space_renders_moves_and_goes_on(prior, way, monkeypatch):
    if way == "gpu": monkeypatch.setitem(POLICIES, "cpu", GPU)
    for space in spaces(prior):
        before = space.render(slice(None)).detach().clone()
        assert len(space) == len(before) == 4 and torch.allclose(space.render(slice(1, 3)), before[1:3], atol=1e-5)
        kept = copy.deepcopy(space.state_dict())
        optimizer = torch.optim.SGD(space.parameters(), lr=1.)
        space.backward(slice(None), torch.randn(before.shape, generator=rng(1)))
        optimizer.step(); space.project()
        assert not space.render(slice(None)).equal(before)
        space.load_state_dict(kept)
        assert torch.allclose(space.render(slice(None)), before, atol=1e-6)
