"""What distillation costs: against the reference loop, against the bare convolutions, and as photos, size and IPC grow.

    python benchmarks/speed.py PHOTOS OUT                   about 25 minutes on 2 CPU cores, 40 photos of 2K
    python benchmarks/speed.py PHOTOS OUT --only rates      one section: rates, curve, scaling, input, pages or job
    python benchmarks/speed.py PHOTOS OUT --device cuda     what a GPU is asked; for some 20 photos, about 3 minutes

PHOTOS is a folder of HR photos.  Results go to OUT/speed-cpu.json (speed-cuda.json), section by section; with --publish
also to nbs/results/, where the page on speed reads them.  Everything that is compared is timed in turn, in one process,
several times over; the medians and the range are kept.  The sections:

rates    One group-step (32 real crops of 192² and one synthetic image, SRCNN 9-1-5): the reference loop, written here from
         the papers in plain PyTorch calls; the library's step, with its share of the gradient bank; and the convolutions
         of that step replayed alone, by the library's kernels and by PyTorch's plain calls.
curve    Does a step of the library do what a step of the reference does?  The same recipe on 4 photos, 3 seeds, both loops
         run in full; matching loss on five unseen, partly trained networks along the way.
scaling  Seconds per step and peak anonymous memory with 10, 20, 40, 80 photos (80: with copies turned by 90 degrees), with
         the image size and with IPC, each in a process of its own.
input    Training patches per second: from the decoded cache, and decoding a PNG for each patch.
pages    Enlarging a 512² image ×2 with a VDSR, with PyTorch's pages of 2 MiB and without, each in a process of its own.
job      The default recipe at 150 steps on all photos: bank, steps, and the loss on unseen networks over time.

On a GPU, in this order; a section that OUT/speed-cuda.json has already is left out, so a second day goes on (the exit
status is 75 while a section is missing or has failed):

rates    As above, without the replay; rates-tf32 lets convolutions and products round to TF32, in both loops.
scale    800 groups, as DIV2K has: seconds per step, how long the host needs to issue one, how often it waits for the device.
shares   One step in the profiler: shares of arithmetic, of memory traffic, and of waiting for the next launch.
rounding The final set of one recipe by float32, TF32 and bfloat16 steps, judged by unseen networks and by an EDSR.
graph    The same match as one CUDA graph.
training Training steps per second of a small and of a full-size EDSR, recorded as CUDA graphs and not, in float32 and in 16
         bits; then from photos, from a program with 1 to 4 threads that draw, and from a program with a teacher.
"""
import argparse
import copy
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import sr_distill.distill as engine

from sr_distill import convolution
from sr_distill.core import POLICIES, rng, to_tensor, to_uint8, write_json
from sr_distill.data import Photos, downscale
from sr_distill.distill import Run, distill, rate
from sr_distill.matching import (BankSource, GradientBank, dc_loss, fresh_network, group_gradients, held_out_loss, match, mean_gradient, network_pool,
                                trajectories)
from sr_distill.metrics import upscale_image
from sr_distill.models import make_model
from sr_distill.parallel import ahead, in_parallel, precision
from sr_distill.patches import Groups
from sr_distill.pixel import PixelSpace, start_images
from sr_distill.procedural import Endless, EndlessSampler, hand_written
from sr_distill.recipe import Recipe, RunOptions, TrainConfig
from sr_distill.train import PatchSampler, Trainer, train

RESULTS = Path(__file__).resolve().parents[1] / "nbs/results"


# ── the reference loop ──────────────────────────────────────────────────────────────────────────────────────────────────

def plain_loss(net, hr): return F.mse_loss(net(downscale(hr, net.scale)), hr)

def plain_distance(syn, real, objective):
    "Eq. (3) of the paper, or the sum over filters of Dataset Condensation."
    if objective == "whole":
        a, b = (torch.cat([g.flatten() for g in gs]) for gs in (syn, real))
        return 1 - F.cosine_similarity(a, b, dim=0, eps=1e-12)
    return sum((1 - F.cosine_similarity(a.flatten(1), b.flatten(1), eps=1e-12)).sum() for a, b in zip(syn, real) if a.ndim > 1)

def reference_group(net, image, crops, objective):
    "One group in one step of Dataset Condensation: real gradient, synthetic gradient, distance, gradient in the pixels."
    weights = list(net.parameters())
    real = [g.detach() for g in torch.autograd.grad(plain_loss(net, crops), weights)]
    image = image.detach().requires_grad_()
    syn = torch.autograd.grad(plain_loss(net, image), weights, create_graph=True)
    distance = plain_distance(syn, real, objective)
    return distance.detach(), torch.autograd.grad(distance, image)[0]

def reference_run(groups, recipe, states, device, watch=None):
    "The whole loop, one group after another, real gradients recomputed at every step; states None for a fresh network each."
    images = to_tensor(start_images(groups, recipe), device)
    images.grad = torch.zeros_like(images)
    optimizer = torch.optim.Adam([images], lr=recipe.lr) if recipe.optimizer == "adam" else torch.optim.SGD([images], lr=recipe.lr, momentum=.5)
    net = make_model(recipe.network, recipe.scale).to(device)
    order = [k for i in range(recipe.steps) for k in torch.randperm(len(states), generator=rng(recipe.seed, "order", i)).tolist()] if states else []
    for step in range(recipe.steps):
        net.load_state_dict(states[order[step]] if states else fresh_network(recipe, "fresh", step).state_dict())
        for g in range(len(groups)):
            crops = groups.cut(groups.sample(g, recipe.real, rng(recipe.seed, "reference", step, g)), device)
            images.grad[g:g+1] = reference_group(net, images[g:g+1], crops, recipe.objective)[1]
        for settings in optimizer.param_groups: settings["lr"] = recipe.lr * rate(recipe, step)
        optimizer.step()
        with torch.no_grad(): images.clamp_(0, 1)
        if watch: watch(step + 1, images)
    return images


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────────

def finish(device):
    if torch.device(device).type == "cuda": torch.cuda.synchronize()

def seconds(fn, device="cpu"):
    finish(device)
    began = time.perf_counter()
    fn()
    finish(device)
    return time.perf_counter() - began

def in_turn(jobs: dict, rounds: int, device="cpu") -> dict:
    "Median, least and greatest seconds of each job; all jobs are timed once in every round."
    for job in jobs.values(): job()
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items(): times[name].append(seconds(job, device))
    return {name: dict(median=statistics.median(t), least=min(t), greatest=max(t)) for name, t in times.items()}

class PeakMemory:
    "Peak anonymous memory of this process in bytes, sampled every 5 ms; on Linux."
    def __enter__(self):
        self.peak, self.on = 0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self
    def _watch(self):
        while self.on:
            with open("/proc/self/status") as f: self.peak = max(self.peak, *(1024 * int(line.split()[1]) for line in f if line.startswith("RssAnon")))
            time.sleep(.005)
    def __exit__(self, *_):
        self.on = False
        self.thread.join()

def recorded(step):
    "The convolutions that `step()` calls, as a list of (kind, arguments)."
    calls, kinds = [], dict(conv=convolution.conv, weight_gradient=convolution.weight_gradient)
    def spy(kind):
        def call(*args):
            calls.append((kind, [a.detach().clone(memory_format=torch.preserve_format) if torch.is_tensor(a) else a for a in args]))
            return kinds[kind](*args)
        return call
    for kind in kinds: setattr(convolution, kind, spy(kind))
    try: step()
    finally:
        for kind, fn in kinds.items(): setattr(convolution, kind, fn)
    return calls

def plain_call(kind, args):
    "The same convolution by PyTorch's plain call."
    if kind == "conv": return F.conv2d(args[0], args[1], args[2] if len(args) > 2 else None, padding=args[1].shape[-1] // 2)
    return convolution._native_weight_gradient(*args[:3])


# ── sections ────────────────────────────────────────────────────────────────────────────────────────────────────────────

def rates(photos, out, device, rounds=5, tf32=False):
    with precision(tf32): return rates_now(photos, device, rounds)

def rates_now(photos, device, rounds):
    recipe = Recipe(pool="random", networks=1, init="downscaled", real=1)
    groups = Groups(photos, "image", recipe.size, recipe.stride)
    bank = GradientBank(groups, recipe, network_pool(recipe, photos), "rates", device).build()
    run = Run(PixelSpace(start_images(groups, recipe), device), replace(recipe, steps=10**6), BankSource(bank), device)
    net, crops = bank.networks[0], groups.cut(groups.sample(0, 32, rng(0, "crops")), device)
    numbers, n = np.arange(32), len(groups)
    target = [t[:1] for t in bank.targets(0, slice(0, 1))]
    one = run.space.render(slice(0, 1)).unsqueeze(0)
    jobs = {"reference": lambda: reference_group(net, run.space.render(slice(0, 1)), crops, "layerwise"),
            "reference, synthetic side": lambda: reference_group(net, run.space.render(slice(0, 1)), crops[:1], "layerwise"),
            "step": run.step,
            "bank row": lambda: mean_gradient(net, numbers, lambda part: crops[part[0]:part[-1] + 1])}
    if device == "cpu":
        calls = recorded(lambda: match(net, one, target, "layerwise", 1))
        kernels = dict(conv=convolution.conv, weight_gradient=convolution.weight_gradient)
        replay = lambda call: lambda _: [call(kind, args) for kind, args in calls]
        jobs["convolutions alone"] = lambda: in_parallel(replay(lambda kind, args: kernels[kind](*args)), range(n))
        jobs["convolutions alone, plain calls"] = lambda: in_parallel(replay(plain_call), range(n))
    times = in_turn(jobs, rounds, device)
    for name in ("step", "convolutions alone", "convolutions alone, plain calls"):   # per group
        if name in times: times[name] = {k: v / n for k, v in times[name].items()}
    m = {name: t["median"] for name, t in times.items()}
    share = {f"{networks} networks, {steps} steps": networks / steps * m["bank row"] for networks, steps in ((10, 300), (20, 1000))}
    result = dict(groups=n, seconds=times, bank_share=share,
                  group_steps_per_second=dict(reference=1 / m["reference"], step=1 / m["step"]),
                  times_as_fast={what: m["reference"] / (m["step"] + s) for what, s in share.items()})
    if device == "cpu": result["share_of_bare_convolutions"] = {"library's kernels": m["convolutions alone"] / m["step"], "plain calls": m["convolutions alone, plain calls"] / m["step"]}
    return result


def curve(photos, out, device, seeds=3, marks=(0, 10, 20, 40, 60)):
    chosen, rows = photos.subset(np.linspace(0, len(photos) - 1, 4).astype(int).tolist()), []
    for seed in range(seeds):
        recipe = Recipe(size=96, steps=marks[-1], networks=10, real=32, seed=seed)
        literal = replace(recipe, objective="whole", optimizer="sgd", lr=.1, schedule="constant")   # the paper and DC at their word
        groups = Groups(chosen, "image", recipe.size, recipe.stride)
        states, unseen = network_pool(recipe, chosen, device), trajectories(recipe, chosen, {"held-out": 5}, device)
        judge = GradientBank(groups, replace(recipe, real=16), unseen, "held-out", device).build()
        def keep(found):
            def watch(step, images):
                if step in marks: found[step] = held_out_loss(to_tensor(to_uint8(images), device).unsqueeze(1), judge)["layerwise"]
            return watch
        losses = {name: {} for name in ("reference", "library", "literal")}
        for found in losses.values(): keep(found)(0, to_tensor(start_images(groups, recipe), device))
        run = Run(PixelSpace(start_images(groups, recipe), device), recipe, BankSource(GradientBank(groups, recipe, states, device=device).build()), device)
        for step in range(recipe.steps):
            run.step()
            keep(losses["library"])(step + 1, run.space.render(slice(None)))
        reference_run(groups, recipe, states, device, keep(losses["reference"]))
        reference_run(groups, replace(literal, real=4), None, device, keep(losses["literal"]))
        rows.append(dict(seed=seed, losses=losses))
        print(json.dumps(rows[-1]), flush=True)
    cut = {name: [1 - r["losses"][name][marks[-1]] / r["losses"][name][0] for r in rows] for name in ("reference", "library", "literal")}
    return dict(photos=len(chosen), size=96, steps=marks[-1], rows=rows, cut={k: dict(mean=statistics.mean(v), spread=statistics.stdev(v)) for k, v in cut.items()})


def measure(folder, size, ipc, device):
    "One configuration in this process: seconds per step and peak anonymous memory of the whole way."
    photos = Photos.open(folder)
    for i in range(len(photos)): photos[i]   # decoded: not part of the measurement
    recipe, marks = Recipe(size=size, ipc=ipc, init="random", pool="random", networks=1, real=4, steps=4), []
    with PeakMemory() as memory, tempfile.TemporaryDirectory() as out:
        distill(photos, recipe, Path(out) / "set", RunOptions(device=device, held_out=0, checkpoint=100), lambda step, *_: marks.append((step, time.perf_counter())))
    times = dict(marks)
    state = 4 * 4 * 3 * size**2 * ipc * len(photos)
    return dict(photos=len(photos), size=size, ipc=ipc, step=(times[4] - times[1]) / 3, peak=memory.peak, state=state, rest=memory.peak - state)

def scaling(photos, out, device):
    more = out / "turned"
    more.mkdir(exist_ok=True)
    for name, file in zip(photos.names, photos.files):   # 40 photos and their turned copies, as files
        if not (more / f"{name}-turned.png").exists():
            Image.open(file).transpose(Image.Transpose.ROTATE_90).save(more / f"{name}-turned.png", compress_level=1)
    sets = {}
    for n in (10, 20, len(photos), 2 * len(photos)):
        sets[n] = out / f"photos-{n}"
        sets[n].mkdir(exist_ok=True)
        for file in [*photos.files, *sorted(more.iterdir())][:n]:
            if not (sets[n] / file.name).exists(): (sets[n] / file.name).symlink_to(file.resolve())
    jobs = [(n, 192, 1) for n in sets] + [(10, size, 1) for size in (64, 128, 256, 384)] + [(10, 192, ipc) for ipc in (2, 4)]
    rows = []
    for n, size, ipc in jobs:
        command = [sys.executable, __file__, str(sets[n]), str(out), "--device", device, "--measure", str(size), str(ipc)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "TQDM_DISABLE": "1"}).stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    by_photos = [r for r in rows if (r["size"], r["ipc"]) == (192, 1)]
    return dict(rows=rows, flat=max(r["rest"] for r in by_photos) / min(r["rest"] for r in by_photos) - 1, largest=max(r["peak"] for r in by_photos))


def input_(photos, out, device):
    config = TrainConfig(batch=16, patch=48)
    sampler, generator = PatchSampler(photos, config), torch.Generator().manual_seed(0)
    for i in range(len(photos)): photos.lr(i, 2)
    def cached(batches=40):
        for t in range(batches): sampler(t)
    def decoding(patches=8):
        "What the usual SR dataset class does for one patch: open, decode, cut; the LR patch is left out."
        for _ in range(patches):
            a = np.asarray(Image.open(photos.files[int(torch.randint(len(photos), (), generator=generator))]).convert("RGB"))
            a[100:148, 100:148].astype(np.float32) / 255
    times = in_turn(dict(cached=cached, decoding=decoding), 5)
    rate = dict(cached=40 * config.batch / times["cached"]["median"], decoding=8 / times["decoding"]["median"])
    return dict(seconds=times, patches_per_second=rate, times_as_fast=rate["cached"] / rate["decoding"])


def enlarge():
    net, lr = make_model("vdsr", 2, 8, 32), np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    return in_turn(dict(enlarge=lambda: upscale_image(net, lr, 2)), 1)["enlarge"]["median"]

def pages(photos, out, device, rounds=3):
    took = {large: [] for large in "10"}
    for _ in range(rounds):
        for large in took:
            env = {**os.environ, "THP_MEM_ALLOC_ENABLE": large}
            took[large].append(float(subprocess.run([sys.executable, __file__, ".", str(out), "--enlarge"], check=True, stdout=subprocess.PIPE, text=True, env=env).stdout))
    large, small = (statistics.median(took[large]) for large in "10")
    return dict(large=large, small=small, ratio=small / large, rounds=took)


def job(photos, out, device, steps=150, networks=10):
    "The default recipe at half its steps, watched from outside: what the loss on unseen networks is after how many seconds."
    recipe, marks = Recipe(steps=steps, networks=networks), []
    groups = Groups(photos, "image", recipe.size, recipe.stride)
    unseen = trajectories(recipe, photos, {"held-out": 5}, device)
    judge = GradientBank(groups, replace(recipe, real=16), unseen, "held-out", device).build()
    loss = lambda images: held_out_loss(to_tensor(images, device).unsqueeze(1), judge)["layerwise"]
    began, judged = time.perf_counter(), 0.
    with PeakMemory() as memory:
        def watch(step, _, images):
            nonlocal judged
            if images is None: return
            now = time.perf_counter() - began - judged
            marks.append(dict(step=step, seconds=now, loss=loss(images)))
            judged += time.perf_counter() - began - judged - now
            print(json.dumps(marks[-1]), flush=True)
        result = distill(photos, recipe, out / f"job-{device}", RunOptions(device=device, held_out=0, snapshots=12), watch)
    return dict(recipe=asdict(recipe), photos=len(photos), marks=marks, peak=memory.peak, budget=result.budget.to_dict(), moved=result.manifest["report"]["moved"])


# ── only for a GPU ─────────────────────────────────────────────────────────────────────────────────────────────────────

def many_groups(photos, device, many):
    "A run of `many` groups of 192², made of those that there are, and a step that it can repeat."
    recipe = Recipe(pool="random", networks=1, real=1, init="downscaled", steps=10**6)
    groups = Groups(photos, "image", recipe.size, recipe.stride)
    bank = GradientBank(groups, recipe, network_pool(recipe, photos), "gpu", device).build()
    numbers = torch.arange(many, device=device) % len(groups)
    rows = bank.targets(0)
    class Repeated(BankSource):
        def targets(self, some): return [t[numbers[some]] for t in rows]
    starts = np.resize(start_images(groups, recipe), (many, recipe.size, recipe.size, 3))
    return Run(PixelSpace(starts, device), recipe, Repeated(bank), device)

def waits(work) -> int:
    "How often the host waited for the device."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try: work()
        finally: torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in said)

def scale(photos, out, device, many=800):
    "The rate at DIV2K's scale, with TF32 and without; how long the host needs to issue a step, and whether it waits."
    found = {}
    for tf32 in (False, True):
        with precision(tf32):
            run = many_groups(photos, device, many)
            run.step()
            finish(device)
            issued = time.perf_counter()
            run.step()
            issued = time.perf_counter() - issued
            step = statistics.median(seconds(run.step, device) for _ in range(3))
            found[f"TF32 {tf32}"] = dict(groups=many, seconds_per_step=step, issued=issued, minutes_for_1000=step * 1000 / 60, chunk=run.chunk)
            if device == "cuda": found[f"TF32 {tf32}"] |= dict(waits=waits(run.step), gigabytes=torch.cuda.max_memory_allocated() / 1e9)
            del run
            if device == "cuda": torch.cuda.empty_cache()
    return found

ARITHMETIC = ("gemm", "conv", "xmma", "cutlass", "cudnn", "wgrad", "dgrad", "winograd", "implicit", "gemv", "dot_kernel", "mm_kernel", "splitk")

def shares(photos, out, device, sizes=(20, 800)):
    "Where one step's time goes: arithmetic, memory traffic, and waiting for the next launch."
    found = {}
    for many, tf32 in itertools.product(sizes, (False, True)):
        with precision(tf32): found[f"{many} groups{', TF32' * tf32}"] = shares_of(many_groups(photos, device, many), device)
        if device == "cuda": torch.cuda.empty_cache()
    return found

def shares_of(run, device):
    from torch.profiler import ProfilerActivity, profile
    run.step()
    alone = statistics.median(seconds(run.step, device) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]) as p:
        run.step()
        finish(device)
    on_device = [e for e in p.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA] if device == "cuda" else list(p.key_averages())
    took = lambda e: (e.self_device_time_total if device == "cuda" else e.self_cpu_time_total) / 1e6
    arithmetic = sum(took(e) for e in on_device if any(word in e.key.lower() for word in ARITHMETIC) and "im2col" not in e.key)
    busy = sum(map(took, on_device))
    return dict(seconds=alone, busy=busy, arithmetic=arithmetic / alone, memory=(busy - arithmetic) / alone, launches=max(0, 1 - busy / alone),
        kernels=sum(e.count for e in on_device), largest=[dict(name=e.key[:120], seconds=took(e), calls=e.count) for e in sorted(on_device, key=took, reverse=True)[:20]])

def graph(photos, out, device, sizes=(20, 200)):
    "The match of all groups as one CUDA graph, against the same calls issued one by one."
    found = {}
    for many in sizes:
        run = many_groups(photos, device, many)
        net, targets, chunk = run.source.start(0), run.source.targets(slice(0, many)), run.chunk
        images = run.space.render(slice(None)).unflatten(0, (-1, 1)).clone()
        call = lambda: match(net, images, targets, "layerwise", chunk)
        eager = statistics.median([seconds(call, device) for _ in range(4)][1:])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side): [call() for _ in range(2)]
        torch.cuda.current_stream().wait_stream(side)
        recorded_ = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded_): distances, gradient = call()
        replay = statistics.median([seconds(recorded_.replay, device) for _ in range(4)][1:])
        wanted = call()
        found[f"{many} groups"] = dict(eager=eager, graph=replay, off=float((gradient - wanted[1]).norm() / wanted[1].norm()))
        del recorded_, run, distances, gradient
        torch.cuda.empty_cache()
    return found

def match_in_bf16(net, images, targets, objective, chunk, low=None):
    "The step with network and images in bfloat16; gradients are compared in float32."
    net, results = copy.deepcopy(net).bfloat16(), []
    for first in range(0, len(images), chunk):
        x = images[first:first + chunk].detach().requires_grad_()
        gradients = [g.float() for g in group_gradients(net, x.bfloat16())]
        distances = torch.vmap(lambda s, r: dc_loss(s, r, objective))(gradients, [t[first:first + chunk] for t in targets])
        results.append((distances.detach(), torch.autograd.grad(distances.sum(), x)[0]))
    return tuple(map(torch.cat, zip(*results)))

def rounding(photos, out, device, steps=100, training=1000, networks=5, real=32, seeds=3):
    "Does rounding in the steps change the final set? The same recipe in float32, TF32 and bfloat16, judged by unseen networks and by an EDSR."
    found, judges = {}, photos.subset([0, 1])
    for name, seed in itertools.product(("float32", "TF32", "bfloat16"), range(seeds)):
        recipe = Recipe(steps=steps, networks=networks, real=real, seed=seed)
        began, usual = time.perf_counter(), engine.match
        if name == "bfloat16": engine.match = match_in_bf16
        try: made = distill(photos, recipe, Path(tempfile.mkdtemp()) / "set", RunOptions(device=device, tf32=name == "TF32" and device == "cuda"))
        except Exception as e:
            found[name] = dict(error=repr(e)[:500])   # on a CPU there is no bicubic in bfloat16
            continue
        finally: engine.match = usual
        took = time.perf_counter() - began
        config = TrainConfig.for_model("edsr", depth=4, width=32, steps=training, seed=seed)
        net = train(make_model("edsr", 2, 4, 32, generator=rng(seed, "weights")), made.photos, config, device=device, val=judges).history[-1]
        row = dict(seed=seed, seconds=took, loss=made.manifest["report"]["matching_loss"]["layerwise"], edsr_psnr_y=net["val_psnr_y"])
        found.setdefault(name, []).append(row)
    return found

EDSRS = {"EDSR 4×32, patch 48": dict(depth=4, width=32, patch=48), "EDSR 16×64, patch 96": dict(depth=16, width=64, patch=96),
         "EDSR 16×64, patch 48": dict(depth=16, width=64, patch=48)}

def trainer_of(config, device, record=True):
    "A trainer of an EDSR, with recorded steps or without."
    how = POLICIES[device]
    POLICIES[device] = how if record else replace(how, record=None)
    try: return Trainer(make_model("edsr", 2, config.depth, config.width, generator=rng(0, "weights")), config, device)
    finally: POLICIES[device] = how

def from_source(source, config, device, warm, count):
    "Steps per second of a training from `source`, drawn while it trains."
    trainer, own = trainer_of(config, device), getattr(source, "sampler", None)
    sampler = own(config) if own else PatchSampler(source, config)
    for k in sampler.first(0): sampler.keep(0, device), sampler.photo(k)
    for t, batch in enumerate(ahead(lambda t: sampler(t, device), range(warm + count), device)):
        if t == warm: finish(device); began = time.perf_counter()
        trainer.update(*batch)
    finish(device)
    return count / (time.perf_counter() - began)

def training(photos, out, device, count=200, warm=50, sizes=EDSRS, threads=(1, 2, 4)):
    "Training steps per second: what a recorded step and 16 bits give, and how fast images must be drawn."
    steps, sources = {}, {}
    with precision():
        for name, size in sizes.items():
            jobs = {}
            for amp, record in itertools.product((False, True), (True, False)):
                config = TrainConfig.for_model("edsr", batch=16, steps=10**6, amp=amp, **size)
                trainer, batch = trainer_of(config, device, record), PatchSampler(photos, config)(0, device)
                def work(trainer=trainer, batch=batch):
                    for _ in range(count // 4): trainer.update(*batch)
                    trainer.losses.clear()
                jobs[f"{'16 bits' if amp else 'float32'}, {'recorded' if record else 'one by one'}"] = work
            steps[name] = {job: count // 4 / t["median"] for job, t in in_turn(jobs, 3, device).items()}
        config = TrainConfig.for_model("edsr", batch=16, steps=10**6, **next(iter(sizes.values())))
        program, usual = hand_written(photos), EndlessSampler.THREADS
        teacher = make_model("edsr", 2, 4, 32, generator=rng(1, "weights"))
        sources["photos"] = from_source(photos, config, device, warm, count)
        try:
            for EndlessSampler.THREADS in threads:
                sources[f"a program, {EndlessSampler.THREADS} threads"] = from_source(Endless(program), config, device, warm, count)
            EndlessSampler.THREADS = usual
            sources["a program with a teacher"] = from_source(Endless(program, teacher=teacher), config, device, warm, count)
        finally: EndlessSampler.THREADS = usual
    return dict(steps_per_second=steps, sources=sources, threads=usual)


SECTIONS = dict(rates=rates, curve=curve, scaling=scaling, input=input_, pages=pages, job=job)
ON_A_GPU = {"rates": rates, "rates-tf32": functools.partial(rates, tf32=True)} | dict(scale=scale, shares=shares, training=training, rounding=rounding, graph=graph)   # in order of worth

def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos", type=Path), p.add_argument("out", type=Path)
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--only", nargs="+", choices=[*SECTIONS, *ON_A_GPU])
    p.add_argument("--gpu-sections", action="store_true", help="what a GPU is asked, also on the CPU: a dry run")
    p.add_argument("--tiny", action="store_true", help="few groups and steps")
    p.add_argument("--again", action="store_true", help="on a GPU: measure what is there once more")
    p.add_argument("--publish", action="store_true", help="also write nbs/results/")
    p.add_argument("--measure", nargs=2, type=int, metavar=("SIZE", "IPC"), help=argparse.SUPPRESS)
    p.add_argument("--enlarge", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.enlarge:
        print(enlarge())
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    if args.measure:
        print(json.dumps(measure(args.photos, *args.measure, args.device)))
        return 0
    photos, file = Photos.open(args.photos), args.out / f"speed-{args.device}.json"
    for i in range(len(photos)): photos[i]
    known = json.loads(file.read_text()) if file.exists() else {}
    known["machine"] = dict(device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu", threads=torch.get_num_threads(), torch=torch.__version__, photos=len(photos), pixels=photos.pixels)
    on_gpu = args.device == "cuda" or args.gpu_sections
    for name in args.only or (ON_A_GPU if on_gpu else SECTIONS):
        if on_gpu and not args.again and name in known and "error" not in known[name]: continue   # another day's
        if name == "graph" and args.device == "cpu": continue
        few = dict(scale=dict(many=3), shares=dict(sizes=(2,)), rounding=dict(steps=2, training=2, networks=2, real=4, seeds=1), rates=dict(rounds=1),
                   training=dict(count=4, warm=1, sizes=dict(list(EDSRS.items())[:1]), threads=(1, 2))).get(name, {}) if args.tiny else {}
        try: known[name] = (SECTIONS | ON_A_GPU)[name](photos, args.out, args.device, **few)
        except Exception as e:
            if not on_gpu: raise
            known[name] = dict(error=repr(e)[:1000])   # the minutes are for the other sections
            traceback.print_exc()
        write_json(file, known)
        if args.publish: write_json(RESULTS / file.name, known)
        print(name, json.dumps(known[name])[:3000], flush=True)
    wanted = [name for name in args.only or (ON_A_GPU if on_gpu else SECTIONS) if name != "graph" or args.device != "cpu"]
    return 75 if any("error" in known.get(name, {"error": "missing"}) for name in wanted) else 0

if __name__ == "__main__": sys.exit(main())
