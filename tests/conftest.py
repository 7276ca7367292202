"""What every test may ask for: a private cache, the shared data, the weights."""
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
        config.option.numprocesses, config.option.dist = min(cores, 4), "loadgroup"

def pytest_collection_modifyitems(items):
    "The tests of a file share its fixtures, so one process runs them all; the notebooks go wherever there is time."
    for item in items:
        name = item.path.stem
        if name != "test_notebooks": item.add_marker(pytest.mark.xdist_group("site" if name in ("test_browser", "test_docs") else name))


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory):
    "One empty photo cache for the session; the weights in shared data, where they exist."
    from sr_distill.core import shared_dir

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SR_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        weights = shared_dir() and shared_dir() / "data/weights/torch_home"
        if weights and weights.is_dir() and "TORCH_HOME" not in os.environ:
            patch.setenv("TORCH_HOME", str(weights))
        yield


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
def site(tmp_path_factory):
    "The pages that `make docs` builds where Quarto is missing."
    folder = copy_repo(tmp_path_factory.mktemp("site"))
    done = subprocess.run([sys.executable, "tools/docs.py", "--nbconvert"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "_docs"


@pytest.fixture(scope="session")
def shared():
    "`shared('data/set5')` is that path in the shared data; the test is skipped where it is absent."
    from sr_distill.core import shared_dir

    def find(name: str) -> Path:
        root = shared_dir()
        if root is None or not (root / name).exists():
            pytest.skip(f"shared data {name!r} not found (set SR_DISTILL_SHARED to its folder)")
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
