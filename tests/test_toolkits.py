"""A stored set is read as it is by other toolkits.  They are not among this package's requirements; where one is missing its test says so."""
import importlib.util
import json
import shutil
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sr_distill.cli import main
from sr_distill.core import import_torchvision
from sr_distill.data import Photos, decode_image, make_lr
from sr_distill.distill import distill
from sr_distill.export import SET_FORMATS, export_set, push_set
from sr_distill.recipe import Recipe, RunError, RunOptions, UserError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Three synthetic images of 48², their LR copies, card and manifest, as `sr_distill distill … --lr-images` stores them."
    photos = Photos.open("embedded").subset([0, 1, 2])
    return distill(photos, Recipe(size=48, steps=2, pool="random", networks=1, real=4), tmp_path_factory.mktemp("set"), RunOptions(lr_images=True, held_out=0, device="cpu"))


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is missing (pip install {package})")


def test_pairs_have_one_name_and_fit(small):
    hr, lr = (sorted((small.folder / d).iterdir()) for d in ("images", "LR/X2"))
    assert [f.name for f in hr] == [f.name for f in lr] == [f"{n}.png" for n in small.names]
    for a, b in zip(hr, lr): assert Image.open(a).size == (48, 48) and Image.open(b).size == (24, 24)


def test_no_loader_unpacks_the_trace(small):
    "Whatever goes by the ending or by the first bytes of a file finds images in images/ and LR/ alone, and no archive."
    others = [p for p in small.folder.iterdir() if p.is_file()]
    assert small.trace and not any(zipfile.is_zipfile(p) or tarfile.is_tarfile(p) or p.suffix in (".zip", ".tar", ".png") for p in others if p.stat().st_size)
    starts = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!", b"7z", b"\x28\xb5\x2f\xfd", b"\x89PNG")
    assert not any(p.read_bytes().startswith(starts) for p in others)


def test_torchvision_image_folder(small, tmp_path):
    "LR copies are a class of their own there; without them the images are all that is found."
    import_torchvision()
    from torchvision.datasets import ImageFolder
    plain = small.save(tmp_path / "plain").folder
    shutil.rmtree(plain / "LR")
    found = ImageFolder(str(plain))
    assert found.classes == ["images"] and len(found) == len(small) and ImageFolder(str(small.folder)).classes == ["LR", "images"]


@needs("datasets")
@pytest.mark.parametrize("lr", [True, False], ids=["with LR copies", "without"])
@pytest.mark.parametrize("how", ["images", "root", "card"])
def test_hugging_face_datasets(small, how, lr, tmp_path):
    import datasets
    folder = small.folder if lr else small.save(tmp_path / "plain").folder
    if not lr: shutil.rmtree(folder / "LR"), (folder / "metadata.csv").unlink()
    where = dict(path=str(folder)) if how == "card" else dict(path="imagefolder", data_dir=str(folder / "images" if how == "images" else folder))   # the card says where
    found = datasets.load_dataset(**where, cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"] and list(found["train"].features) == ["image"]
    found = found["train"]
    assert len(found) == len(small)
    assert (np.stack([np.asarray(row["image"]) for row in found]) == small.images).all()


@needs("basicsr")
@pytest.mark.filterwarnings("ignore")
def test_basicsr_paired_dataset(small, monkeypatch):
    import_torchvision()
    import torchvision.transforms.functional as functional
    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional_tensor", functional)   # BasicSR 1.4 imports what torchvision has removed
    from basicsr.data.paired_image_dataset import PairedImageDataset
    pairs = PairedImageDataset(dict(
        dataroot_gt=str(small.folder / "images"), dataroot_lq=str(small.folder / "LR/X2"), filename_tmpl="{}", io_backend=dict(type="disk"),
        phase="train", scale=2, gt_size=48, use_hflip=False, use_rot=False))
    assert len(pairs) == len(small)
    for pair in (pairs[i] for i in range(len(pairs))):   # in the order of the disk
        image = small.images[small.names.index(Path(pair["gt_path"]).stem)]
        lr = np.asarray(Image.open(small.folder / "LR/X2" / Path(pair["gt_path"]).name))
        assert all((np.rint(pair[k].numpy() * 255) == u8.transpose(2, 0, 1)).all() for k, u8 in (("gt", image), ("lq", lr)))


# ---- a set written for other toolkits

@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    "A stored set of eight windows."
    return distill(Photos.open("embedded"), Recipe(init="random", size=64, steps=0, ipc=1), tmp_path_factory.mktemp("small") / "set")


@pytest.mark.parametrize("to", [k for k in SET_FORMATS if k not in ("lmdb", "huggingface", "parquet")])
def test_folders_hold_pairs(chosen, to, tmp_path):
    out = export_set(chosen.folder, tmp_path / "out", to, format="webp" if to == "folders" else "png")
    lines = (out / "meta_info.txt").read_text().splitlines()
    assert [f"{n}{'.webp' if to == 'folders' else '.png'} (64,64,3)" for n in chosen.names] == lines
    for line, image in zip(lines, chosen.images):
        hr, lr = (decode_image(out / part / line.split(" ")[0]) for part in ("HR", "LR"))
        assert (hr == image).all() and (lr == make_lr(image, 2)).all()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

def test_configurations_name_what_is_there(chosen, tmp_path):
    toml = pytest.importorskip("tomllib", reason="tomllib is missing (Python 3.11)") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
    neosr, redux, basicsr = (export_set(chosen.folder, tmp_path / to, to, scale=4) for to in ("neosr", "trainer-redux", "basicsr"))
    for said in (toml.loads((neosr / "train.toml").read_text(encoding="utf-8")), yaml.safe_load((redux / "train.yml").read_text(encoding="utf-8"))):
        train = said["datasets"]["train"]
        hr, lr = ([train[k]] if isinstance(train[k], str) else train[k] for k in ("dataroot_gt", "dataroot_lq"))
        assert said["scale"] == 4 and len(list(Path(hr[0]).iterdir())) == len(list(Path(lr[0]).iterdir())) == len(chosen)
        assert 4 * (train.get("patch_size") or train["lq_size"]) == 64 and said["network_g"]["type"] == "span"
    assert Path(yaml.safe_load((basicsr / "train.yml").read_text(encoding="utf-8"))["meta_info_file"]).is_file()

def test_any_photos_can_be_exported(chosen, small_photos, tmp_path, capsys):
    assert main(["export", str(small_photos("ab")), str(tmp_path / "pairs"), "--scale", "3"]) == 0 and "5 files" in capsys.readouterr().out
    assert Image.open(tmp_path / "pairs/LR/a.png").size == tuple(s // 3 for s in Image.open(tmp_path / "pairs/HR/a.png").size)
    for wrong, word in (("--to zip", "is no format for a training set"), ("--to neosr --push a/b", "--push sends"), ("--to folders --format gif", "gif")):
        assert main(["export", str(chosen.folder), str(tmp_path / "new"), *wrong.split()]) == 2 and word in capsys.readouterr().err
    assert main(["export", str(chosen.folder), str(tmp_path / "pairs")]) == 2 and "is there already" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs", "photos"]

def test_what_a_toolkit_needs_is_named(chosen, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in ("lmdb", "pyarrow", "huggingface_hub") else real(name, *a))
    with pytest.raises(UserError, match=r"needs lmdb: pip install 'sr_distill\[toolkits\]'"): export_set(chosen.folder, tmp_path / "x", "lmdb")
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'sr_distill\[toolkits\]'"): export_set(chosen.folder, tmp_path / "x", "parquet")
    with pytest.raises(UserError, match="needs huggingface_hub"): push_set(tmp_path, "a/b")
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr("sr_distill.export.open_photos", lambda *a: pytest.fail("work began first"))
    with pytest.raises(UserError, match="needs lmdb"): export_set(chosen.folder, tmp_path / "x", "lmdb")


@needs("lmdb")
def test_lmdb_in_the_layout_of_basicsr(chosen, tmp_path):
    "One key for each line of meta_info.txt, up to its first dot, as BasicSR looks them up."
    import io
    import lmdb
    out = export_set(chosen.folder, tmp_path / "out", "lmdb")
    for part, images in (("HR", chosen.images), ("LR", [make_lr(i, 2) for i in chosen.images])):
        keys = [line.split(".")[0] for line in (out / f"{part}.lmdb/meta_info.txt").read_text().splitlines()]
        assert keys == chosen.names
        with lmdb.open(str(out / f"{part}.lmdb"), readonly=True, lock=False, readahead=False) as base, base.begin(write=False) as txn:
            assert txn.stat()["entries"] == len(chosen)
            for key, image in zip(keys, images): assert (np.asarray(Image.open(io.BytesIO(txn.get(key.encode("ascii"))))) == image).all()

@needs("lmdb")
@needs("basicsr")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["lmdb", "basicsr"])
def test_basicsr_reads_what_is_written_for_it(chosen, to, tmp_path, monkeypatch):
    import_torchvision()
    import torchvision.transforms.functional as functional
    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional_tensor", functional)
    from basicsr.data.paired_image_dataset import PairedImageDataset
    out = export_set(chosen.folder, tmp_path / "out", to)
    if to == "lmdb": options = dict(dataroot_gt=str(out / "HR.lmdb"), dataroot_lq=str(out / "LR.lmdb"), io_backend=dict(type="lmdb"), gt_size=64)
    else: options = yaml.safe_load((out / "train.yml").read_text(encoding="utf-8"))
    pairs = PairedImageDataset({**options, "phase": "train", "scale": 2, "use_hflip": False, "use_rot": False})
    assert len(pairs) == len(chosen)
    for pair in (pairs[i] for i in range(len(pairs))):
        image = chosen.images[chosen.names.index(Path(pair["gt_path"]).stem)]
        assert (np.rint(pair["gt"].numpy() * 255) == image.transpose(2, 0, 1)).all() and (np.rint(pair["lq"].numpy() * 255) == make_lr(image, 2).transpose(2, 0, 1)).all()


@needs("datasets")
@pytest.mark.parametrize("how", ["folder", "card"])
def test_hugging_face_shows_pairs(chosen, how, tmp_path):
    import datasets
    out = export_set(chosen.folder, tmp_path / "pairs", "huggingface")
    where = dict(path="imagefolder", data_dir=str(out)) if how == "folder" else dict(path=str(out))
    found = datasets.load_dataset(**where, cache_dir=str(tmp_path / "cache"))["train"]
    assert list(found.features) == ["hr", "lr"] and len(found) == len(chosen)
    assert (np.stack([np.asarray(row["hr"]) for row in found]) == chosen.images).all() and np.asarray(found[0]["lr"]).shape == (32, 32, 3)

@needs("datasets")
@pytest.mark.parametrize("format", ["png", "webp"])
def test_a_parquet_file_is_read_by_its_card(chosen, format, tmp_path):
    import datasets
    import pyarrow.parquet
    out = export_set(chosen.folder, tmp_path / "pairs", "parquet", format=format)
    assert sorted(p.name for p in out.rglob("*")) == ["README.md", "data", "train-00000-of-00001.parquet"]
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert found.features == datasets.Features(hr=datasets.Image(), lr=datasets.Image()) and len(found) == len(chosen)
    assert (np.stack([np.asarray(row["hr"]) for row in found]) == chosen.images).all()
    assert all((np.asarray(row["lr"]) == make_lr(image, 2)).all() for row, image in zip(found, chosen.images))
    plain = pyarrow.parquet.read_table(out / "data/train-00000-of-00001.parquet")   # its schema alone says that these are images
    assert datasets.Features.from_arrow_schema(plain.schema) == found.features
    assert plain["hr"][0].as_py()["path"] == f"{chosen.names[0]}.{format}"

def test_a_ready_set_takes_its_credits_along(tmp_path):
    card = (export_set("ready:50kB", tmp_path / "out", "huggingface") / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc0-1.0" and "sunset-beach.jpg" in card


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as its client asks for when it sends a few small files."
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        answer = {}
        if self.path == "/api/repos/create": answer = dict(url=f"http://{self.headers['Host']}/datasets/you/small", name="you/small", id="you/small")
        elif "/preupload/" in self.path: answer = dict(files=[dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in json.loads(body)["files"]])
        elif "/commit/" in self.path: answer = dict(success=True, commitOid="0" * 40, commitUrl=f"http://{self.headers['Host']}/datasets/you/small/commit/{'0' * 40}")
        self.send_response(200), self.send_header("Content-Type", "application/json"), self.end_headers()
        self.wfile.write(json.dumps(answer).encode())
    def do_GET(self): self.send_response(404), self.end_headers()
    def log_message(self, *_): pass

@needs("huggingface_hub")
def test_a_set_is_sent_to_the_hub(chosen, tmp_path, monkeypatch):
    "The official client, against a server of our own."
    import base64
    import huggingface_hub
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda api=huggingface_hub.HfApi: api(endpoint=address, token="hf_mine"))
    out = export_set(chosen.folder, tmp_path / "out", "huggingface")
    assert push_set(out, "you/small") == f"{address}/datasets/you/small"
    commit = next(body for path, body, _ in server.asked if path.startswith("/api/datasets/you/small/commit/main"))
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}
    assert sent == {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} and all(a == "Bearer hf_mine" for *_, a in server.asked)
    server.shutdown(), server.server_close()
    with pytest.raises(RunError, match="could not be sent .* is complete"): push_set(out, "you/small")
