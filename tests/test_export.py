"""Exported files, opened by the programs that they are for; what is not installed here is skipped by name."""
import logging
import sys

import numpy as np
import pytest
import torch

from sr_distill import export as room
from sr_distill.core import import_torchvision, rng
from sr_distill.export import CLOSE, export_model
from sr_distill.models import make_model, save_model
from sr_distill.recipe import RunError, UserError

MODELS = {"srcnn": {}, "vdsr": dict(depth=3, width=8), "edsr": dict(depth=2, width=8)}

def net(name, scale=2): return make_model(name, scale, **MODELS[name], generator=rng(0, "net")).eval()

@pytest.fixture
def picture(): return torch.rand(3, 3, 13, 29, generator=rng(0, "picture"))


@pytest.mark.parametrize("scale", (2, 3, 4))
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("exporter", ("dynamo", "torchscript"))
def test_onnx_gives_the_same_pictures(name, scale, exporter, tmp_path, picture):
    for package in ("onnx", "onnxruntime", *(["onnxscript"] if exporter == "dynamo" else [])): pytest.importorskip(package)
    import onnxruntime
    model = net(name, scale)
    file = export_model(model, tmp_path / "m.onnx", exporter=exporter)
    (answer,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"lr": picture.numpy()})
    with torch.no_grad(): assert np.abs(answer - model(picture).numpy()).max() < CLOSE
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]

@pytest.mark.parametrize("exporter", ("dynamo", "torchscript"))
@pytest.mark.parametrize("name, sizes", [("spandrel:SPAN", dict(width=8)), ("spandrel:Compact", dict(depth=2, width=8)), ("spandrel:RCAN", dict(depth=1, width=16))])
def test_networks_of_spandrel_go_to_onnx(name, sizes, exporter, tmp_path, picture):
    "SPAN computes its convolutions anew in each call; under the newer exporter that ended the process."
    import_torchvision()
    for package in ("spandrel", "onnx", "onnxruntime", *(["onnxscript"] if exporter == "dynamo" else [])): pytest.importorskip(package)
    import onnxruntime
    model = make_model(name, 2, **sizes, generator=rng(0, "net")).eval()
    with torch.no_grad(): before = model(picture)
    file = export_model(model, tmp_path / "m.onnx", exporter=exporter)
    (answer,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"lr": picture.numpy()})
    with torch.no_grad(): assert model(picture).equal(before) and np.abs(answer - before.numpy()).max() < CLOSE

@pytest.mark.parametrize("name, to", [("spandrel:SwinIR-light", "m.onnx"), ("spandrel:SwinIR-light", "m.pt"), ("spandrel:OmniSR", "m.onnx")])
def test_attention_over_windows_takes_any_number_of_pictures(name, to, tmp_path, picture):
    "SwinIR's own code keeps the number of images that was traced. ONNX goes by the older exporter: the newer one takes minutes."
    import_torchvision()
    for package in ("spandrel", "onnx", "onnxruntime"): pytest.importorskip(package)
    import onnxruntime
    model = make_model(name, 2, depth=1, width=12, generator=rng(0, "net")).eval()
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    file = export_model(tmp_path / "theirs.pth" if to == "m.pt" else model, tmp_path / to)   # opened from a file, it is inside another module
    def answer(x):
        if to == "m.pt": return torch.jit.load(str(file))(x).detach().numpy()
        return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"lr": x.numpy()})[0]
    for x in (picture, picture[:1, :, :, :16]):
        with torch.no_grad(): assert np.abs(answer(x) - model(x).numpy()).max() < CLOSE

@pytest.mark.parametrize("name", MODELS)
def test_torchscript_gives_the_same_pictures(name, tmp_path, picture):
    save_model(net(name), tmp_path / "model")
    file = export_model(tmp_path / "model", tmp_path / "m.pt")
    with torch.no_grad(): assert (torch.jit.load(str(file))(picture) - net(name)(picture)).abs().max() < CLOSE

@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_basicsr_opens_its_file(scale, tmp_path, picture, monkeypatch):
    import_torchvision()   # beside a PyTorch for the CPU it takes some care
    import torchvision.transforms.functional as functional
    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional_tensor", functional)   # BasicSR 1.4 imports what torchvision has removed
    arch = pytest.importorskip("basicsr.archs.edsr_arch", reason="basicsr is missing (pip install basicsr)", exc_type=ImportError)
    model = net("edsr", scale)
    _, settings = room.to_basicsr(model)
    theirs = arch.EDSR(**{k: v for k, v in settings.items() if k != "type"})
    theirs.load_state_dict(torch.load(export_model(model, tmp_path / "m.pth"), weights_only=True)["params"])
    with torch.no_grad(): assert (theirs(picture) - model(picture)).abs().max() < CLOSE

def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "CLOSE", -1.)
    (tmp_path / "m.pt").write_bytes(b"an earlier one")
    with pytest.raises(RunError, match="so no file is written"): export_model(net("edsr"), tmp_path / "m.pt")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an earlier one"]

def test_what_an_exporter_does_not_know_is_said(tmp_path):
    class Fixed(torch.nn.Module):
        scale = 2
        def __init__(self): super().__init__(); self.conv = torch.nn.Conv2d(3, 12, 1)
        def forward(self, x): return torch.nn.functional.pixel_shuffle(self.conv(x).reshape(-1, 12, int(x.shape[2]), int(x.shape[3])), 2)
    with pytest.raises(RunError, match="this Fixed cannot be written as torchscript"): export_model(Fixed(), tmp_path / "m.pt")
    with pytest.raises(UserError, match="bicubic has no weights"): export_model("bicubic", tmp_path / "m.pt")
    assert not [*tmp_path.iterdir()]

def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    real = room.importlib.util.find_spec
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    with pytest.raises(UserError, match=r"needs onnx: pip install 'sr_distill\[export\]'"): export_model(net("edsr"), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="onnxscript"): export_model(net("edsr"), tmp_path / "m.onnx", exporter="dynamo")
    with pytest.raises(UserError, match="--exporter other"): export_model(net("edsr"), tmp_path / "m.onnx", exporter="other")
    assert not [*tmp_path.iterdir()]

def test_training_mode_and_logging_are_left_alone(tmp_path):
    before = logging.root.manager.disable
    model = net("vdsr").train()
    export_model(model, tmp_path / "m.pt")
    assert model.training and logging.root.manager.disable == before and room.models.upscale is not room.portable_upscale
