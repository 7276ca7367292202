"""Can images that are learnt through unrolled training beat the best selected ones?  Meta-gradients, then the judgement.

    python benchmarks/unrolled.py PHOTOS OUT --minutes 4              distil: OUT/images, OUT/start (what they began as), OUT/log.json
    python benchmarks/unrolled.py PHOTOS OUT --steps 0 --train 5 --tests SET5 SET14 VAL     train on both, compare: OUT/results.json
    python benchmarks/unrolled.py --check                             seconds on a CPU: is all of this computed right?

PHOTOS is a folder of HR photos; both parts may share one call.  A pool of training runs of one or more networks, spread over the whole
one-cycle schedule (or over what comes after --first), goes on while the images change (truncated backpropagation, as in
arXiv 2311.07025).  A step of distillation takes one run, makes a few training steps that are differentiated (the library's own:
same patches, loss, clipping and Adam, both moments differentiated), measures the error on real patches, and pulls it back to
the pixels.

The sign in the gradient of an L1 loss has no derivative; backwards, and only there, it counts as d / sqrt(d² + soft²).
The error is 10·log10 of the MSE: the MSE's direction, in dB, so that early and late runs weigh alike.  `gain` in the log is how
much lower it is than after the same steps on the start images.  With --expert M it is trajectory matching (Cazenavette et al. 2022,
arXiv 2203.11932) instead: the steps begin in a state of a training on real patches, and the error is the distance to the weights
that this expert has M steps later, relative to how far it went.  With --anneal the learning rate falls to 0 within the unrolled
steps, so that the error shows what was learnt and not the noise of a high rate; the run itself goes on unannealed.
On the CPU equal arguments give equal images; CUDA adds some gradients in any order.
"""
import argparse, functools, json, math, multiprocessing, statistics, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np, torch, torch.nn.functional as F
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from sr_distill.convolution import conv, weight_gradient
from sr_distill.core import atomic_write, make_folder, pick_device, rng, to_tensor, to_uint8, write_json
from sr_distill.data import Photos, downscale, encode_png
from sr_distill.matching import HARD
from sr_distill.metrics import psnr, upscale_image
from sr_distill.models import make_model
from sr_distill.parallel import precision
from sr_distill.patches import Groups, ipc_for_budget
from sr_distill.pixel import start_images
from sr_distill.recipe import INITS, TARGETS, Recipe, TrainConfig
from sr_distill.train import PatchSampler, Trainer, learning_rate, symmetry, train

SCALE, PATCH, BATCH, PATCHES, BETAS = 2, 48, 16, 4096, (.9, .999)   # PATCHES: real ones, drawn once
MODELS = {"edsr": dict(depth=4, width=32), "vdsr": dict(depth=8, width=32), "srcnn": dict(depth=None, width=None)}


# ── training that can be differentiated ─────────────────────────────────────────────────────────────────────────────────
class Conv(torch.autograd.Function):
    "A convolution, differentiable any number of times in both factors; the library's `rerouted` holds the kernel constant."
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return conv(x, w)
    @staticmethod
    def backward(ctx, gy):
        x, w = ctx.saved_tensors
        return flipped(gy, w) if ctx.needs_input_grad[0] else None, WeightGradient.apply(x, gy, w.shape[-1])

class WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gy, k):
        ctx.save_for_backward(x, gy)
        return weight_gradient(x, gy, k)
    @staticmethod
    def backward(ctx, u):
        x, gy = ctx.saved_tensors
        return flipped(gy, u) if ctx.needs_input_grad[0] else None, Conv.apply(x, u), None

def flipped(gy, w): return Conv.apply(gy, w.transpose(0, 1).flip(-1, -2))

class Rerouted(TorchFunctionMode):
    "PyTorch's own second derivative of a convolution is one with a kernel as large as the patch; this one stays small."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return Conv.apply(*args[:2]) + args[2].view(-1, 1, 1) if func is F.conv2d else func(*args, **(kwargs or {}))

class Learner:
    "Training of one network, as functions of its state: a matrix of the weights and Adam's two moments."
    def __init__(self, config, size, soft=0., device="cpu", dtype=torch.float32):
        self.config, self.soft, self.place = config, soft, dict(device=device, dtype=dtype)
        self.net = self._net("template").to(**self.place)
        self.shapes = {k: p.shape for k, p in self.net.named_parameters()}
        table = lambda wide, side: torch.from_numpy(np.stack([symmetry(np.arange(side)[:, None] * wide + np.arange(side), k) for k in range(8)])).to(device)
        self.tables = table(size // SCALE, config.patch // SCALE), table(size, config.patch)

    def _net(self, *names): return make_model(self.config.model, SCALE, self.config.depth, self.config.width, generator=rng(self.config.seed, "network", *names))
    def fresh(self, *names):
        flat = torch.nn.utils.parameters_to_vector(self._net(*names).parameters()).detach().to(**self.place)
        return torch.stack([flat, 0 * flat, 0 * flat])

    def cut(self, images, places):   # [N,3,H,W]; int [K,B,4] as of `PatchSampler.draw`
        "LR and HR patches [K,B,3,·,·]; the LR image is that of the whole image."
        photo, row, column, symmetry = places.unbind(-1)
        def one(x, table, step):
            wide = x.shape[-1]
            index = ((photo * wide + row * step) * wide + column * step)[..., None, None] + table[symmetry]
            return x.transpose(0, 1).reshape(3, -1).index_select(1, index.flatten()).view(3, *index.shape).movedim(0, 2).contiguous()
        return one(downscale(images, SCALE).clamp(0, 1), self.tables[0], 1), one(images, self.tables[1], SCALE)

    def answer(self, flat, lr):
        pieces = flat.split([s.numel() for s in self.shapes.values()])
        with Rerouted(): return functional_call(self.net, {k: p.view(s) for (k, s), p in zip(self.shapes.items(), pieces)}, (lr,))

    def _push(self, d):
        "The derivative of the loss in the output."
        if self.config.loss == "mse": return 2 * d / d.numel()
        soft = d / (d.square() + self.soft**2).sqrt()
        return (soft + (d.sign() - soft).detach()) / d.numel()

    def rates(self, t, n, anneal=False):   # [n,2], what Adam multiplies its moments by in steps t, t+1, …
        share = lambda k: 1 - k / n if anneal else 1
        return torch.tensor([(learning_rate(self.config, t + k) * share(k) / (1 - BETAS[0]**(t + k + 1)), 1 / (1 - BETAS[1]**(t + k + 1))) for k in range(n)], **self.place)

    def unroll(self, state, lr, hr, rates, graph=False):
        "The state after a training step on each of the batches; with `graph` it is a function of their pixels."
        flat, m, v = state.detach()
        for x, y, (rate, correct) in zip(lr, hr, rates):
            flat = flat if graph and flat.requires_grad else flat.detach().requires_grad_()
            out = self.answer(flat, x)
            g, = torch.autograd.grad(out, flat, self._push(out - y), create_graph=graph)
            if self.config.clip: g = g * (self.config.clip / (g.norm() + 1e-6)).clamp(max=1)
            m, v = (beta * old + (1 - beta) * new for beta, old, new in zip(BETAS, (m, v), (g, g.square())))
            flat = flat - rate * m / ((correct * v + 1e-24).sqrt() + 1e-8)   # 1e-24: the root has a slope at 0
        return torch.stack([flat, m, v])

    def meta(self, images, state, rates, places, lr, hr):
        "Error on real patches after unrolled steps, its gradient in the images, and the new state."
        images = images.detach().requires_grad_()
        new = self.unroll(state, *self.cut(images, places), rates, graph=True)
        error = 10 * F.mse_loss(self.answer(new[0], lr), hr).log10()
        return error.detach(), torch.autograd.grad(error, images)[0], new.detach()

    def follow(self, images, state, rates, places, goal):
        "The same, with the distance to an expert's later weights as error, relative to how far the expert went."
        images = images.detach().requires_grad_()
        new = self.unroll(state, *self.cut(images, places), rates, graph=True)
        error = (new[0] - goal).square().sum() / (state[0] - goal).square().sum()
        return error.detach(), torch.autograd.grad(error, images)[0], new.detach()

    def expert(self, lr, hr, k, length, stream):
        "States of a training on real patches, every `k` steps."
        states = [self.fresh("expert")]
        for t in range(0, length, k):
            some = torch.randint(len(lr), (k, BATCH), generator=stream("expert", self.config.model, t)).to(lr.device)
            states.append(self.unroll(states[-1], lr[some], hr[some], self.rates(t, k)).detach())
        return states

def recorded(fn, *sample):
    "`fn` as a CUDA graph for arguments of these shapes."
    static, side = [x.clone() for x in sample], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): fn(*static)   # libraries choose their algorithms
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): out = fn(*static)
    def replay(*args):
        for x, a in zip(static, args): x.copy_(a)
        graph.replay()
        return [x.clone() for x in out]
    return replay


# ── distillation ────────────────────────────────────────────────────────────────────────────────────────────────────────
def real_patches(photos, target, seed, device):
    "`PATCHES` LR and HR patches; hard: from the hardest 5 % of all windows without the top 0.2 %."
    kind = "uniform" if target == "uniform" else "error"
    sampler = PatchSampler(photos, TrainConfig(scale=SCALE, patch=PATCH, batch=PATCHES, sampling=kind, seed=seed))
    if target == "hard":
        order = np.argsort(-np.diff(sampler.error, prepend=0), kind="stable")
        top, out = (round(share * len(order)) for share in HARD)
        sampler.error = np.cumsum(np.isin(np.arange(len(order)), order[out:out + top]))
    return sampler(0, device)

def draw_places(n, size, shape, generator):
    per = (size - PATCH) // SCALE + 1
    return torch.stack([torch.randint(high, shape, generator=generator) for high in (n, per, per, 8)], -1)

def store(folder, images):
    make_folder(folder)
    for i, image in enumerate(images): atomic_write(folder/f"{i:04d}.png", encode_png(image))

def distil(args):
    began, device, k, length = time.time(), pick_device(args.device), args.unroll, args.length
    photos, stream = Photos.open(args.photos), functools.partial(rng, args.seed, "unrolled")
    groups = Groups(photos, "image", args.size, args.size // 2)
    ipc = ipc_for_budget(args.budget, len(groups), args.size, photos.pixels)
    first = start_images(groups, Recipe(init=args.start, size=args.size, ipc=ipc, steps=0, network=args.networks[0], seed=args.seed))
    store(args.out/"start", first)
    start, real = to_tensor(first, device), real_patches(photos, args.target, args.seed, device)
    images = start.clone()
    learners = [Learner(TrainConfig.for_model(m, **MODELS[m], steps=length, batch=BATCH, patch=PATCH, seed=args.seed), args.size, args.soft, device) for m in args.networks]
    optimizer, replayed = torch.optim.Adam([images], lr=args.lr), {}
    places = lambda *names: draw_places(len(images), args.size, (k, BATCH), stream("places", *names)).to(device)
    def begin(learner, position, *names):   # a new run on the images as they are, trained up to there
        state, t = learner.fresh(*names), 0
        while t + k <= position: state, t = learner.unroll(state, *learner.cut(images, places(*names, t)), learner.rates(t, k)).detach(), t + k
        return learner, state, t
    ahead = args.expert // k
    paths = [learner.expert(*real, k, length, stream) for learner in learners] if ahead else []
    pool = [] if ahead else [begin(learners[j % len(learners)], args.first + (length - args.first) * j // args.pool, "pool", j) for j in range(args.pool)]
    print(f"{len(images)} images of {args.size}² from {len(photos)} photos; the pool is ready after {time.time() - began:.0f} s", flush=True)
    log, norms, warm, done = [], [], time.time(), 0.
    for step in range(args.steps):
        done = max(step / args.steps, (time.time() - began) / 60 / args.minutes if args.minutes else 0)
        if done >= 1: break
        optimizer.param_groups[0]["lr"] = args.lr * (.5 + .5 * math.cos(math.pi * done))
        run = int(torch.randint(len(paths or pool), (), generator=stream("run", step)))
        if ahead:
            j = int(torch.randint(args.first // k, length // k - ahead + 1, (), generator=stream("time", step)))
            learner, state, t, goal = learners[run], paths[run][j], j * k, [paths[run][j + ahead][0]]
        else:
            learner, state, t = pool[run]
            some = torch.randint(PATCHES, (args.real,), generator=stream("real", step)).to(device)
            goal = [x[some] for x in real]
        inputs, step_of = [state, learner.rates(t, k, args.anneal), places(step), *goal], learner.follow if ahead else learner.meta
        if args.record and learner not in replayed: replayed[learner] = recorded(step_of, images, *inputs)
        step_of = replayed.get(learner, step_of)
        error, gradient, new = step_of(images, *inputs)
        norm = float(gradient.norm())
        if math.isfinite(norm):
            norms.append(norm)
            images.grad = gradient * min(1, statistics.median(norms[-50:]) / max(norm, 1e-30))   # clipped at what is usual
            if step % 20 == 0:   # against the start images: same run, same batches
                log.append(dict(step=step, network=learner.config.model, position=t, error=float(error), start=float(step_of(start, *inputs)[0]), norm=norm, seconds=round(time.time() - began, 1)))
                log[-1].update(gain=log[-1]["start"] - log[-1]["error"], moved=255 * float((images - start).abs().mean()))
                print(" ".join(f"{n} {v:.5g}" if n != "network" else v for n, v in log[-1].items()), flush=True)
            if args.anneal and not ahead: new = learner.unroll(state, *learner.cut(images, inputs[2]), learner.rates(t, k)).detach()
            optimizer.step()
            images.clamp_(0, 1)
        if not ahead: pool[run] = (learner, new, t + k) if math.isfinite(norm) and t + 2 * k <= length else begin(learner, args.first, "later", step)
        if step % 100 == 99: store(args.out/"images", to_uint8(images))
    store(args.out/"images", to_uint8(images))
    settings = {n: v for n, v in vars(args).items() if n not in ("photos", "out", "tests", "train", "jobs", "check")}
    write_json(args.out/"log.json", dict(settings=settings, images=len(images), steps=step + (done < 1), skipped=step + (done < 1) - len(norms),
                                         seconds_per_step=(time.time() - warm) / max(1, step), log=log))


# ── judgement ───────────────────────────────────────────────────────────────────────────────────────────────────────────
opened = functools.lru_cache(Photos.open)

def psnr_rgb(net, photos):
    def one(i):
        plane = np.s_[..., 0] if photos.is_gray[i] else np.s_[:]
        return psnr(upscale_image(net, photos.lr(i, SCALE)[plane], SCALE), photos.hr(i, SCALE)[plane], SCALE, "rgb")
    return float(np.mean([one(i) for i in range(len(photos))]))

def score(job):
    "A model trained on a folder with a seed: PSNR-RGB on every test."
    folder, model, seed, steps, tests, device = job
    config = TrainConfig.for_model(model, **MODELS[model], steps=steps, batch=BATCH, patch=PATCH, seed=seed)
    net = make_model(model, SCALE, config.depth, config.width, generator=rng(seed, "model"))
    net = train(net, opened(str(folder)), config, device=device).model
    return dict(set=folder.name, model=model, seed=seed, **{f"{Path(t).parent.name}/{Path(t).name}": psnr_rgb(net, opened(str(t))) for t in tests})

def judge(args):
    jobs = [(args.out/s, m, seed, args.length, args.tests, args.device) for seed in range(args.train) for m in MODELS for s in ("start", "images")]
    rows = []
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:   # a process cannot inherit CUDA
        for row in pool.map(score, jobs):
            row["mean"] = statistics.mean(list(row.values())[3:])
            rows.append(row)
            print(json.dumps(row), flush=True)
            write_json(args.out/"results.json", dict(steps=args.length, rows=rows))
    spread = lambda v: statistics.stdev(v) if len(v) > 1 else math.nan
    print("\n| model | test | start | images | difference ± standard error |\n|:--|:--|--:|--:|--:|")
    for model in MODELS:
        for test in list(rows[0])[3:]:
            a, b = ([r[test] for r in rows if (r["model"], r["set"]) == (model, s)] for s in ("start", "images"))
            d = [y - x for x, y in zip(a, b)]
            cell = lambda v: f"{statistics.mean(v):.3f} ± {spread(v):.3f}"
            print(f"| {model} | {test} | {cell(a)} | {cell(b)} | {statistics.mean(d):+.3f} ± {spread(d) / len(d)**.5:.3f} |")


# ── check ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
def check():
    "In float64: patches and steps are those of the library, and the gradient in a pixel is a finite difference."
    u8 = torch.randint(256, (3, 64, 64, 3), generator=rng(0, "check"), dtype=torch.uint8).numpy()
    images, k = to_tensor(u8).double(), 3
    for model in MODELS:
        size = dict(width=8, depth=MODELS[model]["depth"] and 2)
        learner = lambda **changes: Learner(TrainConfig.for_model(model, **size, steps=40, batch=4, patch=48, **changes), 64, .02, dtype=torch.float64)
        ours = learner()
        sampler = PatchSampler(Photos.from_arrays("abc", list(u8)), ours.config)
        places = torch.from_numpy(np.stack([sampler.draw(t) for t in range(k)]))
        lr, hr = ours.cut(images, places)
        theirs = [torch.stack(x) for x in zip(*map(sampler, range(k)))]
        assert (hr - theirs[1]).abs().max() < 1e-6 and (lr - theirs[0]).abs().max() < .51 / 255, "patches"
        state, trainer = ours.fresh("check"), Trainer(ours._net("check").double(), ours.config)
        for x, y in zip(lr, hr): trainer.update(x, y)
        weights = torch.nn.utils.parameters_to_vector(trainer.model.parameters())
        assert torch.allclose(ours.unroll(state, lr, hr, ours.rates(0, k))[0], weights, rtol=1e-7, atol=1e-9), "steps"
        exact = learner(loss="mse")
        state = exact.unroll(state, lr, hr, exact.rates(0, k)).detach()
        error = lambda x: exact.meta(x, state, exact.rates(k, k), places, lr[0], hr[0])
        path = exact.expert(lr.flatten(0, 1), hr.flatten(0, 1), k, 2 * k, functools.partial(rng, 0))
        assert len(path) == 3 and not torch.equal(path[0], path[2])
        follows = lambda x: exact.follow(x, path[1], exact.rates(k, k), places, path[2][0])
        for what, value in (("error", error), ("distance to the expert", follows)):
            gradient, shift = value(images)[1], torch.zeros_like(images)
            pixel = np.unravel_index(int(gradient.abs().argmax()), gradient.shape)
            slope, shift[pixel] = float(gradient[pixel]), 1e-5
            measured = float(value(images + shift)[0] - value(images - shift)[0]) / 2e-5
            print(f"{model}, {what}: gradient {slope:.8g}, finite difference {measured:.8g}")
            assert abs(slope - measured) < 1e-4 * abs(measured), "gradient"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos", nargs="?"), p.add_argument("out", nargs="?", type=Path)
    p.add_argument("--check", action="store_true", help="check the arithmetic, nothing else")
    p.add_argument("--budget", type=float, default=.7, help="per cent of the photos' pixels")
    p.add_argument("--size", type=int, default=64, help="side of an image")
    p.add_argument("--start", default="hardest", choices=INITS)
    p.add_argument("--target", default="uniform", choices=TARGETS, help="which real patches measure the error")
    p.add_argument("--steps", type=int, default=400, help="steps of distillation; 0 leaves OUT as it is")
    p.add_argument("--unroll", type=int, default=10, help="training steps in each")
    p.add_argument("--lr", type=float, default=.003, help="of the images, falls along half a cosine")
    p.add_argument("--minutes", type=float, default=0, help="end the distillation then, start and pool included")
    p.add_argument("--networks", nargs="+", default=["edsr"], choices=MODELS, help="in the pool, in turn")
    p.add_argument("--expert", type=int, default=0, metavar="M", help="trajectory matching: end where a training on real patches is M steps later")
    p.add_argument("--soft", type=float, default=.02, help="width of the soft sign")
    p.add_argument("--anneal", action="store_true", help="let the learning rate fall to 0 within the unrolled steps")
    p.add_argument("--record", action="store_true", help="replay the steps as a CUDA graph")
    p.add_argument("--real", type=int, default=256, help="real patches that measure the error")
    p.add_argument("--pool", type=int, default=8, help="training runs")
    p.add_argument("--first", type=int, default=0, help="training steps that none unrolls: the error early in training says little of the end")
    p.add_argument("--length", type=int, default=1200, help="steps of a training, here and in --train")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--train", type=int, default=0, metavar="N", help="train the three models on both sets with N seeds")
    p.add_argument("--tests", nargs="+", default=[], help="folders of photos to judge them by")
    p.add_argument("--jobs", type=int, default=4, help="trainings at once")
    args = p.parse_args()
    if args.check: return check()
    if not args.out or args.train and not args.tests: p.error("give PHOTOS and OUT, and --tests with --train")
    with precision():
        if args.steps: distil(args)
    if args.train: judge(args)

if __name__ == "__main__": main()
