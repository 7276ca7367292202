"""The training sets that come with the package, and the table that tells what they are worth.

    python benchmarks/ready_sets.py make PHOTOS
    python benchmarks/ready_sets.py table OUT --photos PHOTOS --tests SET5 SET14 VAL --others T91 [--seeds 3] [--steps 1200]

PHOTOS is a folder with train/ and a manifest.csv, of which only rows in the public domain are taken (licence `CC0-1.0 (repo README)`,
split train). `make` writes sr_distill/ready/. `table` trains an EDSR 4×32 on each of them, on the other folders, on as many bytes of
random windows and on all those photos, and writes OUT/ready.json after each training; the same command goes on where it was stopped.
"""
import argparse
import csv
import shutil
from dataclasses import replace
from pathlib import Path

from sr_distill.core import read_json, rng, write_json
from sr_distill.data import Photos
from sr_distill.distill import DistilledSet, distill, open_photos, set_bytes
from sr_distill.metrics import evaluate
from sr_distill.models import make_model
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.train import train

READY = Path(__file__).resolve().parents[1] / "sr_distill/ready"
FREE = "CC0-1.0 (repo README)"
RECIPE = Recipe(init="hardest", steps=0, size=64, format="webp", bytes="350kB")
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
        made = distill(photos, replace(RECIPE, bytes=size), out, OPTIONS)
        made.manifest.update(source="photos in the public domain", credits=free_rows(folder))
        write_json(out / "manifest.json", made.manifest)
        with open(out / "README.md", "a", encoding="utf-8") as card: card.write(credits(folder))
        (out / ".lock").unlink(missing_ok=True)
        print(size, len(DistilledSet.load(out)), "images", set_bytes(out))

def sources(args):
    "Name → (photos, how patches are drawn from them, bytes on the disk)."
    photos = free_photos(args.photos)
    random = distill(photos, replace(RECIPE, init="random"), args.out / "random", OPTIONS)
    found = {f"ready:{size}": (open_photos(f"ready:{size}"), "uniform", set_bytes(READY / size)["images"]) for size in SIZES}
    found["random windows, 350kB"] = random.photos, "uniform", set_bytes(random.folder)["images"]
    for folder in args.others:
        other = Photos.open(folder)
        found[Path(folder).name.upper()] = other, "uniform", sum(f.stat().st_size for f in other.files)
    for how in ("error", "uniform"): found[f"all {len(photos)} photos, {how}"] = photos, how, photos.png_bytes
    return found

def table(args):
    args.out.mkdir(parents=True, exist_ok=True)
    file, found = args.out / "ready.json", sources(args)
    rows = read_json(file)["rows"] if file.exists() else []
    done = {(row["set"], row["steps"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for name, (photos, how, size) in found.items():
            if (name, args.steps, seed) in done: continue
            config = TrainConfig.for_model("edsr", depth=4, width=32, steps=args.steps, batch=16, patch=48, sampling=how, seed=seed)
            net = train(make_model("edsr", 2, 4, 32, generator=rng(seed, "model")), photos, config, device="cpu").model
            scores = {Path(t).name: evaluate(net, Photos.open(t), 2, None, "none").mean["psnr_rgb"] for t in args.tests}
            rows.append(dict(set=name, steps=args.steps, seed=seed, bytes=size, images=len(photos), psnr_rgb=scores))
            write_json(file, dict(model="EDSR 4×32", scale=2, batch=16, patch=48, rows=rows))
            print(rows[-1], flush=True)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("make"); one.add_argument("photos", type=Path); one.set_defaults(run=lambda args: make(args.photos))
    two = commands.add_parser("table"); two.add_argument("out", type=Path); two.set_defaults(run=table)
    two.add_argument("--photos", type=Path, required=True), two.add_argument("--tests", nargs="+", required=True)
    two.add_argument("--others", nargs="*", default=[]), two.add_argument("--seeds", type=int, default=3), two.add_argument("--steps", type=int, default=1200)
    args = parser.parse_args()
    args.run(args)
