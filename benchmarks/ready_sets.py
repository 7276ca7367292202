"""The training sets that come with the package.

    python benchmarks/ready_sets.py PHOTOS

PHOTOS is a folder with train/ and a manifest.csv, of which only rows in the public domain are taken (licence `CC0-1.0 (repo README)`,
split train). Writes sr_distill/ready/. What the sets are worth is told by the study `ready`: `sr_distill study ready OUT`.
"""
import csv
import shutil
import sys
from pathlib import Path

from sr_distill.core import write_json
from sr_distill.data import Photos
from sr_distill.distill import DistilledSet, distill, set_bytes
from sr_distill.recipe import RunOptions, recommended

READY = Path(__file__).resolve().parents[1] / "sr_distill/ready"
FREE = "CC0-1.0 (repo README)"
SIZES = ("50kB", "150kB", "350kB")
OPTIONS = RunOptions(device="cpu", held_out=0, snapshots=0)

def free_rows(folder):
    "The rows of the manifest whose photos anyone may use for anything."
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as f:
        return [row for row in csv.DictReader(f) if row["licence"] == FREE and row["split"] == "train"]

def free_photos(folder):
    photos, names = Photos.open(folder / "train"), [Path(row["file"]).stem for row in free_rows(folder)]
    return photos.subset([photos.names.index(n) for n in names])

def credits(folder):
    "Sources of the photos, as the card tells them."
    rows = free_rows(folder)
    where = sorted({row["source"] for row in rows})
    lines = [f"- `{Path(row['file']).stem}`: {row['original']} from github.com/{row['source']}" for row in rows]
    return "\n".join(["", "## Credits", "", f"The photos are in the public domain ({FREE.split(' (')[0]}), from "
                      f"{', '.join(f'github.com/{w}' for w in where)}; so is this set.", "", *lines, ""])

def make(folder):
    photos = free_photos(folder)
    for size in SIZES:
        shutil.rmtree(out := READY / size, ignore_errors=True)
        made = distill(photos, recommended(photos, bytes=size), out, OPTIONS)   # what `distill` makes without options
        made.manifest.update(source="photos in the public domain", credits=free_rows(folder))
        write_json(out / "manifest.json", made.manifest)
        with open(out / "README.md", "a", encoding="utf-8") as card: card.write(credits(folder))
        (out / ".lock").unlink(missing_ok=True)
        print(size, len(DistilledSet.load(out)), "images", set_bytes(out))

if __name__ == "__main__": make(Path(sys.argv[1]))
