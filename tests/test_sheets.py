"""Sets that store their images side by side in sheets: the same images, fewer files, and refused where single files are meant."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import features

from sr_distill import sets
from sr_distill.cli import main
from sr_distill.data import Photos, decode_image, encode_image
from sr_distill.distill import DistilledSet, distill, set_bytes
from sr_distill.export import export_set
from sr_distill.recipe import Recipe, RunOptions, UserError
from sr_distill.sets import cut_sheet, make_sheet, open_photos

OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=0)
RECIPE = Recipe(size=24, steps=0, init="hardest", bytes="20kB", sheet=True)
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
KINDS = ["png", "webp", pytest.param("avif", marks=needs_avif)]


@pytest.fixture
def photos(): return Photos.open("embedded").subset([0, 1, 2])

@pytest.fixture
def few(monkeypatch):
    "Sheets of eight images, in rows of four, so that a small set has several."
    monkeypatch.setattr(sets, "SHEET", 8); monkeypatch.setattr(sets, "ACROSS", 4)

def sheets_of(folder): return {p.name: p.read_bytes() for p in (folder / "images").iterdir()}


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 255, 256])
def test_a_sheet_gives_its_images_back(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    sheet = make_sheet(images)
    assert (cut_sheet(sheet, n, 6) == images).all() and sheet.shape[1] == 6 * min(n, 16)
    with pytest.raises(UserError, match="restore it"): cut_sheet(sheet, n + 16, 6)
    with pytest.raises(UserError, match="in colour"): cut_sheet(sheet[..., 0], n, 6)


def test_large_images_make_smaller_sheets():
    "No side over 8,192 pixels, which every format holds, and no picture that Pillow takes for a bomb."
    assert sets.sheet_grid(64) == (16, 256) and sets.sheet_grid(1024) == (8, 64) and sets.sheet_grid(9000) == (1, 1)
    assert all(across * side <= 8192 and n <= 256 and n * side**2 < 80e6 for side in range(16, 8193, 16) for across, n in [sets.sheet_grid(side)])
    images = np.random.default_rng(0).integers(0, 256, (9, 1024, 1024, 3), dtype=np.uint8)
    assert (cut_sheet(make_sheet(images), 9, 1024) == images).all() and make_sheet(images).shape == (2048, 8192, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_images_as_fit_and_the_same_again(photos, kind, few, tmp_path):
    made = distill(photos, replace(RECIPE, format=kind), tmp_path / "set", OPTIONS)
    taken, files = set_bytes(made.folder)["images"], sheets_of(made.folder)
    assert len(files) == -(-len(made) // 8) > 1 and 18_000 < taken <= 20_000 and taken == made.budget.bytes
    whole = distill(photos, replace(made.recipe, bytes=None, ipc=made.recipe.ipc), tmp_path / "whole", OPTIONS)
    order = loop_order(whole, made)
    one_more = [*made.names, next(name for name in order if name not in made.names)]
    images = np.stack([first_images(whole, photos)[name] for name in one_more])
    assert sum(map(len, sets.encode_images(images, made.recipe))) > 20_000   # the next image has no room
    loaded = DistilledSet.load(made.folder)
    assert (loaded.images == made.images).all() and loaded.names == made.names and loaded.manifest == made.manifest
    assert sheets_of(loaded.save(tmp_path / "copy").save(tmp_path / "again").folder) == files   # nothing is encoded twice
    assert (open_photos(made.folder)[1] == made.images[1]).all()
    assert sheets_of(distill(photos, replace(RECIPE, format=kind), made.folder, OPTIONS).folder) == files
    if kind != "avif":
        exact = first_images(whole, photos)
        assert all((image == exact[name]).all() for image, name in zip(made.images, made.names))

def loop_order(whole, made):
    from sr_distill.distill import _by_rank
    return [whole.names[i] for i in _by_rank(made.recipe, whole.images)]

def first_images(whole, photos):
    "The images before any file, by name."
    from sr_distill.patches import Groups
    from sr_distill.pixel import start_images
    r = whole.recipe
    start = start_images(Groups(photos, "image", r.size, r.stride), r)
    return {f"{photos.names[k // r.ipc]}_{k % r.ipc:03d}" if r.ipc > 1 else photos.names[k]: image for k, image in enumerate(start)}


@needs_avif
def test_sheets_hold_more_windows_in_as_many_bytes(tmp_path):
    photos = Photos.open("embedded")
    counts = [len(distill(photos, Recipe(size=64, steps=0, init="hardest", bytes="30kB", format="avif", sheet=sheet), tmp_path / str(sheet), OPTIONS)) for sheet in (False, True)]
    assert counts[1] > 1.1 * counts[0]


def test_beside_a_program_and_a_teacher(photos, few, tmp_path):
    mixed = replace(RECIPE, space="procedural", share=.5, init="hardest", format="webp")
    made = distill(photos, mixed, tmp_path / "mixed", OPTIONS)
    assert 16_000 < set_bytes(made.folder)["images"] + set_bytes(made.folder)["program"] <= 20_000 and made.program
    asked = replace(RECIPE, labels="teacher", store="teacher", teacher_steps=1, bytes=None, ipc=4)
    taught = distill(photos, asked, tmp_path / "taught", OPTIONS)
    again = DistilledSet.load(taught.folder)
    assert again.questions.shape == (12, 12, 12, 3) and (again.images == taught.images).all() and len(sheets_of(taught.folder)) == 2


def test_distilled_images_go_into_sheets(photos, few, tmp_path):
    recipe = replace(RECIPE, steps=2, networks=1, real=4, init="random", bytes=None, ipc=3)
    made, single = (distill(photos, replace(recipe, sheet=sheet), tmp_path / str(sheet), OPTIONS) for sheet in (True, False))
    assert {n: i.tobytes() for n, i in zip(made.names, made.images)} == {n: i.tobytes() for n, i in zip(single.names, single.images)}


def test_old_files_go_when_the_way_to_store_changes(photos, few, tmp_path):
    made = distill(photos, replace(RECIPE, bytes=None, ipc=5), tmp_path / "set", OPTIONS)
    for name in ("mine", "sheet-music"): (made.folder / f"images/{name}.png").write_bytes(encode_image(made.images[0]))   # not of the set: they stay
    single = replace(made, manifest={**made.manifest, "recipe": replace(made.recipe, sheet=False).to_dict()}).save(made.folder)
    assert len(sheets_of(made.folder)) == 17 and (DistilledSet.load(made.folder).images == made.images).all() and "sheets" not in single.manifest
    fewer = replace(single, images=single.images[:3], names=single.names[:3], manifest={**made.manifest, "recipe": made.recipe.to_dict()})
    fewer.save(made.folder)
    assert {"sheet-000.png", "mine.png", "sheet-music.png"} <= set(sheets_of(made.folder)) and not {n + ".png" for n in fewer.names} & set(sheets_of(made.folder))


def test_what_is_spoilt_is_named(photos, few, tmp_path):
    made = distill(photos, replace(RECIPE, bytes=None, ipc=5), tmp_path / "set", OPTIONS)
    def spoilt(change, said):
        copy = tmp_path / "spoilt"
        shutil.rmtree(copy, ignore_errors=True); shutil.copytree(made.folder, copy)
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
        change(copy, manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(UserError, match=said): DistilledSet.load(copy)
    spoilt(lambda copy, m: (copy / "images/sheet-001.png").unlink(), r"sheet-001\.png: is missing")
    spoilt(lambda copy, m: (copy / "images/sheet-001.png").write_bytes(b"x"), r"sheet-001\.png: differs from the manifest")
    spoilt(lambda copy, m: m["sheets"].pop(), "lists 1 sheets, and its images need 2")
    spoilt(lambda copy, m: m["images"].__delitem__(slice(4)), r"sheet-001\.png: a sheet of 3 images of 24² has 72x24 pixels, not 96x48")
    for name in ("../x", "", "..", "a/b", "a\\b", 3, None): spoilt(lambda copy, m: m["images"][0].update(name=name), "restore it or distil again")
    spoilt(lambda copy, m: m["images"][0].update(name=m["images"][1]["name"]), "listed twice")
    spoilt(lambda copy, m: m.update(sheets={}), "has no 'sheets'")
    spoilt(lambda copy, m: m["sheets"][0].update(file="../secret.png"), "is no image of this set")


def test_single_files_are_had_by_export(photos, few, tmp_path, capsys):
    made = distill(photos, replace(RECIPE, bytes=None, ipc=5), tmp_path / "set", OPTIONS)
    export_set(made.folder, tmp_path / "out", "basicsr")
    exported = sorted((tmp_path / "out").rglob("*.png"))
    wanted = {image.tobytes() for image in made.images}
    assert wanted == {u8.tobytes() for u8 in map(decode_image, exported) if u8.shape == (24, 24, 3)}
    with pytest.raises(UserError, match="stores its images in sheets; `sr_distill export"): distill(photos, replace(RECIPE, init=str(made.folder), sheet=False, bytes=None, ipc=5), tmp_path / "next", OPTIONS)
    with pytest.raises(UserError, match="sheets have no LR copies"): distill(photos, RECIPE, tmp_path / "pairs", replace(OPTIONS, lr_images=True))
    with pytest.raises(UserError, match="sheets have no LR copies"): made.store_lr()
    assert main(["inspect", str(made.folder)]) == 0 and "15 images" in capsys.readouterr().out


def test_the_card_speaks_of_sheets(photos, few, tmp_path):
    made = distill(photos, replace(RECIPE, bytes=None, ipc=5), tmp_path / "set", OPTIONS)
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "sheets of up to 256 images side by side" in card and "plain PNG" not in card and "data_files" not in card
    single = distill(photos, replace(RECIPE, bytes=None, ipc=1, sheet=False), tmp_path / "single", replace(OPTIONS, lr_images=True))
    as_sheets = replace(single, manifest={**single.manifest, "recipe": replace(single.recipe, sheet=True).to_dict()})
    with pytest.raises(UserError, match="holds LR copies, but sheets have no LR copies beside them"): as_sheets.save(single.folder)
    assert not set_bytes(as_sheets.save(tmp_path / "new").folder).get("LR copies")


def test_going_on_from_sheets_leads_through_export(photos, few, tmp_path):
    recipe = replace(RECIPE, steps=1, networks=1, real=4, init="random", bytes=None, ipc=3)
    distill(photos, recipe, tmp_path / "set", OPTIONS)
    with pytest.raises(UserError, match=r"go on from its images, `sr_distill export .*set OUT`, then give another folder, with --init OUT/HR --steps 2"):
        distill(photos, replace(recipe, steps=3), tmp_path / "set", OPTIONS)


@pytest.mark.parametrize("wrong, said", [(dict(bit_weight=1., format="avif"), "--sheet changes the size that --bit-weight estimates"),
                                         (dict(space="latent"), "--sheet is not for latent space, whose latents make the images"),
                                         (dict(space="procedural", steps=0), "--sheet is for stored images")])
def test_where_there_is_nothing_to_put_on_sheets(wrong, said):
    with pytest.raises(UserError, match=said): Recipe(sheet=True, **wrong)
    assert Recipe(size=24).difference(Recipe(size=24, sheet=True).to_dict()) == "was made with `--sheet`; this command says `no --sheet`"


def test_too_few_bytes_for_one_image_are_refused(photos, few, tmp_path):
    with pytest.raises(UserError, match="is less than one image"): distill(photos, replace(RECIPE, bytes=300), tmp_path / "set", OPTIONS)
    for size in (1411, 1500, 1900):   # at first the hardest image alone has no room, another has
        made = distill(photos, replace(RECIPE, bytes=size), tmp_path / str(size), OPTIONS)
        assert len(DistilledSet.load(made.folder)) >= 1 and set_bytes(made.folder)["images"] <= size
