"""Programs: damaged files, odd sizes, processes and threads, and trainings that go on where they were stopped."""
import json
import subprocess
import sys
import threading
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sr_distill import fitting, plan, procedural, sets
from sr_distill import train as training
from sr_distill.cli import main
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.explore import gradient_film
from sr_distill.models import make_model
from sr_distill.plan import make_plan
from sr_distill.procedural import MOST_BYTES, Endless, EndlessSampler, Mixture, Program, ProgramPhotos, World, first_program, hand_written, patches, render
from sr_distill.recipe import Recipe, RunError, RunOptions, TrainConfig, UserError
from sr_distill.sets import DistilledSet, describe, learnt_from, open_photos, set_bytes
from sr_distill.study import Model, Study, TrainingSet, run_study
from sr_distill.train import train


def stored(): return json.loads(Program(seed=1).encode())

def refusal(make, *args, most=300, **kwargs) -> str:
    with pytest.raises(UserError) as error: make(*args, **kwargs)
    said = str(error.value)
    assert "\n" not in said and len(said) < most, said
    return said


# ---- files

def test_a_stored_program_is_the_same_program(tmp_path):
    program = Program((World(alpha=2.7182818284, jag=1 / 3), World(weight=2)), Program().palettes[:3], 2**63 - 1)
    program.save(tmp_path / "program.json")
    again = Program.load(tmp_path / "program.json")
    assert again == program and again.fingerprint == program.fingerprint and (render(again, 5, 40) == render(program, 5, 40)).all()
    assert (tmp_path / "program.json").stat().st_size == len(program.encode())

@pytest.mark.parametrize("name", [f.name for f in fields(World)])
def test_every_number_has_bounds_of_its_own(name):
    about = next(f.metadata for f in fields(World) if f.name == name)
    for bad in (about["low"] - 1, about["high"] + 1, float("nan"), float("inf"), "1", None, True, [1]):
        assert refusal(World, **{name: bad}).startswith(name)

@pytest.mark.parametrize("name", [f.name for f in fields(World)])
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_number_at_its_bound_draws_or_is_refused_by_name(name, end):
    about = next(f.metadata for f in fields(World) if f.name == name)
    try: world = World(**{name: about[end]})
    except UserError as e: assert "exchange them" in str(e) or "raise r_min" in str(e)
    else: assert render(Program((world,)), 0, 32).shape == (32, 32, 3)

DAMAGE = {
    "another version": lambda d: d | dict(version=2), "no version": lambda d: {k: v for k, v in d.items() if k != "version"},
    "true is no version": lambda d: d | dict(version=True), "another format": lambda d: d | dict(format="set"),
    "no seed": lambda d: {k: v for k, v in d.items() if k != "seed"}, "a negative seed": lambda d: d | dict(seed=-1),
    "a seed with a fraction": lambda d: d | dict(seed=1.5), "a huge seed": lambda d: d | dict(seed=2**64),
    "no worlds": lambda d: d | dict(worlds=[]), "worlds by name": lambda d: d | dict(worlds={}), "a world of numbers": lambda d: d | dict(worlds=[[1, 2]]),
    "a number too few": lambda d: d | dict(worlds=[{k: v for k, v in d["worlds"][0].items() if k != "jag"}]),
    "a number too many": lambda d: d | dict(worlds=[d["worlds"][0] | dict(joy=1)]), "a number as text": lambda d: d | dict(worlds=[d["worlds"][0] | dict(jag=".5")]),
    "no palettes": lambda d: d | dict(palettes=[]), "palettes as text": lambda d: d | dict(palettes="AAAA"),
    "a short palette": lambda d: d | dict(palettes=["AAAA"]), "no base64": lambda d: d | dict(palettes=["ä" * 64]), "a palette of numbers": lambda d: d | dict(palettes=[7]),
    "too large": lambda d: d | dict(palettes=d["palettes"] * 20), "something more": lambda d: d | dict(labels=[]),
}

@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_in_one_sentence_that_names_it(damage, tmp_path):
    path = tmp_path / "program.json"
    path.write_text(json.dumps(damage(stored())))
    assert str(path) in refusal(Program.load, path)

@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN}', "\x00" * 100], ids=repr)
def test_a_file_that_is_no_program_is_refused(text, tmp_path):
    (tmp_path / "program.json").write_text(text)
    assert str(tmp_path) in refusal(Program.load, tmp_path / "program.json")

def test_sixty_four_photos_give_a_program_of_at_most_eight_kilobytes():
    noise = np.random.default_rng(0)
    photos = Photos.from_arrays(map(str, range(70)), [noise.integers(0, 256, (24, 24, 3)).astype(np.uint8) for _ in range(70)])
    program = hand_written(photos)
    assert len(program.palettes) == 64 and len(program.encode()) <= MOST_BYTES
    grey = hand_written(Photos.from_arrays(["one"], [np.full((9, 9), 77, np.uint8)]))   # one colour in all
    assert (grey.colours == 77).all()


# ---- pictures

def test_every_number_changes_the_pictures():
    busy = World(repeat=.3, blur=1, blur_max=2, depth=.5, noise=4, bars=.3, shade_both=.5, crease=.3, stretch=1, order=.2, round=.5, mid=.3)
    before, other = [render(Program((busy, World())), k, 64) for k in range(6)], dict(weight=.02, brightness=20, blur=.1)
    still = []
    for f in fields(World):
        value, about = getattr(busy, f.name), f.metadata
        value = other.get(f.name, .7 * value if .7 * value > about["low"] else value + .04 * (about["high"] - value))
        changed = Program((replace(busy, **{f.name: value}), World()))
        if all((render(changed, k, 64) == b).all() for k, b in enumerate(before)): still.append(f.name)
    assert not still

def test_a_small_change_of_a_number_is_a_small_change_of_the_picture():
    before = render(Program((World(blur=0),)), 0, 128).astype(int)
    after = render(Program((World(blur=0, amp_max=30.3, jag=.502, spread=8.05),)), 0, 128).astype(int)
    assert 0 < np.abs(before - after).mean() < 1

@pytest.mark.parametrize("size", [8, (8, 300), (301, 17), 640])
def test_images_of_any_size(size):
    image = render(Program(), 2, size)
    assert image.shape == (*((size, size) if isinstance(size, int) else size), 3) and image.std() > 10 and image.flags.c_contiguous

@pytest.mark.parametrize("size", [7, 0, -1, 9000, (64,), (64, 64, 3), 64.0, "64", None, (64, None)])
def test_sizes_that_cannot_be_drawn(size): assert "size" in refusal(render, Program(), 0, size)

@pytest.mark.parametrize("k", [-1, 1.0, "0", None, True])
def test_images_without_a_number(k): refusal(render, Program(), k, 32)

def test_two_processes_with_other_numbers_of_threads_draw_the_same_bits():
    code = ("import hashlib, torch; from sr_distill.procedural import *; "
            "print(hashlib.sha256(b''.join(render(Program(), k, 96).tobytes() for k in (0, 10**12))).hexdigest())")
    found = {subprocess.run([sys.executable, "-c", f"import torch; torch.set_num_threads({n}); {code}"], capture_output=True, text=True, check=True).stdout for n in (1, 2)}
    assert len(found) == 1

def test_threads_draw_what_one_thread_draws():
    program, found = Program(seed=5), {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: render(program, k, 64)})) for k in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all((found[k] == render(program, k, 64)).all() for k in range(8))

def test_patches_are_cut_from_the_images():
    program = Program()
    image, found = render(program, 3, 64).astype(int), patches(program, 5, 16, first=3, side=64)
    windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
    for patch in found.astype(int):
        turned = [a[::i, ::j] for a in (patch, patch.swapaxes(0, 1)) for i in (1, -1) for j in (1, -1)]
        assert any((windows == a).all((2, 3, 4)).any() for a in turned)
    assert "smaller size" in refusal(patches, program, 1, 65, side=64)


# ---- training

CONFIG = TrainConfig(model="srcnn", steps=6, batch=4, patch=16, checkpoint=3)
def source(): return Endless(Program(), window=3, side=48, per_image=4)

def test_no_image_comes_back_and_every_image_serves_as_many_patches_in_the_mean():
    sampler = source().sampler(replace(CONFIG, batch=16))
    drawn = np.concatenate([sampler.draw(t)[:, 0] for t in range(200)])
    served = np.bincount(drawn)[3:700]
    assert abs(served.mean() - 4) < .1 and served.max() < 20
    for t in (0, 50, 100):
        k = sampler.draw(t)
        assert t * 4 <= k[:, 0].min() and k[:, 0].max() < t * 4 + 3 and k[:, 1:3].max() <= 16 and set(k[:, 3]) <= set(range(8))

def test_only_the_window_is_kept():
    sampler = source().sampler(CONFIG)
    for t in range(30): sampler(t)
    assert len(sampler.images) <= 3 + sampler.AHEAD

def test_a_share_of_a_batch_is_that_part_of_the_batch():
    sampler = source().sampler(CONFIG)
    whole, part = sampler(4), sampler(4, share=slice(2, 4))
    assert all(torch.equal(a[2:4], b) for a, b in zip(whole, part))

def test_a_failure_while_drawing_ahead_reaches_the_training(monkeypatch):
    sampler = source().sampler(CONFIG)
    monkeypatch.setattr("sr_distill.procedural.render", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError): sampler(0)

def test_a_network_learns_from_a_program():
    net = make_model("srcnn", 2, generator=torch.Generator().manual_seed(0))
    history = training.train(net, ProgramPhotos(Program(), 8, 64), replace(CONFIG, steps=120, batch=8)).history
    assert history[-1]["loss"] < .5 * history[0]["loss"]

def test_photos_of_a_program_are_photos():
    photos = ProgramPhotos(Program(), 4, 48)
    assert photos.at_least(48) is photos and "smaller" in refusal(photos.at_least, 49)
    part = photos.subset([3, 1])
    assert part.names == ["leaves-00003", "leaves-00001"] and (part[0] == photos[3]).all() and part.fingerprint != photos.fingerprint
    assert photos.png_bytes > photos.stored_bytes == len(Program().encode()) and photos.hr(0, 3).shape == (48, 48, 3)
    assert len(set(photos.sha256)) == 4 and photos.fingerprint != ProgramPhotos(Program(seed=1), 4, 48).fingerprint
    for n in (0, -1, 1.5): refusal(ProgramPhotos, Program(), n)
    for n in (0, 2.5): refusal(Endless, Program(), per_image=n)
    assert "smaller" in refusal(Endless(Program(), side=32).sampler, TrainConfig(), most=700)


def test_training_on_a_program_never_stops_drawing(monkeypatch):
    "`train` takes the program's own batches, so images beyond the first window are learnt from; two trainings are the same."
    from sr_distill import procedural
    from sr_distill.core import rng
    from sr_distill.models import make_model
    from sr_distill.train import train
    program, drawn, places = source(), set(), procedural.EndlessSampler.draw
    def noted(sampler, t):
        found = places(sampler, t)
        drawn.update(found[:, 0].tolist())
        return found
    monkeypatch.setattr(procedural.EndlessSampler, "draw", noted)
    config = TrainConfig(model="vdsr", depth=2, width=4, steps=12, batch=4, patch=24)
    losses = [train(make_model("vdsr", 2, 2, 4, generator=rng(0)), program, config, device="cpu").history[-1]["loss"] for _ in range(2)]
    assert max(drawn) >= len(program) and losses[0] == losses[1]


# ---- sets

EMBEDDED = Photos.open("embedded").subset([0, 1, 2])
PROGRAM = dict(space="procedural", steps=0)
HALF = Recipe(**PROGRAM, share=.5, size=32, ipc=2, init="random")

def small(monkeypatch):
    "Sets whose programs keep few small images, so that a test draws few."
    monkeypatch.setattr(sets, "Endless", lambda program, source, teacher=None: Endless(program, 3, 48, 16, source, teacher))

@pytest.mark.parametrize("recipe", [Recipe(**PROGRAM), HALF], ids=["alone", "half"])
def test_a_set_of_a_program_is_a_set_like_any_other(recipe, tmp_path, monkeypatch):
    small(monkeypatch)
    made = distill(EMBEDDED, recipe, tmp_path / "set")
    stored = set_bytes(tmp_path / "set")
    assert made.budget.bytes == stored["program"] + stored.get("images", 0) and stored["program"] <= MOST_BYTES
    assert made.program == hand_written(EMBEDDED) and len(made) == (6 if recipe.share < 1 else 0)
    assert made.told in describe(tmp_path / "set") and "program" in (tmp_path / "set/README.md").read_text()
    assert not (tmp_path / "set/.run").exists() and distill(EMBEDDED, recipe, tmp_path / "set").program == made.program
    assert "--seed 0" in refusal(distill, EMBEDDED, replace(recipe, seed=1), tmp_path / "set")
    files = {p.relative_to(tmp_path / "set"): p.read_bytes() for p in (tmp_path / "set").rglob("*.*") if p.suffix in (".png", ".json")}
    copy = DistilledSet.load(tmp_path / "set").save(tmp_path / "copy")
    assert files == {p.relative_to(tmp_path / "copy"): p.read_bytes() for p in (tmp_path / "copy").rglob("*.*") if p.suffix in (".png", ".json")}
    train(make_model("srcnn", 2), open_photos(tmp_path / "copy"), CONFIG, tmp_path / "model")
    assert learnt_from(tmp_path / "model", EMBEDDED) == EMBEDDED.names and "without end" in describe(tmp_path / "model")
    assert "without end" in (tmp_path / "model/README.md").read_text() and copy._repr_html_() and copy.photos._repr_html_()

def test_photos_of_any_size_give_a_program(tmp_path):
    tiny = Photos.from_arrays(["a", "b"], [np.full((9, 20, 3), 7, np.uint8), np.zeros((30, 8, 3), np.uint8)])
    assert distill(tiny, Recipe(**PROGRAM), tmp_path / "set").told.startswith("a program of")
    assert "--size" in refusal(distill, tiny, HALF, tmp_path / "half")

@pytest.mark.parametrize("options", [{}, dict(format="avif"), dict(labels="teacher", teacher_steps=2)], ids=str)
def test_a_budget_in_bytes_is_that_of_program_and_images(options, tmp_path):
    made = distill(EMBEDDED, Recipe(**PROGRAM, share=.5, size=32, bytes="20kB", **options), tmp_path / "set")
    stored = set_bytes(tmp_path / "set")
    assert (9_000 if options.get("labels") else 14_000) < stored["images"] + stored["program"] <= 20_000 and stored["program"] == len(made.program.encode())
    assert "--bytes" in refusal(distill, EMBEDDED, Recipe(**PROGRAM, share=.5, size=32, bytes="1kB"), tmp_path / "none")

def test_the_labels_of_a_teacher_are_those_of_the_images(tmp_path):
    labelled = replace(HALF, labels="teacher", teacher_steps=2)
    made, own = distill(EMBEDDED, labelled, tmp_path / "labelled"), distill(EMBEDDED, HALF, tmp_path / "own")
    assert made.program == own.program and (made.images != own.images).any() and "A teacher, edsr, then redrew" in (tmp_path / "labelled/README.md").read_text()

def test_export_says_how_many_images_the_program_draws_and_lets_you_choose(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    distill(EMBEDDED, HALF, tmp_path / "set")
    count = len(DistilledSet.load(tmp_path / "set").images)
    assert main(["export", str(tmp_path / "set"), str(tmp_path / "out"), "--images", "3", "--size", "40"]) == 0
    assert "3 images of 40² are drawn from the program, which has no end; choose by --images and --size" in caplog.text
    names = sorted(p.stem for p in (tmp_path / "out/HR").iterdir())
    assert len(names) == count + 3 and names[-3:] == [f"leaves-0000{k}" for k in range(3)]
    assert main(["export", str(tmp_path / "set"), str(tmp_path / "no"), "--images", "0"]) == 2 and "--images 0 is no number of images" in capsys.readouterr().err
    assert main(["export", "embedded", str(tmp_path / "no"), "--size", "40"]) == 2 and "--size 40: there is no program" in capsys.readouterr().err

@pytest.mark.parametrize("wrong, flag", [(dict(share=0.), "--share"), (dict(share=1.5), "--share"), (dict(share=float("nan")), "--share"),
    (dict(ipc=2), "--ipc"), (dict(size=64), "--size"), (dict(init="random"), "--init"), (dict(labels="teacher"), "--labels"), (dict(budget=1.), "--budget"), (dict(bytes="9kB"), "--bytes"), (dict(format="webp"), "--format"), (dict(grouping="all"), "--grouping"),
    (dict(share=.5, objective="whole"), "--objective"), (dict(share=.5, network="vdsr"), "--network"), (dict(share=.5, lr=.5), "--lr"), (dict(tune=3), "--tune"),
    (dict(space="pixel", share=.5), "--share"), (dict(space="latent", share=.5), "--share")], ids=str)
def test_options_that_a_program_does_not_have(wrong, flag): assert refusal(Recipe, **{**PROGRAM, **wrong}).startswith(flag)

@pytest.mark.parametrize("damage, said", [(lambda p: p.unlink(), "is missing"), (lambda p: p.write_text(p.read_text().replace('"seed": 0', '"seed": 1')), "differs"),
    (lambda p: p.write_text(p.read_text().replace('"version": 1', '"version": 99')), "renderer 99"), (lambda p: p.write_text("{"), "program.json")])
@pytest.mark.parametrize("recipe", [Recipe(**PROGRAM), HALF], ids=["alone", "half"])
def test_a_damaged_program_is_refused_where_a_set_is_opened(recipe, damage, said, tmp_path):
    distill(EMBEDDED, recipe, tmp_path / "set")
    damage(tmp_path / "set/program.json")
    for make in (open_photos, describe, DistilledSet.load): assert said in refusal(make, tmp_path / "set")

def test_a_stopped_training_on_a_mixture_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    small(monkeypatch)
    photos, models = distill(EMBEDDED, HALF, tmp_path / "set").photos, []
    def stop(step, *_): stop.stopped = step == 4
    for name, callbacks in (("whole", [None]), ("parts", [stop, None])):
        for callback in callbacks:
            net = make_model("srcnn", 2, generator=torch.Generator().manual_seed(1))
            try: train(net, photos, CONFIG, tmp_path / name, callback=callback)
            except RunError: assert callback
        models.append(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models)))

@pytest.mark.parametrize("share", [.5, 1 / 3, .9, .02])
def test_a_mixture_meets_its_share_and_shares_its_batches(share):
    sampler = Mixture(EMBEDDED, source(), share).sampler(CONFIG)
    drawn = [sampler.draw(t)[:, 0] for t in range(300)]
    assert abs(np.mean(np.concatenate(drawn) >= 0) - share) < 1e-3 and {len(d) for d in drawn} == {4}
    assert max((d >= 0).sum() for d in drawn) - min((d >= 0).sum() for d in drawn) <= 1
    whole, halves = sampler(7), [sampler(7, "cpu", slice(k, k + 2)) for k in (0, 2)]
    assert all(torch.equal(torch.cat([a[i] for a in halves]), whole[i]) for i in (0, 1))

def test_degradations_and_sampling_by_error_reach_both_halves():
    photos = Mixture(EMBEDDED, source(), .5)
    plain, other = (photos.sampler(replace(CONFIG, degradation=name))(0) for name in ("bicubic", "noise:20-30"))
    assert torch.equal(plain[1], other[1]) and all(not torch.equal(a, b) for a, b in zip(plain[0], other[0]))
    hard = photos.sampler(replace(CONFIG, sampling="error"))(0)
    assert torch.equal(hard[1][:2], plain[1][:2]) and not torch.equal(hard[1][2:], plain[1][2:])

def test_a_study_compares_programs_with_images(tmp_path, monkeypatch):
    small(monkeypatch)
    rows = {"leaves": TrainingSet(Recipe(**PROGRAM)), "half": TrainingSet(HALF), "windows": TrainingSet(Recipe(size=32, steps=0))}
    config = TrainConfig(model="srcnn", steps=2, batch=4, patch=16)
    found = run_study(Study("embedded", rows, {"SRCNN": Model(config)}, {"held out": ""}, seeds=1, count=3, held_out=1), tmp_path, jobs=1)
    assert not found.failed and [r["images"] for r in found.rows if r["set"] != "bicubic"] == [0, 4, 2]


# ---- images for other toolkits

def test_rendered_images_go_on_and_do_not_mix(tmp_path, monkeypatch):
    from sr_distill import procedural
    mine, drawn, before = Program(), [], render
    def stops(program, k, size):
        if program is not mine: return before(program, k, size)   # a training of another test may still draw ahead
        if len(drawn) == 2: raise KeyboardInterrupt
        drawn.append(k)
        return before(program, k, size)
    torch.set_num_threads(1)
    monkeypatch.setattr(procedural, "render", stops)
    with pytest.raises(KeyboardInterrupt): procedural.render_images(mine, tmp_path / "out", 4, 32)
    monkeypatch.setattr(procedural, "render", lambda program, k, size: (program is mine and drawn.append(k)) or before(program, k, size))
    files = procedural.render_images(mine, tmp_path / "out", 4, 32)
    assert "another size" in refusal(procedural.render_images, Program(), tmp_path / "out", 4, 40)
    assert drawn == [0, 1, 2, 3] and sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".") == [f.name for f in files]
    for images in (0, -1, 1.5, True): assert "--images" in refusal(procedural.render_images, Program(), tmp_path / "out", images)
    (tmp_path / "full").mkdir(); (tmp_path / "full/mine.txt").write_text("mine")
    assert "mine.txt" in refusal(procedural.render_images, Program(), tmp_path / "full", 1, 32)

def test_the_command_line_renders_a_set(tmp_path, capsys):
    distill(EMBEDDED, Recipe(**PROGRAM), tmp_path / "set"), distill(EMBEDDED, Recipe(size=32, steps=0), tmp_path / "pixels")
    assert main(["render", str(tmp_path / "set"), str(tmp_path / "png"), "--images", "2", "--size", "40"]) == 0
    assert "2 images of 40²" in capsys.readouterr().out and Photos.open(tmp_path / "png").sizes == [(40, 40)] * 2
    assert main(["render", str(tmp_path / "pixels"), str(tmp_path / "none")]) == 2 and "no program" in capsys.readouterr().err


# ---- fitting

def quick(monkeypatch):
    "Fits that look at two small images."
    for name, value in (("WINDOWS", 6), ("IMAGES", 2), ("SIDE", 48)): monkeypatch.setattr(fitting, name, value)

FIT, FEW = Recipe(space="procedural", steps=7, fit="statistics"), RunOptions(checkpoint=2, snapshots=3)

def test_a_stopped_fit_ends_like_an_undisturbed_one_on_any_number_of_threads(tmp_path, monkeypatch):
    quick(monkeypatch)
    def stop(step, *_): stop.stopped = step == 5
    whole = distill(EMBEDDED, FIT, tmp_path / "whole", FEW)
    with pytest.raises(RunError): distill(EMBEDDED, FIT, tmp_path / "parts", FEW, stop)
    assert "5 of 7 steps" in describe(tmp_path / "parts")
    torch.set_num_threads(2)
    try: parts = distill(EMBEDDED, FIT, tmp_path / "parts", FEW)
    finally: torch.set_num_threads(1)
    assert whole.program == parts.program != hand_written(EMBEDDED) and whole.trace.losses == parts.trace.losses
    assert all((whole.trace.frame(k) == parts.trace.frame(k)).all() for k in range(3))
    assert whole.manifest["report"]["fit"] == parts.manifest["report"]["fit"] and "Distance of its statistics" in (tmp_path / "whole/README.md").read_text()
    assert "compares no gradients" in refusal(gradient_film, whole, EMBEDDED)
    assert "--steps 7" in refusal(distill, EMBEDDED, replace(FIT, steps=8), tmp_path / "whole", FEW)

@pytest.mark.parametrize("damage", [lambda p: (p / "checkpoint.pt").write_bytes(b"nonsense"), lambda p: (p / "trace/0000001.npy").unlink()], ids=["checkpoint", "frame"])
def test_a_damaged_fit_is_refused_or_begins_anew(damage, tmp_path, monkeypatch):
    quick(monkeypatch)
    def stop(step, *_): stop.stopped = step == 5
    with pytest.raises(RunError): distill(EMBEDDED, FIT, tmp_path / "set", FEW, stop)
    damage(tmp_path / "set/.run/part-program")
    try: made = distill(EMBEDDED, FIT, tmp_path / "set", FEW)
    except UserError as e: assert "checkpoint.pt" in str(e)
    else: assert made.program == distill(EMBEDDED, FIT, tmp_path / "other", FEW).program

def short(monkeypatch):
    "Fits by trainings of a few steps."
    for name, value in (("TRIAL", fitting.TRIAL | dict(width=8, steps=30, batch=4)), ("JUDGES", 2), ("JUDGED", 48), ("DRAWN", dict(window=2, side=64))): monkeypatch.setattr(fitting, name, value)

def test_a_fit_by_short_trainings(tmp_path, monkeypatch):
    "The same bits on any number of threads and after a stop; small networks learn more from the program it ends with."
    short(monkeypatch)
    recipe = replace(FIT, fit="training", steps=4)
    def stop(step, *_): stop.stopped = step == 2
    whole = distill(EMBEDDED, recipe, tmp_path / "whole", FEW)
    with pytest.raises(RunError): distill(EMBEDDED, recipe, tmp_path / "parts", FEW, stop)
    torch.set_num_threads(2)
    try: parts = distill(EMBEDDED, recipe, tmp_path / "parts", FEW)
    finally: torch.set_num_threads(1)
    report = whole.manifest["report"]["fit"]
    assert whole.program == parts.program and report == parts.manifest["report"]["fit"] and report["by"] == "training"
    objective = fitting.training_objective(EMBEDDED)
    assert whole.program == hand_written(EMBEDDED) or objective(whole.program) < objective(hand_written(EMBEDDED))
    assert "did not use" in (tmp_path / "whole/README.md").read_text() and report["before"] < -10   # dB, with the sign changed
    assert fitting.training_objective(EMBEDDED, held_out=True)(whole.program) == report["after"]

def learners(monkeypatch, sweep=3):
    "Small networks that go on, and a short sweep."
    every = fitting.sweep
    for name, value in dict(LEARNERS=dict(edsr=dict(depth=1, width=8), vdsr=dict(depth=2, width=8)), BEGUN=30, GOING_ON=10,
                            sweep=lambda seed: every(seed)[:sweep]).items(): monkeypatch.setattr(fitting, name, value)

def test_a_sweep_finds_a_number_that_small_changes_miss(monkeypatch):
    "The objective rewards one far place of one number; a sweep tries it, and small changes that do not lead there are refused."
    program = hand_written(EMBEDDED, 0)
    def objective(p): return 0. if p.worlds[0].blur > .6 else 1.
    fits = fitting.Fit(program, objective), fitting.Fit(program, objective, later=lambda found: objective)
    for fit in fits:
        for _ in fitting.sweep(): fit.step()
    assert fits[0].best == 1. and fits[1].best == 0. and fits[1].program.worlds[0].blur == .75
    assert replace(fits[1].program.worlds[0], blur=program.worlds[0].blur) == program.worlds[0]
    nearly = fitting.Fit(program, lambda p: -.009 * (p.worlds[0].blur > .6), later=lambda found: objective)   # less than counts
    for _ in fitting.sweep(): nearly.step()
    assert nearly.program == program

def test_a_fit_for_the_end_of_a_long_training(tmp_path, monkeypatch):
    "It begins with a sweep; networks that have learnt from a program go on with the changed ones. A stop changes no bit."
    short(monkeypatch), learners(monkeypatch)
    recipe = replace(FIT, fit="late", steps=7)
    def stop(step, *_): stop.stopped = step == 4
    whole = distill(EMBEDDED, recipe, tmp_path / "whole", FEW)
    with pytest.raises(RunError): distill(EMBEDDED, recipe, tmp_path / "parts", FEW, stop)
    parts = distill(EMBEDDED, recipe, tmp_path / "parts", FEW)
    report = whole.manifest["report"]["fit"]
    assert whole.program == parts.program and report == parts.manifest["report"]["fit"] and report["by"] == "late"
    assert whole.trace.losses == parts.trace.losses and "at the end of a long training" in (tmp_path / "whole/README.md").read_text()
    early = distill(EMBEDDED, replace(recipe, steps=3), tmp_path / "early", FEW).program   # the sweep
    late = fitting.training_objective(EMBEDDED, after=early)
    assert round(late(whole.program), 6) == whole.trace.losses[-1][-1] <= late(early)
    assert report["after"] == fitting.training_objective(EMBEDDED, held_out=True, after=early)(whole.program)

def test_a_program_that_may_grow_is_counted_at_its_largest_in_a_budget(tmp_path):
    small, grows = (Recipe(space="procedural", share=.5, size=32, steps=3, fit=fit, bytes="20kB", format="webp") for fit in ("training", "late"))
    ipc = [make_plan(EMBEDDED, recipe, tmp_path / recipe.fit).recipe.ipc for recipe in (small, grows)]
    assert ipc[1] < ipc[0] and MOST_BYTES == 8192

def test_a_fit_learns_and_judges_under_the_degradation_of_the_recipe(tmp_path, monkeypatch):
    short(monkeypatch)
    monkeypatch.setattr(fitting, "TRIALS", 1)
    seen = []
    def watched(self, t, device="cpu", share=slice(None)):
        seen.append(self.config.degradation)
        return batch(self, t, device, share)
    batch = EndlessSampler.__call__
    monkeypatch.setattr(EndlessSampler, "__call__", watched)
    distill(EMBEDDED, replace(FIT, fit="training", steps=1, degradation="noise:40"), tmp_path / "set", FEW)
    assert set(seen) == {"noise:40"}
    fit = DistilledSet.load(tmp_path / "set").manifest["report"]["fit"]
    plain, noisy = (fitting.training_objective(EMBEDDED, held_out=True, degradation=d)(hand_written(EMBEDDED)) for d in ("bicubic", "noise:40"))
    assert fit["before"] == noisy > plain + .3   # dB, with the sign changed

def test_what_a_fit_is_for_is_asked_of_programs_only():
    assert "--fit" in refusal(Recipe, fit="statistics") and "procedural" in refusal(Recipe, fit="statistics")
    assert "--fit" in refusal(Recipe, space="procedural", steps=0, fit="statistics")
    assert "training, late, statistics" in refusal(Recipe, space="procedural", fit="luck")

def test_any_objective_can_be_followed():
    fit = fitting.Fit(Program(), lambda program: abs(program.worlds[0].alpha - 2.5))
    for _ in range(400): fit.step()
    assert abs(fit.program.worlds[0].alpha - 2.5) < .05
    two = Program((World(), World(alpha=2)))
    assert sum(fitting.changed(two, fitting.rng(k), .1) is not None for k in range(50)) > 40   # a few do not go together

def test_changed_numbers_stay_in_bounds_and_in_order():
    program = Program()
    for k in range(200): program = fitting.changed(program, fitting.rng(k), 2.) or program   # `World` would refuse others
    assert program != Program()

SHIPPED = Recipe(space="procedural", steps=0, program="fitted")

def test_a_set_may_hold_the_program_that_comes_fitted(tmp_path):
    made, by_hand = distill(EMBEDDED, SHIPPED, tmp_path / "set", FEW).program, hand_written(EMBEDDED)
    assert made == first_program(EMBEDDED, SHIPPED) and made.palettes == by_hand.palettes and made.worlds != by_hand.worlds
    assert first_program(EMBEDDED, Recipe(space="procedural", steps=0)) == by_hand
    many = Photos.from_arrays([f"{k}" for k in range(70)], [np.random.default_rng(k).integers(0, 255, (40, 40, 3), np.uint8) for k in range(70)])
    assert len(first_program(many, SHIPPED).palettes) == 64 and len(first_program(many, SHIPPED).encode()) <= MOST_BYTES
    assert "--program fitted is for procedural space only" in refusal(Recipe, program="fitted")

def test_a_set_of_other_shipped_numbers_is_not_taken_for_this_one(tmp_path, monkeypatch):
    distill(EMBEDDED, SHIPPED, tmp_path / "set", FEW)
    distill(EMBEDDED, SHIPPED, tmp_path / "set", FEW)   # the same set again
    for module in (procedural, plan): monkeypatch.setattr(module, "fitted_worlds", lambda: (World(spread=9.),))
    assert "other numbers than this release of sr_distill has for --program fitted; give another folder" in refusal(distill, EMBEDDED, SHIPPED, tmp_path / "set", FEW)

def test_a_fit_may_begin_with_it(tmp_path):
    made = distill(EMBEDDED, replace(SHIPPED, steps=2, fit="statistics"), tmp_path / "set", FEW)
    report = made.manifest["report"]
    assert report["program"]["first"] == "fitted" and report["fit"]["after"] <= report["fit"]["before"] != 0
    assert "before the search" in (tmp_path / "set/README.md").read_text() and "by hand" not in (tmp_path / "set/README.md").read_text()
