"""Photos as people have them: names, endings, containers, damage, and what is left out of a folder."""
import gzip
import io
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill import data
from sr_distill.cli import main
from sr_distill.data import Photos, decode_image, image_files, list_images, make_lr, pair_lr
from sr_distill.metrics import evaluate
from sr_distill.recipe import RunError, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / ".cache"))

def picture(h=40, w=48, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)

def save(path, a=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if a is None else a).save(path, **how)
    return path


# ---- HR and LR

def pairs(tmp_path, hr, lr, scale=2, **how):
    "The names that `pair_lr` finds for HR files with LR files of the right size."
    for k, name in enumerate(hr): save(tmp_path / "hr" / name, picture(seed=k))
    for k, name in enumerate(lr): save(tmp_path / "lr" / name, make_lr(picture(seed=k), scale))
    return [f.name for f in pair_lr(Photos.open(tmp_path / "hr"), tmp_path / "lr", scale, **how)]

@pytest.mark.parametrize("hr, lr", [
    ("bird.png", "birdx2.PNG"), ("bird.PNG", "BIRD_x2.png"), ("bird_HR_x2.png", "bird_LR_x2.png"), ("img_001_SRF_2_HR.png", "img_001_SRF_2_LR.png"),
    ("bird.png", "X2/bird.png"), ("bird.png", "x2/birdx2.png"), ("bird_HR.png", "bird_LR.png"), ("bird-HR.png", "bird-LR.png"), ("0801.png", "0801x2.png"),
    (unicodedata.normalize("NFC", "Bär.png"), unicodedata.normalize("NFD", "Bärx2.png"))])
def test_names_of_pairs(tmp_path, hr, lr): assert pairs(tmp_path, [hr], [lr]) == [lr.rsplit("/", 1)[-1]]

def test_a_name_of_ones_own(tmp_path):
    assert pairs(tmp_path, ["a.png"], ["small a by 2.png"], template="small {name} by {scale}") == ["small a by 2.png"]
    with pytest.raises(UserError, match="no file for a .*small"): pair_lr(Photos.open(tmp_path / "hr"), tmp_path / "lr", 2, template="{name}_small")
    with pytest.raises(UserError, match="--lr-name .*only"): pair_lr(Photos.open(tmp_path / "hr"), tmp_path / "lr", 2, template="{nam}")

def test_two_files_of_one_stem_are_told(tmp_path):
    with pytest.raises(UserError, match="two files for a: ax2.bmp and ax2.webp"): pairs(tmp_path, ["a.png"], ["ax2.webp", "ax2.bmp"])

def test_the_ending_of_the_hr_file_decides_between_two(tmp_path):
    assert pairs(tmp_path, ["a.png"], ["ax2.png", "ax2.bmp"]) == ["ax2.png"]

def test_one_lr_file_of_two_photos_is_told(tmp_path):
    with pytest.raises(UserError, match="ax2.webp would be the LR image of a and of a_2"): pairs(tmp_path, ["a.png", "a.bmp"], ["ax2.webp"])

def test_hr_is_cut_to_lr_on_request(tmp_path, capsys):
    save(tmp_path / "hr/a.png", picture(41, 50))
    save(tmp_path / "lr/a.png", make_lr(picture(41, 50), 2)[:18, :20])
    command = ["evaluate", "bicubic", str(tmp_path / "hr"), "--lr-dir", str(tmp_path / "lr"), "--lpips", "none"]
    assert main(command) == 2 and "--crop-hr" in capsys.readouterr().err
    assert main([*command, "--crop-hr"]) == 0
    cut = evaluate("bicubic", Photos.from_arrays("a", [picture(41, 50)[:36, :40]]), 2, tmp_path / "lr", lpips="none", crop_hr=True).mean
    assert f"{cut['psnr_y']:.2f}" in capsys.readouterr().out

def test_no_folder_of_lr_images(tmp_path):
    with pytest.raises(UserError, match="no such folder"): pair_lr(Photos.from_arrays("a", [picture()]), tmp_path / "gone", 2)


def test_damaged_lr_files_are_listed_with_the_others(tmp_path):
    for name in "abc": save(tmp_path / "hr" / f"{name}.png")
    save(tmp_path / "lr/c.png", picture(9, 9))
    (tmp_path / "lr/a.png").write_bytes(b"junk"), (tmp_path / "lr/b.png").touch(), (tmp_path / "lr/d.heic").touch()
    with pytest.raises(UserError, match="3 LR images do not fit: .*a.png: is no image.*b.png: is empty.*c.png is 9x9"):
        pair_lr(Photos.open(tmp_path / "hr"), tmp_path / "lr", 2)

def test_cutting_hr_takes_no_other_scale(tmp_path):
    with pytest.raises(UserError, match="ax4.png|a.png is 12x10, not 24x20"):
        save(tmp_path / "hr/a.png"), save(tmp_path / "lr/a.png", make_lr(picture(), 4))
        pair_lr(Photos.open(tmp_path / "hr"), tmp_path / "lr", 2, crop=True)

def test_a_template_may_have_an_ending_and_nothing_else_in_braces(tmp_path):
    assert pairs(tmp_path, ["a.png"], ["a_small.png"], template="{name}_small.PNG") == ["a_small.png"]
    with pytest.raises(UserError, match="--lr-name .*only"): pair_lr(Photos.open(tmp_path / "hr"), tmp_path / "lr", 2, template="{name.x}")


# ---- formats

@pytest.mark.parametrize("name", ["a.bmp", "a.BMP", "a.png", "a.tif", "a.TIFF", "a.webp"])
def test_lossless_formats_are_one_picture(tmp_path, name):
    save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    assert (Photos.open(tmp_path)[0] == picture()).all()

@pytest.mark.parametrize("name, kind", [("a.jfif", "JPEG"), ("a.jpe", "JPEG"), ("a.avif", "AVIF"), ("a.gif", "GIF")])
def test_other_formats_are_near(tmp_path, name, kind):
    smooth = np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[None], 40, 0)
    if kind not in data.readable(): pytest.skip("this Pillow reads no AVIF")
    save(tmp_path / name, np.dstack([smooth] * 3), format=kind)
    assert np.abs(Photos.open(tmp_path)[0].astype(int) - smooth[..., None]).max() <= 8

def test_a_format_whose_plug_in_is_missing_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(data, "PLUGINS", dict.fromkeys(("HEIF", "JXL"), lambda: 1 / 0))
    data.readable.cache_clear()
    try:
        save(tmp_path / "a.png")
        for name in ("b.heic", "c.HEIC", "d.jxl"): (tmp_path / name).write_bytes(b"x")
        assert len(Photos.open(tmp_path)) == 1
        assert "2 × .heic" in caplog.text and "1 × .jxl" in caplog.text and "pip install 'sr_distill[formats]'" in caplog.text
    finally: data.readable.cache_clear()

def test_pages_beyond_the_first_are_told(tmp_path, caplog):
    frames = [Image.fromarray(picture(seed=k)) for k in range(3)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    photos = Photos.open(tmp_path)
    assert len(photos) == 2 and (photos[photos.names.index("pages")] == picture()).all()
    assert "pages.tif: has 3 pages" in caplog.text and "moving.webp: has 3 pages" in caplog.text

def test_the_second_picture_of_a_camera_is_no_matter(tmp_path, caplog):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(picture(seed=1))])
    assert len(Photos.open(tmp_path)) == 1 and "pages" not in caplog.text

def chunk(name, content, crc=None):
    body = name + content
    return struct.pack(">I", len(content)) + body + (struct.pack(">I", zlib.crc32(body)) if crc is None else crc)

def test_a_png_whose_side_chunk_is_damaged_is_read(tmp_path, caplog):
    content = save(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:33] + chunk(b"tEXt", b"Comment\0hello", b"none") + content[33:])
    assert (decode_image(tmp_path / "a.png") == picture()).all() and (Photos.open(tmp_path)[0] == picture()).all()
    assert "its part tEXt is damaged and is ignored" in caplog.text
    spoilt = bytearray(content)
    spoilt[len(spoilt) // 2] ^= 1   # pixels
    (tmp_path / "a.png").write_bytes(spoilt)
    with pytest.raises(UserError, match="a.png"): decode_image(tmp_path / "a.png")

def test_cmyk_palette_and_sixteen_bits(tmp_path):
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "a.tif")
    Image.fromarray(picture()).convert("P").save(tmp_path / "b.png")
    Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(tmp_path / "c.png")
    photos = Photos.open(tmp_path)
    assert photos.is_gray == [False, False, True] and (photos[2] == picture()[..., :1]).all()


# ---- grey in whatever container

def grey_files(tmp_path):
    grey = Image.fromarray(picture()[..., 0])
    save_as = {"L": grey, "LA": grey.convert("LA"), "RGB": grey.convert("RGB"), "RGBA": grey.convert("RGBA"), "P": grey.convert("P"), "16": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)}
    for name, image in save_as.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
    return save_as

def test_grey_in_any_container_is_scored_alike_or_told(tmp_path):
    scores = {}
    for name in grey_files(tmp_path):
        found = evaluate("bicubic", Photos.open(tmp_path / name), 2, lpips="none")
        scores[name] = found.mean["psnr_y"], bool(found.grey_as_colour)
    grey = scores["L"][0]
    assert not scores["L"][1] and all(told or abs(value - grey) < .01 for value, told in scores.values())
    assert scores["LA"][0] == scores["16"][0] == grey and scores["RGB"][1] and "Grey, but saved" in str(evaluate("bicubic", Photos.open(tmp_path / "RGB"), 2, lpips="none"))

def test_a_colour_photo_is_no_grey_one(tmp_path): assert not evaluate("bicubic", Photos.from_arrays("a", [picture()]), 2, lpips="none").notes

def test_a_photo_that_is_met_exactly_leaves_a_mean():
    flat = np.full((40, 48, 3), 7, np.uint8)
    found = evaluate("bicubic", Photos.from_arrays(["flat", "noise"], [flat, picture()]), 2, lpips="none")
    assert np.isfinite(found.mean["psnr_y"]) and found.rows[0]["psnr_y"] == float("inf") and "flat" in found.notes[0]
    assert found.mean["psnr_y"] == found.rows[1]["psnr_y"] and found.to_dict()["notes"] == found.notes
    assert evaluate("bicubic", Photos.from_arrays(["flat"], [flat]), 2, lpips="none").mean["psnr_y"] == float("inf")


# ---- what a folder holds

def test_what_is_left_out_is_said_once(tmp_path, caplog):
    for name in ("a.png", "b.png", "below/c.png", "below/deeper/d.jpg", "a.png.folder/e.png"): save(tmp_path / name)
    for name in ("notes.txt", "clip.mov", ".hidden.png", "LICENSE"): (tmp_path / name).write_text("x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = list_images(tmp_path)
    assert [f.name for f in found.files] == ["a.png", "b.png"] and found.kinds == {".txt": 1, ".mov": 1, "": 1} and found.dead == ["gone.png"]
    assert found.folders == ["a.png.folder", "below"]
    assert len(Photos.open(tmp_path)) == 2
    line, = [r.getMessage() for r in caplog.records]
    for word in ("1 × .mov", "1 × .txt", "1 × files without an ending", "gone.png", "2 folders below", "--recursive"): assert word in line
    assert sorted(f.name for f in image_files(tmp_path, recursive=True)) == ["a.png", "b.png", "c.png", "d.jpg", "e.png"]

def test_a_folder_named_like_a_photo_is_a_folder(tmp_path):
    save(tmp_path / "x.png/inner.png")
    with pytest.raises(UserError, match="1 folder below .x.png"): image_files(tmp_path)

def test_links_to_folders_and_pipes_are_told_and_not_followed(tmp_path, caplog):
    save(tmp_path / "p/a.png"), save(tmp_path / "elsewhere/b.png")
    (tmp_path / "p/more").symlink_to(tmp_path / "elsewhere"), (tmp_path / "p/me.png").symlink_to(tmp_path / "p/me.png")
    if hasattr(os, "mkfifo"): os.mkfifo(tmp_path / "p/pipe.png")   # opening it would wait for ever
    for recursive in (False, True):
        assert [f.name for f in image_files(tmp_path / "p", recursive)] == ["a.png"]
        assert "1 folder behind links (more; links are not followed" in caplog.text and "me.png" in caplog.text
        assert not hasattr(os, "mkfifo") or "1 × no plain file" in caplog.text
        caplog.clear()

def test_a_folder_below_that_cannot_be_read_ends_nothing(tmp_path, caplog, monkeypatch):
    save(tmp_path / "a.png"), save(tmp_path / "b/c.png"), save(tmp_path / "shut/d.png")
    look = data.Path.iterdir
    def closed(folder):
        if folder.name == "shut": raise PermissionError(13, "Permission denied")
        return look(folder)
    monkeypatch.setattr(data.Path, "iterdir", closed)
    assert [f.name for f in image_files(tmp_path, recursive=True)] == ["a.png", "c.png"]
    assert "1 folder that cannot be read (shut; check their permissions)" in caplog.text

def test_one_name_in_two_folders_is_no_case_of_endings(tmp_path, caplog):
    save(tmp_path / "1/x.png"), save(tmp_path / "2/x.png", picture(seed=1))
    assert Photos.open(tmp_path, recursive=True).names == ["x", "x_2"] and "ending" not in caplog.text

def test_a_semicolon_in_a_name_cuts_no_message(tmp_path, caplog):
    save(tmp_path / "good.png"), (tmp_path / "a;b.png").write_bytes(b"junk")
    with pytest.raises(UserError, match="a;b.png: is no image"): Photos.open(tmp_path)
    assert len(Photos.open(tmp_path, skip_bad=True)) == 1 and "a;b.png: is no image" in caplog.text

def test_names_that_are_no_text(tmp_path):
    try: os.rename(save(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError: pytest.skip("this file system takes names of valid text only")
    assert Photos.open(tmp_path).names == ["caf_"]

def test_recursive_on_the_command_line(tmp_path, capsys):
    save(tmp_path / "p/a/one.png"), save(tmp_path / "p/b/one.png", picture(seed=3))
    assert main(["inspect", str(tmp_path / "p")]) == 2 and "--recursive" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "p"), "--recursive"]) == 0 and "2 photos" in capsys.readouterr().out

def test_photos_that_differ_in_case_or_ending_alone_are_all_read_and_told(tmp_path, caplog):
    save(tmp_path / "a.png"), save(tmp_path / "A.png", picture(seed=1)), save(tmp_path / "a.bmp", picture(seed=2))
    photos = Photos.open(tmp_path)
    assert len(photos) == 3 and len({n.lower() for n in photos.names}) == 3 and "upper and lower case only" in caplog.text

@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything (run the tests as another user)")
def test_a_file_without_the_right_to_read_is_named(tmp_path):
    save(tmp_path / "a.png").chmod(0)
    with pytest.raises(UserError, match="a.png: cannot be read .*permissions"): Photos.open(tmp_path)


# ---- zip files

def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as z:
        for name, content in members.items(): z.writestr(name, content)
    return path

def test_a_zip_of_photos(tmp_path):
    a, b = (save(tmp_path / f"{n}.png", picture(seed=k)).read_bytes() for k, n in enumerate("ab"))
    archive = zipped(tmp_path / "set.zip", **{"one/x.png": a, "two/x.png": b, "readme.txt": b"hello", "__MACOSX/._x.png": b"junk"})
    photos = Photos.open(archive)
    assert photos.names == ["x", "x_2"] and (photos[1] == picture(seed=1)).all()
    assert Photos.open(archive).files == photos.files   # unpacked once

def test_what_a_zip_leaves_out_is_told_each_time(tmp_path, caplog):
    caplog.set_level("INFO")
    photo = save(tmp_path / "a.png").read_bytes()
    archive = zipped(tmp_path / "set.zip", **{"a.png": photo, "clip.mov": b"x", "b.heic": b"x", ".DS_Store": b"x"})
    data_readable = data.readable()
    for _ in range(2):
        if "HEIF" not in data_readable: assert len(Photos.open(archive)) == 1 and "1 × .heic" in caplog.text
        else: assert len(Photos.open(archive, skip_bad=True)) == 1
        assert "set.zip: left out: 1 × .mov" in caplog.text and "DS_Store" not in caplog.text
        caplog.clear()

def test_a_zip_of_other_systems(tmp_path):
    photo = save(tmp_path / "a.png").read_bytes()
    deep = "/".join("d" * 100 for _ in range(4))
    names = ["shot 10:30.png", "set\\what?.png", f"{deep}/deep.png", "a__b.png", "a/b.png"]
    photos = Photos.open(zipped(tmp_path / "set.zip", **dict.fromkeys(names, photo)))
    assert sorted(photos.names) == ["a__b", "b", "deep", "shot 10_30", "what_"]

@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_a_zip_that_reaches_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="unsafe"): Photos.open(zipped(tmp_path / "set.zip", **{name: b"x"}))

def test_bombs_and_other_zips(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("a.png", bytes(200 << 20))
    with pytest.raises(UserError, match="unpacks to more"): Photos.open(tmp_path / "bomb.zip")
    with pytest.raises(UserError, match="no image"): Photos.open(zipped(tmp_path / "none.zip", **{"a.txt": b"x"}))
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(RunError, match="could not be unpacked"): Photos.open(tmp_path / "broken.zip")


# ---- tar files, such as those of webdataset

def tarred(path, *entries):
    with tarfile.open(path, "w") as t:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return path

def test_a_tar_of_photos_and_what_it_leaves_out(tmp_path, caplog):
    caplog.set_level("INFO")
    a, b = (save(tmp_path / f"{n}.png", picture(seed=k)).read_bytes() for k, n in enumerate("ab"))
    archive = tarred(tmp_path / "shard-000.tar", ("000.PNG", a), ("000.json", b"{}"), ("000.cls", b"3"), ("001/x.png", b), ("001/x.json", b"{}"), ("._000.PNG", b"junk"))
    for _ in range(2):
        photos = Photos.open(archive)
        assert photos.names == ["000", "x"] and (photos[1] == picture(seed=1)).all()
        assert "shard-000.tar: left out: 1 × .cls; 2 × .json" in caplog.text
        caplog.clear()
    again = os.replace(archive, tmp_path / "other.TAR") or Photos.open(tmp_path / "other.TAR")
    assert again.files == photos.files   # unpacked once

def entry(name, kind=tarfile.REGTYPE, to=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info

@pytest.mark.parametrize("bad", [entry("../evil.png"), entry("/evil.png"), entry("a/../../evil.png"), entry("..\\evil.png"), entry("link.png", tarfile.SYMTYPE, "/etc/passwd"),
                                 entry("hard.png", tarfile.LNKTYPE, "a.png"), entry("device.png", tarfile.CHRTYPE), entry("pipe.png", tarfile.FIFOTYPE)], ids=lambda e: e.name)
def test_a_tar_that_reaches_elsewhere_is_refused(tmp_path, bad):
    tarred(tmp_path / "x.tar", ("a.png", b"1"), (bad, b"x" if bad.isreg() else b""))
    with pytest.raises(UserError, match="is unsafe to unpack; unpack it yourself"): Photos.open(tmp_path / "x.tar")
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"x.tar"}

def test_damaged_tars(tmp_path):
    photo = save(tmp_path / "a.png").read_bytes()
    whole = tarred(tmp_path / "x.tar", *((f"{k}.png", photo) for k in range(3))).read_bytes()
    second = 512 + -(-len(photo) // 512) * 512
    header = bytearray(whole)
    header[second + 10] ^= 1
    for damage in (bytes(header), whole[:2 * second + 600], whole[:second + 100], b"", b"no tar", gzip.compress(whole)):
        (tmp_path / "x.tar").write_bytes(damage)
        with pytest.raises(RunError, match="x.tar: could not be unpacked"): Photos.open(tmp_path / "x.tar")
    tarred(tmp_path / "x.tar", ("a.png", photo), ("b.png", photo[:60]))
    with pytest.raises(UserError, match="1 of 2 photos cannot be used .*b.png"): Photos.open(tmp_path / "x.tar")
    assert Photos.open(tmp_path / "x.tar", skip_bad=True).names == ["a"]
    with pytest.raises(UserError, match="holds no image"): Photos.open(tarred(tmp_path / "none.tar", ("a.json", b"x")))
    sparse = tarfile.TarInfo("a.png")   # says that it unpacks to gigabytes
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(5 << 30), "GNU.sparse.map": "0,1"}
    with tarfile.open(tmp_path / "bomb.tar", "w", format=tarfile.PAX_FORMAT) as t: t.addfile(sparse)
    with pytest.raises(UserError, match="unpacks to more"): Photos.open(tmp_path / "bomb.tar")


# ---- from memory

def test_kinds_of_images_in_memory():
    a = picture()
    photos = Photos.from_arrays("abcd", [a, Image.fromarray(a), torch.from_numpy(a), a[..., :1]])
    assert all((photos[k] == a).all() for k in range(3)) and photos.is_gray == [False, False, False, True]
    for given, remedy in ((np.dstack([a, a[..., 0]]), "alpha"), (a.transpose(2, 0, 1), "transpose"), (a.astype(np.uint16), "257"), (a / 255, "0..1"), ("a.png", "convert it")):
        with pytest.raises(UserError, match=remedy): Photos.from_arrays("a", [given])
    with pytest.raises(UserError, match="3 images and 1 names"): Photos.from_arrays("a", [a] * 3)
    with pytest.raises(UserError, match="1 images and 0 names"): Photos.from_arrays(None, [a])
    with pytest.raises(UserError, match="0..1"): Photos.from_arrays("a", [torch.ones(9, 9, 3, dtype=torch.bfloat16)])
    with pytest.raises(UserError, match="from memory: .*8 or 16 bits"): Photos.from_arrays("a", [Image.fromarray(np.ones((9, 9), np.float32))])
    with pytest.raises(UserError, match="no photos"): Photos.from_arrays([], []).at_least(8)

def test_slices():
    photos = Photos.from_arrays("abcd", [picture(seed=k) for k in range(4)])
    assert photos[1:3].names == ["b", "c"] and photos[::-1].names == list("dcba") and photos[-2:].names == ["c", "d"] and len(photos[9:]) == 0

def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(UserError, match="SR_DISTILL_CACHE"): Photos.open("embedded")

def test_a_cache_that_may_be_read_only_names_the_setting(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    def refused(*a): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(data.np, "save", refused)
    with pytest.raises(RunError, match="Permission denied.*SR_DISTILL_CACHE"): Photos.open(tmp_path)

def test_an_account_without_a_home(tmp_path, monkeypatch):
    def nowhere(): raise RuntimeError("Could not determine home directory.")
    for name in ("SR_DISTILL_CACHE", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(data.Path, "home", nowhere)
    with pytest.raises(RunError, match="no home folder.*SR_DISTILL_CACHE"): Photos.open("embedded")
    with pytest.raises(UserError, match="no such folder"): Photos.open("~nobody-of-this-name/photos")

def test_long_and_strange_names(tmp_path):
    for name in ("x" * 240 + ".png", "line\nbreak.png", " spaces .png", "ünï.png", "日本.png", "a.b.c.png"): save(tmp_path / name)
    photos = Photos.open(tmp_path)
    assert len(photos) == 6 and all(len(n.encode()) <= data.MAX_NAME and "\n" not in n for n in photos.names)

def test_a_photo_one_pixel_wide(tmp_path):
    save(tmp_path / "thin.png", picture(40, 1)), save(tmp_path / "wide.png")
    assert Photos.open(tmp_path, skip_bad=True).at_least(24).names == ["wide"]
