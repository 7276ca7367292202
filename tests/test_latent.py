"""Latent space and inversion beyond what a page should show: exact gradients, interrupted runs, spoilt files."""
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sr_distill.autoencoders import Prior, TinyAutoencoder, load_tiny
from sr_distill.core import load_state, rng, save_state, to_tensor, to_uint8
from sr_distill.data import Photos, decode_image, resize
from sr_distill.inversion import Distance, InvertConfig, choose_classes, invert, make_space, random_latents, toward
from sr_distill.latent import Latents, LatentSpace, Rates, latent_budget, render_latents, with_features
from sr_distill.metrics import LPIPS
from sr_distill.patches import Groups
from sr_distill.pixel import PixelSpace, start_images
from sr_distill.recipe import Recipe, RunError, UserError
from sr_distill.stylegan import StyleGANXL, _from_tensors, xl_config

FAST = dict(lpips="none")


def relative(a, b): return float((a - b).norm() / b.norm())

def everything(space): return torch.cat([p.grad.flatten() for g in space.parameters() for p in g["params"]])


@pytest.fixture(scope="module")
def super32(shared):
    folder = shared("reference/stylegan_xl")
    return _from_tensors(json.loads((folder / "super32.config.json").read_text()), load_file(folder / "super32.weights.safetensors"), "super32")

@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return TinyAutoencoder(4, True, "tiny", width=16).eval().requires_grad_(False)

@pytest.fixture(scope="module")
def gan():
    torch.manual_seed(0)
    g = StyleGANXL(xl_config(16, c_dim=3, layers=(4, 4), channel_max=6), "small").eval().requires_grad_(False)
    for layer in g.layers[1:]: layer.bias.normal_(0, .3)
    return g

@pytest.fixture(scope="module")
def hr():
    return start_images(Groups(Photos.open("embedded"), "image", 48, 24), Recipe(size=48, init="hardest"))


# ---------------------------------------------------------------- the two-stage backward


def two_stages(start, rates, weigh, blocks, chunk):
    "The gradient of every parameter by GLaD's split, and in one piece."
    space = LatentSpace(start, rates, chunk)
    for block in blocks:
        leaf = space.render(block).requires_grad_()
        space.backward(block, torch.autograd.grad((weigh[block] * leaf.pow(3)).sum(), leaf)[0])
    parts = {k: v.clone().requires_grad_(k in space.free) for k, v in space.parts.items()}
    whole = (weigh * space.images(**parts).pow(3)).sum()
    direct = torch.autograd.grad(whole, [*(parts[k] for k in space.free), *space.weights.values()], materialize_grads=True)
    return space, torch.cat([g.flatten() for g in direct])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_two_stages_equal_one_through_an_autoencoder(tiny, chunk):
    prior = copy.deepcopy(tiny).double()
    z = torch.randn(5, *prior.latent_shape(32), dtype=torch.float64, generator=rng(0, "z"))
    weigh = torch.randn(5, 3, 32, 32, dtype=torch.float64, generator=rng(0, "w"))
    blocks = [slice(0, 2), torch.tensor([4, 2]), slice(3, 4)]
    space, direct = two_stages(Latents(prior, z, 32), Rates(.01, 0, 1e-4), weigh, blocks, chunk)
    assert relative(everything(space), direct) < 1e-9
    space.project()
    assert not everything(space).any() and not any(p.requires_grad for p in prior.parameters())


@pytest.mark.parametrize("layer, size", [(None, 32), (5, 32), (3, 48)])
def test_two_stages_equal_one_through_stylegan_xl(super32, layer, size):
    prior = copy.deepcopy(super32).double()
    ws = prior.map(torch.randn(3, 64, dtype=torch.float64, generator=rng(0, "z")), torch.tensor([1, 2, 3]))
    start = Latents(prior, ws.clone(), size)
    start = start if layer is None else with_features(start, layer)
    weigh = torch.randn(3, 3, size, size, dtype=torch.float64, generator=rng(0, "w"))
    space, direct = two_stages(start, Rates(.01, .1, 1e-4), weigh, [slice(0, 2), slice(2, 3)], 1)
    assert relative(everything(space), direct) < 1e-9
    assert [g["name"] for g in space.parameters()] == ["latents", *["features"] * (layer is not None), "generator"]


def test_where_nothing_saturates_the_gradient_is_that_of_decode(tiny):
    prior = copy.deepcopy(tiny).double()
    with torch.no_grad(): prior.decoder[-1].weight.mul_(.01), prior.decoder[-1].bias.fill_(.5)
    z = torch.randn(2, *prior.latent_shape(16), dtype=torch.float64).requires_grad_()
    plain = torch.autograd.grad(prior.decode(z).pow(3).sum(), z)[0]
    assert relative(torch.autograd.grad(render_latents(prior, z, 16).pow(3).sum(), z)[0], plain) < 1e-12


def test_a_saturated_pixel_comes_back():
    "White overshoots and the target is grey: a plain clamp would never move."
    class Flat(Prior):
        encodes, multiple = True, 1
        def latent_shape(self, size): return (3, size, size)
        def encode(self, images): return images
        def paint(self, latents): return latents
    space = LatentSpace(Latents(Flat(), torch.full((1, 3, 4, 4), 1.2), 4), Rates(.2))
    sgd = torch.optim.SGD(space.parameters())
    for _ in range(40):
        space.backward(slice(0, 1), space.render(slice(0, 1)) - .5)
        sgd.step(), space.project()
    assert space.render(slice(0, 1)).sub(.5).abs().max() < .02


def test_out_of_memory_in_the_middle_counts_nothing_twice(tiny, monkeypatch):
    z, grad = torch.randn(4, *tiny.latent_shape(16)), torch.randn(4, 3, 16, 16)
    def space(chunk): return LatentSpace(Latents(tiny, z, 16), Rates(.01, 0, 1e-4), chunk)
    whole, crowded = space(1), space(4)
    crowded.chunks.cpu = False   # act as on a GPU
    whole.backward(slice(None), grad)
    real = torch.autograd.grad
    def fails_late(outputs, inputs, *args, **kwargs):
        found = real(outputs, inputs, *args, **kwargs)
        if len(inputs[0]) > 1: raise torch.cuda.OutOfMemoryError("late")
        return found
    monkeypatch.setattr(torch.autograd, "grad", fails_late)
    crowded.backward(slice(None), grad)
    assert crowded.chunks.size == 1 and relative(everything(crowded), everything(whole)) < 1e-5
    def never(*args, **kwargs): raise torch.cuda.OutOfMemoryError("always")
    monkeypatch.setattr(torch.autograd, "grad", never)
    with pytest.raises(RunError, match="no room for one image"): crowded.backward(slice(None), grad)


@pytest.mark.cuda
def test_cuda_equals_cpu(tiny):
    z, grad = torch.randn(3, *tiny.latent_shape(32)), torch.randn(3, 3, 32, 32)
    spaces = [LatentSpace(Latents(copy.deepcopy(tiny).double().to(d), z.double().to(d), 32), Rates(.01, 0, 1e-4), 2) for d in ("cpu", "cuda")]
    for space, d in zip(spaces, ("cpu", "cuda")): space.backward(slice(None), grad.double().to(d))
    assert relative(everything(spaces[1]).cpu(), everything(spaces[0])) < 1e-9


def test_the_state_of_a_space_survives_the_disk(gan, tmp_path):
    start = with_features(Latents(gan, gan.map(torch.randn(2, 64), torch.tensor([0, 1])).clone(), 24), 2)
    def run(space, adam, steps):
        for _ in range(steps):
            space.backward(slice(None), space.render(slice(None)) - .25)
            adam.step(), space.project()
    def fresh():
        space = LatentSpace(start, Rates(.01, .1, 1e-3), 1)
        return space, torch.optim.Adam(space.parameters())
    (a, adam_a), (b, adam_b) = fresh(), fresh()
    run(a, adam_a, 2)
    save_state(tmp_path / "s.pt", dict(space=a.state_dict(), adam=adam_a.state_dict()))
    run(a, adam_a, 2)
    state = load_state(tmp_path / "s.pt")
    b.load_state_dict(state["space"]), adam_b.load_state_dict(state["adam"])
    run(b, adam_b, 2)
    assert a.render(slice(None)).equal(b.render(slice(None))) and a.latents.prior.identity == b.latents.prior.identity != gan.identity
    assert gan.identity == start.prior.identity and a.latents.base == gan.identity


# ---------------------------------------------------------------- inversion


def own_pictures(g, classes): return to_uint8(g.decode(g.map(torch.randn(len(classes), 64, generator=rng(3, "own")), torch.tensor(classes))))


def test_inversion_and_pivotal_tuning_on_the_reference_generator(super32):
    photo = to_uint8(resize(to_tensor(decode_image(Photos.open("embedded").files[0])[:256, :256]), (32, 32)))
    goal, classes = np.concatenate([own_pictures(super32, [70]), photo]), [70, 3]
    found = {lam: invert(goal, super32, InvertConfig(steps=8, lr=.03, tune=8, tune_lr=1e-3, locality=lam, **FAST), classes) for lam in (0., 10.)}
    for r in found.values():
        assert (np.array(r.psnr["latents"]) > r.psnr["start"]).all() and r.losses["latents"][-1] < r.losses["latents"][0]
        assert np.mean(r.psnr["tuning"]) > np.mean(r.psnr["latents"]) + .1
    pivots = found[0.].latents.values
    near = toward(pivots, random_latents(Latents(super32, pivots, 32), torch.tensor([0, 1]), rng(7, "look"), classes), 30., layerwise=True)
    drift = [float((render_latents(found[lam].latents.prior, near, 32) - render_latents(super32, near, 32)).square().mean()) for lam in (0., 10.)]
    assert drift[1] < .7 * drift[0], drift
    assert found[0.].report["tuned"] and "MSE alone" in found[0.].note


def test_taef2_inversion_gains_decibels(shared):
    prior = load_tiny(shared("data/weights/taef2_encoder.pth"))
    crop = decode_image(shared("data/set14/baboon.png"))[None, :64, :64]
    found = invert(crop, prior, InvertConfig(steps=10, tune=6, **FAST))
    assert found.psnr["start"][0] + 1 < found.psnr["latents"][0] < found.psnr["tuning"][0]


@pytest.mark.parametrize("kind", ["gan", "tiny"])
@pytest.mark.parametrize("at", [3, 6, 9])
def test_an_interrupted_inversion_ends_in_the_same_bits(kind, at, request, hr, tmp_path):
    prior = request.getfixturevalue(kind)
    goal, classes = (own_pictures(prior, [0, 2, 1]), [0, 2, 1]) if kind == "gan" else (hr[:3, :32, :32].copy(), None)
    config = InvertConfig(steps=4, tune=4, layer=2 if kind == "gan" else None, batch=2, checkpoint=2, **FAST)
    total = 12 if kind == "gan" else 8
    whole, seen = invert(goal, prior, config, classes), []
    def stop(step, loss, images):
        seen.append(step)
        if len(seen) == min(at, total - 1): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): invert(goal, prior, config, classes, tmp_path, stop)
    again = invert(goal, prior, config, classes, tmp_path)
    assert (again.latents.render() == whole.latents.render()).all() and again.latents.values.equal(whole.latents.values)
    assert again.latents.prior.identity == whole.latents.prior.identity and (again.losses, again.psnr) == (whole.losses, whole.psnr)
    assert invert(goal, prior, config, classes, tmp_path, stop).psnr == whole.psnr           # finished: read, not run
    with pytest.raises(UserError, match="--seed 0.*--seed 1"): invert(goal, prior, replace(config, seed=1), classes, tmp_path)
    with pytest.raises(UserError, match="other images"): invert(goal[:, ::-1].copy(), prior, config, classes, tmp_path)
    (tmp_path / "inversion.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="damaged"): invert(goal, prior, config, classes, tmp_path)


def test_photos_do_not_mix(gan):
    goal, config = own_pictures(gan, [0, 1, 2]), InvertConfig(steps=3, tune=0, **FAST)
    together = invert(goal, copy.deepcopy(gan).double(), config, [0, 1, 2])
    alone = invert(goal[1:2], copy.deepcopy(gan).double(), config, [1])
    assert together.latents.values.dtype == torch.float64 and relative(together.latents.values[1], alone.latents.values[0]) < 1e-9


def test_without_classes_and_with_one_style(hr):
    g = StyleGANXL(xl_config(16, c_dim=0, layers=(3, 3), channel_max=4), "ffhq-like").eval().requires_grad_(False)
    found = invert(hr[:2, :24, :24].copy(), g, InvertConfig(steps=3, tune=1, space="w", **FAST))
    assert found.latents.values.shape == (2, 1, 512) and found.latents.render().shape == (2, 24, 24, 3) and found.classes is None
    with pytest.raises(UserError, match="no classes"): invert(hr[:1, :16, :16].copy(), g, InvertConfig(), [0])


class Waves(Prior):
    "A decoder alone, and no StyleGAN: an image of 32² is a weighted sum of 16 cosines in each colour; a latent has a sequence of them."
    name, resolution = "waves", 32
    def __init__(self):
        super().__init__()
        k, x = torch.arange(4.), (torch.arange(32.) + .5) / 32
        waves = torch.cos(torch.pi * k[:, None] * x)
        self.basis = torch.nn.Parameter(torch.einsum("ah,bw->abhw", waves, waves).flatten(0, 1), requires_grad=False)
    def latent_shape(self, size): return (3, 16)
    def paint(self, latents): return .5 + torch.einsum("nck,khw->nchw", latents, self.basis)

class Kinds(Waves):
    "The same with classes: each has a brightness of its own."
    name, classes = "kinds", 3
    def mean_latents(self, size, classes=None, samples=1, seed=0, single=False):
        return super().mean_latents(size, classes) + torch.tensor([[[c - 1.] + [0.] * 15] for c in classes]) / 3
    def random_latents(self, latents, n, generator, classes=None):
        return self.mean_latents(32, classes) + .1 * torch.randn(n, 3, 16, generator=generator)


def test_a_decoder_alone_is_no_stylegan(hr):
    "Its latents are [3,16], as those of a StyleGAN are [layers, w_dim]; nothing is taken for a style."
    prior, goal = Waves(), hr[:3, :32, :32].copy()
    found = invert(goal, prior, InvertConfig(steps=40, tune=10, batch=2, **FAST))
    assert found.latents.values.shape == (3, 3, 16) and found.classes is None
    assert all(a + 1 < b < c for a, b, c in zip(*(found.psnr[k] for k in ("start", "latents", "tuning"))))
    assert np.allclose(found.psnr["start"], [min(99, -10 * np.log10(np.square(i / 255 - 127.5 / 255).mean())) for i in goal], atol=.1)   # grey
    assert invert(goal[:1], prior, InvertConfig(steps=1, tune=1, **FAST)).latents.render().shape == (1, 32, 32, 3)
    whole = invert(np.zeros((1, 48, 48, 3), np.uint8), prior, InvertConfig(steps=1, tune=0, **FAST)).latents
    assert whole.size == 48 and whole.render().shape == (1, 48, 48, 3)
    for wrong, message in ((dict(layer=0), "no layers"), (dict(space="w"), "no styles")):
        with pytest.raises(UserError, match=message): invert(goal, prior, InvertConfig(**wrong))
    with pytest.raises(UserError, match="no classes"): invert(goal, prior, InvertConfig(), [0, 1, 2])


def test_a_decoder_alone_may_have_classes():
    prior = Kinds()
    goal = to_uint8(prior.decode(prior.mean_latents(32, [2, 0, 1])))
    found = invert(goal, prior, InvertConfig(steps=0, tune=2, **FAST))
    assert found.classes == [2, 0, 1] and min(found.psnr["start"]) > 40
    with pytest.raises(UserError, match="from 0 to 2"): invert(goal, prior, InvertConfig(), [0, 1, 3])


def test_latents_of_a_prior_without_weights_come_back(tmp_path):
    class Bare(Prior):
        name, multiple = "bare", 4
        def latent_shape(self, size): return (3, *(s // 4 for s in self.check_size(size)))
        def paint(self, latents): return latents.repeat_interleave(4, 2).repeat_interleave(4, 3)
    latents = Latents(Bare(), torch.rand(2, 3, 4, 4), 16)
    latents.save(tmp_path / "l.safetensors")
    assert np.abs(Latents.load(tmp_path / "l.safetensors", Bare()).render().astype(int) - latents.render()).max() <= 1
    assert latent_budget(latents)["decoder_bytes"] == 0
    with pytest.raises(UserError, match="no weights that could be tuned"): LatentSpace(latents, Rates(.1, 0, .1))


def test_the_class_is_found(gan):
    g = copy.deepcopy(gan)
    g.mapping.w_avg.copy_(g.mean_latents(classes=range(3), single=True)[:, 0])
    near = to_uint8(g.decode(g.map(torch.randn(3, 64, generator=rng(0, "z")), torch.tensor([2, 0, 1]), psi=.1)))
    assert choose_classes(near, g, Distance(16)) == [2, 0, 1]
    assert invert(near, g, InvertConfig(steps=0, tune=0)).classes == [2, 0, 1]


def test_distance_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "MSE alone" in Distance(64).note and "no backbone" in Distance(64).note and Distance(64).net is None


def test_lpips_distance_has_a_gradient(shared, monkeypatch, hr):
    monkeypatch.setenv("TORCH_HOME", str(shared("data/weights/torch_home")))
    d = Distance(48, "squeeze")
    x, y = to_tensor(hr[:2]).requires_grad_(), to_tensor(hr[2:4])
    assert d.note == "10·MSE + LPIPS (squeeze)" and torch.autograd.grad(d(x, y).sum(), x)[0].abs().sum() > 0
    assert d.perceptual(x[:1], y[:1]).item() == pytest.approx(LPIPS("squeeze")(hr[0], hr[2]), rel=1e-4)
    assert Distance(48, "squeeze", torch.zeros(0, dtype=torch.float64))(x.double(), y.double()).dtype == torch.float64


@pytest.mark.parametrize("images, change, classes, message", [
    (np.zeros((1, 16, 24, 3), np.uint8), {}, [0], "square 8-bit"),
    (np.zeros((1, 16, 16, 3), np.float32), {}, [0], "square 8-bit"),
    (np.zeros((1, 16, 16, 3), np.uint8), dict(layer=6), [0], "layers 0 to 5"),
    (np.zeros((2, 16, 16, 3), np.uint8), {}, [0], "for each of the 2 images"),
    (np.zeros((1, 16, 16, 3), np.uint8), {}, [3], "from 0 to 2"),
])
def test_what_cannot_be_inverted(gan, images, change, classes, message):
    with pytest.raises(UserError, match=message): invert(images, gan, InvertConfig(**change), classes)


# ---------------------------------------------------------------- stored latents


def moved(start, rates):
    space = LatentSpace(start, rates)
    adam = torch.optim.Adam(space.parameters())
    for _ in range(2): space.backward(slice(None), space.render(slice(None)) - .3), adam.step(), space.project()
    return space.latents


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("tuned", [False, True])
def test_latents_come_back(gan, tmp_path, bits, tuned):
    start = with_features(Latents(gan, gan.map(torch.randn(3, 64), torch.tensor([0, 1, 2])).clone(), 24), 3)
    latents = moved(start, Rates(.01, .01, 1e-3 if tuned else 0.))
    latents.save(tmp_path / "l.safetensors", bits)
    back = Latents.load(tmp_path / "l.safetensors", gan)
    off = np.abs(back.render().astype(int) - latents.render())
    assert off.max() == 0 if bits == 32 else off.max() <= (60 if bits == 8 else 1)
    assert (back.size, back.layer, back.base) == (24, 3, gan.identity if tuned else None)
    assert back.prior.identity == latents.prior.identity and (back.prior is gan) != tuned
    if tuned: assert Latents.load(tmp_path / "l.safetensors", latents.prior).prior.identity == latents.prior.identity


def test_only_the_right_prior_decodes(tiny, gan, tmp_path):
    path = tmp_path / "l.safetensors"
    Latents(tiny, torch.randn(2, *tiny.latent_shape(16)), 16).save(path)
    other = copy.deepcopy(tiny)
    with torch.no_grad(): other.decoder[1].bias[0] += 1e-3
    for prior in (other, gan):
        with pytest.raises(UserError, match="belong to the prior tiny"): Latents.load(path, prior)
    assert (Latents.load(path).render() == Latents.load(path, tiny).render()).all()             # its decoder is inside
    assert Latents.load(path, copy.deepcopy(tiny).double()).values.dtype == torch.float64       # the float type does not matter


def test_a_file_without_its_decoder_names_the_prior(tiny, gan, tmp_path):
    "Files of earlier versions, and those of a prior that is too large to travel."
    old, large = tmp_path / "old.safetensors", tmp_path / "large.safetensors"
    Latents(tiny, torch.randn(2, *tiny.latent_shape(16)), 16).save(old, decoder=False)
    with safe_open(old, "pt") as f: about, tensors = json.loads(f.metadata()["sr_distill"]), {k: f.get_tensor(k) for k in f.keys()}
    save_file(tensors, old, {"sr_distill": json.dumps({k: v for k, v in about.items() if not k.startswith("decoder")})})   # as version 0.1 wrote it
    Latents(gan, gan.map(torch.randn(1, 64), torch.tensor([0])).clone(), 24).save(large)
    for path, prior in ((old, tiny), (large, gan)):
        with pytest.raises(UserError, match=f"need the prior '{prior.name}' with the hash {prior.identity[:12]}"): Latents.load(path)
        assert Latents.load(path, prior).prior is prior


def test_a_decoder_from_a_file_can_be_tuned_further(tiny, tmp_path):
    "Both priors, the decoder from the file and the whole one, open what comes of it."
    Latents(tiny, torch.randn(2, *tiny.latent_shape(16)), 16).save(tmp_path / "a.safetensors")
    for name, rates in (("moved", Rates(.01)), ("tuned", Rates(.01, 0, 1e-3))):
        made = moved(Latents.load(tmp_path / "a.safetensors"), rates)
        made.save(tmp_path / f"{name}.safetensors", 32)
        for prior in (None, tiny): assert (Latents.load(tmp_path / f"{name}.safetensors", prior).render() == made.render()).all()


def test_spoilt_files_are_refused(tiny, tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    moved(Latents(tiny, torch.randn(1, *tiny.latent_shape(16)), 16), Rates(.01, 0, 1e-3)).save(good)
    with safe_open(good, "pt") as f: about, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    name = next(k for k in tensors if k.startswith("weights.") and tensors[k].ndim == 4)
    cases = {"were changed": (about, {**tensors, name: tensors[name] + 1}), "do not fit": (about, {k: t for k, t in tensors.items() if k != name}),
             "holds no latents": ({}, tensors), "of other shapes|holds no latents": (about, {k: t for k, t in tensors.items() if k != "latents"})}
    for message, (head, content) in cases.items():
        save_file(content, bad, head)
        with pytest.raises(UserError, match=message): Latents.load(bad, tiny)
        with pytest.raises(UserError, match="bad.safetensors"): Latents.load(bad)
    for content in (b"", b"{}", good.read_bytes()[:200]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="bad.safetensors"): Latents.load(bad, tiny)


def test_a_budget_counts_both_sides(tiny, hr):
    z = tiny.encode(to_tensor(hr[:2]))
    row = latent_budget(Latents(tiny, z, 48), hr[:2])
    assert row["decoder_bytes"] > 4 * sum(p.numel() for p in tiny.decoder.parameters()) and row["pixels"] == 2 * 48 * 48
    assert row["stored"][16]["bytes"] - row["stored"][8]["bytes"] == pytest.approx(z.numel(), abs=64)
    assert abs(row["stored"][16]["psnr_loss"]) <= .01 and json.dumps(row)


# ---------------------------------------------------------------- from a recipe


def test_an_image_that_is_met_exactly_counts_99(tiny, hr):
    latents = invert(hr, tiny, InvertConfig(steps=0, tune=0, **FAST)).latents
    stored = latent_budget(latents, latents.render(), (8, 32))["stored"]   # the originals are what it paints
    assert stored[32]["psnr_loss"] == 0 and stored[32]["psnr_to_unrounded"] == 99 and 0 < stored[8]["psnr_loss"] < 99


def test_an_inversion_goes_on_where_it_may(tiny, hr, tmp_path, monkeypatch):
    class Stop(Exception): pass
    def stop(step, loss, images):
        if step == 3: raise Stop
    config = InvertConfig(steps=6, tune=0, checkpoint=2, **FAST)
    with pytest.raises(Stop): invert(hr, tiny, config, folder=tmp_path / "new" / "one", callback=stop)
    state = load_state(tmp_path / "new/one/inversion.pt")
    save_state(tmp_path / "new/one/inversion.pt", dict(state, distance="10·MSE + LPIPS (squeeze)"))
    with pytest.raises(UserError, match="has minimised 10·MSE"): invert(hr, tiny, config, folder=tmp_path / "new/one")
    save_state(tmp_path / "new/one/inversion.pt", state)
    again = invert(hr, tiny, replace(config, checkpoint=5), folder=tmp_path / "new/one")   # how often to save is another matter
    assert again.latents.values.equal(invert(hr, tiny, config).latents.values)
    for wrong in (dict(lr=0.), dict(tune=1, tune_lr=0.)):
        with pytest.raises(UserError, match="above 0"): invert(hr, tiny, replace(config, **wrong))
    with pytest.raises(UserError, match="float16"): invert(hr, copy.deepcopy(tiny).half(), config)


def test_make_space(gan, tiny, hr, tmp_path):
    groups = Groups(Photos.open("embedded"), "image", 48, 24)
    assert isinstance(make_space(Recipe(size=48), groups, hr), PixelSpace)
    recipe = Recipe(space="latent", size=48, invert=2, tune=1, lr_latents=.02)
    space = make_space(recipe, groups, hr, folder=tmp_path, prior=tiny)
    again = make_space(recipe, groups, hr, folder=tmp_path, prior=tiny)
    assert space.render(slice(None)).equal(again.render(slice(None))) and json.dumps(space.report)
    assert [(g["name"], g["lr"]) for g in space.parameters()] == [("latents", .02)] and space.latents.base == tiny.identity
    deep = make_space(replace(recipe, layer=2, invert=0), groups, hr[:2], prior=gan)
    assert [g["name"] for g in deep.parameters()] == ["latents", "features"] and deep.render(slice(0, 1)).shape == (1, 3, 48, 48)
    with pytest.raises(UserError, match="multiples of 8"): make_space(replace(recipe, size=36), groups, hr[:, :36, :36], prior=tiny)
    with pytest.raises(UserError, match="no layers"): make_space(replace(recipe, layer=1), groups, hr, prior=tiny)
