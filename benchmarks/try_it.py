"""The four networks of the page "Try it", and the photos that it offers.

    OMP_NUM_THREADS=1 python benchmarks/try_it.py PHOTOS HELD_OUT OUT

PHOTOS is a folder of HR photos to learn from, HELD_OUT one of photos that no network sees.  A small EDSR is trained for
--steps steps on all the photos, on random windows of them, on the hardest window of each of the first ten, and on these
ten windows after distillation: the library's defaults.  A killed run goes on from what lies in OUT.  Writes
nbs/try/NAME.onnx, with weights of 16 bits, a crop of each photo held out, nbs/try/NAME.jpg, and nbs/try/networks.json.
"""
import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from sr_distill.core import rng, write_json
from sr_distill.data import Photos
from sr_distill.distill import distill
from sr_distill.export import export_model
from sr_distill.metrics import evaluate
from sr_distill.models import count_parameters, make_model
from sr_distill.recipe import Recipe, TrainConfig
from sr_distill.train import train
from sr_distill.widgets import busiest_crop

OFFERED = {"0001": ("budgie", "a budgie"), "0002": ("tea", "tea gardens"), "0003": ("city", "a city at dusk")}   # of HELD_OUT
TRY = Path(__file__).resolve().parents[1] / "nbs/try"
NETWORKS = {   # file → (what the page calls it, the recipe of its set, how many of the photos it is made from)
    "photos": ("all photos", None, None),
    "random": ("random windows", Recipe(init="random", size=96, ipc=3, steps=0), None),
    "chosen": ("ten chosen windows", Recipe(steps=0), 10),
    "distilled": ("the ten, distilled", Recipe(), 10),
}

def half(model):
    "`model` with weights that 16 bits hold exactly."
    with torch.no_grad():
        for p in model.parameters(): p.copy_(p.half().float())
    return model

def store_half(file):
    "Store the weights of an ONNX file, which `half` has rounded, in 16 bits; the network still computes with 32."
    model, casts = onnx.load(file), []
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype != np.float32 or values.size < 16: continue
        if not np.array_equal(small := values.astype(np.float16), values): raise ValueError(f"{weights.name}: not rounded")
        name = weights.name
        weights.CopyFrom(numpy_helper.from_array(small, name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], to=TensorProto.FLOAT))
    for node in reversed(casts): model.graph.node.insert(0, node)
    del model.graph.value_info[:]
    for node in model.graph.node: del node.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, file)

def crop(photo, path, height=480, width=720):
    "The busiest part of a photo, reduced by two, as a JPEG."
    u8 = np.asarray(photo)
    flat = np.broadcast_to(u8[::16, ::16].mean((0, 1), keepdims=True), u8.shape).astype(np.uint8)
    y, x = busiest_crop(flat, u8, 2 * height)[:2]
    x, y = min(x, u8.shape[1] - 2 * width), min(y, u8.shape[0] - 2 * height)
    Image.fromarray(u8[y:y + 2 * height, x:x + 2 * width]).resize((width, height), Image.Resampling.LANCZOS).save(path, quality=92)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("photos", "held_out", "out"): parser.add_argument(name, type=Path)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), help="train these, and write nothing")
    args = parser.parse_args()
    photos, held_out = Photos.open(args.photos), Photos.open(args.held_out)
    config = TrainConfig.for_model("edsr", depth=args.depth, width=args.width, steps=args.steps, patch=48)
    TRY.mkdir(exist_ok=True)
    for name, (file, _) in OFFERED.items(): crop(held_out.hr(held_out.names.index(name), 2), TRY / f"{file}.jpg")
    rows, offered = [], Photos.open(TRY)
    def score(model): return evaluate(model, offered, 2, lpips="none", ssim=False).mean["psnr_rgb"]
    for name, (title, recipe, first) in NETWORKS.items():
        if args.only and name not in args.only: continue
        source = photos
        if recipe: source = distill(photos[:first], recipe, args.out / name).photos
        net = make_model("edsr", 2, args.depth, args.width, generator=rng(0, "weights"))
        net = half(train(net, source, config, args.out / f"{name}-edsr").model)
        if args.only: continue
        store_half(export_model(net, TRY / f"{name}.onnx"))
        rows.append(dict(file=f"{name}.onnx", title=title, images=len(source), steps=recipe.steps if recipe else None, share=source.pixels / photos.pixels, psnr_rgb=score(net)))
        print(rows[-1], flush=True)
    if args.only: return
    write_json(TRY / "networks.json", dict(
        scale=2, margin=net.margin, depth=args.depth, width=args.width, parameters=count_parameters(net), steps=args.steps, batch=config.batch, patch=config.patch,
        photos=len(photos), offered=dict(OFFERED.values()), bicubic=score("bicubic"), networks=rows))

if __name__ == "__main__": main()
