"""What stands around the code: packaging, citation, workflows and forms say the same as settings.ini, and can be read."""
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

REPO = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((REPO / ".github/workflows").glob("*.yml"))
FORMS = sorted(p for p in (REPO / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
PYTHONS = [f"3.{minor}" for minor in range(10, 15)]


def settings():
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(REPO / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]

def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))

def requirements() -> dict:
    return {r.name: r for r in map(Requirement, settings()["requirements"].split())}

def floor(requirement) -> Version:
    return max((Version(s.version) for s in requirement.specifier if s.operator == ">="), default=None)

@pytest.fixture(scope="module")
def metadata(repo_copy, tmp_path_factory):
    "What the build backend says of the wheel, without building it."
    out = tmp_path_factory.mktemp("metadata")
    code = f"from setuptools import build_meta as b; print(b.prepare_metadata_for_build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return message_from_string(next(out.glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))


# ---- packaging

def test_the_wheel_says_what_the_settings_say(metadata):
    classifiers = metadata.get_all("Classifier")
    assert metadata["Version"] == settings()["version"] and metadata["Requires-Python"] == f">={settings()['min_python']}"
    assert [c.split(" :: ")[-1] for c in classifiers if c.startswith("Programming Language :: Python :: 3.")] == PYTHONS
    assert "Typing :: Typed" in classifiers and (REPO / "sr_distill/py.typed").exists()


def test_no_requirement_makes_pip_replace_a_newer_pytorch():
    needs = requirements()
    assert {"torch", "torchvision"} <= set(needs)
    limited = [str(r) for r in needs.values() for s in r.specifier if s.operator not in (">=", "!=")]
    assert not limited, f"an upper limit replaces what people have: {limited}"


def test_nbdev_stays_at_the_version_that_reads_the_settings():
    tools = {r.name: r for r in map(Requirement, settings()["dev_requirements"].split())}
    assert not tools["nbdev"].specifier.contains("3.0.0") and not tools["fastcore"].specifier.contains("2.0.0")


# ---- citation

def test_the_citation_is_of_this_version():
    cited = read(REPO / "CITATION.cff")
    assert cited["version"] == settings()["version"], "raise `version` in CITATION.cff too"
    assert cited["license"] == "Apache-2.0" and cited["repository-code"] == settings()["git_url"]
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["authors"]
    paper = cited["references"][0]
    assert "2502.03656" in paper["url"] and len(paper["authors"]) == 6


# ---- workflows and forms

def jobs():
    return [(f"{path.stem}: {name}", path, job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]

def triggers(path) -> dict:
    return read(path)[True]   # YAML 1.1 reads the key `on` as a truth value

@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_actions_are_pinned(path):
    "By the hash of a commit, beside the tag that a person can read."
    uses = re.findall(r"uses: *(.+)", path.read_text(encoding="utf-8"))
    loose = [u for u in uses if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40}  # v\d+(\.\d+)*", u)]
    assert uses and not loose, f"pin these by hash: {loose}"
    pins = {}
    for use in (u for p in WORKFLOWS for u in re.findall(r"uses: *(.+)", p.read_text(encoding="utf-8"))):
        name, at = use.split("@")
        assert pins.setdefault(name, at) == at, f"{name} is pinned twice, differently"


@pytest.mark.parametrize("name, path, job", jobs(), ids=[name for name, *_ in jobs()])
def test_a_job_has_limits(name, path, job):
    assert "timeout-minutes" in job or name == "release: publish", f"{name} may run for six hours"
    assert job.get("permissions") or read(path)["permissions"], f"{name} has every permission"
    checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_no_stranger_runs_code_on_our_machines():
    assert not [path.name for path in WORKFLOWS if {"pull_request_target", "workflow_run"} & set(triggers(path))]
    own = [(name, job) for name, _, job in jobs() if "self-hosted" in str(job["runs-on"])]
    assert own and all("github.event_name != 'pull_request'" in job["if"] for _, job in own)


def test_every_python_is_tried():
    assert read(REPO / ".github/workflows/test.yml")["jobs"]["linux"]["strategy"]["matrix"]["python"] == PYTHONS


def test_the_oldest_versions_are_the_lower_limits():
    rows = read(REPO / ".github/workflows/trust.yml")["jobs"]["ends"]["strategy"]["matrix"]["include"]
    oldest = next(row for row in rows if row["end"] == "oldest")
    tried = {name: Version(version) for name, version in re.findall(r"([\w-]+)==([\d.]+)\.\*", oldest["packages"])}
    limits = {name: floor(r) for name, r in requirements().items()}
    assert oldest["python"] == settings()["min_python"] and {"torch", "torchvision", "numpy"} <= set(tried)
    assert {name: (*limits[name].release, 0)[:2] for name in tried} == {name: (*v.release, 0)[:2] for name, v in tried.items()}


def test_what_workflows_name_is_there():
    "A test file that was renamed would silently run again on Windows, or be asked for and end the job."
    for path in WORKFLOWS:
        for name, test in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", path.read_text(encoding="utf-8")):
            assert (REPO / name).exists(), f"{path.name} names {name}"
            assert not test or f"def {test}(" in (REPO / name).read_text(encoding="utf-8"), f"{path.name} names {name}::{test}"
        for name in re.findall(r"(tools/\w+\.py)", path.read_text(encoding="utf-8")): assert (REPO / name).exists(), name


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_issue_forms(path):
    form = read(path)
    assert form["name"] and form["description"] and form["body"]
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"] if "id" in field)


def test_the_rest_can_be_read():
    assert read(REPO / ".github/dependabot.yml")["version"] == 2
    hooks = {hook["id"]: repo for repo in read(REPO / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert {"nbdev_clean", "nbdev_export", "ruff-check"} <= set(hooks)
    assert hooks["nbdev_export"]["repo"] == "local", "the hooks of nbdev's repository bring nbdev 3"
    for name in ("CODE_OF_CONDUCT.md", "SECURITY.md", ".github/pull_request_template.md"): assert (REPO / name).stat().st_size > 300


# ---- the table of coverage

def test_coverage_lists_what_is_low(tmp_path, monkeypatch):
    def module(percent, missing): return dict(summary=dict(percent_covered=percent, num_statements=40), missing_lines=missing)
    report = dict(files={"sr_distill/full.py": module(100., []), "sr_distill/low.py": module(80., [3, 4, 5, 9])},
                  totals=dict(num_statements=80, percent_covered=90.))
    (tmp_path / "coverage.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "page.md"))
    command = [sys.executable, REPO / "tools/covered.py", tmp_path / "coverage.json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "| low | 40 | 80 % |\n| full | 40 | 100 % |\n| all | 80 | 90.0 % |" in done.stdout
    assert "Below 90 %: 1 of 2 modules.\n- low.py: 3-5, 9" in done.stdout
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == done.stdout
    assert subprocess.run(command[:2], capture_output=True).returncode == 1
