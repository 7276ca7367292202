"""What the page on upscaling does not show: odd kinds of pictures, a full GPU, names, damaged files."""
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill import upscale as room
from sr_distill.core import rng
from sr_distill.models import make_model, save_model
from sr_distill.recipe import RunError, UserError
from sr_distill.train import INVERSE
from sr_distill.upscale import Picture, enlarge, fill_hidden, read_picture, upscale, write_picture


@pytest.fixture(scope="module")
def net(): return make_model("vdsr", 2, 3, 4, generator=rng(0, "net"))

@pytest.fixture
def colours(): return np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)


KINDS = {   # mode that Pillow writes → (type, channels, transparent)
    "1": ("uint8", 1, False), "L": ("uint8", 1, False), "LA": ("uint8", 1, True), "P": ("uint8", 3, False), "RGB": ("uint8", 3, False),
    "RGBA": ("uint8", 3, True), "I;16": ("uint16", 1, False),
}

@pytest.mark.parametrize("mode", KINDS)
def test_a_picture_keeps_its_kind(mode, tmp_path, net, colours):
    kind, channels, clear = KINDS[mode]
    im = Image.fromarray(colours)
    if mode == "I;16": im = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    elif clear:
        im = im.convert(mode)
        im.putalpha(Image.fromarray(colours[..., 1]))
    else: im = im.convert(mode)
    im.save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    assert str(picture.pixels.dtype) == kind and picture.pixels.shape == ((30, 41) if channels == 1 else (30, 41, 3))
    assert (picture.alpha is not None) == clear
    (written,) = upscale(net, tmp_path / "in.png", tmp_path / "out.png", device="cpu")
    again = read_picture(written)
    assert again.pixels.dtype == picture.pixels.dtype and again.pixels.shape[:2] == (60, 82) and again.pixels.ndim == picture.pixels.ndim
    assert (again.alpha is not None) == clear

def test_palette_with_a_transparent_colour(tmp_path):
    im = Image.fromarray(np.repeat([[0, 1]], 8, 0).astype(np.uint8).repeat(8, 1), "P")
    im.putpalette([255, 0, 0, 0, 255, 0])
    im.save(tmp_path / "p.png", transparency=0)
    picture = read_picture(tmp_path / "p.png")
    assert (picture.alpha[:, :8] == 0).all() and (picture.alpha[:, 8:] == 255).all() and (picture.pixels[:, 8:] == [0, 255, 0]).all()

def test_turned_by_exif(tmp_path, net):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "t.jpg", exif=exif)
    assert upscale(net, tmp_path / "t.jpg", tmp_path / "o", device="cpu") == [tmp_path / "o/t.png"]
    assert Image.open(tmp_path / "o/t.png").size == (20, 40)

def test_sixteen_bit_colours_are_told(tmp_path, caplog):
    rows = b"".join(b"\0" + struct.pack(">6H", *[256 * k for k in range(6)]) for _ in range(2))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "deep.png").write_bytes(png)
    picture = read_picture(tmp_path / "deep.png")
    assert picture.pixels.dtype == np.uint8 and (picture.pixels[0, 1] == [3, 4, 5]).all() and "8 of the 16 bits" in caplog.text

def test_white_is_zero_is_turned_round(tmp_path):
    file, tag = tmp_path / "w.tif", struct.pack("<HHL", 262, 3, 1)   # PhotometricInterpretation, one short
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(file)
    file.write_bytes(file.read_bytes().replace(tag + b"\1\0", tag + b"\0\0"))
    assert (read_picture(file).pixels == 0).all()

def test_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), .5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match="f.tif.*32-bit"): read_picture(tmp_path / "f.tif")


@pytest.mark.parametrize("k", range(8))
def test_every_symmetry_is_undone(k):
    x = torch.rand(1, 3, 5, 7)
    assert torch.equal(room._turned(room._turned(x, k), INVERSE[k]), x)

def test_tiles_do_not_show(net, colours):
    whole, tiled = (enlarge(net, Picture(colours), 2, tile, ensemble=True).pixels.astype(int) for tile in (512, 16))
    assert abs(whole - tiled).max() <= 1

def test_a_full_gpu_halves_the_tiles(net, colours, monkeypatch, caplog):
    asked, real = [], room.upscale_tensor
    def full(model, x, scale, tile):
        asked.append(tile)
        if tile > 32: raise torch.cuda.OutOfMemoryError("full")
        return real(model, x, scale, tile)
    monkeypatch.setattr(room, "upscale_tensor", full)
    found = enlarge(net, Picture(colours), 2, 128, ensemble=True)
    assert asked[:3] == [128, 64, 32] and set(asked[3:]) == {32} and len(asked) == 2 + 8 and "tiles of 32" in caplog.text
    monkeypatch.setattr(room, "upscale_tensor", real)
    assert abs(found.pixels.astype(int) - enlarge(net, Picture(colours), 2, 128, ensemble=True).pixels).max() <= 1
    def hopeless(*args): raise torch.cuda.OutOfMemoryError("full")
    monkeypatch.setattr(room, "upscale_tensor", hopeless)
    with pytest.raises(RunError, match="--device cpu"): enlarge(net, Picture(colours), 2)

@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (64, 33)])
def test_holes_of_any_shape_are_filled(shape):
    g = rng(0, "holes", *shape)
    seen = torch.rand(1, 1, *shape, generator=g) > .8
    seen[..., 0, 0] = True
    x = torch.rand(1, 3, *shape, generator=g) * .5 + .25
    full = fill_hidden(x * seen, seen)
    assert torch.equal(full * seen, x * seen) and full.min() >= .25 - 1e-6 and full.max() <= .75 + 1e-6

def test_nothing_is_seen(net):
    clear = enlarge(net, Picture(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)), 2)
    assert clear.alpha.shape == (16, 16) and not clear.alpha.any()


def test_names_and_refusals(tmp_path, net, colours):
    for name in ("a.png", "a.jpg"): Image.fromarray(colours).save(tmp_path / name)
    with pytest.raises(UserError, match="would both become"): upscale(net, tmp_path, tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match="would overwrite"): upscale(net, tmp_path / "a.png", tmp_path, device="cpu")
    with pytest.raises(UserError, match="where to"): upscale(net, tmp_path / "a.png")
    with pytest.raises(UserError, match="choose one of"): upscale(net, tmp_path, tmp_path / "out", ending=".psd")
    with pytest.raises(UserError, match="--tile 3"): upscale(net, tmp_path / "a.png", tmp_path / "b.png", tile=3)
    with pytest.raises(UserError, match="is a file"): upscale(net, tmp_path, tmp_path / "a.png")
    with pytest.raises(UserError, match="no such folder"): upscale(net, tmp_path / "nothing", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.png"]

def test_what_was_made_before_a_damaged_file_stays(tmp_path, net, colours):
    (tmp_path / "in").mkdir()
    for name in "ac": Image.fromarray(colours).save(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:300])
    with pytest.raises(RunError, match=r"2 of 3 pictures are written.*b\.png"): upscale(net, tmp_path / "in", tmp_path / "out", device="cpu")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]

def test_a_stored_model_and_a_network_of_ones_own(tmp_path, net, colours):
    save_model(net, tmp_path / "model")
    assert (upscale(tmp_path / "model", colours, device="cpu") == upscale(net, colours, device="cpu")).all()
    class Nearest(torch.nn.Module):
        scale = 3
        def forward(self, x): return x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert (upscale(Nearest(), colours, device="cpu")[::3, ::3] == colours).all()

def test_formats_that_would_lose_something(tmp_path, colours):
    with pytest.raises(UserError, match="no transparency"): write_picture(tmp_path / "x.jpg", Picture(colours, colours[..., 0]))
    with pytest.raises(UserError, match="holds 8 bits"): write_picture(tmp_path / "x.webp", Picture(colours[..., 0].astype(np.uint16)))
    assert not [*tmp_path.iterdir()]
