"""The training sets that come with the package: small, from the public domain, in order, and known by name wherever photos are."""
from pathlib import Path

import numpy as np
import pytest

from sr_distill.cli import main
from sr_distill.core import json_sha256
from sr_distill.data import Photos, ready_folder, ready_sets
from sr_distill.distill import DistilledSet, learnt_from, open_photos, set_bytes
from sr_distill.recipe import UserError, byte_count

SETS = sorted(ready_sets())


def test_they_are_small():
    total = {name: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for name, folder in ready_sets().items()}
    assert 2 <= len(SETS) <= 3 and max(total.values()) <= 400_000 and sum(total.values()) <= 1_500_000

@pytest.mark.parametrize("name", SETS)
def test_a_set_is_in_order_and_takes_what_its_name_says(name):
    made = DistilledSet.load(ready_folder(name))
    asked = byte_count(name.partition(":")[2])
    assert .9 * asked < set_bytes(made.folder)["images"] + set_bytes(made.folder)["program"] <= asked == made.recipe.bytes
    assert (Photos.open(name)[0] == made.images[0]).all() and open_photos(name).fingerprint == made.photos.fingerprint

@pytest.mark.parametrize("name", SETS)
def test_every_source_is_named_and_in_the_public_domain(name):
    made = DistilledSet.load(ready_folder(name))
    credits = {Path(row["file"]).stem: row for row in made.manifest["credits"]}
    assert [s["name"] for s in made.manifest["sources"]] == list(credits) and all(len(s["sha256"]) == 64 for s in made.manifest["sources"])
    assert json_sha256([s["sha256"] for s in made.manifest["sources"]]) == made.manifest["photos"]
    card = (made.folder / "README.md").read_text(encoding="utf-8")
    assert all(row["licence"].startswith("CC0-1.0") and row["original"] in card for row in credits.values())
    assert {n.rpartition("_")[0] or n for n in made.names} <= credits.keys() and not any(Path(s["file"]).is_absolute() for s in made.manifest["sources"])

def test_commands_know_their_names(tmp_path, capsys):
    assert main(["inspect", "ready:50kB"]) == 0 and "27 images" in capsys.readouterr().out
    assert main(f"train ready:50kB {tmp_path}/model --model srcnn --steps 2 --batch 2 --device cpu".split()) == 0
    assert not learnt_from(tmp_path / "model", Photos.open("embedded").subset([0]))
    assert main(f"train ready:9TB {tmp_path}/none --device cpu".split()) == 2 and "ready:350kB" in capsys.readouterr().err

def test_a_model_says_which_photos_it_met_through_such_a_set(tmp_path):
    from sr_distill.models import make_model, save_model
    made = DistilledSet.load(ready_folder("ready:50kB"))
    save_model(make_model("srcnn", 2), tmp_path / "m", photos=dict(source="ready:50kB", sha256="0", each=[]))
    met = Photos.from_arrays([s["name"] for s in made.manifest["sources"]], [np.zeros((8, 8, 3), np.uint8)] * 24)
    for photo, source in zip(met._photos, made.manifest["sources"]): object.__setattr__(photo, "sha256", source["sha256"])
    assert learnt_from(tmp_path / "m", met) == met.names


def test_a_text_file_lists_photos(small_photos, tmp_path, capsys):
    folder = small_photos("abc")
    (tmp_path / "list.txt").write_text(f"\ufeff# two of three\n{folder}/c.png\n\n  {folder}/a.png\n{folder}/c.png\n", encoding="utf-8")
    assert Photos.open(tmp_path / "list.txt").names == ["c", "a"]
    (folder / "list.txt").write_text("b.png\n", encoding="utf-8")
    assert Photos.open(folder / "list.txt").names == ["b"] and len(Photos.open(folder)) == 3
    (tmp_path / "more.txt").write_text(str(folder), encoding="utf-8")
    assert len(Photos.open(tmp_path / "more.txt")) == 3
    for text, said in ((b"gone.png\n", "1 of its 1 paths are not there"), (b"# nothing\n", "lists no path"), (b"", "is empty"), (b"\xff\xfe\x00", "UTF-8")):
        (tmp_path / "wrong.txt").write_bytes(text)
        with pytest.raises(UserError, match=said): Photos.open(tmp_path / "wrong.txt")
    assert main(["inspect", str(tmp_path / "list.txt")]) == 0 and "2 photos" in capsys.readouterr().out
