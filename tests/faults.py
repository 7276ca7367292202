"""Faults on purpose: what a job leaves must be, to the byte, what an undisturbed run of it leaves.

    python tests/faults.py kills --count 240       kill -9 at random moments, again and again until the job is done
    python tests/faults.py boundaries              kill -9 before every single file operation of a job
    python tests/faults.py full-disk               no space at every single file operation, and on a small disk of its own
    python tests/faults.py damage --count 300      one file cut, overwritten, emptied or removed in a cache or a half-done run
    python tests/faults.py clock --count 30        a clock and file dates that jump by years
    python tests/faults.py intruders --count 30    a second process in the same output folder
    python tests/faults.py read-only               output and cache on a read-only disk
    python tests/faults.py ranks --count 10        kill -9 of one process under torchrun
    python tests/faults.py soak --minutes 60       distillation after distillation, with the memory sampled
    python tests/faults.py all                     all of these

`--jobs distil,train` picks jobs, `--seed` another series of random choices, `--publish`, last, writes the counts to
nbs/results/survives.json, where the page "What it survives" reads them, or to another file.  A fault that is not survived ends the command with 1.

Jobs run in children forked from a process that has everything imported, so that a start costs no seconds.
"""
import argparse
import contextlib
import csv
import errno
import hashlib
import http.server
import inspect
import io
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"
import numpy as np
import torch
from forks import Child, fork
from PIL import Image

from sr_distill import autoencoders, core, data, distill, matching, models, patches, priors, recipe, study, train

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "nbs/results/survives.json"


# ---- jobs: small enough that from start to end it is a second

SMALL = autoencoders.SmallConfig(channels=8, width=8, depth=1, steps=20, batch=2, crops=12)
OPTIONS = recipe.RunOptions(device="cpu", checkpoint=2, snapshots=5, held_out=1)
PIXEL = recipe.Recipe(size=16, networks=2, real=2, steps=10, ipc=2, init="random")
LATENT = recipe.Recipe(size=16, networks=2, real=2, steps=6, space="latent", invert=4, pool="random")

def make_photos(folder: Path, names="abc", side=36) -> Path:
    "Square photos; one of them is grey."
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for k, name in enumerate(names):
        a = np.kron(noise.integers(0, 256, (side // 4, side // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        Image.fromarray(a if k else a[..., 0]).save(folder / f"{name}.png")
    return folder

def _small_machinery():
    "What takes minutes on real photos takes a moment here."
    matching.TRAJECTORY_STEPS = 16
    priors.embedded_prior = lambda photos: autoencoders.embedded_prior(photos, SMALL)

def _distil(place, which=PIXEL):
    distill.distill(data.Photos.open(place.photos if which.space == "pixel" else place.large), which, place.out, OPTIONS)

def _train(place):
    config = recipe.TrainConfig(steps=40, batch=1, patch=16, ema=.9, clip=1., checkpoint=7, validate=25)
    photos = data.Photos.open(place.photos)
    train.train(models.make_model("vdsr", 2, 3, 4, generator=core.rng(0, "weights")), photos, config, place.out, photos.subset([1]), "cpu")

def _download(place):
    data.download("tiny", place.out, place.url, place.table)

def _weights(place):
    core.make_folder(place.out)
    priors.fetch_weights(f"{place.url}/weights.bin", place.out / "weights.bin", place.table["weights"]["sha256"])

def _cache(place):
    photos = data.Photos.open(place.photos)
    for k in range(len(photos)): photos.lr(k, 2), photos.lr(k, 3)
    assert photos.png_bytes

def _bank(place):
    which = recipe.Recipe(size=16, networks=4, real=2)
    groups = patches.Groups(data.Photos.open(place.photos), "image", 16, 8)
    matching.GradientBank(groups, which, [matching.fresh_network(which, k).state_dict() for k in range(4)]).build()

def _prior(place): autoencoders.embedded_prior(data.Photos.open(place.large), SMALL)

def _study(place):
    models = {"srcnn": dict(model="srcnn", steps=4, batch=1, patch=16, checkpoint=2)}
    said = dict(photos=str(place.photos), held_out=1, seeds=2, recipe=dict(size=16, networks=2, real=2, pool="random"), sets={"random": dict(init="random", steps=0), "distilled": dict(steps=3)}, models=models)
    found = study.run_study(study.study_from(said), place.out, 1)
    if found.failed: raise recipe.RunError(f"{len(found.failed)} cells failed, the first one because: {next(iter(found.failed.values()))}")   # as the command line does
    assert not found.missing

JOBS = {   # another command joins with one line here: a function of a `Place` that writes into `place.out`
    "distil": _distil,
    "distil in latent space": lambda place: _distil(place, LATENT),
    "train": _train,
    "study": _study,
    "download photos": _download,
    "download weights": _weights,
    "photo cache": _cache,
    "gradient bank": _bank,
    "embedded prior": _prior,
}


@dataclass
class Place:
    "Where one job works: its output, its cache, and the input that all jobs share."
    root: Path
    photos: Path
    large: Path   # photos that an image prior can be trained on
    url: str
    table: dict
    out = property(lambda self: self.root / "out")
    cache = property(lambda self: self.root / "cache")

    def at(self, root): return Place(Path(root), self.photos, self.large, self.url, self.table)
    def left(self) -> dict:
        "All files of output and cache; times taken and lock files do not count, nor what was half-written in a cache, which forgets it as it forgets what is old."
        files = [p for p in sorted(self.root.rglob("*")) if p.is_file() and not p.name.endswith(".lock") and not (p.suffix == ".tmp" and p.is_relative_to(self.cache))]
        return {p.relative_to(self.root).as_posix(): _content(p, str(self.root)) for p in files}

def _content(path, root):
    "What a file says, but for times and places; the sum of its bytes where it says nothing that can be read."
    def still(x):
        if isinstance(x, dict): return {k: still(v) for k, v in x.items() if not k.endswith("seconds")}
        return [still(v) for v in x] if isinstance(x, list) else x
    with contextlib.suppress(ValueError, csv.Error):
        if path.name == "results.csv":   # of a study: a column of times
            rows = list(csv.reader(path.open(newline="")))
            return [[v for k, v in zip(rows[0], row) if not k.endswith("seconds")] for row in rows]
        if path.suffix == ".json": return still(json.loads(path.read_text().replace(root, "")))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Slow(http.server.BaseHTTPRequestHandler):
    "Files with byte ranges, a piece at a time, so that a download lasts long enough to be killed."
    def do_HEAD(self): self.do_GET(False)
    def do_GET(self, send=True):
        content, first = self.server.files.get(self.path), int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if content is None or (first and first >= len(content)): return self.send_error(404 if content is None else 416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        with contextlib.suppress(OSError):
            for k in range(first, len(content) if send else 0, 4096):
                self.wfile.write(content[k:k + 4096])
                time.sleep(.002)
    def log_message(self, *a): pass


@contextlib.contextmanager
def workshop():
    "A `Place` with photos, and a server that runs in a process of its own."
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as root:
        root = Path(root)
        photos, large, buffer = make_photos(root / "photos"), make_photos(root / "large", side=64), io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as z:
            for k in range(6): z.writestr(f"tiny/{k:02d}.png", (photos / "b.png").read_bytes() + bytes(20_000))
        files = {"/tiny.zip": buffer.getvalue(), "/weights.bin": np.random.default_rng(0).bytes(300_000)}
        record = lambda name: dict(file=name, size=len(files["/" + name]), sha256=hashlib.sha256(files["/" + name]).hexdigest())
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
        server.files = files
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            server.serve_forever()
        server.socket.close()
        try: yield Place(root / "undisturbed", photos, large, f"http://127.0.0.1:{server.server_port}", {"tiny": record("tiny.zip"), "weights": record("weights.bin")})
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# ---- a job in a child

def start(job: str, place: Place, prepare=lambda: None, log="log") -> Child:
    "The job in a forked child, which first calls `prepare`; exit code 0, or that of the error, or 70 for an error that is none of ours."
    place.root.mkdir(parents=True, exist_ok=True)
    def work():
        try:
            _small_machinery()
            prepare()
            JOBS[job](place)
        except recipe.UserError as e:
            os.write(2, f"\n{type(e).__name__}: {e}".encode(errors="replace"))   # below a progress bar
            return e.exit_code
    return fork(work, place.root.parent / f"{place.root.name}.{log}", SR_DISTILL_CACHE=str(place.cache))

def finish(job: str, place: Place, prepare=lambda: None) -> Child:
    child = start(job, place, prepare)
    child.wait()
    return child


# ---- one interception for all faults: before the n-th file operation of a job, something happens

def _operations():
    "Places where files change: (object, name)."
    return [(os, "replace"), (os, "fsync"), (os, "unlink"), (os, "remove"), (os, "mkdir"), (os, "rmdir"), (os, "truncate"),
            (np.memmap, "flush"), (np, "save"), (torch, "save"), (shutil, "copyfileobj")]

def before_operation(n, act, names=None):
    "A `prepare` that makes the n-th file operation (from 0; None for none) call `act` first; the count is written to the log folder."
    def prepare():
        counter = dict(n=0)
        def wrap(place, name):
            real = getattr(place, name)
            def fake(*a, **k):
                if names is None or name in names:
                    counter["n"] += 1
                    if counter["n"] - 1 == n: act()
                    if n is None: os.write(1, b"#")
                return real(*a, **k)
            setattr(place, name, fake)
        for place, name in _operations(): wrap(place, name)
    return prepare

def die(): os.kill(os.getpid(), signal.SIGKILL)
def no_space(): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---- the faults

class Survey:
    "Undisturbed runs to compare with, counts, and what was not survived."
    def __init__(self, place: Place, seed: int = 0, jobs=None, speak=False):
        self.place, self.draw, self.speak, self.jobs = place, random.Random(seed), speak, list(jobs or JOBS)
        self.wanted, self.seconds, self.counts, self.failures, self.trials = {}, {}, {}, [], 0
        for job in self.jobs:
            self.wanted[job], self.seconds[job] = self.undisturbed(job)

    def undisturbed(self, job):
        place = self.place.at(self.place.root / job.replace(" ", "-"))
        began = time.monotonic()
        child = finish(job, place)
        assert child.code == 0, f"{job}: {child.code} {child.said}"
        return place.left(), time.monotonic() - began

    @contextlib.contextmanager
    def trial(self, job):
        self.trials += 1
        root = self.place.root.parent / f"trial-{self.trials}"
        try: yield self.place.at(root / "it")
        finally: shutil.rmtree(root, ignore_errors=True)

    def count(self, job, n=1): self.counts[job] = self.counts.get(job, 0) + n
    def fail(self, job, what):
        self.failures.append(f"{job}: {what}")
        if self.speak: print("NOT SURVIVED", self.failures[-1], flush=True)
    def wrong(self, job, place):
        "Files that differ from what an undisturbed run leaves."
        wanted, found = self.wanted[job], place.left()
        return sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    def compare(self, job, place, how, but=None):
        "Is what the job left what an undisturbed run leaves, `but` for one file?"
        wrong = [k for k in self.wrong(job, place) if k != but]
        if wrong: self.fail(job, f"{how}: {len(wrong)} files differ, are missing or left over: {wrong[:4]}")
    def completes(self, job, place, how):
        "The next start goes on to the same end."
        child = finish(job, place)
        if child.code: self.fail(job, f"{how}: the next start ends with {child.code}: {child.said[-600:]}")
        else: self.compare(job, place, how)
    def refused(self, job, child, how, word=""):
        "It ended in one typed error, which names what is wrong."
        lines = child.said.splitlines()
        if child.code not in (1, 2) or len(lines) == 0 or not lines[-1].startswith(("UserError: ", "RunError: ")) or word not in child.said:
            self.fail(job, f"{how}: ended with {child.code}: {child.said[-600:]}")
            return False
        return True


def kills(survey, count=240, most=5):
    "kill -9 at random moments; each job is started again until it is done, at most `most` kills in a row."
    done = 0
    while done < count:
        for job in survey.jobs:
            with survey.trial(job) as place:
                here = 0
                while here < most:
                    child = start(job, place)
                    child.wait(survey.draw.uniform(0, survey.seconds[job]))
                    if not child.kill(): break
                    here += 1
                survey.count(job, here)
                done += here
                survey.completes(job, place, f"after {here} kills")

def operations_of(survey, job):
    "How many file operations an undisturbed run has."
    with survey.trial(job) as place: return finish(job, place, before_operation(None, None)).said.count("#")

def some(survey, total, every):
    "Every `every`-th of `total` operations, one at least, from a random one on."
    return range(survey.draw.randrange(min(every, total)), total, every)

def boundaries(survey, every=1):
    "kill -9 before every file operation."
    for job in survey.jobs:
        for n in some(survey, operations_of(survey, job), every):
            with survey.trial(job) as place:
                child = finish(job, place, before_operation(n, die))
                if child.code != -signal.SIGKILL: survey.fail(job, f"operation {n}: was not killed but ended with {child.code}: {child.said[-300:]}")
                survey.count(job)
                survey.completes(job, place, f"killed before operation {n}")

FULL = ("fsync", "mkdir", "save", "copyfileobj", "replace")   # what a full disk can refuse

def full_disk(survey, every=1, sizes=12):
    "No space at every file operation that can meet it, then on a small disk where one can be mounted."
    for job in survey.jobs:
        with survey.trial(job) as place: total = finish(job, place, before_operation(None, None, FULL)).said.count("#")
        for n in some(survey, total, every):
            with survey.trial(job) as place:
                child = finish(job, place, before_operation(n, no_space, FULL))
                survey.count(job)
                if child.code == 0: survey.compare(job, place, f"no space at operation {n}, which did not matter")
                elif survey.refused(job, child, f"no space at operation {n}"): survey.completes(job, place, f"no space at operation {n}")
        for k in range(sizes):
            with survey.trial(job) as place:
                size = 4096 * (2 + int(k / sizes * sum(p.stat().st_size for p in (survey.place.root / job.replace(" ", "-")).rglob("*")) / 4096))
                place.root.mkdir(parents=True)
                if not small_disk(place.root, size): return
                try:
                    child = finish(job, place)
                    survey.count(job)
                    small_disk(place.root, 1 << 28, again=True)
                    if child.code == 0 or survey.refused(job, child, f"disk of {size} bytes"): survey.completes(job, place, f"disk of {size} bytes")
                finally: subprocess.run(["umount", "-l", place.root])

def small_disk(folder, size, again=False, how="rw") -> bool:
    "A disk of `size` bytes at `folder`, where this may be done."
    options = f"{'remount,' * again}{how},size={size}"
    return shutil.which("mount") is not None and subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode == 0

def spoil(path: Path, draw) -> str:
    "Damage one file; says how."
    content, how = path.read_bytes(), draw.choice(["cut", "byte", "byte", "block", "junk", "empty", "gone"])
    if not content and how not in ("junk", "gone"): how = "junk"
    at = draw.randrange(len(content)) if content else 0
    if how == "gone": path.unlink()
    else:
        path.write_bytes({"cut": content[:at], "byte": content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1:] if content else b"",
                          "block": content[:at] + bytes(512) + content[at + 512:], "junk": draw.randbytes(max(10, len(content))), "empty": b""}[how])
    return f"{how} at {at} of {len(content)}"

def damage(survey, count=300):
    """One damaged file.  In a cache: rebuilt, at once or when it is asked for.  In a half-done run: rebuilt, or named, and the run goes
    on when the message is obeyed.  In a finished result, or in what is finished of a half-done run: named, or redone, or of no consequence."""
    for k in range(count):
        job, mode = survey.jobs[k % len(survey.jobs)], survey.draw.choice(["half-done", "cache", "result"])
        places = {name.split("/")[0] for name in survey.wanted[job]}
        if places == {"cache"} or places == {"out"} and mode == "cache": mode = "cache" if "cache" in places else "half-done"
        with survey.trial(job) as place:
            if mode == "half-done":
                child = start(job, place)
                child.wait(survey.draw.uniform(.1, .95) * survey.seconds[job])
                if not child.kill() and "out" in places: mode = "result"   # it was quicker
            else: finish(job, place)
            if mode == "cache": shutil.rmtree(place.out, ignore_errors=True)
            files = [p for p in sorted((place.out if mode == "result" else place.root).rglob("*")) if p.is_file() and not p.name.endswith(".lock")]
            if not files: continue
            victim = survey.draw.choice(files)
            name, cached = victim.relative_to(place.root).as_posix(), victim.is_relative_to(place.cache)
            finished = survey.wanted[job].get(name) == _content(victim, str(place.root))
            how = f"{mode}, {name}: {spoil(victim, survey.draw)}"
            survey.count(job)
            content = lambda: victim.exists() and victim.read_bytes()
            before, child = content(), finish(job, place)
            unread = content() == before
            if mode == "result": child.code and survey.refused(job, child, how)
            elif child.code and not cached: obey(survey, job, place, child, how)
            elif child.code: survey.fail(job, f"{how}: ends with {child.code}: {child.said[-600:]}")
            elif cached and (wrong := survey.wrong(job, place)) and all(k.startswith("cache/") for k in wrong):   # nobody asked for it; now somebody must
                for p in place.root.rglob("*"):
                    if p.is_file() and p.parent != victim.parent: p.unlink()
                shutil.rmtree(place.out, ignore_errors=True)
                survey.completes(job, place, how)
            elif unread and finished: survey.compare(job, place, how, but=name)
            else: survey.compare(job, place, how)

def obey(survey, job, place, child, how):
    "Remove what the message names, and start again."
    for _ in range(4):
        if child.code == 0: return survey.compare(job, place, how)
        if not survey.refused(job, child, how): return
        named = [p for p in [*sorted(place.out.rglob("*"), key=lambda p: -len(str(p))), place.out] if str(p) in child.said]   # a folder of its own is as good as another one
        if named: shutil.rmtree(named[0]) if named[0].is_dir() else named[0].unlink()
        child = finish(job, place)
    survey.fail(job, f"{how}: the messages lead nowhere: {child.said[-600:]}")

def clock(survey, count=30):
    "A clock that jumps by years at every look, and files dated anywhere between two starts."
    def jumping(seed):
        def prepare():
            real, draw = time.time, random.Random(seed)
            time.time = lambda: max(1., real() + draw.uniform(-40, 40) * 365 * 86400)
        return prepare
    for k in range(count):
        job = survey.jobs[k % len(survey.jobs)]
        with survey.trial(job) as place:
            child = start(job, place, jumping(k))
            child.wait(survey.draw.uniform(0, survey.seconds[job]))
            child.kill()
            for p in place.root.rglob("*"): os.utime(p, (survey.draw.uniform(0, 4e9),) * 2)
            survey.count(job)
            child = finish(job, place, jumping(-k))
            if child.code: survey.fail(job, f"jumping clock: ends with {child.code}: {child.said[-600:]}")
            else: survey.compare(job, place, "jumping clock")
            for text in (p.read_text() for p in place.root.rglob("*.json")):
                if '"seconds": -' in text: survey.fail(job, "jumping clock: a time below zero is reported")

LOCKED = ("distil", "distil in latent space", "train", "study", "download photos")   # the others fill a cache together, or wait

def locked(path):
    "Does another process hold this lock?"
    import fcntl
    if not path.exists(): return False
    with open(path, "r+") as file:
        try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: return True
    return False

def intruders(survey, count=30):
    "A second process in the same output folder is told so and disturbs nothing; two may fill one cache."
    for k in range(count):
        job = survey.jobs[k % len(survey.jobs)]
        with survey.trial(job) as place:
            first = start(job, place)
            while job in LOCKED and first.poll() is None and not (place.out / ".lock").exists(): time.sleep(.001)
            first.wait(survey.draw.uniform(.01, survey.seconds[job] / 2))
            if stopped := job in LOCKED and first.poll() is None: os.kill(first.pid, signal.SIGSTOP)   # it holds the folder as long as the other looks
            held = stopped and locked(place.out / ".lock")   # unless it had finished its work and was about to end
            other = start(job, place, log="other")
            other.wait()
            if stopped: os.kill(first.pid, signal.SIGCONT)
            if held: survey.refused(job, other, "an intruder", "another sr_distill process is writing here")
            elif other.code: survey.fail(job, f"the second process ended with {other.code}: {other.said[-600:]}")
            if first.wait(): survey.fail(job, f"the first process ended with {first.code}: {first.said[-600:]}")
            survey.count(job)
            survey.compare(job, place, "two processes")

def read_only(survey):
    "Output and cache that cannot be written: on a read-only disk where one can be mounted, else for a user without the right."
    for job in survey.jobs:
        for which in ("out", "cache"):
            with survey.trial(job) as place:
                folder = getattr(place, which)
                folder.mkdir(parents=True)
                mounted = small_disk(folder, 1 << 20, how="ro")
                if not mounted: folder.chmod(0o555)
                try:
                    if not mounted and os.access(folder, os.W_OK): continue   # the superuser of a container
                    child = finish(job, place)
                finally: subprocess.run(["umount", "-l", folder]) if mounted else folder.chmod(0o755)
                survey.count(job)
                if child.code or not any(name.startswith(which + "/") for name in survey.wanted[job]): child.code and survey.refused(job, child, f"read-only {which}", str(folder))
                else: survey.fail(job, f"read-only {which}: ended well")

def ranks(survey, count=10):
    "kill -9 of one of two processes under torchrun; the next start, in one process or two, ends the same."
    if not Path("/proc/self/environ").exists(): return
    options = "--size 24 --networks 2 --real 4 --steps 60 --ipc 2 --init random --device cpu --checkpoint 2 --held-out 0 --snapshots 6".split()
    def launch(place, processes):
        env = {**os.environ, "SR_DISTILL_CACHE": str(place.cache)}
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
        return subprocess.Popen([sys.executable, *torchrun, "-m", "sr_distill", "distill", survey.place.photos, place.out, *options], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    def ends_well(place, processes):
        process = launch(place, processes)
        said = process.communicate(timeout=300)[0]
        return process.returncode == 0 or survey.fail("torchrun", f"ended with {process.returncode}: {said[-900:]}")
    def result(place): return {k: v for k, v in place.left().items() if k.startswith("out/images") or k == "out/trace.safetensors"}
    with survey.trial("torchrun") as place:
        ends_well(place, 1)
        wanted = result(place)
    for k in range(count):
        with survey.trial("torchrun") as place:
            process, rank = launch(place, 2), survey.draw.randrange(2)
            while process.poll() is None and not (place.out / ".run/run.json").exists(): time.sleep(.01)
            time.sleep(survey.draw.uniform(0, 2))
            victims = list(children(rank, place.cache))
            for pid in victims: os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=300)
            survey.count("torchrun", len(victims))
            if victims and process.returncode == 0: survey.fail("torchrun", f"rank {rank} was killed and the run ended well")
            if ends_well(place, 1 + k % 2) and result(place) != wanted: survey.fail("torchrun", f"rank {rank} killed: the set is another one")

def children(rank, cache):
    "Processes of this machine that torchrun started as `rank` of the run with this cache."
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try: known = dict(v.split("=", 1) for v in entry.read_text().split("\0") if "=" in v)
        except (OSError, UnicodeDecodeError): continue
        if known.get("RANK") == str(rank) and known.get("SR_DISTILL_CACHE") == str(cache) and "MASTER_PORT" in known: yield int(entry.parent.name)


# ---- a long time

def memory() -> float:
    "Resident memory of this process in MB."
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def soak(minutes=60.) -> dict:
    "Distillations of the embedded photos one after the other, each another seed; memory every tenth step."
    samples, runs, steps, began = [], 0, 0, time.monotonic()
    minute = lambda: (time.monotonic() - began) / 60
    def sample(step, loss, images): samples.append((minute(), memory()))
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        os.environ.update(SR_DISTILL_CACHE=f"{place}/cache", SR_DISTILL_CACHE_GB="0.1")   # small: old entries must make room
        photos = data.Photos.open("embedded")
        while minute() < minutes:
            which = recipe.Recipe(size=48, networks=4, real=8, steps=200, seed=runs)
            distill.distill(photos, which, f"{place}/out", OPTIONS, sample)
            shutil.rmtree(f"{place}/out")
            runs, steps = runs + 1, steps + which.steps
        files = len(list(Path("/proc/self/fd").iterdir()))
    settled = np.array([s for s in samples if s[0] > minutes / 5])   # the first fifth fills caches of the allocator
    slope = 60 * float(np.polyfit(*settled.T, 1)[0])
    return dict(minutes=round(minute(), 1), distillations=runs, steps=steps, samples=len(samples), first_mb=round(float(settled[:20, 1].mean()), 1), last_mb=round(float(settled[-20:, 1].mean()), 1),
                highest_mb=round(max(m for _, m in samples), 1), slope_mb_per_hour=round(slope, 2), open_files=files)


# ---- the command

FAULTS = {f.__name__.replace("_", "-"): f for f in (kills, boundaries, full_disk, damage, clock, intruders, read_only, ranks)}

def publish(file, name, figures):
    "Put the figures of one command, and where it ran, into the table of the page."
    stored = core.read_json(file) if Path(file).exists() else {}
    words = [Path(sys.argv[0]).parent.name + "/" + Path(sys.argv[0]).name, *sys.argv[1:]]
    words = words[:min(words.index(w) for w in ("--keep", "--publish") if w in words)]   # these come last
    where = dict(python=platform.python_version(), torch=torch.__version__, system=platform.system())
    core.write_json(file, dict(sorted({**stored, name: dict(figures, command="python " + " ".join(words), **where)}.items())))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=[*FAULTS, "soak", "all"])
    parser.add_argument("--count", type=int, help="how many, for faults that come at random moments")
    parser.add_argument("--every", type=int, help="boundaries and full-disk: only every N-th file operation")
    parser.add_argument("--jobs", type=lambda text: text.split(","), help="some of: " + ", ".join(JOBS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--publish", nargs="?", const=RESULTS)
    args = parser.parse_args()
    if args.fault == "soak":
        figures = soak(args.minutes)
        print(json.dumps(figures, indent=1))
        if args.publish: publish(args.publish, "soak", figures)
        return int(figures["slope_mb_per_hour"] > .05 * figures["first_mb"])   # flat: less than a twentieth more in an hour
    failed = 0
    for name in FAULTS if args.fault == "all" else [args.fault]:
        began = time.monotonic()
        with workshop() as place:
            survey = Survey(place, args.seed, args.jobs, speak=True)
            FAULTS[name](survey, **{k: v for k, v in dict(count=args.count, every=args.every).items() if v and k in inspect.signature(FAULTS[name]).parameters})
        figures = dict(faults=sum(survey.counts.values()), by_job=survey.counts, not_survived=len(survey.failures), seconds=round(time.monotonic() - began))
        print(name, json.dumps(figures), flush=True)
        if args.publish and not survey.failures: publish(args.publish, f"{name}, {', '.join(args.jobs)}" if args.jobs else name, figures)
        failed += len(survey.failures)
    return int(failed > 0)

if __name__ == "__main__": sys.exit(main())
