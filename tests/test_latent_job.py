"The whole latent job: inversion, pivotal tuning, latent distillation, the stored set, a model trained on it."
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sr_distill import autoencoders, distill as room, inversion, priors
from sr_distill.autoencoders import SmallConfig
from sr_distill.core import read_json, rng, write_json
from sr_distill.data import Photos
from sr_distill.distill import DistilledSet, distill, summary
from sr_distill.latent import Latents
from sr_distill.metrics import psnr
from sr_distill.models import make_model
from sr_distill.recipe import Recipe, RunError, RunOptions, TrainConfig, UserError
from sr_distill.stylegan import StyleGANXL, _from_tensors, save_stylegan, xl_config
from sr_distill.train import train

RECIPE = Recipe(space="latent", size=32, init="downscaled", steps=4, networks=2, pool="random", real=4, invert=4, tune=3)
OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=3, checkpoint=1)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    "A cache of its own, no LPIPS, and an embedded prior that is trained in seconds."
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(priors, "embedded_prior", functools.partial(priors.embedded_prior, config=SmallConfig(steps=30)))

@pytest.fixture
def photos(): return Photos.open("embedded").subset([0, 1, 2])

@pytest.fixture
def super32(shared, tmp_path):
    folder = shared("reference/stylegan_xl")
    g = _from_tensors(json.loads((folder / "super32.config.json").read_text()), load_file(folder / "super32.weights.safetensors"), "super32")
    save_stylegan(g, tmp_path / "super32.safetensors")
    return str(tmp_path / "super32.safetensors")


def received(out, prior, stored):
    "Somebody else has the folder alone: its decoder is inside, or card and error say whose it is; every figure is that of the file."
    about, said = read_json(out / "manifest.json"), (out / "README.md").read_text()
    cost, bytes = about["report"]["latent"]["stored"], (out / "latents.safetensors").stat().st_size
    assert about["stored_bytes"]["latents"] == bytes and f"{bytes:,} bytes" in said
    if cost["decoder_inside"]:
        assert (Latents.load(out / "latents.safetensors").render() == stored.render()).all()
        assert cost["stored"]["16"]["bytes_with_decoder"] == bytes and f"{cost['decoder_bytes']:,} of which are its decoder" in said
    else:
        wanted = about["report"]["latent"]["prior"]["identity"][:12]
        with pytest.raises(UserError, match=f"need the prior '{prior.name}' with the hash {wanted}"): Latents.load(out / "latents.safetensors")
        assert f"you also need the prior {prior.name}, whose weights have the hash {wanted}" in said


def whole_job(photos, recipe, out):
    made = distill(photos, recipe, out, OPTIONS)
    assert (DistilledSet.load(out).images == made.images).all() and made.images.shape == (3, 32, 32, 3)
    about = made.manifest["report"]["latent"]
    prior = priors.load_prior(recipe.prior, photos)
    stored = Latents.load(out / "latents.safetensors", prior)
    rounded = min(psnr(a, b, 0, "rgb") for a, b in zip(stored.render(), made.images))
    assert rounded > 40, "16-bit latents do not give the images back"
    assert about["inversion"]["tuned"] == (recipe.tune > 0) and len(about["inversion"]["psnr"]["start"]) == 3
    assert about["stored"]["stored"]["8"]["bytes"] < about["stored"]["stored"]["16"]["bytes"] < about["stored"]["stored"]["16"]["bytes_with_decoder"]
    assert about["prior"]["identity"] == prior.identity and "latents.safetensors" in (out / "README.md").read_text()
    received(out, prior, stored)
    model = make_model("vdsr", 2, 3, 8, generator=rng(0, "weights"))
    result = train(model, made.photos, TrainConfig(steps=20, batch=2, patch=24), device="cpu")
    assert np.isfinite(result.history[-1]["loss"])
    return made


def test_on_the_embedded_prior(photos, tmp_path):
    made = whole_job(photos, RECIPE, tmp_path / "set")
    assert made.manifest["report"]["moved"]["mean"] > 0 and made.manifest["report"]["latent"]["inversion"]["tuned"]
    assert len(made.trace) == 3 and (made.trace.frame(2) == made.images).all()
    still = whole_job(photos, replace(RECIPE, steps=0, tune=0), tmp_path / "inverted")   # the GAN-inversion baseline
    assert still.manifest["report"]["moved"]["mean"] == 0 and (still.images != made.images).any()
    assert "Inversion" in summary(still.manifest["report"])


def test_on_the_reference_generator(photos, super32, tmp_path, monkeypatch):
    monkeypatch.setattr(inversion, "choose_classes", lambda images, *a, **k: [1] * len(images))   # its own test walks through all thousand
    made = whole_job(photos, replace(RECIPE, prior=super32, invert=3, tune=2, lr_generator=1e-4), tmp_path / "set")
    assert made.manifest["report"]["latent"]["prior"]["kind"] == "StyleGANXL"
    assert "LPIPS" in made.manifest["report"]["latent"]["inversion"]["distance"]


def test_a_generator_of_the_stylegan_kind_under_a_degradation(photos, tmp_path, monkeypatch):
    "Blur, noise and JPEG reach the latents, and the features of a layer; parts change nothing."
    g = StyleGANXL(xl_config(16, c_dim=3, layers=(4, 4), channel_max=6), "small").eval().requires_grad_(False)
    for layer in g.layers[1:]: layer.bias.normal_(0, .3)
    save_stylegan(g, tmp_path / "small.safetensors")
    rough = Recipe(space="latent", prior=str(tmp_path / "small.safetensors"), size=16, steps=2, networks=1, pool="random", real=2, invert=2,
                   layer=2, degradation="blur:0.5-1.5+noise:2-10+jpeg:40-90")
    made, plain = (distill(photos, replace(rough, degradation=d), tmp_path / d[:4], OPTIONS) for d in (rough.degradation, "bicubic"))
    assert made.manifest["report"]["latent"]["prior"]["kind"] == "StyleGANXL" and made.images.shape == (3, 16, 16, 3)
    assert (made.trace.frame(0) == plain.trace.frame(0)).all() and (made.images != plain.images).any()
    assert made.manifest["report"]["moved"]["mean"] > 0 and f"--degradation {rough.degradation}" in (tmp_path / "blur/README.md").read_text()
    monkeypatch.setattr(room, "PART_BYTES", 2 * 4 * 4 * 3 * 16**2)
    parts = distill(photos, rough, tmp_path / "parts", OPTIONS)
    assert (parts.images == made.images).all() and (tmp_path / "parts/latents.safetensors").read_bytes() == (tmp_path / "blur/latents.safetensors").read_bytes()


@pytest.mark.parametrize("changes", [dict(tune=0), dict(tune=2, lr_generator=1e-3)])
def test_stopped_and_resumed_it_ends_the_same(photos, tmp_path, changes):
    class Stop:
        stopped = False
        def __call__(self, step, loss, images): self.stopped = step >= 2
    recipe = replace(RECIPE, **changes)
    whole = distill(photos, recipe, tmp_path / "whole", OPTIONS)
    with pytest.raises(RunError, match="start the same run again"): distill(photos, recipe, tmp_path / "parts", OPTIONS, Stop())
    again = distill(photos, recipe, tmp_path / "parts", OPTIONS)
    assert (again.images == whole.images).all()
    assert (tmp_path / "whole/latents.safetensors").read_bytes() == (tmp_path / "parts/latents.safetensors").read_bytes()


def test_parts_and_threads_change_nothing(photos, tmp_path, monkeypatch):
    recipe, threads = replace(RECIPE, tune=0), torch.get_num_threads()
    whole = distill(photos, recipe, tmp_path / "whole", OPTIONS)
    monkeypatch.setattr(room, "PART_BYTES", 2 * 4 * 4 * 3 * 32**2)   # two groups
    try:
        torch.set_num_threads(threads + 1)
        parts = distill(photos, recipe, tmp_path / "parts", OPTIONS)
    finally: torch.set_num_threads(threads)
    assert (parts.images == whole.images).all() and len(Latents.load(tmp_path / "parts/latents.safetensors", priors.load_prior("embedded", photos))) == 3
    assert room.cut_parts(3, recipe, 1, room.PART_BYTES) == [(0, 1), (1, 3)] and room.cut_parts(3, RECIPE, 3) == [(0, 3)]


def test_the_embedded_prior_is_the_same_on_any_number_of_threads_and_trained_once(photos, tmp_path, monkeypatch):
    trained, train, threads = [], autoencoders.train_autoencoder, torch.get_num_threads()
    monkeypatch.setattr(autoencoders, "train_autoencoder", lambda *a: trained.append(torch.get_num_threads()) or train(*a))
    config, identities = SmallConfig(steps=5, crops=40, batch=8), []
    try:
        for n in (1, 2):
            monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / f"cache{n}"))
            torch.set_num_threads(n)
            with ThreadPoolExecutor(2) as both: identities += both.map(lambda _: autoencoders.embedded_prior(photos, config).identity, range(2))
    finally: torch.set_num_threads(threads)
    assert len(set(identities)) == 1 and trained == [1, 1]   # one training in each cache, the other caller waits for it


def test_parts_report_the_classes_and_seconds_of_all(tmp_path):
    prior, parts = autoencoders.SmallAutoencoder(SmallConfig(channels=4, width=8, depth=1)), []
    for i, classes in enumerate(([3], [5, 7])):
        parts.append(room.Part(tmp_path / str(i), i, i + 1))
        parts[i].folder.mkdir()
        Latents(prior, torch.rand(len(classes), *prior.latent_shape(16), generator=rng(i)), 16).save(parts[i].folder / "latents.safetensors", 32)
        about = dict(prior={}, inversion=dict(psnr=dict(start=[20.] * len(classes)), mean={}, classes=classes, seconds=1.5))
        write_json(parts[i].folder / "part.json", dict(space=about))
    latents, report = room._latents(parts, prior, np.zeros((3, 16, 16, 3), np.uint8))
    assert len(latents) == 3 and report["inversion"]["classes"] == [3, 5, 7] and report["inversion"]["seconds"] == 3


def test_what_does_not_fit_is_said_before_any_work(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("sr_distill.plan.start_images", lambda *args: pytest.fail("work came first"))
    for changes, message in [(dict(size=30), "multiples of 8"), (dict(prior="nothing", init="loss"), "neither a file nor a known prior"), (dict(layer=2), "no layers to start from")]:
        with pytest.raises(UserError, match=message): distill(photos, replace(RECIPE, **changes), tmp_path / message.split()[0], OPTIONS)
        assert not list((tmp_path / message.split()[0]).rglob("pool.pt"))
