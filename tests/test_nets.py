"""Networks of other people: built, trained and opened; without spandrel what can be done without it."""
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from sr_distill import nets
from sr_distill.core import import_torchvision, rng
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.metrics import evaluate
from sr_distill.models import load_model, make_model, save_model
from sr_distill.nets import Opened, authors_names, basicsr_names, edsr_from, open_model, open_weights, read_weights, to_train
from sr_distill.recipe import GOOD_SETTINGS, MODELS, Recipe, RunOptions, TrainConfig, UserError
from sr_distill.train import train

SMALL = {"spandrel:Compact": dict(depth=2, width=8), "spandrel:SPAN": dict(width=8), "spandrel:SwinIR-light": dict(depth=1, width=12)}

@pytest.fixture
def spandrel():
    import_torchvision()   # which spandrel imports; beside a PyTorch for the CPU it takes some care
    return pytest.importorskip("spandrel", reason="spandrel is missing (pip install spandrel)")

@pytest.fixture(scope="module")
def photos():
    noise = np.random.default_rng(0)
    return Photos.from_arrays("abc", [np.kron(noise.integers(0, 256, (12, 12, 3)), np.ones((6, 6, 1))).astype(np.uint8) for _ in range(3)])

def test_what_trains_a_network_well_is_known_before_it_is_imported():
    "`train` on the command line asks before, a study after; both train alike."
    ask = ("from sr_distill.recipe import GOOD_SETTINGS, TrainConfig\n"
           "settings = lambda: [TrainConfig.for_model(name) for name in GOOD_SETTINGS]\n"
           "before = settings()\nimport sr_distill.nets\nassert settings() == before\nprint(len(before), before[-1].lr)")
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert said.stdout.split() == ["9", "0.0005"], said.stderr


@pytest.mark.parametrize("name", SMALL)
def test_trained_judged_and_opened_again(name, spandrel, photos, tmp_path):
    config = TrainConfig.for_model(name, steps=3, patch=24, **SMALL[name])
    net = make_model(name, 2, **SMALL[name], generator=rng(0, "net"))
    made = train(net, photos, config, tmp_path / "model", device="cpu").model
    again = load_model(tmp_path / "model")
    scores = [evaluate(m, photos, 2, lpips="none").mean["psnr_rgb"] for m in (made, again, open_model(tmp_path / "model/model.safetensors"))]
    assert scores[0] == scores[1] and abs(scores[0] - scores[2]) < 1e-3 and config.lr == GOOD_SETTINGS[name]["lr"]

@pytest.mark.parametrize("name", ("spandrel:SPAN", "spandrel:Compact"))
def test_gradients_are_matched_in_it(name, spandrel, photos, tmp_path, monkeypatch):
    small = nets.compact if name.endswith("Compact") else nets.span
    monkeypatch.setitem(MODELS._entries, name, lambda scale: small(scale, width=4))
    made = distill(photos, Recipe(network=name, size=32, steps=2, networks=1, real=2, pool="random"), tmp_path / "set", RunOptions(device="cpu", held_out=0))
    start = distill(photos, Recipe(size=32, steps=0), tmp_path / "start", RunOptions(device="cpu")).images
    assert (made.images != start).any() and np.isfinite([loss for _, loss in made.trace.losses]).all()

@pytest.mark.parametrize("scale", (2, 3, 4, 8))
@pytest.mark.parametrize("names", (basicsr_names, authors_names))
def test_every_layer_of_an_edsr_has_a_name(names, scale, tmp_path):
    net = make_model("edsr", scale, 3, 4, generator=rng(0, "edsr")).eval()
    state, x = net.state_dict(), torch.rand(1, 3, 9, 7)
    named = names(3, scale)
    assert {f"{k}.{kind}" for k in named for kind in ("weight", "bias")} == set(state)
    stored = {f"{theirs}.{kind}": state[f"{ours}.{kind}"] * (255 if kind == "bias" else 1) for ours, theirs in named.items() for kind in ("weight", "bias")}
    if names is authors_names: stored["sub_mean.bias"] = -255 * torch.tensor([.4, .5, .6])
    found = edsr_from(stored)
    assert found.config.items() >= net.config.items() and (names is basicsr_names or found.mean.flatten().tolist() == pytest.approx([.4, .5, .6]))
    if names is basicsr_names: assert torch.allclose(found(x), net(x), atol=1e-6)
    assert torch.equal(load_model(save_model(found, tmp_path))(x), found(x))   # its own mean colour is kept
    del stored[f"{named['head']}.bias"]
    assert edsr_from(stored) is None

@pytest.mark.parametrize("name", SMALL)
def test_a_file_is_trained_on_under_our_name(name, spandrel, tmp_path):
    net = make_model(name, 4, **SMALL[name], generator=rng(0, "net"))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    again = to_train(tmp_path / "net.pth", scale=4, model=name)
    assert again.config == net.config and all(a.equal(b) for a, b in zip(again.state_dict().values(), net.state_dict().values()))
    assert again.training and all(p.requires_grad for p in again.parameters())

def test_a_network_that_cannot_be_built_anew_is_refused(spandrel, tmp_path):
    from spandrel.architectures.ESRGAN import ESRGAN
    torch.save(ESRGAN(num_filters=8, num_blocks=1, scale=4).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match="net.pth: is ESRGAN ×4, which this package can open but not build from settings"): to_train(tmp_path / "net.pth")

def test_weights_wrapped_by_training_programs(tmp_path):
    t = {"a.weight": torch.ones(2)}
    for k, wrapped in enumerate(({"params": {"b": torch.zeros(1)}, "params_ema": t}, {"state_dict": {"module.a.weight": torch.ones(2)}}, t, {"model": {"params": t}})):
        torch.save(wrapped, tmp_path / f"{k}.pth")
        assert [*read_weights(tmp_path / f"{k}.pth")] == ["a.weight"]

def test_nothing_in_a_file_is_executed(tmp_path):
    class Bad:
        def __reduce__(self): return (open, (str(tmp_path / "ran"), "w"))
    torch.save({"params": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="bad.pth: holds no weights that can be read"): open_model(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()

def test_without_spandrel_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(nets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the network SPAN is one of the package spandrel: pip install 'sr_distill\[nets\]'"): nets.span()
    torch.save({"conv_1.sk.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"1 tensor \(conv_1.sk.weight \[1\]\), which is no EDSR.*pip install"): open_weights(tmp_path / "x.pth")

def test_a_network_that_does_not_enlarge_is_refused(spandrel, tmp_path):
    from spandrel.architectures.Compact import Compact
    torch.save(Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=1).state_dict(), tmp_path / "clean.pth")
    with pytest.raises(UserError, match="×1, which does not enlarge"): open_weights(tmp_path / "clean.pth")

def test_a_setting_that_it_does_not_have_is_named(spandrel):
    with pytest.raises(UserError, match="spandrel:SPAN has no setting 'depth'; it takes: scale, width"): make_model("spandrel:SPAN", 2, depth=3)


def test_sides_that_a_network_wants_are_padded(spandrel):
    @dataclasses.dataclass
    class Wants:
        def get_padding(self, width, height): return -width % 8, -height % 8
    class Found:
        scale, tags, size_requirements = 2, [], Wants()
        class architecture: id = "toy"
        class model(torch.nn.Module):
            @staticmethod
            def eval(): return Checking()
    class Checking(torch.nn.Module):
        def forward(self, x):
            assert x.shape[2] % 8 == x.shape[3] % 8 == 0
            return x.mul_(1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    net = Opened(Found)
    for shape in ((1, 3, 9, 13), (2, 3, 16, 8), (1, 3, 2, 3)):
        x = torch.rand(shape)
        assert torch.equal(net(x)[..., ::2, ::2], x)

def test_the_command_judges_files_and_folders_alike(tmp_path, photos, capsys):
    from sr_distill.cli import main
    from sr_distill.export import export_model
    (tmp_path / "hr").mkdir()
    from PIL import Image
    for name, i in zip(photos.names, range(3)): Image.fromarray(np.asarray(photos[i])).save(tmp_path / f"hr/{name}.png")
    net = make_model("edsr", 2, 2, 8, generator=rng(0, "edsr"))
    folder, file = save_model(net, tmp_path / "model", photos={}, training={}), export_model(net, tmp_path / "edsr.pth")
    assert main(["evaluate", str(folder), str(file), str(tmp_path / "hr"), "--lpips", "none", "--device", "cpu"]) == 0
    rows = [line.split()[1:5] for line in capsys.readouterr().out.splitlines() if line.split()[:1] in ([str(folder)], [str(file)], ["model"], ["edsr.pth"])]
    assert len(rows) == 2 and rows[0] == rows[1]
