"""Every reader against files that were spoilt on purpose: each ends well, or in one typed error that says what is wrong.

    python tests/fuzz.py --count 12000             so many spoilt files, shared among the readers
    python tests/fuzz.py --readers image,manifest  some of the readers
    python tests/fuzz.py --traps                   bombs, archives and manifests that reach elsewhere, strange names: their tests, counted
    python tests/fuzz.py --publish                 the counts go to nbs/results/survives.json (give it last)

A spoilt file is a good one with bytes changed, cut, doubled or exchanged, or – where the format has a structure – a good file
of another content: JSON with values of other kinds, zip archives and tensors with other parts.  What fails is kept with --keep FOLDER.
"""
import argparse
import copy
import io
import json
import random
import re
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import faults
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors, save as save_tensors

from sr_distill import autoencoders, core, data, distill, inversion, latent, models, priors, recipe, study, stylegan, train, widgets

LIMIT_S = 20   # of computing: a reader that needs longer for a file of a few kilobytes hangs, however busy the machine is


# ---- ways to spoil

def spoil_bytes(content: bytes, draw) -> bytes:
    "Some random damage to a file of any kind."
    b = bytearray(content or b"\0")
    for _ in range(draw.choice([1, 1, 1, 2, 5, 20])):
        at, n = draw.randrange(len(b)), draw.choice([1, 2, 4, 8, 64])
        how = draw.randrange(8)
        if how == 0: b[at] ^= 1 << draw.randrange(8)
        elif how == 1: b[at:at + n] = draw.randbytes(n)
        elif how == 2: b[at:at + n] = draw.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * n
        elif how == 3: del b[at:at + n * draw.choice([1, 16])]
        elif how == 4: b[at:at] = b[at:at + n * 8]
        elif how == 5: b[at:at] = draw.randbytes(n)
        elif how == 6: del b[draw.randrange(len(b)):]
        else:
            other = draw.randrange(len(b))
            b[at:at + n], b[other:other + n] = b[other:other + n], b[at:at + n]
        if not b: b = bytearray(b"\0")
    return bytes(b)

ODD = [None, True, False, 0, -1, 1, 2**31, 2**63, -2**70, 10**400, .5, -0., 1e308, float("inf"), float("nan"), "", "x", "\0", "../../../etc/passwd", "/etc/passwd", "images/../../x.png", "images/\0.png",
       "\ud800", "<script>alert(1)</script>", "\" onload=\"x", "9" * 50, "{}", [], [[]], {}, {"": None}, [None] * 3, {"x": {"x": {}}}, ["a"] * 100]

def spoil_tree(tree, draw):
    "A copy of nested dicts and lists with one or a few places changed."
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places = []
        def walk(x):
            for k in list(x) if isinstance(x, dict) else range(len(x)):
                places.append((x, k))
                if isinstance(x[k], (dict, list)): walk(x[k])
        walk(tree)
        if not places: return draw.choice(ODD)
        where, k = draw.choice(places)
        how = draw.randrange(5)
        if how == 0: del where[k]
        elif how == 1 and isinstance(where, dict): where[draw.choice(["", "x", "seed", "file", "format", k + "_"] if isinstance(k, str) else ["x"])] = where.pop(k)
        elif how == 2: where[k] = [where[k]]
        else: where[k] = copy.deepcopy(draw.choice(ODD))
    return tree

def spoil_json(content: bytes, draw) -> bytes:
    if draw.random() < .3: return spoil_bytes(content, draw)
    return json.dumps(spoil_tree(json.loads(content), draw)).encode()

def spoil_zip(content: bytes, draw) -> bytes:
    "Another archive, valid as such, of spoilt members; sometimes only spoilt bytes."
    if draw.random() < .3: return spoil_bytes(content, draw)
    out, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(content))
    victim = draw.choice(source.namelist()) if draw.random() < .6 else source.namelist()[0]
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as z:
        warnings.simplefilter("ignore")
        for name in source.namelist():
            body = source.read(name)
            if name == victim:
                how = draw.randrange(4)
                if how == 0: continue
                body = spoil_json(body, draw) if name.endswith(".json") and how else spoil_bytes(body, draw)
                if how == 3: z.writestr(draw.choice(["../x", "/x", name, name + "/", "a" * 300]), body)
            z.writestr(name, body)
    return out.getvalue()

def _odd_tensor(draw):
    return draw.choice([torch.zeros(0), torch.zeros(()), torch.full((3,), float("nan")), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.complex64), torch.zeros(1).expand(1 << 40)[:5].clone()])

def spoil_state(content: bytes, draw) -> bytes:
    "Another PyTorch file, valid as such, of other values; sometimes only spoilt bytes."
    if draw.random() < .4: return spoil_bytes(content, draw)
    tree = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(draw.choice([1, 1, 3])):
        if draw.random() < .5 or not isinstance(tree, dict): tree = spoil_tree(tree, draw) if isinstance(tree, (dict, list)) else tree
        else:
            tree = copy.deepcopy(tree)
            places = []
            def walk(x):
                for k in x if isinstance(x, dict) else range(len(x)):
                    if torch.is_tensor(x[k]): places.append((x, k))
                    elif isinstance(x[k], (dict, list)): walk(x[k])
            walk(tree)
            if places:
                where, k = draw.choice(places)
                where[k] = _odd_tensor(draw)
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue()

def spoil_tensors(content: bytes, draw) -> bytes:
    "Another safetensors file with a spoilt header of the right length, or with other tensors; sometimes only spoilt bytes."
    how = draw.randrange(4)
    n, = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + n])
    if how == 0: return spoil_bytes(content, draw)
    if how == 1: return spoil_bytes(content[:8 + n], draw) + content[8 + n:]
    if how == 2:
        tensors, about = load_tensors(content), header.get("__metadata__")
        name = draw.choice(list(tensors))
        if draw.random() < .3: del tensors[name]
        else: tensors[name] = _odd_tensor(draw).contiguous()
        return save_tensors(tensors, about)
    if "__metadata__" in header and draw.random() < .7:
        about = header["__metadata__"]
        key = draw.choice(list(about))
        about[key] = spoil_json(about[key].encode(), draw).decode(errors="replace") if about[key][:1] == "{" else str(draw.choice(ODD))
    else: header = spoil_tree(header, draw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + n:]


# ---- readers: (good files, how to spoil them, what reads one)

def good_images():
    "Photos of every format and mode."
    draw = np.random.default_rng(0)
    a = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    smooth, found = np.kron(a[:5, :6], np.ones((4, 4, 1))).astype(np.uint8), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    def keep(ext, im, **kw):
        out = io.BytesIO()
        im.save(out, dict(png="PNG", jpg="JPEG", webp="WEBP", tif="TIFF")[ext], **kw)
        found[f"{len(found)}.{ext}"] = out.getvalue()
    for ext in ("png", "jpg", "webp", "tif"): keep(ext, Image.fromarray(smooth)), keep(ext, Image.fromarray(smooth), exif=exif)
    for mode in ("L", "1", "P", "LA", "RGBA"): keep("png", Image.fromarray(smooth).convert(mode))
    keep("png", Image.fromarray(smooth[..., 0].astype(np.uint16) * 257)), keep("tif", Image.fromarray(smooth[..., 0].astype(np.uint16) * 257))
    keep("tif", Image.fromarray(smooth).convert("CMYK")), keep("tif", Image.fromarray(smooth), compression="tiff_lzw"), keep("jpg", Image.fromarray(smooth), progressive=True)
    keep("png", Image.fromarray(smooth), icc_profile=Image.open(data.embedded_files()[-1]).info["icc_profile"])
    return found

def bomb(width=50_000, height=50_000, kind="png") -> bytes:
    "A file of a few bytes that says it is very large."
    if kind == "tif": return Image_bytes(Image.new("L", (1, 1)), "TIFF").replace(struct.pack("<HHLL", 256, 4, 1, 1), struct.pack("<HHLL", 256, 4, 1, width)).replace(struct.pack("<HHLL", 257, 4, 1, 1), struct.pack("<HHLL", 257, 4, 1, height))
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")

def Image_bytes(im, kind):
    out = io.BytesIO()
    im.save(out, kind)
    return out.getvalue()

class Workshop:
    "Good files of every kind, made once by the library itself."
    def __init__(self, root: Path, place):
        self.root, self.place = root, place
        place.root.mkdir(parents=True)
        faults._small_machinery()
        self.photos = data.Photos.open(place.photos)
        self.set = self._child(faults._distil, root / "set")
        self.latent_set = self._child(lambda p: faults._distil(p, faults.LATENT), root / "latent-set")
        self.model = self._child(faults._train, root / "model")
        self.study = self._child(faults._study, root / "study")
        self.half_set = self._half(lambda p: faults._distil(p), root / "half-set", distill, "run_steps", "part-0000/checkpoint.pt")
        self.half_latent = self._half(lambda p: faults._distil(p, faults.LATENT), root / "half-latent", distill, "run_steps", "")
        self.half_model = self._half(faults._train, root / "half-model", train, "_finish", "checkpoint.pt")
        self.prior = autoencoders.embedded_prior(data.Photos.open(place.large), faults.SMALL)
        self.latents = latent.Latents.load(self.latent_set / "latents.safetensors", self.prior)
        config = dict(stylegan.xl_config(16, c_dim=3, layers=(4, 3), channel_max=4), w_dim=8, embed_dim=4, z_dim=4)
        for layer in config["layers"]: layer["w_dim"] = 8
        torch.manual_seed(0)
        self.gan = stylegan.StyleGANXL(config, "tiny").eval()
        stylegan.save_stylegan(self.gan, root / "gan.safetensors")

    def _child(self, job, out):
        place = self.place.at(out.parent / f"{out.name}-place")
        job(place)
        return place.out
    def _half(self, job, out, module, stop, wanted):
        "A run that ends just before `stop` is through."
        real = getattr(module, stop)
        def cut(*a, **k):
            if stop == "run_steps": real(*a, **k)
            raise KeyboardInterrupt
        setattr(module, stop, cut)
        place = self.place.at(out.parent / f"{out.name}-place")
        try: job(place)
        except KeyboardInterrupt: pass
        finally: setattr(module, stop, real)
        return place.out

def readers(w: Workshop) -> dict:
    "name → (good files by name, spoil, read)"
    content = lambda *paths: {p.name: p.read_bytes() for p in paths}
    def beside(folder, name):
        "Read a copy of `folder` in which one file is the spoilt one."
        copied = w.root / f"copy-{folder.parent.name}"
        def put(path, read):
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(folder, copied)
            shutil.copy(path, copied / name)
            return read(copied)
        return put
    manifest, trace, weights, config = beside(w.set, "manifest.json"), beside(w.set, "trace.safetensors"), beside(w.model, "model.safetensors"), beside(w.model, "config.json")
    def whole_set(folder):
        "All that a stored set is asked for."
        s = distill.DistilledSet.load(folder)
        repr(s), s.recipe, s.photos.lr(0, 2), s._repr_html_(), distill.describe(folder), distill.summary(s.manifest.get("report", {})), distill.card(s.manifest)
        if s.trace: widgets.player(s.trace)
    def whole_trace(path):
        t = distill.Trace(path)
        for k in range(len(t)): t.frame(k)
        widgets.player(t)
    def resume_set(path, name="part-0000/checkpoint.pt"):
        fresh = w.root / "resume"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(w.half_set, fresh)
        shutil.copy(path, fresh / ".run" / name)
        distill.distill(w.photos, faults.PIXEL, fresh, faults.OPTIONS)
    def resume_latent(path):
        fresh = w.root / "resume-latent"
        fresh.mkdir(exist_ok=True)
        shutil.copy(path, fresh / "inversion.pt")
        inversion.invert(np.load(w.half_latent / ".run/part-0000/start.npy"), w.prior, inversion.InvertConfig(steps=faults.LATENT.invert, tune=0), folder=fresh)
    def resume_model(path):
        fresh = w.root / "resume-model"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(w.half_model, fresh)
        shutil.copy(path, fresh / "checkpoint.pt")
        _train_in(w, fresh)
    def history(path):
        beside(w.model, "history.csv")(path, lambda folder: _train_in(w, folder))
    generator = {"gan.safetensors": (w.root / "gan.safetensors").read_bytes()}
    return {
        "image": (good_images(), spoil_bytes, data.decode_image),
        "photo folder": (good_images(), spoil_bytes, lambda path: data.Photos.open(_alone(path)).lr(0, 2)),
        "tar of photos": ({"photos.tar": _tarred(good_images())}, spoil_bytes, lambda path: data.Photos.open(path).lr(0, 2)),
        "manifest": (content(w.set / "manifest.json"), spoil_json, lambda p: manifest(p, whole_set)),
        "manifest of a latent set": (content(w.latent_set / "manifest.json"), spoil_json, lambda p: beside(w.latent_set, "manifest.json")(p, whole_set)),
        "recipe": ({"recipe.json": json.dumps(faults.PIXEL.to_dict()).encode()}, spoil_json, lambda p: recipe.Recipe.from_dict(core.read_json(p)).to_dict()),
        "training config": ({"config.json": json.dumps(recipe.TrainConfig().to_dict()).encode()}, spoil_json, lambda p: recipe.TrainConfig.from_dict(core.read_json(p)).to_dict()),
        "study file": ({"study.toml": re.sub(rb"\$SR_DISTILL_SHARED[^\"]*", b"embedded", (faults.REPO / "sr_distill/studies/budget.toml").read_bytes())}, spoil_bytes, lambda p: repr(study.load_study(p))),
        "results of a study": (content(w.study / "results.json"), spoil_json, lambda p: study.Results.load(p)),
        "trace": (content(w.set / "trace.safetensors"), spoil_tensors, whole_trace),
        "set with a trace": (content(w.set / "trace.safetensors"), spoil_tensors, lambda p: trace(p, whole_set)),
        "trace of version 0.1": ({"trace.zip": _zipped(distill.Trace(w.set / "trace.safetensors"))}, spoil_zip, whole_trace),
        "checkpoint of a distillation": (content(w.half_set / ".run/part-0000/checkpoint.pt"), spoil_state, resume_set),
        "checkpoint of a training": (content(w.half_model / "checkpoint.pt"), spoil_state, resume_model),
        "network pool": (content(w.half_set / ".run/pool.pt"), spoil_state, lambda p: distill._read_pool(p, faults.PIXEL)),
        "state of a run": (content(w.half_set / ".run/run.json"), spoil_json, lambda p: resume_set(p, "run.json")),
        "inversion": (content(w.half_latent / ".run/part-0000/inversion.pt"), spoil_state, resume_latent),
        "model": (content(w.model / "model.safetensors"), spoil_tensors, lambda p: weights(p, models.load_model)),
        "model's settings": (content(w.model / "config.json"), spoil_json, lambda p: config(p, models.load_model)),
        "settings of a finished training": (content(w.model / "config.json"), spoil_json, lambda p: config(p, lambda folder: _train_in(w, folder))),
        "history": (content(w.model / "history.csv"), spoil_bytes, history),
        "latents": (content(w.latent_set / "latents.safetensors"), spoil_tensors, lambda p: latent.Latents.load(p, w.prior).render()),
        "latents with their decoder": (content(w.latent_set / "latents.safetensors"), spoil_tensors, lambda p: latent.Latents.load(p).render()),
        "weights of a prior": ({"weights.safetensors": save_tensors({k: v.contiguous() for k, v in w.prior.state_dict().items()}, {"x": "{}"})}, spoil_tensors, autoencoders.read_weights),
        "state dict of a prior": ({"weights.pth": _state_bytes(autoencoders.TinyAutoencoder(4, False, "tiny", 8).state_dict())}, spoil_state, autoencoders.load_tiny),
        "generator": (generator, spoil_tensors, lambda p: priors.load_prior(p)),
        "generator's pickle": ({"g.pkl": _pickle(w.gan)}, spoil_bytes, lambda p: stylegan.load_stylegan(p)),
    }

def _zipped(trace):
    "A trace as version 0.1 stored it."
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as z:
        for name in ("trace.json", *(f"{step:07d}.png" for step in trace.steps)): z.writestr(name, trace.read(name))
    return text.getvalue()

def _tarred(images):
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w") as t:
        for name, body in images.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            t.addfile(entry, io.BytesIO(body))
    return text.getvalue()

def _alone(path):
    folder = path.parent / "alone"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(path, folder)
    return folder

def _train_in(w, folder):
    place = copy.copy(w.place)
    place.__class__ = type("Elsewhere", (faults.Place,), dict(out=folder))
    faults._train(place)

def _state_bytes(state):
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()

def _pickle(gan) -> bytes:
    "The generator in the layout of the official files, as the tests of their reader make it."
    import pickle, test_priors
    for EasyDict in test_priors.official.__wrapped__() if hasattr(test_priors.official, "__wrapped__") else test_priors.official.__pytest_wrapped__.obj():
        return pickle.dumps(test_priors.snapshot(EasyDict, test_priors.generator(gan.config, gan.state_dict())), protocol=4)


# ---- the loop

class TooLong(BaseException): pass

def attempt(read, path):
    "None when it ends well, the message of a typed error, or the traceback of any other."
    def ring(*_): raise TooLong(f"computes for longer than {LIMIT_S} s, or waits for ten minutes")
    before = [signal.signal(s, ring) for s in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    signal.alarm(600)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
        return "fine"
    except recipe.UserError as e:
        return "refused" if "\n" not in str(e) and 20 < len(str(e)) < 2000 else f"a message of {len(str(e))} characters: {str(e)[:3000]}"
    except BaseException: return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for s, handler in zip((signal.SIGPROF, signal.SIGALRM), before): signal.signal(s, handler)

def fuzz(count, names=None, seed=0, keep=None, speak=False):
    "(counts by reader, failures by the last line of their traceback)"
    core.log.setLevel("ERROR")
    counts, failures = {}, {}
    with faults.workshop() as place, tempfile.TemporaryDirectory(prefix="fuzz-", dir=place.root.parent) as root:
        import os
        os.environ["SR_DISTILL_CACHE"] = str(place.root.parent / "cache")
        table = readers(Workshop(Path(root), place))
        names = names or list(table)
        for name in names:
            good, spoil, read = table[name]
            draw, found = random.Random(f"{seed} {name}"), dict(fine=0, refused=0, failed=0)
            for k, content in good.items():   # an unspoilt file is read
                (Path(root) / k).write_bytes(content)
                first = attempt(read, Path(root) / k)
                if first != "fine": failures.setdefault(f"{name}: good file: {first.strip().splitlines()[-1][:200]}", first)
            for k in range(-(-count // len(names))):
                file = draw.choice(list(good))
                path = Path(root) / f"spoilt-{file}"
                path.write_bytes(spoil(good[file], draw))
                said = attempt(read, path)
                found[said if said in found else "failed"] += 1
                if said not in found:
                    key = f"{name}: {said.strip().splitlines()[-1][:160]}"
                    if key not in failures:
                        failures[key] = said
                        if speak: print("NOT SURVIVED", key, flush=True)
                        if keep: Path(keep).mkdir(exist_ok=True), shutil.copy(path, Path(keep) / f"{len(failures)}-{file}"), (Path(keep) / f"{len(failures)}.txt").write_text(said)
            counts[name] = found
            if speak: print(name, found, flush=True)
    return counts, failures

TRAPS = {"bombs": "bomb", "archives": "archives", "manifests": "manifests_that_reach or hostile_text or prior_of_a_known_name", "file names": "strange_file_names or no_text"}

class Count:
    "A pytest plugin that counts what passes and what does not."
    def __init__(self): self.passed = self.failed = 0
    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed

def traps():
    "How many tests of each kind pass, and how many of all do not."
    import pytest
    here, kinds, failed = Path(__file__).resolve().parent, {}, 0
    for kind, words in TRAPS.items():
        count = Count()
        pytest.main(["-q", "-p", "no:cacheprovider", str(here / "test_faults.py"), str(here / "test_trust.py"), "-k", words], plugins=[count])
        kinds[kind], failed = count.passed, failed + count.failed
    import test_trust
    kinds["file names"] = len(test_trust.NAMES) + 1   # all of them in one test
    return kinds, failed

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--readers", type=lambda text: text.split(","))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep")
    parser.add_argument("--traps", action="store_true")
    parser.add_argument("--publish", nargs="?", const=faults.RESULTS)
    args = parser.parse_args()
    began = time.monotonic()
    if args.traps:
        kinds, failed = traps()
        print(json.dumps(kinds), failed, "not survived")
        if args.publish and not failed: faults.publish(args.publish, "traps", dict(traps=sum(kinds.values()), by_kind=kinds, not_survived=failed))
        return int(failed > 0)
    counts, failures = fuzz(args.count, args.readers, args.seed, args.keep, True)
    figures = dict(files=sum(sum(c.values()) for c in counts.values()), by_reader=counts, not_survived=len(failures), seconds=round(time.monotonic() - began))
    print(json.dumps({k: v for k, v in figures.items() if k != "by_reader"}))
    if args.publish and not failures: faults.publish(args.publish, "fuzz", figures)
    return int(bool(failures))

if __name__ == "__main__": sys.exit(main())
