"""A stored set is read as it is by other toolkits.  They are not among this package's requirements; where one is missing its test says so."""
import importlib.util
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_distill.core import import_torchvision
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.recipe import Recipe, RunOptions


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
