"""LR images that are given or degraded: the same draws everywhere, nothing mixed up, one sentence for what does not fit."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill import data, matching, recipe as room
from sr_distill.core import rng, to_uint8
from sr_distill.data import Photos, degrade, make_lr
from sr_distill.distill import DistilledSet, distill
from sr_distill.matching import lows, match
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.patches import Groups
from sr_distill.pixel import start_images
from sr_distill.recipe import DEGRADATIONS, Recipe, RunOptions, TrainConfig, UserError, register_degradation
from sr_distill.train import PatchSampler, symmetry, train

HARD = "blur:0.5-1.5+noise:2-10+jpeg:40-90"
CPU = RunOptions(device="cpu", held_out=0, snapshots=2)
TINY = Recipe(size=24, steps=2, networks=1, real=2, pool="random", degradation=HARD)


@pytest.fixture(scope="module")
def photos():
    noise = np.random.default_rng(0)
    return Photos.from_arrays("abc", [np.kron(noise.integers(0, 256, (12, 14, 3)), np.ones((5, 5, 1))).astype(np.uint8) for _ in range(3)])

@pytest.fixture
def folders(photos, tmp_path):
    "HR photos, one of odd size, and LR images that no bicubic reduction makes."
    for kind in ("hr", "lr"): (tmp_path / kind).mkdir()
    for i, name in enumerate(photos.names):
        hr = photos[i][:59] if i == 0 else photos[i]
        Image.fromarray(np.asarray(hr)).save(tmp_path / f"hr/{name}.png")
        Image.fromarray(255 - make_lr(hr, 2)).save(tmp_path / f"lr/{name}x2.png")
    return tmp_path

def small(seed=0): return make_model("edsr", 2, 1, 6, generator=rng(seed, "net"))


def test_the_order_of_the_steps_is_that_of_the_model():
    seen = []
    def step(name, at):
        @register_degradation(name, at=at, example="1")
        def run(x, amount, generator): seen.append((name, tuple(x.shape[2:]), amount)); return x
    step("one", "lr"), step("two", "hr"), step("three", "lr")
    try: degrade(torch.rand(1, 3, 8, 12), 2, "three:4+one:5+two:6", rng(0))
    finally:
        for name in ("one", "two", "three"): DEGRADATIONS.forget(name)
    assert seen == [("two", (8, 12), 6.), ("three", (4, 6), 4.), ("one", (4, 6), 5.)]

def test_an_amount_lies_in_its_range_and_a_fixed_one_takes_no_number():
    flat = torch.full((1, 1, 256, 256), .5)
    spread = [255 * float(degrade(flat, 2, "noise:2-10", rng(seed)).std()) for seed in range(12)]
    assert 1.8 < min(spread) < 5 < 7 < max(spread) < 10.3
    assert torch.allclose(degrade(flat, 2, "noise:5", rng(3)), .5 + 5 / 255 * torch.randn(1, 1, 128, 128, generator=rng(3)), atol=1e-6)

@pytest.mark.parametrize("scale", (2, 3, 4, 8))
def test_sides_and_grey(scale, photos):
    for u8 in (photos[0], np.asarray(photos[0])[..., 0]):
        lr = make_lr(u8, scale, HARD, rng(0))
        assert lr.shape == (60 // scale, 70 // scale, *u8.shape[2:]) and lr.dtype == np.uint8

def test_a_batch_is_a_function_of_seed_and_number(photos):
    config = TrainConfig("edsr", patch=16, batch=4, degradation=HARD)
    whole, again = PatchSampler(photos, config)(7), PatchSampler(photos, config)(7)
    parts = [PatchSampler(photos, config)(7, share=slice(k, k + 2))[0] for k in (0, 2)]
    plain = PatchSampler(photos, TrainConfig("edsr", patch=16, batch=4))(7)
    assert whole[0].equal(again[0]) and torch.cat(parts).equal(whole[0]) and whole[1].equal(plain[1])
    assert not whole[0].equal(plain[0]) and not whole[0].equal(PatchSampler(photos, config)(8)[0])

def test_a_patch_is_degraded_with_what_lies_around_it(photos):
    "A blur without noise gives the patch of the whole blurred photo, also at its border."
    config = TrainConfig("edsr", patch=16, batch=32, degradation="blur:1")
    sampler = PatchSampler(photos, config)
    whole = [make_lr(photos[i], 2, "blur:1", rng(0)) for i in range(3)]
    lr = to_uint8(sampler(0)[0])
    for patch, (i, y, x, s) in zip(lr, sampler.draw(0)):
        assert np.abs(patch.astype(int) - symmetry(whole[i][y:y + 8, x:x + 8], s)).max() <= 1

@pytest.mark.parametrize("objective", ("layerwise", "features"))
def test_neither_chunk_nor_parts_change_a_matched_gradient(objective, photos):
    recipe = Recipe(objective=objective, network="srcnn", size=16, ipc=2, degradation=HARD)
    groups = Groups(photos, "image", 16, 8)
    net = matching.fresh_network(recipe, "net")
    images = torch.rand(3, 2, 3, 16, 16, generator=rng(0, "images"))
    targets = [t[None].expand(3, *t.shape) for t in matching.statistic_of(objective).of(net, groups.cut([0]))]
    made = lows(recipe, "synthetic", 0)
    def low(x, first, at=0): return made(range(at + first, at + first + len(x)), x)
    whole = match(net, images, targets, objective, 64, low)
    pieces = match(net, images, targets, objective, 1, low)
    last = match(net, images[2:], [t[2:] for t in targets], objective, 64, lambda x, first: low(x, first, 4))
    plain = match(net, images, targets, objective, 64)
    for a, b in zip(whole, pieces): assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    assert torch.allclose(whole[1][2:], last[1], rtol=1e-4, atol=1e-7)
    assert whole[0].equal(plain[0]) == (objective == "features")   # which looks at HR images alone

def test_a_set_of_degraded_images_says_so(photos, tmp_path):
    made = distill(photos, TINY, tmp_path / "set", CPU)
    assert f"train with `--degradation {HARD}`" in (tmp_path / "set/README.md").read_text()
    again = distill(photos, TINY, tmp_path / "again", RunOptions(device="cpu", held_out=0, snapshots=2, chunk=1))
    plain = distill(photos, Recipe.from_dict({**TINY.to_dict(), "degradation": "bicubic"}), tmp_path / "plain", CPU)
    assert (made.images == again.images).all() and (made.images != plain.images).any()
    with pytest.raises(UserError, match="--degradation"): distill(photos, Recipe.from_dict({**TINY.to_dict(), "degradation": "blur:1"}), tmp_path / "set", CPU)
    net = train(small(), made.photos, TrainConfig("edsr", steps=3, patch=16, batch=2, degradation=HARD), tmp_path / "net", photos, "cpu")
    assert f"undo `{HARD}`" in (tmp_path / "net/README.md").read_text()
    judged = evaluate(net.model, photos, 2, lpips="none", degradation=HARD)
    assert judged.lr_source == HARD and net.history[-1]["val_psnr_y"] == pytest.approx(judged.mean["psnr_y"])

def test_given_pairs_are_used_everywhere(folders):
    pairs = Photos.open(folders / "hr").paired(folders / "lr", 2)
    assert pairs.sizes[0] == (58, 70) and pairs.pairs == 2 and pairs.sha256 == Photos.open(folders / "hr").sha256
    sampler = PatchSampler(pairs, TrainConfig("edsr", patch=16, batch=8))
    lr, hr = sampler(0)
    assert torch.allclose(lr, 1 - data.downscale(hr, 2).clamp(0, 1), atol=.25) and (lr - (1 - data.downscale(hr, 2))).abs().mean() < .03
    groups = Groups(pairs, "image", 16, 8)
    numbers = [0, 7, int(groups.first[-1]) - 1]   # the last window is flush with the border
    assert (groups.cut_lr(numbers, 2) - (1 - data.downscale(groups.cut(numbers), 2))).abs().mean() < .03
    assert evaluate("bicubic", pairs, 2, lpips="none").mean == evaluate("bicubic", Photos.open(folders / "hr"), 2, folders / "lr", lpips="none").mean

def test_pairs_for_scale_8(photos, tmp_path):
    "The first half of the LR image of each photo is white, which no reduction makes."
    for kind in ("hr", "lr"): (tmp_path / kind).mkdir()
    for i, name in enumerate(photos.names):
        lr = make_lr(photos[i], 8)
        lr[:3] = 255
        for kind, u8, end in (("hr", photos[i], ""), ("lr", lr, "x8")): Image.fromarray(np.asarray(u8)).save(tmp_path / f"{kind}/{name}{end}.png")
    pairs = Photos.open(tmp_path / "hr").paired(tmp_path / "lr", 8, crop=True)
    assert pairs.sizes == [(56, 64)] * 3 and pairs.pairs == 8
    config = TrainConfig("edsr", scale=8, steps=2, patch=48, batch=4)
    lr, hr = PatchSampler(pairs, config)(0)
    assert lr.shape == (4, 3, 6, 6) and hr.shape == (4, 3, 48, 48) and all((x == 1).float().mean() > 1 / 7 for x in lr)
    net = train(make_model("edsr", 8, 1, 6, generator=rng(0, "net")), pairs, config, tmp_path / "net", pairs, "cpu")
    assert net.history[-1]["val_psnr_y"] == pytest.approx(evaluate(net.model, pairs, 8, lpips="none").mean["psnr_y"])
    recipe = Recipe(size=32, scale=8, steps=1, networks=1, real=2, pool="random")
    made, plain = (distill(given, recipe, tmp_path / name, CPU) for given, name in ((pairs, "set"), (Photos.open(tmp_path / "hr"), "plain")))
    assert made.images.shape == (3, 32, 32, 3) and (made.images != plain.images).any()

def test_a_distillation_on_pairs(folders, monkeypatch):
    monkeypatch.setattr("sr_distill.pixel.SCOUT_STEPS", 2), monkeypatch.setattr("sr_distill.matching.TRAJECTORY_STEPS", 12)
    recipe = Recipe(size=24, steps=2, networks=2, real=2, pool="trajectory", init="loss")
    hr = Photos.open(folders / "hr")
    pairs = hr.paired(folders / "lr", 2)
    made, plain = distill(pairs, recipe, folders / "set", CPU), distill(hr, recipe, folders / "plain", CPU)
    assert made.manifest["photos"] != plain.manifest["photos"] and made.manifest["lr"] == str(folders / "lr")
    assert "it is not known how those were made" in (folders / "set/README.md").read_text() and (made.images != plain.images).any()
    with pytest.raises(UserError, match="other photos"): distill(hr, recipe, folders / "set", CPU)
    Image.fromarray(np.zeros((30, 35, 3), np.uint8)).save(folders / "lr/bx2.png")
    with pytest.raises(UserError, match="other photos"): distill(hr.paired(folders / "lr", 2), recipe, folders / "set", CPU)
    with pytest.raises(UserError, match="--labels teacher: the photos bring LR images"): distill(pairs, Recipe(size=24, steps=0, labels="teacher"), folders / "x", CPU)
    with pytest.raises(UserError, match="holds LR images for ×2, not for ×4"): distill(pairs, Recipe(size=24, scale=4, pool="random"), folders / "x", CPU)

def test_a_statistic_that_makes_its_own_lr_images_is_refused(photos, tmp_path):
    @room.register_statistic("mine")
    def mine(net, hr): return [net(data.downscale(hr, 2)).mean((0, 2, 3))]
    @room.register_objective("ours", statistic="mine")
    def ours(s, r): return (s[0] - r[0]).square().sum()
    try:
        with pytest.raises(UserError, match="statistic 'mine' of --objective ours makes bicubic copies itself"):
            distill(photos, Recipe(size=24, objective="ours", degradation="blur:1"), tmp_path / "x", CPU)
    finally: room.STATISTICS.forget("mine"), room.OBJECTIVES.forget("ours")

def test_labels_and_lr_copies_of_a_degraded_set(photos, tmp_path):
    recipe = Recipe(size=24, steps=0, labels="teacher", teacher_steps=2, degradation=HARD)
    made = distill(photos, recipe, tmp_path / "set", RunOptions(device="cpu", lr_images=True))
    assert (made.images != start_images(Groups(photos, "image", 24, 12), recipe)).any()
    stored = np.asarray(Image.open(tmp_path / "set/LR/X2/a.png"))
    assert (stored == make_lr(made.images[0], 2, HARD, rng(0, "stored", 0))).all() and len(DistilledSet.load(tmp_path / "set")) == 3

def test_code_of_a_step_of_your_own_is_part_of_a_run(photos, tmp_path):
    def run(by):
        @register_degradation("dim")
        def dim(x, amount, generator): return x * by
        try: return distill(photos, Recipe(size=24, steps=1, networks=1, real=2, pool="random", degradation="dim"), tmp_path / "set", RunOptions(device="cpu", held_out=0))
        finally: DEGRADATIONS.forget("dim")
    run(.5), run(.5)
    with pytest.raises(UserError, match="code of --degradation dim"): run(.6)

def test_the_commands(folders, monkeypatch, capsys):
    from sr_distill.cli import main
    monkeypatch.chdir(folders)
    monkeypatch.setenv("SR_DISTILL_CACHE", str(folders / "cache"))
    small = ["--model", "edsr", "--depth", "1", "--width", "6", "--steps", "2", "--patch", "16", "--batch", "2", "--device", "cpu"]
    assert main(["train", "hr", "net", "--lr-dir", "lr", "--val", "hr", "--val-lr-dir", "lr", *small]) == 0
    assert json.load(open("net/config.json"))["photos"]["lr"] == "lr" and "The LR images were given, in lr" in open("net/README.md").read()
    assert main(["evaluate", "net", "hr", "--lr-dir", "lr", "--lpips", "none"]) == 0 == main(["evaluate", "net", "hr", "--degradation", "noise:5", "--lpips", "none"])
    assert "LR: noise:5" in capsys.readouterr().out
    def refused(*args):
        assert main([*args]) == 2
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("sr_distill")][0]
    assert "leave it out" in refused("train", "hr", "x", "--lr-dir", "lr", "--degradation", "noise:5", *small)
    assert "LR images do not fit" in refused("train", "hr", "x", "--lr-dir", "hr", *small)
    assert "no file for a" in refused("distill", "hr", "x", "--lr-dir", "lr", "--scale", "4", "--size", "24")
    assert "'blr' is no step" in refused("distill", "hr", "x", "--degradation", "blr:1")
    assert not (folders / "x").exists()

def test_a_comparison_and_a_study_take_them(folders):
    from sr_distill.compare import compare_config, comparison
    from sr_distill.recipe import CompareOptions
    from sr_distill.study_file import study_from
    config = compare_config(model="edsr", depth=1, width=4, steps=2, patch=16)
    hr, options = str(folders / "hr"), CompareOptions(size=24, lr_dir=str(folders / "lr"))
    learnt, judges = study_from(comparison(hr, config=config, options=options)).open()
    assert learnt.pairs == judges.pairs == 2 and len(learnt) == 2
    with pytest.raises(UserError, match="leave --held-out out"): comparison(hr, hr + "/../lr", config, options)
    with pytest.raises(UserError, match="leave --labels out"): comparison(hr, config=config, options=CompareOptions(size=24, lr_dir=str(folders / "lr"), labels="teacher"))
    for labelled in ({"all": True, "labels": "teacher"}, {"init": "random", "steps": 0, "size": 24, "ipc": 1, "labels": "teacher"}):
        with pytest.raises(UserError, match="set 'labelled': a teacher redraws .* leave labels out"):
            study_from({**comparison(hr, config=config, options=options), "sets": {"labelled": labelled}})
    rough = comparison(hr, config=compare_config(model="edsr", patch=16, degradation=HARD), options=CompareOptions(size=24))
    study = study_from(rough)
    assert {s.recipe.degradation for s in study.sets.values() if s.recipe} == {HARD} == {m.config.degradation for m in study.models.values()}
