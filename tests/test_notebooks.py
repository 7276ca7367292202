"""Every notebook runs from top to bottom, each in a fresh process, with the solutions of its exercises."""
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context

import nbdev.test
import pytest
from execnb.nbio import mk_cell
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_notebook

run_notebook.__test__ = False  # a function to call, whatever its name
cfg = get_config()
notebooks = sorted(nbglob(cfg.nbs_path, as_path=True))

SOLUTION = re.compile(r"<details><summary>Solution</summary>(.*?)</details>", re.S)


def solutions(markdown: str) -> list[str]:
    "The code of the solutions in a cell of prose: folded on the page, so no cells of their own."
    return ["\n".join(re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)) for text in SOLUTION.findall(markdown)]

def run_with_solutions(path, **options):
    "As nbdev runs a notebook; after the exercises of a cell comes the code that solves them."
    class Shell(CaptureShell):
        def run_all(self, nb, **how):
            nb.cells = [c for cell in nb.cells for c in (cell, *map(mk_cell, solutions(cell.source) if cell.cell_type == "markdown" else []))]
            return super().run_all(nb, **how)
    nbdev.test.CaptureShell = Shell   # in a process that runs nothing else
    return run_notebook(path, **options)


# a fork of a process that has imported others' packages, and nothing of this one: as fresh as a new process, some seconds sooner
FRESH = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
FRESH.set_forkserver_preload(["torch", "nbdev.test", "matplotlib.pyplot", "skimage.metrics", "scipy.ndimage"])

@pytest.mark.parametrize("path", notebooks, ids=lambda path: path.relative_to(cfg.nbs_path).as_posix())
def test_runs(path):
    with ProcessPoolExecutor(1, mp_context=FRESH) as fresh:
        passed, _ = fresh.submit(run_with_solutions, path, skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path).result()
    assert passed, f"{path.name} fails: the traceback is in the captured output"
