"""The wheel, built from the source archive: complete, free of the notebooks' tools, usable in an empty directory."""
import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(repo_copy):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=repo_copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(repo_copy.glob("dist/*.whl"))

@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))))


def test_every_module_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    parts = [*REPO.glob("sr_distill/*.py"), *REPO.glob("sr_distill/studies/*.toml"), REPO / "sr_distill/py.typed", REPO / "sr_distill/curves.json", REPO / "sr_distill/fitted.json",
             *(p for p in REPO.glob("sr_distill/ready/**/*") if p.is_file())]
    assert {p.relative_to(REPO).as_posix() for p in parts} == {n for n in names if n.startswith("sr_distill/")}
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_requirements(metadata):
    needs = metadata.get_all("Requires-Dist")
    core = [need for need in needs if "extra ==" not in need]
    assert core[0].startswith("torch<") or core[0].startswith("torch>"), "torch first: pip then takes the torch that is at hand"
    assert not [need for need in core if need.startswith(("nbdev", "fastcore", "jupyter"))]
    assert set(metadata.get_all("Provides-Extra")) == {"lab", "priors", "formats", "nets", "export", "toolkits", "dev"} and metadata["Requires-Python"] == ">=3.10"


def test_readme_on_the_package_index_has_no_relative_links(metadata):
    text = metadata.get_payload()
    assert text.startswith("<!-- Written by tools/readme.py")
    assert "](nbs/" not in text and "/nbs/tutorials/01_first_set.ipynb)" in text


def test_command_runs_from_the_wheel_in_an_empty_directory(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive: archive.extractall(tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()
    code = "import sr_distill.cli, sys; assert 'torch' not in sys.modules; sys.exit(sr_distill.cli.main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")})
    assert done.returncode == 0 and "distill" in done.stdout, done.stderr
    assert not list(empty.iterdir())
