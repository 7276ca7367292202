"""Tests that need a process of their own."""
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_faults():
    "The fault harness forks its jobs, which is safe only where no other test has started threads."
    environment = {**os.environ, "SR_DISTILL_FAULTS": "1", "OMP_NUM_THREADS": "1"}
    r = subprocess.run([sys.executable, "-m", "pytest", "-q", HERE / "test_faults.py"], env=environment, capture_output=True, text=True, timeout=600)
    assert r.returncode == 0 and re.search(r"\d+ passed", r.stdout), r.stdout[-3000:] + r.stderr[-1000:]
