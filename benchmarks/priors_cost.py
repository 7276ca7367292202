"""Seconds and peak memory of one latent step through each kind of prior: render, then GLaD's two-stage backward.

    python benchmarks/priors_cost.py [WEIGHTS] [--device cpu] [--size 256] [--batch 4] [--resolution 512] [--publish]

WEIGHTS is a folder with taef2_encoder.pth and taef2_decoder.pth; without it that row is left out.  The embedded prior is trained
first where it is not cached.  The StyleGAN-XL has ImageNet's layout at the full resolution, and random weights.  Each row runs in
a process of its own.  With --publish the rows also go to nbs/results/priors-cost.json, in the place of those of the same device.
"""
import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from sr_distill.core import read_json, rng, write_json
from sr_distill.data import Photos
from sr_distill.latent import Latents, LatentSpace
from sr_distill.priors import load_prior
from sr_distill.stylegan import StyleGANXL, xl_config

RESULTS = Path(__file__).resolve().parents[1]/"nbs/results/priors-cost.json"

def anonymous():
    with open("/proc/self/status") as f: return next(1024 * int(line.split()[1]) for line in f if line.startswith("RssAnon"))

def measure(kind, args):
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    if kind == "stylegan-xl":
        prior, size, n = StyleGANXL(xl_config(args.resolution)).requires_grad_(False).to(args.device), args.resolution, 1
        with torch.no_grad(): values = prior.map(torch.randn(n, 64, generator=rng(0, "z")).to(args.device), torch.full((n,), 207, device=args.device))
    else:
        prior, size, n = load_prior(args.weights if kind == "taef2" else "embedded", Photos.open("embedded"), args.device), args.size, args.batch
        with torch.no_grad(): values = prior.encode(torch.rand(n, 3, size, size, generator=rng(0, "images")).to(args.device))
    base, peak, on = anonymous(), 0, True
    def watch():
        nonlocal peak
        while on: peak = max(peak, anonymous()); time.sleep(.005)
    threading.Thread(target=watch, daemon=True).start()
    space, wait, times = LatentSpace(Latents(prior, values.clone(), size)), torch.cuda.synchronize if cuda else lambda: None, []
    for _ in range(1 if kind == "stylegan-xl" and not cuda else 3):
        wait(); began = time.perf_counter()
        images = space.render(slice(None))
        wait(); middle = time.perf_counter()
        space.backward(slice(None), images - .5)
        wait(); times.append((middle - began, time.perf_counter() - middle))
        assert space.parts["latents"].grad.abs().sum() > 0
        space.project()
    on = False
    render, back = np.median(times, 0)
    return dict(device=args.device, prior=kind, images=n, size=size, weights=sum(p.numel() for p in prior.parameters()), render=render / n, backward=back / n,
                peak_above_weights=int(torch.cuda.max_memory_allocated()) if cuda else peak - base)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", nargs="?"), p.add_argument("--device", default="cpu"), p.add_argument("--size", type=int, default=256)
    p.add_argument("--batch", type=int, default=4), p.add_argument("--resolution", type=int, default=512), p.add_argument("--only", help=argparse.SUPPRESS)
    p.add_argument("--publish", action="store_true")
    args = p.parse_args()
    if args.only: return print(json.dumps(measure(args.only, args)))
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n\n| prior | weights | image | render, s per image | backward, s per image | peak above weights, GB |\n|:--|--:|--:|--:|--:|--:|")
    rows = []
    for kind in (["taef2"] if args.weights else []) + ["embedded", "stylegan-xl"]:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", kind], check=True, stdout=subprocess.PIPE, text=True)
        r = json.loads(done.stdout.splitlines()[-1])
        rows.append(r)
        print(f"| {kind} | {r['weights'] / 1e6:.1f} M | {r['size']}² | {r['render']:.2f} | {r['backward']:.2f} | {r['peak_above_weights'] / 1e9:.2f} |", flush=True)
    if args.publish:
        kept = [r for r in read_json(RESULTS)["rows"] if r["device"] != args.device] if RESULTS.exists() else []
        write_json(RESULTS, dict(rows=rows + kept))

if __name__ == "__main__": main()
