"""What a distillation survives: being killed, stopped, refused, out of disk, not a number; and what a stored set is checked for."""
import errno
import hashlib
import io
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill import core, distill as room, explore, matching, widgets
from sr_distill.cli import main
from sr_distill.core import read_json, write_json
from sr_distill.data import Photos
from sr_distill.distill import DistilledSet, Trace, describe, distill, open_photos, set_files, snapshot_steps
from sr_distill.models import save_model
from sr_distill.parallel import precision
from sr_distill.pixel import PixelSpace, start_images
from sr_distill.recipe import Recipe, RunError, RunOptions, UserError

RECIPE = Recipe(size=24, steps=12, networks=2, real=4, init="random", pool="random")
OPTIONS = RunOptions(device="cpu", checkpoint=2, held_out=0, snapshots=5)
COMMAND = "--size 24 --steps 60 --networks 2 --real 4 --init random --pool random --device cpu --checkpoint 2 --held-out 0".split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))

@pytest.fixture
def folder(small_photos): return small_photos("abc")

def files(out: Path) -> dict:
    "Everything in a finished set that must not differ between two runs."
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in (".png", ".safetensors")}


def test_same_seed_same_bytes(folder, tmp_path):
    photos = Photos.open(folder)
    a, b = (files(distill(photos, RECIPE, tmp_path / name, OPTIONS).folder) for name in "ab")
    assert a == b and len(a) == 4
    assert files(distill(photos, replace(RECIPE, seed=1), tmp_path / "c", OPTIONS).folder) != a


@pytest.mark.parametrize("changes", [dict(), dict(outer=3, inner=2, steps=9), dict(pool="fresh", optimizer="sgd", lr=.1, objective="whole")])
def test_stopped_run_goes_on_bit_for_bit(folder, tmp_path, changes):
    photos, recipe = Photos.open(folder), replace(RECIPE, **changes)
    whole = files(distill(photos, recipe, tmp_path / "whole", OPTIONS).folder)
    class Stop:
        stopped = False
        def __call__(self, step, loss, images): self.stopped = step >= 4
    with pytest.raises(RunError, match="start the same run again"): distill(photos, recipe, tmp_path / "parts", OPTIONS, Stop())
    assert (tmp_path / "parts/.run/part-0000/checkpoint.pt").exists()
    assert files(distill(photos, recipe, tmp_path / "parts", OPTIONS).folder) == whole


def test_what_cannot_be_cut_is_told_before_a_teacher_learns(folder, tmp_path, monkeypatch):
    for name in ("get_teacher", "_pool_networks"): monkeypatch.setattr(room, name, lambda *args: pytest.fail("long work came first"))
    with pytest.raises(UserError, match="--ipc 5000"): distill(Photos.open(folder), replace(RECIPE, ipc=5000, labels="teacher"), tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("run", ["{", "{}", None])
def test_a_start_that_says_not_whose_it_is_leaves_nothing_behind(folder, tmp_path, run):
    "A pool of other networks, and a run.json that is spoilt, foreign or gone: no step was made, so all of it goes."
    photos, state = Photos.open(folder), tmp_path / "out/.run"
    state.mkdir(parents=True)
    core.save_state(state / "pool.pt", dict(states=matching.network_pool(replace(RECIPE, seed=5), photos)))
    if run: (state / "run.json").write_text(run)
    assert files(distill(photos, RECIPE, tmp_path / "out", OPTIONS).folder) == files(distill(photos, RECIPE, tmp_path / "new", OPTIONS).folder)


def test_the_same_path_with_another_model_is_another_run(folder, tmp_path):
    make = lambda seed: save_model(matching.make_model("srcnn", 2, generator=core.rng(seed, "net")), tmp_path / "net")
    photos, recipe = Photos.open(folder), replace(RECIPE, steps=2, pool=str(make(0)))
    first = files(distill(photos, recipe, tmp_path / "out", OPTIONS).folder)
    make(1)
    with pytest.raises(UserError, match="--pool"): distill(photos, recipe, tmp_path / "out", OPTIONS)
    make(0)
    assert files(distill(photos, recipe, tmp_path / "out", OPTIONS).folder) == first
    manifest = read_json(tmp_path / "out/manifest.json")
    del manifest["weights"]                            # as an older version wrote it
    write_json(tmp_path / "out/manifest.json", manifest)
    make(1)
    assert files(distill(photos, recipe, tmp_path / "out", OPTIONS).folder) == first


def test_a_run_goes_on_with_the_chunk_that_is_asked_for(folder, tmp_path):
    photos = Photos.open(folder)
    class Stop:
        stopped = False
        def __call__(self, step, loss, images): self.stopped = step >= 4
    for chunk in (7, 2):
        with pytest.raises(RunError): distill(photos, RECIPE, tmp_path / str(chunk), replace(OPTIONS, chunk=7), Stop())
    assert distill(photos, RECIPE, tmp_path / "7", OPTIONS).manifest["report"]["chunk"] == 7
    assert distill(photos, RECIPE, tmp_path / "2", replace(OPTIONS, chunk=2)).manifest["report"]["chunk"] == 2
    assert files(tmp_path / "7") == files(tmp_path / "2")


def test_windows_without_error_can_be_drawn_by_error(tmp_path, small_photos):
    photos = Photos.open(small_photos("ab"))
    black = Photos.from_arrays(["a", "black"], [photos[0], np.zeros((60, 72, 3), np.uint8)])
    assert len(distill(black, replace(RECIPE, target="error", steps=2), tmp_path / "out", OPTIONS)) == 2


@pytest.mark.apart
def test_killed_at_any_moment_it_ends_the_same(folder, tmp_path):
    "Before the first step, at a checkpoint, within the steps after it, and between the last step and the set."
    start = lambda out: forks.fork(lambda: main(["distill", str(folder), str(tmp_path / out), *COMMAND]), tmp_path / "log")
    assert start("whole").wait() == 0
    kills, saved = 0, "part-0000/checkpoint.pt"
    for mark, delay in [("run.json", 0), (saved, 0), (saved, .1), (saved, .25), ("part-0000/end.npy", 0)]:
        process = start("killed")
        while process.poll() is None and not (tmp_path / "killed/.run" / mark).exists(): time.sleep(.005)
        process.wait(delay)
        kills += process.kill()
    assert start("killed").wait() == 0
    assert kills >= 2 and files(tmp_path / "killed") == files(tmp_path / "whole")


def test_one_writer_and_one_recipe_per_folder(folder, tmp_path):
    photos = Photos.open(folder)
    with core.folder_lock(tmp_path / "out"):
        with pytest.raises(UserError, match="another sr_distill process"): distill(photos, RECIPE, tmp_path / "out", OPTIONS)
    distill(photos, RECIPE, tmp_path / "out", OPTIONS)
    with pytest.raises(UserError, match="--init random"): distill(photos, replace(RECIPE, init="noise"), tmp_path / "out", OPTIONS)
    with pytest.raises(UserError, match="other photos"): distill(photos.subset([0, 1]), RECIPE, tmp_path / "out", OPTIONS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.txt").write_text("keep me")
    with pytest.raises(UserError, match="holiday.txt"): distill(photos, RECIPE, tmp_path / "mine", OPTIONS)


def test_loss_that_is_no_number_keeps_the_checkpoint(folder, tmp_path, monkeypatch):
    step = room.Run.step
    def broken(self):
        step(self)
        if self.done == 7: self.losses[6] = float("nan")
    monkeypatch.setattr(room.Run, "step", broken)
    monkeypatch.setattr(room, "READ_EVERY", 1)
    with pytest.raises(RunError, match="smaller --lr"): distill(Photos.open(folder), RECIPE, tmp_path / "out", OPTIONS)
    assert core.load_state(tmp_path / "out/.run/part-0000/checkpoint.pt")["done"] == 6


def test_full_disk_is_said_and_the_run_goes_on_later(folder, tmp_path, monkeypatch):
    photos = Photos.open(folder)
    whole = files(distill(photos, RECIPE, tmp_path / "whole", OPTIONS).folder)
    save = core.torch.save
    def full(state, path):
        if state.get("done") == 6: raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)
    with monkeypatch.context() as m:
        m.setattr(core.torch, "save", full)
        with pytest.raises(RunError, match="No space left"): distill(photos, RECIPE, tmp_path / "out", OPTIONS)
    assert files(distill(photos, RECIPE, tmp_path / "out", OPTIONS).folder) == whole


def test_damaged_checkpoint_is_named(folder, tmp_path):
    class Stop:
        stopped = True
        def __call__(self, *_): pass
    photos = Photos.open(folder)
    with pytest.raises(RunError): distill(photos, RECIPE, tmp_path / "out", OPTIONS, Stop())
    checkpoint = tmp_path / "out/.run/part-0000/checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:50])
    with pytest.raises(UserError, match="checkpoint.pt: is damaged"): distill(photos, RECIPE, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("pool", ["fresh", "a folder"])
def test_features_ask_no_pool(folder, tmp_path, pool):
    save_model(matching.fresh_network(RECIPE), tmp_path / "model")
    recipe = replace(RECIPE, objective="features", pool=pool if pool == "fresh" else str(tmp_path / "model"), steps=2)
    assert np.isfinite([loss for _, loss in distill(Photos.open(folder), recipe, tmp_path / "out", OPTIONS).trace.losses]).all()


def test_apples_gpu_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sr_distill.plan.pick_device", lambda name: torch.device("mps"))
    with pytest.raises(UserError, match="--device mps"): distill(Photos.open(folder), RECIPE, tmp_path / "out", replace(OPTIONS, device="mps"))
    assert not (tmp_path / "out").exists()


def test_seconds_count_what_came_before_an_interruption(folder, tmp_path, monkeypatch):
    "Two groups in two parts: the first part done, the second stopped, by a clock that goes on a second at each look."
    monkeypatch.setattr(room, "PART_BYTES", 4 * 4 * 3 * 24**2)
    now = [0.]
    def clock(): now[0] += 1; return now[0]
    monkeypatch.setattr(room.time, "perf_counter", clock)
    class Stop:
        calls, stopped = 0, False
        def __call__(self, *_): self.calls += 1; self.stopped = self.calls > 12
    photos = Photos.open(folder).subset([0, 1])
    with pytest.raises(RunError): distill(photos, RECIPE, tmp_path / "out", OPTIONS, Stop())
    spent = [read_json(p)["seconds"] for p in sorted((tmp_path / "out/.run").glob("part-*/seconds.json"))]
    assert len(spent) == 2 and 0 < spent[0] < spent[1] <= now[0]
    began = now[0]
    seconds = distill(photos, RECIPE, tmp_path / "out", OPTIONS).manifest["report"]["seconds"]
    assert spent[1] < seconds <= spent[1] + now[0] - began


def test_zero_steps_store_the_start(folder, tmp_path):
    s = distill(Photos.open(folder), replace(RECIPE, steps=0), tmp_path / "out", OPTIONS)
    assert s.manifest["report"]["moved"] == dict(share=0, mean=0) and len(s.trace) == 1
    assert (s.trace.frame(0) == s.images).all()


@pytest.mark.parametrize("grouping, ipc", [("all", 5), ("cluster", 2), ("image", 3)])
def test_every_grouping_and_ipc(folder, tmp_path, grouping, ipc):
    s = distill(Photos.open(folder), replace(RECIPE, grouping=grouping, clusters=2, ipc=ipc, steps=2), tmp_path / "out", replace(OPTIONS, chunk=2))
    assert len(s) == ipc * {"all": 1, "cluster": 2, "image": 3}[grouping] == len(set(s.names))


def test_budget_target_sets_ipc(folder, tmp_path):
    s = distill(Photos.open(folder), replace(RECIPE, budget=40., steps=0), tmp_path / "out", OPTIONS)
    assert s.recipe.ipc == 2 and s.budget.shares["pixels"] == pytest.approx(100 * 6 * 24**2 / (3 * 60**2))
    assert len(distill(Photos.open(folder), replace(RECIPE, budget=40., steps=0), tmp_path / "out", OPTIONS)) == 6   # and goes on under it


def test_a_stored_set_is_checked(folder, tmp_path):
    s = distill(Photos.open(folder), RECIPE, tmp_path / "out", replace(OPTIONS, lr_images=True))
    assert Image.open(tmp_path / "out/LR/X2/a.png").size == (12, 12)
    assert (DistilledSet.load(tmp_path / "out").images == s.images).all()
    manifest = read_json(tmp_path / "out/manifest.json")
    assert [len(x["sha256"]) for x in manifest["sources"]] == [64] * 3 and manifest["versions"]["torch"]
    def broken(match, **changes):
        write_json(tmp_path / "out/manifest.json", {**manifest, **changes})
        with pytest.raises(UserError, match=match): DistilledSet.load(tmp_path / "out")
    broken("no image of this set", images=[dict(file="../photos/a.png", sha256="0")])
    broken("no image of this set", images=["a.png"])
    broken("no 'sources'", sources=[])
    broken("no manifest", format="other")
    broken("no setting", recipe={"speed": 1})
    write_json(tmp_path / "out/manifest.json", manifest)
    (tmp_path / "out/images/b.png").write_bytes((tmp_path / "out/images/a.png").read_bytes())
    with pytest.raises(UserError, match="b.png: differs"): open_photos(tmp_path / "out")
    with pytest.raises(UserError, match="b.png: differs"): describe(tmp_path / "out")


def test_trace_is_lossless_and_ordered(folder, tmp_path):
    s = distill(Photos.open(folder), RECIPE, tmp_path / "out", OPTIONS)
    assert s.trace.steps == snapshot_steps(12, 5) and (s.trace.frame(len(s.trace) - 1) == s.images).all()
    assert [step for step, _ in s.trace.losses] == list(range(1, 13))
    (tmp_path / "out/trace.safetensors").write_bytes(b"PK")
    with pytest.raises(UserError, match="trace.safetensors"): Trace(tmp_path / "out/trace.safetensors")


def test_card_points_data_loaders_at_images_alone(folder, tmp_path):
    distill(Photos.open(folder), RECIPE, tmp_path / "out", OPTIONS)
    header = (tmp_path / "out/README.md").read_text().split("---")[1]
    assert "path: images/*.png" in header and "split: train" in header


def test_manifest_is_valid_json_without_nan(folder, tmp_path):
    distill(Photos.open(folder), RECIPE, tmp_path / "out", OPTIONS)
    json.loads((tmp_path / "out/manifest.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in the manifest"))


@pytest.mark.parametrize("ipc", [1, 2])
def test_parts_of_one_process_change_nothing(folder, tmp_path, monkeypatch, ipc):
    "A set too large for memory is distilled part by part; the images, the trace and its losses are the same."
    photos, recipe = Photos.open(folder), replace(RECIPE, ipc=ipc)
    whole = files(distill(photos, recipe, tmp_path / "whole", OPTIONS).folder)
    monkeypatch.setattr(room, "PART_BYTES", ipc * 4 * 4 * 3 * 24**2)   # one group
    monkeypatch.setattr("sr_distill.plan.TRACE_IMAGES", 2)
    parts = []
    step = room._run_part
    monkeypatch.setattr(room, "_run_part", lambda plan, part, *a: parts.append(part) or step(plan, part, *a))
    s = distill(photos, recipe, tmp_path / "parts", OPTIONS)
    assert [(p.first, p.last) for p in parts] == [(0, 1), (1, 2), (2, 3)]
    made = files(s.folder)
    assert {k: v for k, v in made.items() if k != "trace.safetensors"} == {k: v for k, v in whole.items() if k != "trace.safetensors"}
    assert s.trace.frame(len(s.trace) - 1).shape[0] == 2 and (s.trace.frame(len(s.trace) - 1) == s.images[:2]).all()
    assert s.trace.losses == Trace(tmp_path / "whole/trace.safetensors").losses


def test_out_of_memory_halves_the_chunk_and_goes_on(folder, tmp_path, monkeypatch):
    "What a GPU does when it is full, acted on the CPU."
    photos, recipe = Photos.open(folder), replace(RECIPE, ipc=4, steps=3)
    wanted = distill(photos, recipe, tmp_path / "whole", OPTIONS).images
    tries, match, gradient = [], room.match, matching.gradient
    def full(net, images, targets, metric, chunk, low):
        tries.append(chunk)
        if chunk > 2: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return match(net, images, targets, metric, chunk, low)
    monkeypatch.setattr(room, "match", full)
    s = distill(photos, recipe, tmp_path / "out", replace(OPTIONS, chunk=8))
    assert tries == [8, 4, 2, 2, 2] and s.manifest["report"]["chunk"] == 2
    assert (s.images == wanted).all()
    monkeypatch.setattr(room, "match", lambda *a: full(*a[:4], 3, None))
    with pytest.raises(RunError, match="no room for one image of 24²"): distill(photos, recipe, tmp_path / "never", OPTIONS)
    assert (tmp_path / "never/.run/pool.pt").exists()
    sizes = []
    def narrow(net, hr, create_graph=False, lr=None):
        sizes.append(len(hr))
        if len(hr) > 2: raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return gradient(net, hr, create_graph)
    monkeypatch.setattr(matching, "gradient", narrow)
    net, x = matching.fresh_network(recipe), torch.rand(8, 3, 24, 24)
    flat = matching.mean_gradient(net, np.arange(8), lambda part: x[part], matching.Pieces("cpu", 8))
    assert max(sizes) == 8 and sizes[-1] == 2 and torch.allclose(flat, matching.flatten(gradient(net, x)), atol=1e-6)


def test_neither_chunks_nor_threads_change_a_bit(folder, tmp_path):
    photos, recipe, threads = Photos.open(folder), replace(RECIPE, ipc=4, steps=10), torch.get_num_threads()
    try:
        made = []
        for n, chunk in ((1, 4), (2, 1), (3, 2)):
            losses = []   # to the last bit of float64
            torch.set_num_threads(n)
            s = distill(photos, recipe, tmp_path / str(n), replace(OPTIONS, chunk=chunk), lambda step, loss, images: losses.append(loss))
            made.append((losses, files(s.folder)))
    finally: torch.set_num_threads(threads)
    assert made[0] == made[1] == made[2] and len(made[0][0]) > 5


@pytest.mark.cuda
@precision()
def test_cuda_never_waits_and_agrees_with_the_cpu(folder, tmp_path):
    photos, recipe = Photos.open(folder), replace(RECIPE, size=48, steps=4)
    groups = room.Groups(photos, "image", 48, 24)
    banks = {d: matching.GradientBank(groups, recipe, matching.network_pool(recipe, photos), device=d).build() for d in ("cpu", "cuda")}
    runs = {d: room.Run(PixelSpace(start_images(groups, recipe), d), recipe, matching.BankSource(bank), d) for d, bank in banks.items()}
    for run in runs.values(): run.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2): runs["cuda"].step()
    finally: torch.cuda.set_sync_debug_mode("default")
    assert np.allclose(banks["cpu"].file.rows, banks["cuda"].file.rows, atol=1e-5)
    for _ in range(2): runs["cpu"].step()
    assert torch.allclose(runs["cpu"].losses[:3], runs["cuda"].losses[:3].cpu(), rtol=1e-3)


@pytest.mark.cuda
def test_a_full_gpu_halves_the_chunk_and_goes_on(folder, tmp_path):
    "What the failed try held is free for the next: with three fifths of the memory, half the images at once have room."
    photos, recipe, options = Photos.open(folder), replace(RECIPE, ipc=512, steps=2, init="noise"), replace(OPTIONS, chunk=512, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    wanted = distill(photos, recipe, tmp_path / "whole", options)
    peak, all_of_it = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / all_of_it)
    try: made = distill(photos, recipe, tmp_path / "full", options)
    finally: torch.cuda.set_per_process_memory_fraction(1.0)
    assert wanted.manifest["report"]["chunk"] == 512 and made.manifest["report"]["chunk"] == 256
    assert np.abs(np.asarray(made.images, int) - np.asarray(wanted.images, int)).max() <= 1


# ---- the files of a set

def version_one(folder, latents=None):
    "A set as version 0.1 stored it: no figures of the disk in the manifest, and the trace in a zip file."
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    (folder / "images").mkdir(parents=True)
    for name, image in zip("ab", images): Image.fromarray(image).save(folder / f"images/{name}.png")
    listed = [dict(file=f"images/{n}.png", sha256=hashlib.sha256((folder / f"images/{n}.png").read_bytes()).hexdigest(), bytes=(folder / f"images/{n}.png").stat().st_size) for n in "ab"]
    budget = dict(images=2, pixels=1152, bytes=3000, real_images=2, real_pixels=11520, real_bytes=30000, images_percent=100.0, pixels_percent=10.0, bytes_percent=10.0)
    recipe = {k: v for k, v in Recipe(size=24, steps=1).to_dict().items() if k in Recipe.ALWAYS}
    write_json(folder / "manifest.json", dict(format="sr_distill set, version 1", recipe=recipe, photos="0" * 64, budget=budget, source="photos", sources=[dict(name=n, file=f"{n}.png", sha256="1" * 64) for n in "ab"],
                                              versions={}, report=dict(moved=dict(share=.5, mean=2.0)), metrics=[], images=listed))
    frames = {f"{step:07d}.png": frame.reshape(-1, 24, 3) for step, frame in ((0, 255 - images), (1, images))}
    with zipfile.ZipFile(folder / "trace.zip", "w") as z:
        z.writestr("trace.json", json.dumps(dict(steps=[0, 1], losses=[.25], names=["a", "b"])))
        for name, tall in frames.items():
            png = io.BytesIO(); Image.fromarray(tall).save(png, "PNG"); z.writestr(name, png.getvalue())
    return images


def test_a_set_of_version_0_1_opens_and_is_brought_up_to_date(tmp_path):
    images = version_one(tmp_path / "old")
    old = DistilledSet.load(tmp_path / "old")
    assert (old.images == images).all() and (old.trace.frame(1) == images).all() and (old.trace.frame(0) == 255 - images).all() and old.trace.losses == [(1, .25)]
    said = describe(tmp_path / "old")
    assert "trace.zip: image-folder loaders unpack it" in said and f"trace {(tmp_path / 'old/trace.zip').stat().st_size:,}" in said
    pixels = {p.name: p.read_bytes() for p in (tmp_path / "old/images").iterdir()}
    (tmp_path / "old/LR/X2").mkdir(parents=True)
    for name in "ab": (tmp_path / f"old/LR/X2/{name}.png").write_bytes(pixels[f"{name}.png"])   # no list of the images beside them
    for folder in (tmp_path / "new", tmp_path / "old"):      # elsewhere, and where it lies
        new = old.save(folder)
        assert (folder / "metadata.csv").read_text() == "file_name\nimages/a.png\nimages/b.png\n" and len(list((folder / "LR/X2").iterdir())) == 2
        assert not (folder / "trace.zip").exists() and (new.trace.frame(1) == images).all() and (DistilledSet.load(folder).trace.frame(0) == 255 - images).all()
        assert {p.name: np.asarray(Image.open(p)).tobytes() for p in (folder / "images").iterdir()} == {k: np.asarray(Image.open(io.BytesIO(v))).tobytes() for k, v in pixels.items()}
        old = DistilledSet.load(tmp_path / "old")
    assert "trace.zip" not in describe(tmp_path / "old")


def tell(folder): return {what: sum(p.stat().st_size for p in paths) for what, paths in set_files(folder).items() if paths}


def test_every_figure_of_bytes_is_what_lies_on_the_disk(folder, tmp_path):
    s = distill(Photos.open(folder), Recipe(size=24, steps=2, pool="random", networks=1, real=2), tmp_path / "out", RunOptions(device="cpu", held_out=0, lr_images=True, snapshots=3))
    out, sizes = tmp_path / "out", tell(tmp_path / "out")
    every = sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and not p.name.startswith("."))
    assert sum(sizes.values()) == every and set(sizes) == {"images", "LR copies", "trace", "card and manifest"}
    told = {k: n for k, n in sizes.items() if k != "card and manifest"}
    assert s.manifest["stored_bytes"] == told == json.loads((out / "manifest.json").read_text())["stored_bytes"]
    assert f"{every:,} bytes in all" in describe(out) and f"trace {sizes['trace']:,}" in describe(out)
    assert f"{sum(told.values()):,} bytes in all" in (out / "README.md").read_text()


def test_no_snapshots_no_trace(folder, tmp_path):
    seen = []
    s = distill(Photos.open(folder), Recipe(size=24, steps=12, pool="random", networks=1, real=2), tmp_path / "out", RunOptions(device="cpu", held_out=0, snapshots=0), lambda step, loss, images: seen.append(images))
    plain = distill(Photos.open(folder), Recipe(size=24, steps=12, pool="random", networks=1, real=2), tmp_path / "plain", RunOptions(device="cpu", held_out=0))
    assert s.trace is None and set(tell(tmp_path / "out")) == {"images", "card and manifest"} and set(seen) == {None} and (s.images == plain.images).all()
    for show in (widgets.player, widgets.evolution, lambda t: widgets.evolution(t, live=True)):
        with pytest.raises(UserError, match="--snapshots 0"): show(s.trace)
    with pytest.raises(UserError, match="--snapshots 0"): explore.gradient_film(s, Photos.open(folder))


def test_changed_images_leave_what_no_longer_fits_behind(folder, tmp_path, caplog):
    s = distill(Photos.open(folder), Recipe(size=24, steps=0), tmp_path / "out", RunOptions(device="cpu", held_out=0, lr_images=True))
    assert (s.save(tmp_path / "same").folder / "LR/X2").is_dir() and "stored_bytes" in s.manifest
    replace(s, images=255 - s.images).save(tmp_path / "other")
    assert not (tmp_path / "other/LR").exists() and "not copied" in caplog.text


def test_a_budget_below_what_was_asked_for_is_explained(folder, tmp_path):
    s = distill(Photos.open(folder), Recipe(size=24, init="random", steps=0, budget=45.), tmp_path / "out", RunOptions(device="cpu", held_out=0))
    for said in (describe(tmp_path / "out"), (tmp_path / "out/README.md").read_text()): assert "`--budget 45` is an upper limit" in said and f"{len(s)} images for" in said


@pytest.mark.parametrize("changes, words", [
    (dict(pool="net", network="srcnn"), "holds"), (dict(labels="net", scale=3, size=24), "--labels"),
    (dict(init="loss", ipc=99), "group a has only 4, group b has only 4, group c has only 4 sub-images of 24² that do not overlap"),
    (dict(init="diverse", ipc=99, trim=0), "group c has only")])
def test_refused_before_any_work(folder, tmp_path, monkeypatch, changes, words):
    def never(*a, **k): raise AssertionError("work has begun")
    monkeypatch.chdir(tmp_path)
    save_model(matching.make_model("vdsr", 2, 2, 4), tmp_path / "net")
    for name in ("distill.network_pool", "plan.start_images", "distill.GradientBank"): monkeypatch.setattr(f"sr_distill.{name}", never)
    with pytest.raises(UserError, match=words): distill(Photos.open(folder), replace(RECIPE, **changes), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()
