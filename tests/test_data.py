"Photos: odd and broken files, the cache, splits, downloads."
import hashlib, http.server, io, itertools, os, signal, struct, subprocess, sys, threading, time, zipfile, zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from sr_distill import data
from sr_distill.core import atomic_write, cache_dir
from sr_distill.data import Cache, Photos, decode_image, download, image_files, make_lr, pair_lr
from sr_distill.recipe import RunError, UserError


def noise(h=40, w=50, channels=3, seed=0):
    shape = (h, w, channels) if channels else (h, w)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, a=None, **kw):
    Image.fromarray(noise() if a is None else a).save(path, **kw)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of this test's own."
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def folder(tmp_path, cache):
    "Three photos, one of them grey, and things that are none."
    place = tmp_path / "photos"
    place.mkdir()
    save(place / "b.png", noise(seed=1))
    save(place / "a.png", noise(33, 47, seed=2))
    save(place / "c.tif", noise(channels=0, seed=3))
    (place / "readme.txt").write_text("no photo")
    (place / ".hidden.png").write_text("no photo")
    (place / "sub").mkdir()
    save(place / "sub" / "d.png")
    return place


# ---- formats

@pytest.mark.parametrize("ext", ["png", "tif", "webp"])
def test_lossless_rgb(tmp_path, ext):
    a = noise()
    assert (decode_image(save(tmp_path / f"x.{ext}", a, **({"lossless": True} if ext == "webp" else {}))) == a).all()


@pytest.mark.parametrize("ext", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, ext):
    a = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    assert decode_image(save(tmp_path / f"x.{ext}", a)).tolist() == [[0, 0, 1, 1, 128, 255]]


@pytest.mark.parametrize("dtype, turned", [(np.uint8, None), (np.uint16, None), (np.uint16, 6)])
def test_a_tiff_whose_white_is_stored_as_0_is_no_negative(tmp_path, dtype, turned):
    a, exif = np.array([[0, 80, 255]], dtype) * (257 if dtype == np.uint16 else 1), Image.Exif()
    if turned: exif[274] = turned
    file, tag = save(tmp_path / "x.tif", a, exif=exif), struct.pack("<HHL", 262, 3, 1)   # PhotometricInterpretation, one short
    assert file.read_bytes().count(tag + b"\1\0") == 1
    file.write_bytes(file.read_bytes().replace(tag + b"\1\0", tag + b"\0\0"))
    assert decode_image(file).ravel().tolist() == [255, 175, 0] and decode_image(file).shape == ((3, 1) if turned else (1, 3))


def test_sixteen_bit_rgb_png_is_scaled(tmp_path):
    def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    row = b"\0" + struct.pack(">6H", 0, 32768, 65535, 65535, 257, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(png)
    assert np.abs(decode_image(tmp_path / "x.png").astype(int) - [[[0, 128, 255], [255, 1, 0]]]).max() <= 1


def test_float_tiff_is_refused(tmp_path):
    Image.fromarray(np.random.rand(9, 9).astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match="x.tif.*32-bit"): decode_image(tmp_path / "x.tif")


def test_one_bit_stays_grey(tmp_path):
    a = noise(channels=0) > 127
    assert (decode_image(save(tmp_path / "x.png", a)) == a * 255).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_laid_on_white(tmp_path, mode):
    im = Image.fromarray(noise()).convert(mode[:-1])
    im.putalpha(Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 25, 0).repeat(50, 1)[:40]))
    im.save(tmp_path / "x.png")
    a = decode_image(tmp_path / "x.png")
    assert (a[:25] == 255).all() and (a[25:] == np.asarray(im.convert(mode[:-1]))[25:]).all()


def test_transparent_colour_and_palette(tmp_path):
    a = np.zeros((4, 4, 3), np.uint8)
    a[0] = 200
    Image.fromarray(a).save(tmp_path / "rgb.png", transparency=(0, 0, 0))
    grey = Image.fromarray(a[..., 0])
    grey.save(tmp_path / "l.png", transparency=0)
    grey.convert("P").save(tmp_path / "p.png", transparency=0)
    assert (decode_image(tmp_path / "rgb.png")[1:] == 255).all() and (decode_image(tmp_path / "rgb.png")[0] == 200).all()
    assert decode_image(tmp_path / "l.png").tolist() == [[200] * 4] + [[255] * 4] * 3
    assert (decode_image(tmp_path / "p.png")[1:] == 255).all() and decode_image(tmp_path / "p.png").shape == (4, 4, 3)


@pytest.mark.parametrize("ext", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("turn, undo", [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(tmp_path, ext, turn, undo):
    a = np.zeros((16, 32, 3), np.uint8)
    a[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    seen = decode_image(save(tmp_path / f"x.{ext}", a, exif=exif)).astype(int)
    assert np.abs(seen - np.rot90(a, undo).astype(int)).mean() < 3


def test_broken_exif_is_ignored(tmp_path):
    save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert decode_image(tmp_path / "x.jpg").shape == (40, 50, 3)


def test_profile_is_converted_and_a_bad_one_ignored(tmp_path, caplog):
    a = noise()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (decode_image(save(tmp_path / "s.png", a, icc_profile=srgb)) == a).all()
    assert (decode_image(save(tmp_path / "bad.png", a, icc_profile=b"nonsense")) == a).all()
    assert "bad.png: its colour profile" in caplog.text
    adobe = Image.open(data.embedded_files()[-1]).info["icc_profile"]
    red = np.full((4, 4, 3), (200, 60, 60), np.uint8)
    wide = decode_image(save(tmp_path / "w.png", red, icc_profile=adobe))[0, 0].astype(int)
    assert abs(wide[0] - 229) <= 3 and wide[1] < 62, wide   # Adobe RGB's red is redder than sRGB's


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.tif")
    assert decode_image(tmp_path / "x.tif")[0, 0].tolist() == [255, 0, 0]


def test_decompression_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(UserError, match="x.png: has too many pixels"): decode_image(save(tmp_path / "x.png"))


@pytest.mark.parametrize("ext", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("share", [0, .02, .3, .8])
def test_truncated_files(tmp_path, ext, share):
    path = save(tmp_path / f"x.{ext}", noise(200, 300))
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=rf"x\.{ext}: .*; replace or remove") as e: decode_image(path)
    assert "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    draw = np.random.default_rng(0)
    for ext in ("png", "jpg", "webp", "tif"):
        good = save(tmp_path / f"x.{ext}").read_bytes()
        for _ in range(40):
            bad = bytearray(good)
            for k in draw.integers(0, min(len(bad), 400), 5): bad[k] = draw.integers(256)
            (tmp_path / f"y.{ext}").write_bytes(bad)
            try: assert decode_image(tmp_path / f"y.{ext}").dtype == np.uint8
            except UserError as e: assert f"y.{ext}" in str(e)


def test_other_formats_and_folders_are_refused(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "x.png", format="PCX")
    with pytest.raises(UserError, match="is no image that can be read"): decode_image(tmp_path / "x.png")
    with pytest.raises(UserError, match="cannot be read"): decode_image(tmp_path)


# ---- LR

@pytest.mark.parametrize("scale", [2, 4])
def test_lr_equals_matlab(set5, scale):
    gaps = [np.abs(make_lr(decode_image(f), scale).astype(float) - decode_image(set5 / f"LR_bicubic/X{scale}/{f.stem}x{scale}.png")).mean()
            for f in image_files(set5)]
    assert np.mean(gaps) < .16   # MATLAB rounds between its two passes


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bands_of_a_tall_photo_leave_no_seam(scale):
    a = noise(600 * scale + 1, 2 * scale + 5)   # PyTorch's result of a single pixel's width depends on the height
    whole = data.to_uint8(data.downscale(data.to_tensor(data.mod_crop(a, scale)), scale))[0]
    assert (make_lr(a, scale) == whole).all() and (make_lr(a[..., 0], scale) == whole[..., 0]).all()


def test_lr_path(tmp_path):
    (tmp_path / "X2").mkdir()
    save(tmp_path / "X2" / "0001x2.png", noise(10, 12))
    save(tmp_path / "baby.png", noise(10, 12))
    photos = lambda **sizes: Photos.from_arrays(list(sizes), [noise(*size) for size in sizes.values()])
    assert [f.name for f in pair_lr(photos(**{"0001": (21, 24), "baby": (20, 25)}), tmp_path, 2)] == ["0001x2.png", "baby.png"]
    with pytest.raises(UserError, match="baby.png is 12x10, not 8x6.*no file for bird"): pair_lr(photos(baby=(20, 25), bird=(20, 24)), tmp_path, 3)


# ---- photos

def test_folder(folder):
    photos = Photos.open(folder)
    assert photos.names == ["a", "b", "c"] and photos.sizes == [(33, 47), (40, 50), (40, 50)]
    assert photos.is_gray == [False, False, True] and photos[2].shape == (40, 50, 3) and photos.lr(2, 3).shape == (13, 16, 3)
    assert (photos[0] == noise(33, 47, seed=2)).all() and (photos.lr(0, 2) == make_lr(noise(33, 47, seed=2), 2)).all()
    assert photos.hr(0, 2).shape == (32, 46, 3) and photos.source == str(folder)
    assert photos.sha256[0] == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    assert isinstance(photos[0], np.memmap) and not photos[0].flags.writeable
    assert photos.png_bytes == sum(len(data.encode_png(decode_image(f))) for f in photos.files)
    assert "3 photos" in repr(photos) and "data:image/webp" in photos._repr_html_()
    assert "<b>" not in Photos.from_arrays(["x"], [noise()], source="<b>")._repr_html_()
    with pytest.raises(IndexError): photos[3]


def test_names_are_unique(tmp_path, cache):
    for name in ("x.png", "x.tif", "x_2.png", "y.png"): save(tmp_path / name)
    names = Photos.open(tmp_path).names
    assert len({n.lower() for n in names}) == 4 and names[0] == "x" and names[-1] == "y"
    assert data._unique(["A", "a", "a/b"]) == ["A", "a_2", "a_b"]


def test_threads_may_write_one_file_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda k: atomic_write(tmp_path / "entry", bytes([k % 8]) * 1000), range(400)))
    assert len(set((tmp_path / "entry").read_bytes())) == 1 and [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_a_second_opening_decodes_nothing(folder, monkeypatch):
    Photos.open(folder).lr(0, 2)
    monkeypatch.setattr(data, "_pixels", lambda *a: pytest.fail("decoded again"))
    monkeypatch.setattr(data, "make_lr", lambda *a: pytest.fail("reduced again"))
    photos = Photos.open(folder)
    assert photos[0].shape == (33, 47, 3) and photos.lr(0, 2).shape == (16, 23, 3)


def test_same_content_twice(folder):
    for k in range(12): (folder / f"copy{k}.png").write_bytes((folder / "a.png").read_bytes())
    photos = Photos.open(folder)
    assert len(photos) == 15 and len(set(photos.sha256)) == 3


def test_bad_photos_are_all_named(folder, caplog):
    (folder / "z1.png").write_text("no image")
    (folder / "z2.jpg").touch()
    with pytest.raises(UserError, match="2 of 5 .*z1.png.*z2.jpg.*--skip-bad"): Photos.open(folder)
    assert Photos.open(folder, skip_bad=True).names == ["a", "b", "c"]
    assert "skipped" in caplog.text and "z2.jpg" in caplog.text
    for name in "ab": (folder / f"{name}.png").unlink()
    (folder / "c.tif").unlink()
    with pytest.raises(UserError, match="none of its 2 images"): Photos.open(folder, skip_bad=True)


def test_unknown_and_empty_sources(tmp_path):
    with pytest.raises(UserError, match="embedded, div2k-train, div2k-valid"): Photos.open("set15")
    with pytest.raises(UserError, match="holds no image"): Photos.open(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="cannot be read as a folder"): Photos.open(tmp_path / "x")


def test_too_small(folder):
    assert len(Photos.open(folder).at_least(33)) == 3
    with pytest.raises(UserError, match="1 of 3 photos are smaller than 40.*a.png: is 47x33.*--skip-bad"): Photos.open(folder).at_least(40)
    assert Photos.open(folder, skip_bad=True).at_least(40).names == ["b", "c"]
    with pytest.raises(UserError, match="all photos are smaller than 48.*a.png: is 47x33, .*c"): Photos.open(folder, skip_bad=True).at_least(48)


def test_split():
    names = [f"p{k}" for k in range(6)] + ["car_left", "car_right"]
    photos = Photos.from_arrays(names, [noise(seed=k) for k in range(8)])
    drawn = set()
    for seed in range(30):
        for n in (1, 2, 3, 7):
            rest, held = photos.split(n, seed)
            assert len(held) == n and sorted(rest.names + held.names) == sorted(names)
            assert ("car_left" in held.names) == ("car_right" in held.names)
        drawn.add(tuple(photos.split(2, seed)[1].names))
    assert len(drawn) > 10 and photos.split(2, 5)[1].names == photos.split(2, 5)[1].names
    for n in (0, 8): pytest.raises(UserError, photos.split, n)
    with pytest.raises(UserError, match="stereo pair"): photos.subset([6, 7]).split(1)


@pytest.mark.parametrize("a", [noise() / 255, noise(channels=4), noise()[None], [[1, 2]]], ids=["0..1", "RGBA", "a stack", "a list"])
def test_arrays_that_are_no_photos_are_refused(a):
    with pytest.raises(UserError, match="uint8"): Photos.from_arrays(["a"], [a])


# ---- cache

@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"junk" * 50, lambda b: b + b"more", lambda b: b[:50],
                                    lambda b: npy(np.zeros((10, 10, 3), np.uint8)), lambda b: npy(np.zeros((33, 47, 3), float)),
                                    lambda b: npy(np.array([None, {}]))])
def test_damaged_cache_is_rebuilt(folder, cache, damage, caplog):
    photos = Photos.open(folder)
    want = np.array(photos[0]), np.array(photos.lr(0, 2))
    for path in cache.glob("*.npy"): path.write_bytes(damage(path.read_bytes()))
    assert (photos[0] == want[0]).all() and (photos.lr(0, 2) == want[1]).all()
    for path in cache.glob("*.npy"): path.write_bytes(damage(path.read_bytes()))
    again = Photos.open(folder)
    assert (again[0] == want[0]).all() and (again.lr(0, 2) == want[1]).all() and "made again" in caplog.text


def npy(a):
    buffer = io.BytesIO()
    np.save(buffer, a)
    return buffer.getvalue()


def test_emptied_cache_is_rebuilt_and_changed_files_are_noticed(folder, cache):
    photos = Photos.open(folder)
    for path in cache.iterdir(): path.unlink()
    cache.rmdir()
    assert (photos[0] == noise(33, 47, seed=2)).all()
    for path in cache.iterdir(): path.unlink()
    save(folder / "a.png", noise(33, 47, seed=9))
    with pytest.raises(RunError, match="a.png: has changed"): photos[0]


def test_least_recently_used_goes_first(tmp_path):
    clock = itertools.count(1000)   # a second apart, however coarse the file system's is
    def fill(cache, *names):
        for name in names:
            cache.get(f"{name}.hr", lambda: np.zeros(872, np.uint8))   # 1000 bytes with the header
            os.utime(tmp_path / f"{name}.hr.npy", (next(clock),) * 2)
    def stored(): return sorted(p.name[0] for p in tmp_path.iterdir())
    fill(Cache(tmp_path, 3500), "a", "b", "c")
    fill(Cache(tmp_path, 3500), "a")            # a used again: b is the oldest
    fill(Cache(tmp_path, 3500), "d")
    assert stored() == ["a", "c", "d"]
    mine = Cache(tmp_path, 3500)
    fill(mine, "c", "e", "f")                   # what this process uses stays
    assert stored() == ["c", "e", "f"]


def test_a_source_larger_than_the_cache(folder, cache, monkeypatch, caplog):
    monkeypatch.setenv("SR_DISTILL_CACHE_GB", "0.000008")   # 8 kB: one photo of the three fits
    photos = Photos.open(folder)
    for _ in range(2):
        for k, a in enumerate(photos): assert (a[..., 0] == decode_image(photos.files[k]).reshape(*a.shape[:2], -1)[..., 0]).all()
        assert photos.lr(1, 2).shape == (20, 25, 3)
        assert sum(p.stat().st_size for p in cache.iterdir()) <= 8000
    assert caplog.text.count("SR_DISTILL_CACHE_GB") == 1


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    for name in (".new.npy.1.1.tmp", ".old.npy.2.2.tmp"): (tmp_path / name).write_bytes(b"x" * 2000)
    os.utime(tmp_path / ".old.npy.2.2.tmp", (0, 0))   # its process is dead
    Cache(tmp_path, 1500).get("a.hr", lambda: np.zeros(872, np.uint8))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".new.npy.1.1.tmp", "a.hr.npy"]


def test_an_array_that_another_process_takes_away_at_once_is_used_all_the_same(tmp_path, monkeypatch):
    def stored_and_gone(path, a):
        store(path, a)
        path.unlink()
    store = data.store_array
    monkeypatch.setattr(data, "store_array", stored_and_gone)
    assert (Cache(tmp_path, 10**6).get("a.hr", lambda: np.ones(5, np.uint8)) == 1).all()


def test_bad_cache_setting(folder, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE_GB", "lots")
    with pytest.raises(UserError, match="SR_DISTILL_CACHE_GB"): Photos.open(folder)


def test_full_disk_is_a_run_error(folder, monkeypatch):
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(data.np, "save", full)
    with pytest.raises(RunError, match="No space left"): Photos.open(folder, skip_bad=True)


def test_killed_while_opening(folder, cache):
    for k in range(30): save(folder / f"k{k:02}.png", noise(300, 300, seed=k))
    code = f"from sr_distill.data import Photos; print('go', flush=True); Photos.open({str(folder)!r}); print('done', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=os.getcwd())
    process.stdout.readline()
    while process.poll() is None and len(list(cache.glob("*.npy"))) < 5: time.sleep(.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    photos = Photos.open(folder)
    assert len(photos) == 33 and all((photos[3 + k] == noise(300, 300, seed=k)).all() for k in range(30))


def test_memory_and_files_stay_flat(tmp_path, cache):
    for k in range(60): save(tmp_path / f"{k:02}.png", noise(8, 8, seed=k))
    photos = Photos.open(tmp_path)
    held = list(photos)[:1]
    if os.path.isdir("/proc/self/fd"):
        before = len(os.listdir("/proc/self/fd"))
        for _ in photos: pass
        assert len(os.listdir("/proc/self/fd")) <= before + 2 and held


# ---- downloads

@pytest.fixture
def site(tmp_path):
    "A local server with Range requests, the offsets it was asked for, and a table that names its zip file."
    root = tmp_path / "site"
    root.mkdir()
    site = type("Site", (), {"root": root, "asked": [], "cut": None, "ranges": True})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = root / self.path.strip("/")
            if not path.exists(): return self.send_error(404)
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if site.ranges else 0
            site.asked.append(start)
            body = path.read_bytes()[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:site.cut])
        def log_message(self, *a): pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}/"
    yield site
    server.shutdown()
    server.server_close()


def publish(site, entries, **changes):
    "Put a zip of (name or ZipInfo, bytes) on the site and return the table for `download`."
    with zipfile.ZipFile(site.root / "set.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for name, body in entries: z.writestr(name, body)
    body = (site.root / "set.zip").read_bytes()
    return {"set": dict(file="set.zip", size=len(body), sha256=hashlib.sha256(body).hexdigest(), **changes)}


@pytest.fixture
def good(site): return publish(site, [("set/", b""), ("set/1.png", data.encode_png(noise())), ("set/2.png", data.encode_png(noise(seed=1)))])


def test_download(site, good, tmp_path, cache):
    got = download("set", tmp_path / "home", site.url, good)
    assert [f.name for f in image_files(got)] == ["1.png", "2.png"] and len(Photos.open(got)) == 2
    assert download("set", tmp_path / "home", site.url, good) == got and site.asked == [0]
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) in (["set"], [".lock", "set"])


def test_download_resumes(site, good, tmp_path):
    site.cut = 1000
    with pytest.raises(RunError, match="run the same command again"): download("set", tmp_path, site.url, good)
    assert (tmp_path / "set.zip").stat().st_size == 1000 and not (tmp_path / "set").exists()
    site.cut = None
    assert len(image_files(download("set", tmp_path, site.url, good))) == 2 and site.asked == [0, 1000]


def test_download_from_a_server_without_ranges(site, good, tmp_path):
    site.ranges = False
    (tmp_path / "set.zip").write_bytes(b"other bytes")
    assert len(image_files(download("set", tmp_path, site.url, good))) == 2


def test_download_with_another_hash(site, good, tmp_path):
    wrong = {"set": good["set"] | {"sha256": "0" * 64}}
    with pytest.raises(RunError, match="sha256"): download("set", tmp_path, site.url, wrong)
    assert not (tmp_path / "set.zip").exists() and not (tmp_path / "set").exists()
    assert len(image_files(download("set", tmp_path, site.url, good))) == 2


def test_download_without_a_server(site, good, tmp_path):
    with pytest.raises(RunError, match="404"): download("set", tmp_path, site.url + "elsewhere", good)
    with pytest.raises(RunError, match="could not be downloaded"): download("set", tmp_path, "http://127.0.0.1:9/", good)
    with pytest.raises(UserError, match="no known photo set"): download("other", tmp_path, site.url, good)


def test_a_file_put_there_by_hand_is_used(site, good, tmp_path):
    (tmp_path / "set.zip").write_bytes((site.root / "set.zip").read_bytes())
    assert len(image_files(download("set", tmp_path, "http://127.0.0.1:9/", good))) == 2


def symlink():
    info = zipfile.ZipInfo("set/link.png")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.parametrize("entry", ["../evil.png", "/tmp/evil.png", "set/../../evil.png", "..\\evil.png", "C:evil.png", symlink()], ids=str)
def test_unsafe_zips_are_refused(site, tmp_path, entry):
    table = publish(site, [("set/1.png", data.encode_png(noise())), (entry, b"/etc/passwd")])
    with pytest.raises(UserError, match="unsafe"): download("set", tmp_path / "home", site.url, table)
    assert not (tmp_path / "home" / "set").exists() and not list(tmp_path.rglob("*evil*"))


def test_a_zip_bomb_is_refused(site, tmp_path):
    table = publish(site, [("set/1.png", b"\0" * (5 << 20))])
    with pytest.raises(UserError, match="unpacks to more than"): download("set", tmp_path, site.url, table)


def test_no_room_for_a_download(site, good, tmp_path):
    huge = {"set": good["set"] | {"size": 10**18}}
    with pytest.raises(UserError, match="free space"): download("set", tmp_path, site.url, huge)


def test_what_is_here_already_needs_no_room_again(site, good, tmp_path, monkeypatch):
    size = good["set"]["size"]
    (tmp_path / "set.zip").write_bytes((site.root / "set.zip").read_bytes()[:size // 2])
    room = lambda free: monkeypatch.setattr(data.shutil, "disk_usage", lambda folder: type("Room", (), {"free": free}))
    room(size)
    with pytest.raises(UserError, match="free space"): download("set", tmp_path, site.url, good)
    room(size + size // 2 + 1)
    assert len(image_files(download("set", tmp_path, site.url, good))) == 2 and site.asked == [size // 2]


def test_a_folder_of_the_users_own_keeps_its_archive(site, good, tmp_path):
    (tmp_path / "own/set").mkdir(parents=True)
    (tmp_path / "own/set.zip").write_bytes(b"mine")
    assert download("set", tmp_path / "own", site.url, good) == tmp_path / "own/set" and (tmp_path / "own/set.zip").read_bytes() == b"mine"


def test_unpacking_that_was_interrupted_starts_again(site, good, tmp_path):
    (tmp_path / ".set.partial").mkdir()
    (tmp_path / ".set.partial" / "1.png").write_text("half")
    got = download("set", tmp_path, site.url, good)
    assert (decode_image(got / "1.png") == noise()).all() and not (tmp_path / ".set.partial").exists()


def test_div2k_by_name(site, good, tmp_path, monkeypatch, cache):
    monkeypatch.setitem(data.DIV2K, "div2k-valid", good["set"])
    monkeypatch.setattr(download, "__defaults__", (None, site.url, data.DIV2K))
    photos = Photos.open("div2k-valid")
    assert len(photos) == 2 and photos.source == "div2k-valid" and photos.files[0].is_relative_to(cache_dir())
