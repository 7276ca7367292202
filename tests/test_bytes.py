"""A set in the bytes and the format that were asked for: never over in silence, lossless where it says so, and refused before long work."""
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import features

from sr_distill import data, plan
from sr_distill import distill as loop
from sr_distill.cli import main
from sr_distill.core import read_json, write_json
from sr_distill.data import Photos, decode_image
from sr_distill.distill import DistilledSet, distill, set_bytes
from sr_distill.recipe import Recipe, RunOptions, UserError

OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=0)
RECIPE = Recipe(size=24, steps=0, init="hardest", bytes="9kB")
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
KINDS = ["png", "webp", pytest.param("avif", marks=needs_avif)]


@pytest.fixture
def photos(): return Photos.open("embedded").subset([0, 1, 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["hardest", "random", "downscaled"])
def test_as_many_chosen_images_as_fit(photos, kind, init, tmp_path):
    made = distill(photos, replace(RECIPE, init=init, format=kind), tmp_path / "set", OPTIONS)
    rest = distill(photos, replace(made.recipe, bytes=None), tmp_path / "more", OPTIONS)
    assert 6000 < (got := set_bytes(made.folder)["images"]) <= 9000 < set_bytes(rest.folder)["images"]
    left = [n for n in rest.names if n not in made.names]   # none of them would have fitted in the end
    assert left and all(n.endswith(f"{made.recipe.ipc - 1:03d}") for n in left)
    assert min((rest.folder / f"images/{n}.{kind}").stat().st_size for n in left) > 9000 - got
    assert [p.suffix for p in (made.folder / "images").iterdir()] == [f".{kind}"] * len(made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_set_is_what_decoding_gives(photos, kind, tmp_path):
    made = distill(photos, replace(RECIPE, format=kind), tmp_path / "set", replace(OPTIONS, lr_images=True))
    files = [decode_image(made.folder / e["file"]) for e in made.manifest["images"]]
    assert (np.stack(files) == made.images).all() and (Photos.open(made.folder / "images")[0] == made.images[0]).all()
    lr = [decode_image(p) for p in sorted((made.folder / "LR/X2").iterdir())]
    assert (np.stack(lr) == np.stack([data.make_lr(i, 2) for i in made.images])).all()
    moved = made.save(tmp_path / "copy").save(tmp_path / "again")   # a lossy file is not encoded once more
    assert moved.manifest["images"] == made.manifest["images"] and (distill(photos, replace(RECIPE, format=kind), made.folder, OPTIONS).images == made.images).all()
    made.images[0] = 255 - made.images[0]
    assert np.abs(made.save(tmp_path / "changed").images[0].astype(int) - made.images[0]).mean() < 3


def test_images_that_grew_are_left_out_and_told(photos, tmp_path, monkeypatch, capsys):
    "Noise takes more bytes than the windows that it began as, more than what is kept back."
    noise = np.random.default_rng(0)
    monkeypatch.setattr(loop, "redraw", lambda images, *others: noise.integers(0, 256, np.stack(images).shape, dtype=np.uint8))
    recipe = replace(RECIPE, init="random", labels="teacher", teacher_steps=1, bytes="18kB")
    made = distill(photos, recipe, tmp_path / "set", OPTIONS)
    left_out = 3 * made.recipe.ipc - len(made)
    assert left_out > 0 and set_bytes(made.folder)["images"] <= 18_000 and f"{left_out} more had no room" in "".join(loop.remarks(made.manifest))
    assert main(["inspect", str(made.folder)]) == 0 and "Of 18,000 bytes asked, images take " in capsys.readouterr().out


def test_the_command_line_takes_sizes(small_photos, tmp_path, capsys):
    folder = str(small_photos("ab"))
    assert main(f"distill {folder} {tmp_path}/set --init random --size 16 --steps 0 --bytes 3kB --format webp --device cpu".split()) == 0
    assert "Of 3,000 bytes asked, images take " in (said := capsys.readouterr().out)
    parts = (tmp_path / "set").glob("images/*"), (tmp_path / "set").rglob("*")
    images, every = (sum(p.stat().st_size for p in files if p.is_file()) for files in parts)
    assert f"images take {images:,} (" in said and f"in the folder: images {images:,}, " in said and f"; {every:,} bytes in all" in said
    for wrong, word in (("--bytes 9pigs", "is no size"), ("--bytes 100", "less than one image"), ("--bytes 3kB --budget 1", "give one"), ("--format gif", "gif"),
                        ("--bytes 250 --steps 1", "--grouping all")):
        assert main(f"distill {folder} {tmp_path}/none --size 16 --init random --device cpu --steps 0 {wrong}".split()) == 2
        assert word in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_pillow_without_the_format(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(data.features, "check", lambda name: False)
    monkeypatch.setattr(plan, "Groups", None)   # nothing is looked at before
    with pytest.raises(UserError, match="this Pillow .* was built without it"): distill(photos, replace(RECIPE, format="avif"), tmp_path / "set", OPTIONS)
    assert not (tmp_path / "set").exists()


@needs_avif
def test_a_set_in_a_format_that_is_not_here(photos, tmp_path, monkeypatch):
    made = distill(photos, replace(RECIPE, format="avif"), tmp_path / "set", OPTIONS)
    monkeypatch.setattr(data.features, "check", lambda name: False)
    with pytest.raises(UserError, match="this Pillow"): DistilledSet.load(made.folder)


def test_a_manifest_names_images_of_known_kinds(photos, tmp_path):
    made = distill(photos, RECIPE, tmp_path / "set", OPTIONS)
    shutil.copy(made.folder / made.manifest["images"][0]["file"], made.folder / "images/x.gif")
    manifest = read_json(made.folder / "manifest.json")
    manifest["images"][0]["file"] = "images/x.gif"
    write_json(made.folder / "manifest.json", manifest)
    with pytest.raises(UserError, match="is no image of this set"): DistilledSet.load(made.folder)


def test_another_format_replaces_the_files(photos, tmp_path):
    made = distill(photos, RECIPE, tmp_path / "set", OPTIONS)
    recipe = replace(made.recipe, format="webp").to_dict()
    replace(made, manifest={**made.manifest, "recipe": recipe}).save(made.folder)
    assert {p.suffix for p in (made.folder / "images").iterdir()} == {".webp"} and (DistilledSet.load(made.folder).images == made.images).all()


@needs_avif
def test_the_share_of_bytes_is_that_of_the_files(photos, tmp_path):
    made = distill(photos, replace(RECIPE, format="avif"), tmp_path / "set", OPTIONS)
    assert made.budget.bytes == set_bytes(made.folder)["images"] and "as avif files, beside the photos as PNG" in (made.folder / "README.md").read_text()
