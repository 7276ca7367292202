"""What every test may ask for: a private cache, the shared data, the weights."""
import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# read when torch is first imported; beside another process of this test run, one thread does twice the work of two
if "PYTEST_XDIST_WORKER" in os.environ: os.environ["OMP_NUM_THREADS"] = "1"
else: os.environ.setdefault("OMP_NUM_THREADS", "2")
REPO = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    "All tests: a process on each of up to four cores, where pytest-xdist is installed; `-n 0` for one process."
    if "PYTEST_XDIST_WORKER" in os.environ or config.args_source is not config.ArgsSource.TESTPATHS: return   # these processes come here too
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores > 1 and getattr(config.option, "numprocesses", 0) is None and not config.option.usepdb:
        config.option.numprocesses, config.option.dist = min(cores, 4), "loadscope"

def together(nodeid: str) -> str:
    "What one process runs: the tests of a file share its fixtures, and those of the site its pages; a notebook or a case stands alone."
    name = Path(nodeid.partition("::")[0]).stem
    return nodeid if name in ("test_notebooks", "test_cases") else "site" if name in ("test_browser", "test_docs") else name

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "xdist's own groups, `--dist loadgroup`, go by an attribute that pytest 9.2 no longer has."
    if config.getvalue("dist") != "loadscope": return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid): return together(nodeid)
    return ByFile(config, log)

@pytest.hookimpl(tryfirst=True)   # before pytest deselects by `-m`
def pytest_collection_modifyitems(items):
    "What reads the optional shared data is marked: `pytest -m shared` runs it alone."
    for item in items:
        page = item.callspec.params.get("path") if item.path.stem == "test_notebooks" else None
        asks = "shared_dir()" in page.read_text(encoding="utf-8") if page else "shared" in getattr(item, "fixturenames", ())
        if asks: item.add_marker(pytest.mark.shared)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        import torch
        if not torch.cuda.is_available(): pytest.skip("no CUDA device here (run `pytest -m cuda` on a machine with an NVIDIA GPU)")


# ---- tests that fork or need another environment, `pytest.mark.apart(NAME="value")`: a process of their own runs them, this one reports them

class Apart:
    "A second pytest that runs some tests and sends the report of each."
    def __init__(self, items, long, variables):
        read, write = os.pipe()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *["--long"] * long, *(item.nodeid for item in items)]
        environment = {**os.environ, APART: str(write), "OMP_NUM_THREADS": "1", **variables}
        for name in [k for k in environment if k.startswith("PYTEST_")]: del environment[name]
        self.process = subprocess.Popen(command, cwd=items[0].config.rootpath, env=environment, pass_fds=[write],
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        os.close(write)
        self.reports, self.waiting = os.fdopen(read, encoding="utf-8"), collections.defaultdict(list)

    def of(self, item) -> list:
        "The reports of one test: set-up, call, tear-down; a failure where the process ended before them."
        while not any(r.when == "teardown" for r in self.waiting[item.nodeid]):
            line = self.reports.readline()
            if not line: return [*self.waiting[item.nodeid], self.broken(item)]
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=json.loads(line))
            self.waiting[report.nodeid].append(report)
        return self.waiting[item.nodeid]

    def broken(self, item):
        said = self.process.communicate()[0] if self.process.poll() is None or not self.process.stdout.closed else ""
        where = (item.location[0], item.location[1], item.location[2])
        return pytest.TestReport(item.nodeid, where, {}, "failed", f"the process of these tests ended early:\n{said[-3000:]}", "call")


APART = "SR_DISTILL_TESTS_APART"
running = {}   # (file, variables) → their `Apart`

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if APART in os.environ or not item.get_closest_marker("apart"): return None
    def place(i): return (i.path, *sorted(mark.kwargs.items())) if (mark := i.get_closest_marker("apart")) else None
    mine = place(item)
    if mine not in running:
        items = [i for i in item.session.items if place(i) == mine]
        running[mine] = Apart(items, item.config.getoption("--long"), dict(mine[1:]))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in running[mine].of(item): item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)   # what the item before left for this one, which did not need it
    return True

class Sender:
    "In the second process: sends every report through the pipe."
    def __init__(self, config): self.config, self.pipe = config, os.fdopen(int(os.environ[APART]), "w", encoding="utf-8")
    def pytest_runtest_logreport(self, report):
        print(json.dumps(self.config.hook.pytest_report_to_serializable(config=self.config, report=report)), file=self.pipe, flush=True)

def pytest_configure(config):
    if APART in os.environ: config.pluginmanager.register(Sender(config))


# ---- the end of the output: why tests were skipped, a line for each reason

def pytest_terminal_summary(terminalreporter):
    reasons = collections.Counter(r.longrepr[2].removeprefix("Skipped: ") for r in terminalreporter.stats.get("skipped", ()))
    if not reasons: return
    terminalreporter.section("skipped")
    for reason, n in reasons.most_common(): terminalreporter.line(f"{n:4} × {reason}")


def run_folder(config, tmp_path_factory) -> Path:
    "The temporary folder that all processes of a test run share."
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(config, "workerinput") else base   # a process of xdist, and not a pytest that a test started in one

@pytest.fixture(scope="session", autouse=True)
def environment(pytestconfig, tmp_path_factory):
    "One empty cache for all processes of a test run; the weights in shared data, where they exist."
    from sr_distill.core import shared_dir

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SR_DISTILL_CACHE", str(run_folder(pytestconfig, tmp_path_factory) / "cache"))
        weights = shared_dir() and shared_dir() / "data/weights/torch_home"
        if weights and weights.is_dir() and "TORCH_HOME" not in os.environ:
            patch.setenv("TORCH_HOME", str(weights))
        yield


@pytest.fixture(autouse=True)
def seeded():
    "Every test draws the same numbers in every run, alone or after others, also where it makes no generator of its own."
    import torch

    torch.manual_seed(0)


@pytest.fixture
def small_photos(tmp_path):
    "`small_photos('abc')` makes a folder of so many photos of 60x60 pixels, with these names."
    import numpy as np
    from PIL import Image

    def make(names) -> Path:
        noise, folder = np.random.default_rng(0), tmp_path / "photos"
        folder.mkdir()
        for name in names:
            smooth = np.kron(noise.integers(0, 256, (12, 12, 3)), np.ones((5, 5, 1))).astype(np.uint8)
            Image.fromarray(smooth).save(folder / f"{name}.png")
        return folder

    return make


def copy_repo(folder: Path) -> Path:
    for part in map(REPO.joinpath, ("settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "CHANGELOG.md", "README.md", "_quarto.yml", "nbs", "sr_distill", "tools")):
        if part.is_file(): shutil.copy(part, folder)
        else: shutil.copytree(part, folder / part.name, symlinks=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    return folder

@pytest.fixture(scope="module")
def repo_copy(tmp_path_factory):
    "A copy of all that nbdev reads and writes, so that no test changes the tree."
    return copy_repo(tmp_path_factory.mktemp("repo"))

@pytest.fixture(scope="session")
def site(pytestconfig, tmp_path_factory):
    "The pages that `make docs` builds where Quarto is missing, once for all processes of a test run."
    from sr_distill.core import file_lock
    folder = run_folder(pytestconfig, tmp_path_factory) / "site"
    with file_lock(folder):
        if not (folder / "built").exists():
            folder.mkdir(exist_ok=True)
            copy_repo(folder)
            done = subprocess.run([sys.executable, "tools/docs.py", "--nbconvert", "--no-runtime"], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "built").touch()
    return folder / "_docs"


@pytest.fixture(scope="session")
def shared():
    "`shared('data/set5')` is that path in the shared data; the test is skipped where it is absent."
    from sr_distill.core import shared_dir

    def find(name: str) -> Path:
        root = shared_dir()
        if root is None or not (root / name).exists():
            pytest.skip("the optional test data is not here (set SR_DISTILL_SHARED to its folder)")
        return root / name

    return find


@pytest.fixture(scope="session")
def set5(shared): return shared("data/set5")

@pytest.fixture(scope="session")
def set14(shared): return shared("data/set14")

@pytest.fixture(scope="session")
def photos_train(shared): return shared("data/photos/train")

@pytest.fixture(scope="session")
def photos_val(shared): return shared("data/photos/val")


def pytest_addoption(parser): parser.addoption("--long", action="store_true", help="fault harness and fuzzing at full length (an hour or more)")

@pytest.fixture(scope="session")
def long(request): return request.config.getoption("--long")
