"""Sets that store their teacher: bytes, batches, other toolkits, damage, and what they refuse."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_distill import job, labels, procedural, sets, train as training
from sr_distill.cli import main
from sr_distill.data import Photos, make_lr
from sr_distill.distill import DistilledSet, describe, distill, open_photos, set_bytes
from sr_distill.export import export_set
from sr_distill.labels import enlarged, get_teacher, half_precision
from sr_distill.models import load_model, make_model, save_model
from sr_distill.procedural import Endless, Program, answer, render
from sr_distill.recipe import Recipe, RunError, RunOptions, TrainConfig, UserError
from sr_distill.study import Model, Study, TrainingSet, run_study
from sr_distill.train import train

PHOTOS = Photos.open("embedded").subset([0, 1, 2])
CONFIG = TrainConfig(model="srcnn", steps=6, batch=4, patch=16, checkpoint=3)
KEEPS = dict(size=32, steps=0, init="random", store="teacher", format="webp")
KINDS = {"pixels": {}, "alone": dict(space="procedural", share=1.), "half": dict(space="procedural", share=.5)}

@pytest.fixture(scope="module")
def net(tmp_path_factory):
    "The folder of an SRCNN that has learnt nothing, which answers quickly."
    return str(save_model(make_model("srcnn", 2, width=8, generator=torch.Generator().manual_seed(3)), tmp_path_factory.mktemp("net")))

@pytest.fixture(scope="module")
def alone(net, tmp_path_factory):
    "The folder of a program with a teacher."
    folder = tmp_path_factory.mktemp("alone") / "set"
    distill(PHOTOS, Recipe(space="procedural", steps=0, labels=net, store="teacher"), folder)
    return folder

@pytest.fixture(params=KINDS)
def recipe(request, net):
    given = {**KEEPS, **KINDS[request.param], "labels": net}
    return Recipe(**{k: v for k, v in given.items() if request.param != "alone" or k not in ("size", "init", "format")})

@pytest.fixture(autouse=True)
def few(monkeypatch):
    "Programs that keep few small images."
    monkeypatch.setattr(sets, "Endless", lambda program, source, teacher=None: Endless(program, 3, 48, 16, source, teacher))

def refusal(make, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error: make(*args, **kwargs)
    assert "\n" not in (said := str(error.value)) and len(said) < 400, said
    return said

def batches(photos, n=4):
    "The first batches of a training on `photos`."
    own = getattr(photos, "sampler", None)
    sampler = own(CONFIG) if own else procedural.PatchSampler(photos, CONFIG)
    return [sampler(t) for t in range(n)]

def equal(a, b): return all(torch.equal(x, y) for one, other in zip(a, b) for x, y in zip(one, other))


def test_bytes_batches_and_a_training_that_was_stopped(recipe, tmp_path):
    made = distill(PHOTOS, recipe, tmp_path / "set")
    stored = set_bytes(tmp_path / "set")
    assert made.budget.bytes == sum(stored.get(k, 0) for k in ("images", "program", "teacher")) and stored["teacher"] == labels.teacher_bytes(recipe)
    assert made.told in describe(tmp_path / "set") and "stored teacher" in made._repr_html_() + describe(tmp_path / "set")
    again = open_photos(tmp_path / "set")
    first = batches(made.photos)
    assert again.fingerprint == made.photos.fingerprint and equal(first, batches(again))
    if recipe.space == "pixel": assert not equal(first, batches(Photos.from_arrays(made.names, made.images)))   # LR copies of labels are no questions
    if len(made):
        assert made.questions.shape[1:3] == (16, 16) and (made.images == enlarged(made.questions, load_model(tmp_path / "set/teacher"))).all()
        own = distill(PHOTOS, replace(recipe, store="labels", labels="own"), tmp_path / "own")
        assert (made.questions == np.stack([make_lr(i, 2) for i in own.images])).all()   # the same windows; webp loses nothing
    models = []
    def stop(step, *_): stop.stopped = step == 4
    for name, callbacks in (("whole", [None]), ("parts", [stop, None])):
        for callback in callbacks:
            student = make_model("srcnn", 2, width=8, generator=torch.Generator().manual_seed(1))
            try: train(student, open_photos(tmp_path / "set"), CONFIG, tmp_path / name, callback=callback)
            except RunError: assert callback
        models.append(student.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models)))

def test_threads_and_the_order_of_batches_change_no_label(net):
    source, before, found = Endless(Program(), 3, 48, 4, teacher=load_model(net)), torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append([source.sampler(CONFIG)(7), *batches(source)])
    finally: torch.set_num_threads(before)
    assert equal(*found)
    sampler = source.sampler(CONFIG)
    for t in range(12): sampler(t)
    assert set(sampler.answers) <= set(sampler.images)   # what has left the window is forgotten
    assert torch.equal(sampler(7)[1], found[0][0][1])    # a step back

def test_labels_are_made_before_the_estimate_begins(net, monkeypatch, caplog):
    "They take many times as long as a step, which the first estimate would count for every step."
    source, asked, begun = Endless(Program(), 3, 48, 16, teacher=load_model(net)), [], []
    monkeypatch.setattr(procedural, "answer", lambda model, lr, k: asked.append(k) or answer(model, lr, k))
    monkeypatch.setattr(training, "LogLines", lambda *a: begun.append(list(asked)) or job.LogLines(*a))
    with caplog.at_level("INFO"): train(make_model("srcnn", 2), source, CONFIG, device="cpu")
    assert begun == [[0, 1, 2]] and "making the 3 images that the first steps need" in caplog.text
    assert asked == [*range(3 + source.sampler(CONFIG).drawn(5) // 16)]   # no label is made twice

def test_a_teacher_answers_where_the_training_computes(net, monkeypatch):
    teacher, places = load_model(net), []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: places.append(str(place)) or self)   # no GPU is at hand
    sampler = Endless(Program(), 3, 48, 4, teacher=teacher).sampler(CONFIG)
    for place in ("cuda", "cuda", "cpu"):
        sampler.keep(0, place)
        assert (sampler.photo(1)[1] == answer(teacher, make_lr(render(Program(), 1, 48), 2), 1)).all()
        sampler.answers.clear()
    assert places == ["cuda", "cpu"] and not any(p.requires_grad and p.grad is not None for p in teacher.parameters())

def test_a_budget_in_bytes_is_that_of_all_parts(net, tmp_path):
    recipe = Recipe(**KEEPS, space="procedural", share=.5, labels=net, bytes="15kB")
    teacher = labels.teacher_bytes(recipe)
    made = distill(PHOTOS, recipe, tmp_path / "set")
    assert 14_000 < made.budget.bytes <= 15_000 and "15,000 bytes" in describe(tmp_path / "set")
    assert made.manifest["report"]["labels"]["stored"] == set_bytes(tmp_path / "set")["teacher"] == teacher
    said = refusal(distill, PHOTOS, replace(recipe, bytes=teacher - 1), tmp_path / "none")
    assert f"--bytes {teacher - 1:,}" in said and f"{teacher:,} bytes" in said
    said = refusal(distill, PHOTOS, replace(recipe, bytes=teacher + made.budget.bytes - sum(e["bytes"] for e in made.manifest["images"]) - teacher + 90), tmp_path / "none")
    assert "leaves 90 bytes beside the teacher" in said and "16²" in said

def test_steps_move_the_questions(net, tmp_path):
    recipe = Recipe(size=32, steps=2, ipc=1, pool="fresh", networks=1, real=2, labels=net, store="teacher", init="random")
    made = distill(PHOTOS, recipe, tmp_path / "set", RunOptions(held_out=0))
    kept = distill(PHOTOS, replace(recipe, steps=0), tmp_path / "kept")
    assert (made.questions != kept.questions).any() and "Distillation changed" in describe(tmp_path / "set")
    said = refusal(distill, PHOTOS, replace(recipe, init=str(tmp_path / "set"), steps=3), tmp_path / "on")
    assert "stores LR images" in said and "export" in said

@pytest.mark.parametrize("damage, said", [
    (lambda p: p.unlink(), "model.safetensors: is missing"), (lambda p: p.write_bytes(p.read_bytes()[:99]), "differs from the manifest"),
    (lambda p: (p.parent / "config.json").unlink(), "config.json"), (lambda p: (p.parent / "config.json").write_text("{}"), "config.json"),
    (lambda p: (p.parent / "config.json").write_text((p.parent / "config.json").read_text().replace('"scale": 2', '"scale": 4')), "the set is for ×2")])
def test_a_damaged_teacher_is_refused_where_a_set_is_opened(alone, damage, said, tmp_path):
    shutil.copytree(alone, tmp_path / "set")
    damage(tmp_path / "set/teacher/model.safetensors")
    for make in (open_photos, describe, DistilledSet.load): assert said in refusal(make, tmp_path / "set")

@pytest.mark.parametrize("entry", [None, "x", {}, {"bytes": "many"}, 3])
def test_a_manifest_that_says_nothing_of_its_teacher(alone, entry, tmp_path):
    shutil.copytree(alone, tmp_path / "set")
    manifest = {k: v for k, v in json.loads((alone / "manifest.json").read_text()).items() if k != "teacher"} | ({} if entry is None else {"teacher": entry})
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json" in refusal(DistilledSet.load, tmp_path / "set")

def test_what_such_a_set_refuses(net, recipe, tmp_path):
    made = distill(PHOTOS, recipe, tmp_path / "set")
    assert "--lr-images" in refusal(distill, PHOTOS, recipe, tmp_path / "lr", RunOptions(lr_images=True)) and "export" in refusal(made.store_lr)
    for change, said in ((dict(scale=4), "--scale 2"), (dict(degradation="noise:3"), "leave it out")):
        student = make_model("srcnn", change.get("scale", 2))
        assert said in refusal(train, student, made.photos, replace(CONFIG, **change))
    given = PHOTOS.with_lr(Photos.from_arrays(PHOTOS.names, [make_lr(p, 2) for p in PHOTOS]), 2, "a folder")
    assert "--store teacher" in refusal(distill, given, recipe, tmp_path / "given")
    huge = make_model("srcnn", 2)
    huge.body[0].weight.data[0] = 1e6
    assert "half precision" in refusal(half_precision, huge)

def test_other_toolkits_get_the_labels(net, tmp_path, capsys):
    recipe = Recipe(**KEEPS, space="procedural", share=.5, labels=net)
    made = distill(PHOTOS, recipe, tmp_path / "set")
    export_set(tmp_path / "set", tmp_path / "out")
    hr, lr = Photos.open(tmp_path / "out/HR"), Photos.open(tmp_path / "out/LR")
    for name, image, question in zip(made.names, made.images, made.questions):
        assert (hr[hr.names.index(name)] == image).all() and (lr[lr.names.index(name)] == question).all()
    first = export_set(tmp_path / "set", tmp_path / "some", images=2, size=32)
    assert (Photos.open(first / "HR")[-1:][0] == answer(made.teacher, make_lr(render(made.program, 1, 32), 2), 1)).all()
    assert main(["render", str(tmp_path / "set"), str(tmp_path / "png"), "--images", "2", "--size", "32"]) == 0
    assert "redrawn by its teacher" in capsys.readouterr().out
    drawn = Photos.open(tmp_path / "png")
    assert (drawn[1] == answer(made.teacher, make_lr(render(made.program, 1, 32), 2), 1)).all() and (drawn[1] != render(made.program, 1, 32)).any()
    assert main(["render", str(tmp_path / "set"), str(tmp_path / "odd"), "--size", "33"]) == 2
    assert (made.shown(8)[len(made)] == answer(made.teacher, make_lr(render(made.program, 0, 32), 2), 0)).all()

def test_a_study_trains_on_it(net, tmp_path):
    kept = Recipe(**KEEPS, space="procedural", share=.5, labels=net)
    study = Study("embedded", {"stored": TrainingSet(kept), "labels": TrainingSet(replace(kept, store="labels"))},
                  {"SRCNN": Model(replace(CONFIG, steps=2))}, {"held out": ""}, seeds=1, count=3, held_out=1)
    found = run_study(study, tmp_path, jobs=1)
    rows = {r["set"]: r for r in found.rows}
    assert not found.failed and rows["stored"]["psnr_rgb"] != rows["labels"]["psnr_rgb"] and rows["stored"]["bytes"] > rows["labels"]["bytes"]
    assert "stored" in str(found)

def test_a_teacher_that_has_learnt_nothing_has_the_bytes_of_one_that_has():
    recipe = Recipe(labels="teacher", teacher_steps=1, store="teacher", size=32)
    photos = Photos.from_arrays(["a"], [np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))])
    learnt = get_teacher(photos, recipe)
    assert learnt.config == get_teacher(None, recipe).config and learnt.state_dict().keys() == get_teacher(None, recipe).state_dict().keys()
    assert not torch.equal(learnt.head.weight, get_teacher(None, recipe).head.weight)


# ---- questions at other sizes

def test_views_take_no_bytes_and_only_training_sees_them(net, tmp_path):
    recipe = Recipe(**KEEPS, **KINDS["half"], labels=net)
    plain, views = (distill(PHOTOS, r, tmp_path / str(r.views)) for r in (recipe, replace(recipe, views=.5)))
    assert plain.budget == views.budget and (plain.images == views.images).all() and Recipe().views == 1
    assert len(views.photos.images) > len(plain.photos.images) == 3 and "questions at" in views.photos.told
    assert len({p.photos.fingerprint for p in (plain, views)}) == 2
    assert all(equal([a], [b]) for a, b in zip(batches(views.photos), batches(views.photos)))
    numbers = -1 - np.concatenate([views.photos.sampler(CONFIG).draw(t)[2:, 0] for t in range(20)])
    assert numbers.max() >= 3 and numbers.min() >= 0   # of the stored questions and of smaller ones
    assert "--store teacher" in refusal(Recipe, views=.5) and "no share of a side" in refusal(replace, recipe, views=0.)


# ---- features inside a teacher

def test_the_teacher_that_is_matched_in_writes_the_labels(tmp_path):
    recipe = Recipe(size=32, init="random", objective="teacher-features", networks=2, real=4, steps=3, labels="teacher", teacher_steps=2)
    small = distill(PHOTOS, recipe, tmp_path / "set", RunOptions(held_out=0, snapshots=2))
    start, moved = small.trace.frame(0), small.trace.frame(1)
    assert (start != moved).any() and (small.images == labels.redraw(moved, get_teacher(PHOTOS, recipe))).all()
    assert (distill(PHOTOS, recipe, tmp_path / "again", RunOptions(held_out=0)).images == small.images).all()

def test_features_are_those_of_the_given_teacher(net, tmp_path):
    recipe = Recipe(size=32, objective="teacher-features", networks=1, real=4, steps=1)
    said = refusal(distill, PHOTOS, replace(recipe, labels=net), tmp_path / "set")
    assert "looks into an EDSR" in said and not (tmp_path / "set").exists()
    edsr = make_model("edsr", 2, 1, 4, generator=torch.Generator().manual_seed(5))
    inside = labels.InsideTeacher().pooled(replace(recipe, labels=str(save_model(edsr, tmp_path / "edsr"))), PHOTOS, 0)
    assert all(a.equal(b) for a, b in zip(inside.teacher.parameters(), edsr.parameters()))
    crops = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    assert abs(float(inside.inside(crops).std()) - 1) < 1   # in units of the spread over photos
