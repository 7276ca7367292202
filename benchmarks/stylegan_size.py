"""A real-size StyleGAN-XL with random weights: seconds and memory of one image and one gradient step in w, way by way.

    python benchmarks/stylegan_size.py OUT --resolution 256 --ways before plain --threads 1 2 --rounds 3   on the CPU
    python benchmarks/stylegan_size.py OUT --resolution 256 --ways plain official        on the CPU, beside the reference road
    python benchmarks/stylegan_size.py OUT --device cuda                                  every way, kernels, profile
    python benchmarks/stylegan_size.py OUT --device cpu --tiny                            a dry run of all parts

`before` is the generator as it was before this benchmark: weights scaled for each sample, all channels of a layer filtered
by PyTorch's grouped calls, large layers computed again in the backward pass.  Its filters are transposed and strided
convolutions, which multiply no zeros.  `official` is written from the papers as the official code's reference road (its
only one on a CPU) goes: zeros are inserted, padded and convolved at the full rate, every second result is dropped, and
autograd keeps everything.  It is timed layer by layer, from the last one down, because all layers at once would not fit
in memory; its image and gradient are those of the whole generator.

All ways paint the same styles; each is compared with the first one.  On a CPU the ways are measured in turn, --rounds
times, and the medians count.  Results go to OUT/stylegan-DEVICE.json, entry by entry; an entry that is there is not
measured again (--again).  On a GPU the exit status is 75 while an entry is missing.
"""
import argparse
import json
import math
import re
import resource
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sr_distill import kernels
from sr_distill.core import write_json
from sr_distill.parallel import precision
from sr_distill.stylegan import StyleGANXL, Ways, lrelu, modulated_conv, xl_config


# ── the generator as it was ─────────────────────────────────────────────────────────────────────────────────────────────

AT_ONCE = 1 << 25

def upsample_with_calls(x, kernel, factor, padding):
    taps, (left, right, top, bottom) = len(kernel), padding
    sizes = [n * factor + a + b - taps + 1 for n, a, b in zip(x.shape[2:], (top, left), (bottom, right))]
    for shape, stride in (((1, -1), (1, factor)), ((-1, 1), (factor, 1))):
        x = F.conv_transpose2d(x, (kernel * factor).reshape(1, 1, *shape).expand(x.shape[1], -1, -1, -1), stride=stride, groups=x.shape[1])
    start = taps - 1 - top, taps - 1 - left
    ends = [s + n - have for s, n, have in zip(start, sizes, x.shape[2:])]
    return F.pad(x, (-start[1], ends[1], -start[0], ends[0]))

def downsample_with_calls(x, kernel, factor):
    for shape, stride in (((1, -1), (1, factor)), ((-1, 1), (factor, 1))):
        x = F.conv2d(x, kernel.reshape(1, 1, *shape).expand(x.shape[1], -1, -1, -1), stride=stride, groups=x.shape[1])
    return x

def bend_before(layer, x):
    s = layer.s
    if layer.up_filter is not None: x = upsample_with_calls(x, layer.up_filter, s["up_factor"], s["padding"])
    if not s["is_torgb"]: x = lrelu(x)
    x = x.clamp(-s["conv_clamp"], s["conv_clamp"])
    return x if layer.down_filter is None else downsample_with_calls(x, layer.down_filter, s["down_factor"])

def frugally(f, *args):
    if not torch.is_grad_enabled() or args[0].numel() <= AT_ONCE // 128: return f(*args)
    return checkpoint(f, *args, use_reentrant=False)

def layer_before(layer, x, w):
    style, rgb = layer.affine(w), layer.s["is_torgb"]
    if rgb: style = style / math.sqrt(layer.weight[0].numel())
    x = modulated_conv(x, layer.weight, style, not rgb, layer.magnitude_ema.rsqrt()) + layer.bias[:, None, None]
    parts = x.numel() * layer.s["up_factor"]**2 // AT_ONCE + 1
    bend = lambda p: bend_before(layer, p)
    return frugally(bend, x) if parts == 1 else torch.cat([frugally(bend, p) for p in x.chunk(parts, 1)], 1)

def synthesize_before(g: StyleGANXL, ws: torch.Tensor) -> torch.Tensor:
    x = g.layers[0](ws[:, 0])
    for k in range(1, g.num_ws): x = frugally(lambda x, w, layer=g.layers[k]: layer_before(layer, x, w), x, ws[:, k])
    return x * g.config["output_scale"]


# ── the official code's reference road ────────────────────────────────────────────────────────────────────────────────────

def filter_by_definition(x, kernel, up, down, padding, gain):
    "Insert zeros, pad or crop, convolve both axes at the full rate, keep every `down`-th sample."
    if kernel is None: return x
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    x = F.pad(x, padding)
    kernel = (kernel * math.sqrt(gain)).flip(0)
    for shape in ((1, -1), (-1, 1)): x = F.conv2d(x, kernel.reshape(1, 1, *shape).repeat(c, 1, 1, 1), groups=c)
    return x[:, :, ::down, ::down]

def layer_official(layer, x, w):
    s, style = layer.s, layer.affine(w)
    if s["is_torgb"]: style = style / math.sqrt(layer.weight[0].numel())
    x = modulated_conv(x, layer.weight, style, not s["is_torgb"], layer.magnitude_ema.rsqrt()) + layer.bias[:, None, None]
    x = filter_by_definition(x, layer.up_filter, s["up_factor"], 1, s["padding"], s["up_factor"]**2)
    if not s["is_torgb"]: x = lrelu(x)
    return filter_by_definition(x.clamp(-s["conv_clamp"], s["conv_clamp"]), layer.down_filter, 1, s["down_factor"], [0] * 4, 1)

def official(g: StyleGANXL, ws: torch.Tensor, watch) -> tuple:
    "Seconds forward, seconds backward, CPU seconds, image and gradient, layer by layer from the last one down."
    with torch.no_grad():
        inputs = [g.layers[0](ws[:, 0])]
        for k in range(1, g.num_ws - 1): inputs.append(g.layers[k](inputs[-1], ws[:, k], g.ways))
    leaf, forward, backward, cpu, grad = ws.clone().requires_grad_(), 0., 0., 0., None
    for k in range(g.num_ws - 1, -1, -1):
        x = inputs.pop().requires_grad_() if k else None   # what goes into layer k
        used, a = time.process_time(), watch.now()
        y = layer_official(g.layers[k], x, leaf[:, k]) if k else g.layers[0](leaf[:, 0])
        if k == g.num_ws - 1: y = y * g.config["output_scale"]
        b = watch.now()
        if grad is None: image, grad = y.detach(), 2 * y.detach() / y.numel()
        y.backward(grad)
        forward, backward, cpu = forward + b - a, backward + watch.now() - b, cpu + time.process_time() - used
        grad = x.grad if k else None
        del x, y
    return forward, backward, cpu, image, leaf.grad


# ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────────────

WAYS = {   # name: (ways, batch, TF32, cuDNN's search, how many repetitions)
    "before": (None, 1, False, False, 1),
    "plain": (Ways(half=False, fused=False), 1, False, False, 1),
    "official": ("official", 1, False, False, 1),
    "16-bit, kernels": (Ways(), 1, False, False, 3),
    "16-bit, kernels, search": (Ways(), 1, False, True, 3),
    "16-bit, kernels, channels last, search": (Ways(channels_last=True), 1, False, True, 3),
    "float32, kernels": (Ways(half=False), 1, False, False, 3),
    "TF32, kernels, search": (Ways(half=False), 1, True, True, 3),
    "16-bit, plain calls": (Ways(fused=False), 1, False, False, 1),
    "16-bit, kernels, batch 8": (Ways(), 8, False, False, 2),
    "16-bit, kernels, batch 8, search": (Ways(), 8, False, True, 2),
    "16-bit, kernels, batch 8, computed again": (Ways(keep=False), 8, False, True, 2),
    "TF32, kernels, batch 8, search": (Ways(half=False), 8, True, True, 2),
}

def relative(a, b): return float((a.double() - b.double()).norm() / b.double().norm())

class Watch:
    "Seconds on the device, and the peak of its memory."
    def __init__(self, device): self.cuda = device == "cuda"
    def now(self):
        if self.cuda: torch.cuda.synchronize()
        return time.perf_counter()
    def reset(self):
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists(): Path("/proc/self/clear_refs").write_text("5")   # Linux: the peak begins anew
    def gigabytes(self):
        if self.cuda: return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status")
        if not status.exists(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e6

def one_way(g, ws, how, watch):
    "Median seconds forward and backward, peak memory, CPU seconds; the image and its gradient in w."
    ways, batch, tf32, search, rounds = how
    ws, times = ws[:batch], []
    torch.backends.cudnn.benchmark, g.ways = search, ways if isinstance(ways, Ways) else Ways(half=False, fused=False)
    paint = g.synthesize if ways else lambda ws: synthesize_before(g, ws)
    watch.reset()
    if ways == "official":
        forward, backward, cpu, image, grad = official(g, ws, watch)
        row = dict(batch=1, forward=forward, backward=backward, an_image=forward + backward, cpu_seconds=cpu, gigabytes=watch.gigabytes())
        return row, image, grad
    with precision(tf32):
        for _ in range(rounds + (1 if watch.cuda else 0)):   # a first round to warm up
            leaf, cpu, a = ws.clone().requires_grad_(), time.process_time(), watch.now()
            image = paint(leaf)
            b = watch.now()
            (image.square().mean() * batch).backward()   # each image's gradient as if it were alone
            times.append((b - a, watch.now() - b, time.process_time() - cpu))
    times = times[1:] if watch.cuda else times
    forward, backward, cpu = (statistics.median(t) for t in zip(*times))
    row = dict(batch=batch, forward=forward, backward=backward, an_image=(forward + backward) / batch, cpu_seconds=cpu, gigabytes=watch.gigabytes())
    return row, image.detach()[:1].float(), leaf.grad[:1]

def kernel_times(device, sizes):
    "Milliseconds of the two kernels at sizes of the generator, in several settings, beside the plain calls."
    rows, bench = [], (lambda f: triton_bench(f)) if device == "cuda" else (lambda f: seconds_of(f) * 1000)
    for n, c, side in sizes:
        g = StyleGANXL(xl_config(64, c_dim=0, layers=(3, 3), channel_max=2)).to(device)
        layer = g.layers[1]
        x = torch.randn(n, c, side, side, device=device).half()
        scale, bias = torch.rand(n, c, device=device) + .5, torch.randn(c, device=device)
        fast = layer.kernels(x, Ways())
        exact = layer.bend(x.float() * scale[:, :, None, None] + bias[:, None, None])
        grad = torch.randn_like(exact).half()
        settings = [dict(), dict(together=1), dict(together=8), dict(precision="tf32x3"), dict(precision="tf32")]   # 8 warps end in an illegal access
        for how in settings if fast else []:
            row = dict(size=[n, c, side, side], **how)
            try:
                row |= dict(off=relative(fast.forward(x, scale, bias, **how), exact), forward=bench(lambda: fast.forward(x, scale, bias, **how)), backward=bench(lambda: fast.backward(grad, x, scale, bias, **how)))
                if "precision" not in how: row |= dict(backward_without_exact_signs=bench(lambda: fast.backward(grad, x, scale, bias, exact="tf32", **how)))
            except Exception as e: row |= dict(error=repr(e)[:500])
            rows.append(row)
            print(row, flush=True)
        weight = torch.randn(c, c, 3, 3, device=device, dtype=x.dtype if device == "cuda" else torch.float32)
        v = x.to(weight.dtype)
        rows.append(dict(size=[n, c, side, side], convolution=bench(lambda: F.conv2d(v, weight, padding=2)), plain_forward=bench(lambda: layer.bend(v)), copy=bench(lambda: v.clone())))
        print(rows[-1], flush=True)
    return rows

def triton_bench(f):
    from triton.testing import do_bench
    return do_bench(f, warmup=5, rep=30, return_mode="median")

def seconds_of(f):
    f()
    began = time.perf_counter()
    f()
    return time.perf_counter() - began

def profile(g, ws, how, device):
    "Where one image's time goes: the largest kernels, and how many there are."
    ways, batch, tf32, search, _ = how
    g.ways, torch.backends.cudnn.benchmark = ways, search
    from torch.profiler import ProfilerActivity
    with precision(tf32), torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]) as p:
        leaf = ws[:batch].clone().requires_grad_()
        g.synthesize(leaf).square().mean().backward()
        if device == "cuda": torch.cuda.synchronize()
    time_of = lambda e: getattr(e, "self_device_time_total", 0) if device == "cuda" else e.self_cpu_time_total
    events = [e for e in p.key_averages() if time_of(e) > 0 and (device != "cuda" or e.device_type == torch.autograd.DeviceType.CUDA)]
    events.sort(key=time_of, reverse=True)
    return dict(milliseconds=sum(map(time_of, events)) / 1000, calls=sum(e.count for e in events), largest=[dict(name=e.key[:120], ms=time_of(e) / 1000, calls=e.count) for e in events[:25]])

def in_turn(args, known, way, threads, save):
    "Every way once, then all again: medians of --rounds rounds; one thread is nameless in the results, more are named."
    names = {name: name if threads == 1 else f"{name}, {threads} threads" for name in args.ways}
    rows = {name: [] for name in args.ways}
    todo = [name for name in args.ways if known.get(names[name], {}).get("rounds", 0) < args.rounds]
    for k in range(args.rounds if todo else 0):
        for name in args.ways:   # all of them: what is compared was timed in turn
            try: rows[name].append(way(name))
            except Exception as e:
                known[names[name]] = dict(error=repr(e)[:1000])
                traceback.print_exc()
                continue
            values = rows[name]
            middle = {key: statistics.median(r[key] for r in values) for key in ("forward", "backward", "an_image", "cpu_seconds")}
            known[names[name]] = values[-1] | middle | dict(threads=threads, rounds=k + 1, all_cpu_seconds=[r["cpu_seconds"] for r in values])
            save()
            print(names[name], json.dumps(known[names[name]]), flush=True)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--resolution", type=int, default=512)
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--ways", nargs="+", choices=WAYS, default=[w for w in WAYS if w != "official"])
    p.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of the CPU, one measurement for each number")
    p.add_argument("--rounds", type=int, default=1, help="on a CPU: how often all ways are measured in turn")
    p.add_argument("--minutes", type=float, default=1e9, help="begin no entry after so many minutes")
    p.add_argument("--tiny", action="store_true", help="few channels: a dry run")
    p.add_argument("--again", action="store_true", help="measure what is there once more")
    args = p.parse_args()
    began, device = time.perf_counter(), args.device
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"stylegan-{device}.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not args.again else {}
    machine = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    known["machine"] = dict(device=machine, threads=args.threads if device == "cpu" else torch.get_num_threads(), torch=torch.__version__, triton=getattr(kernels.triton, "__version__", None), resolution=args.resolution, tiny=args.tiny)
    def save(): write_json(file, known)
    def measure(name, work):
        if (name in known and "error" not in known[name]) or time.perf_counter() - began > 60 * args.minutes: return
        try: known[name] = work()
        except Exception as e:
            known[name] = dict(error=repr(e)[:1000])
            traceback.print_exc()
        save()
        print(name, json.dumps(known[name])[:1500], flush=True)

    torch.manual_seed(0)
    g = StyleGANXL(xl_config(args.resolution, **dict(layers=(4, 4), channel_max=12) if args.tiny else {})).eval().requires_grad_(False)
    z = torch.randn(8, 64)
    ws = g.map(z, torch.full((8,), 207)).clone().to(device)
    g, watch, base = g.to(device), Watch(device), {}
    def way(name):
        row, image, grad = one_way(g, ws, WAYS[name], watch)
        base.setdefault("image", image), base.setdefault("grad", grad)
        return row | dict(image_off=relative(image, base["image"]), gradient_off=relative(grad, base["grad"]))
    for threads in args.threads if device == "cpu" else ():
        torch.set_num_threads(threads)
        in_turn(args, known, way, threads, save)
    for name in args.ways if device == "cuda" else ():
        if base or name == args.ways[0]: measure(name, lambda: way(name))
        if not base:   # it was measured on another day: paint once more, to compare with
            image, grad = one_way(g, ws, WAYS[name], watch)[1:]
            base.update(image=image, grad=grad)
    if device == "cuda" or args.tiny:
        for name in ("16-bit, kernels", "before"):
            if name in args.ways and name != "before": measure(f"profile of {name}", lambda: profile(g, ws, WAYS[name], device))
        sizes = [(1, 4, 40)] if args.tiny else [(1, 128, 534), (1, 512, 278), (1, 1024, 38)]
        measure("kernels", lambda: dict(rows=kernel_times(device, sizes)))
    print(json.dumps({k: v.get("an_image", v.get("error")) for k, v in known.items() if k.split(", ")[0] in {w.split(", ")[0] for w in WAYS}}, indent=1))
    return 0 if device == "cpu" or all("an_image" in known.get(name, {}) for name in args.ways) else 75

if __name__ == "__main__": sys.exit(main())
