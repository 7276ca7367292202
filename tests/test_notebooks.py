"""Every notebook runs from top to bottom, each in a fresh process."""
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_notebook

run_notebook.__test__ = False  # a function to call, whatever its name
cfg = get_config()
notebooks = sorted(nbglob(cfg.nbs_path, as_path=True))


@pytest.mark.parametrize("path", notebooks, ids=lambda path: path.relative_to(cfg.nbs_path).as_posix())
def test_runs(path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        passed, _ = fresh.submit(run_notebook, path, skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path).result()
    assert passed, f"{path.name} fails: the traceback is in the captured output"
