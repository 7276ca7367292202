"Models: parameter counts, seeds, margins and what a model folder answers when it is damaged."
import json
import os

import pytest
import torch

from sr_distill.core import rng
from sr_distill.models import OURS, EDSR, SRCNN, VDSR, build_model, count_parameters, init_weights, load_model, make_model, save_model
from sr_distill.recipe import RunError, UserError


@pytest.mark.parametrize("model, count", [
    (lambda: SRCNN(), 20_099), (lambda: SRCNN(3, (9, 5, 5)), 69_251), (lambda: VDSR(4), 668_227),
    (lambda: EDSR(2), 1_369_859), (lambda: EDSR(3), 1_554_499), (lambda: EDSR(4), 1_517_571)])
def test_parameter_counts_of_the_protocol(model, count):
    assert count_parameters(model()) == count


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_output_is_scale_times_the_input(name, scale):
    model = make_model(name.upper(), scale, width=4)
    assert model(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)
    assert model.scale == scale == model.config["scale"]


def test_paper_sizes_are_the_defaults():
    assert make_model("vdsr").config == dict(name="vdsr", scale=2, depth=20, width=64)
    assert make_model("edsr", 4).config == dict(name="edsr", scale=4, depth=16, width=64, res_scale=1.0)
    with torch.device("meta"):
        assert make_model("edsr", 2, 32, 256).config["res_scale"] == .1


@pytest.mark.parametrize("kwargs", [
    dict(name="rcan"), dict(name=None), dict(name="vdsr", scale=5), dict(name="vdsr", scale=1), dict(name="vdsr", scale="2"),
    dict(name="vdsr", depth=1), dict(name="edsr", depth=0), dict(name="edsr", width=-3), dict(name="edsr", width=2.5),
    dict(name="srcnn", width=0), dict(name="srcnn", depth=3)])
def test_impossible_models_are_refused_in_one_sentence(kwargs):
    with pytest.raises(UserError) as e:
        make_model(**kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) > 20


@pytest.mark.parametrize("kernels, widths", [((9, 2, 5), (8, 4)), ((9, 5), (8, 4)), ((9, 1, 5), (8,)), ((0, 1, 5), (8, 4))])
def test_srcnn_kernels(kernels, widths):
    with pytest.raises(UserError):
        SRCNN(2, kernels, widths)


def test_seeded_weights_depend_on_nothing_global():
    before = torch.get_rng_state()
    a = make_model("edsr", 3, 2, 8, generator=rng(7))
    torch.manual_seed(123)
    torch.rand(5)
    b = make_model("edsr", 3, 2, 8, generator=rng(7))
    assert all(p.equal(q) for p, q in zip(a.parameters(), b.parameters()))
    torch.set_rng_state(before)
    init_weights(a, rng(8))
    assert torch.get_rng_state().equal(before)
    assert not any(p.equal(q) for p, q in zip(a.parameters(), b.parameters()))


def test_same_draw_in_double_precision():
    a, b = make_model("srcnn", width=4), make_model("srcnn", width=4).double()
    init_weights(a, rng(1)), init_weights(b, rng(1))
    assert all(p.equal(q.float()) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("name", OURS)
def test_no_layer_works_in_place_and_input_stays(name):
    model = make_model(name, width=4)
    assert not any(getattr(m, "inplace", False) for m in model.modules())
    x = torch.rand(1, 3, 6, 6)
    kept = x.clone()
    model(x)
    assert x.equal(kept)


@pytest.mark.parametrize("name, size", [("srcnn", {}), ("srcnn-955", {}), ("vdsr", dict(depth=7)), ("edsr", dict(depth=3))])
@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_a_pixel_beyond_the_margin_changes_nothing(name, size, scale):
    model = make_model(name, scale, width=6, generator=rng(0), **size).double()
    m, side = model.margin, 41
    c = side // 2
    x = torch.rand(1, 3, side, side, dtype=torch.float64, generator=rng(0))
    cell = lambda x: model(x)[..., scale * c:scale * (c + 1), scale * c:scale * (c + 1)]
    for distance in (m, m + 1):
        moved = x.clone()
        moved[..., c, c + distance] += 1
        assert cell(moved).equal(cell(x)) == (distance > m)


def test_round_trip_on_disk(tmp_path):
    model = EDSR(4, 2, 8, res_scale=.1)
    folder = save_model(model, tmp_path/"new"/"folder", seed=3)
    back = load_model(folder)
    assert back.config == model.config and json.loads((folder/"config.json").read_text())["seed"] == 3
    x = torch.rand(1, 3, 6, 6)
    assert back(x).equal(model(x))
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def damage(folder, how):
    weights, config = folder/"model.safetensors", folder/"config.json"
    if how == "no weights": weights.unlink()
    if how == "no config": config.unlink()
    if how == "cut": weights.write_bytes(weights.read_bytes()[:200])
    if how == "empty": weights.write_bytes(b"")
    if how == "weights folder": weights.unlink(), weights.mkdir()
    if how == "not json": config.write_text("{")
    if how == "no model": config.write_text("{}")
    if how == "unknown": config.write_text('{"model": {"name": "rcan"}}')
    if how == "no size": config.write_text('{"model": {"name": "vdsr", "depth": "many"}}')
    if how == "new setting": config.write_text('{"model": {"name": "vdsr", "attention": true}}')
    if how == "other": config.write_text(json.dumps({"model": make_model("vdsr", 2, 6, 4).config}))
    if how == "list": config.write_text('{"model": {"name": ["vdsr"]}}')
    if how == "res_scale": config.write_text('{"model": {"name": "edsr", "res_scale": "big"}}')
    return {"no config": config, "not json": config, "no model": config, "unknown": config, "no size": config, "new setting": config,
            "list": config, "res_scale": config}.get(how, weights)


@pytest.mark.parametrize("how", ["no weights", "no config", "cut", "empty", "weights folder", "not json", "no model", "unknown", "no size",
                                 "new setting", "other", "list", "res_scale"])
def test_damaged_folders_are_named(tmp_path, how):
    file = damage(save_model(make_model("vdsr", 2, 4, 4), tmp_path/"m"), how)
    with pytest.raises(UserError) as e:
        load_model(tmp_path/"m")
    assert str(file) in str(e.value) and "\n" not in str(e.value)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nothing-here"):
        load_model(tmp_path/"nothing-here")
    (tmp_path/"file").write_text("x")
    with pytest.raises(UserError, match="file"):
        load_model(tmp_path/"file")
    with pytest.raises(UserError):
        save_model(SRCNN(), tmp_path/"file")


def test_full_disk_keeps_the_old_model(tmp_path, monkeypatch):
    model = make_model("srcnn", width=4, generator=rng(0))
    folder = save_model(model, tmp_path/"m")
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        save_model(make_model("srcnn", width=4, generator=rng(1)), folder)
    monkeypatch.undo()
    assert load_model(folder).body[0].weight.equal(model.body[0].weight)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def test_saved_by_one_loaded_after_config_round_trip(tmp_path):
    for name in OURS:
        model = make_model(name, 3, width=4)
        assert build_model(load_model(save_model(model, tmp_path/name)).config).config == model.config
