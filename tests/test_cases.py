"""One small script for each fault that a user once met, where the optional test data has them; each must pass."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sr_distill.core import shared_dir

REPO = Path(__file__).resolve().parents[1]
FOLDER = shared_dir() / "cases" if shared_dir() else Path("cases")
OWN = {"fresh_clone_without_data"}   # runs this whole test suite: `.ci/run` does that


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("[a-z]*_*.py") if p.stem not in OWN) or ["any"])
def test_case(shared, name):
    script = shared("cases") / f"{name}.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, errors="replace",
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)})
    last = (done.stdout.strip().splitlines() or [done.stderr[-2000:]])[-1]
    if last.startswith("SKIP"): pytest.skip(f"a case needs a package that is missing here: {last.split(':', 1)[1].strip()}")
    assert done.returncode == 0 and last.startswith("PASS"), last
