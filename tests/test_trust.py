"""No code from data, nothing let in: the library's source is scanned, strange file names go all the way, licences are complete."""
import ast
import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path

import faults
import pytest
import torch

from sr_distill import core, data, priors
from sr_distill.distill import DistilledSet, describe, distill
from sr_distill.recipe import Recipe, TrainConfig, UserError

REPO = Path(__file__).resolve().parents[1]
LIBRARY = sorted(REPO.glob("sr_distill/*.py"))

# ---- the scan

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "subprocess", "ctypes", "code", "codeop", "runpy", "pty", "telnetlib", "ftplib", "xmlrpc"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv", "importlib.import_module", "tempfile.mktemp", "yaml.load", "pd.read_pickle", "torch.hub.load", "torch.jit.load"}

def called(node) -> str:
    "The dotted name of what a call calls."
    parts, at = [], node.func
    while isinstance(at, ast.Attribute): parts, at = [at.attr, *parts], at.value
    return ".".join([at.id if isinstance(at, ast.Name) else "…", *parts])

def dangers(source: str) -> list:
    "(line, what) for everything in `source` that could run code of the data it reads, or start a program."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found += [(node.lineno, a.name) for a in node.names if a.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES: found.append((node.lineno, node.module))
        if not isinstance(node, ast.Call): continue
        name, given = called(node), {k.arg: k.value for k in node.keywords}
        says = lambda k, value: isinstance(given.get(k), ast.Constant) and given[k].value is value
        if name in CALLS or name.endswith((".read_pickle", ".Unpickler")): found.append((node.lineno, name))
        if name in ("torch.load", "load") and "map_location" in given or name == "torch.load":
            if not says("weights_only", True): found.append((node.lineno, f"{name} without weights_only=True"))
        if "allow_pickle" in given and not says("allow_pickle", False): found.append((node.lineno, f"{name} with allow_pickle"))
        if "shell" in given or says("trust_remote_code", True): found.append((node.lineno, name))
        if name.endswith("from_pretrained") and not says("use_safetensors", True): found.append((node.lineno, f"{name} without use_safetensors=True"))
        if name.endswith((".extractall", ".extract")): found.append((node.lineno, name))
    return [(line, what) for line, what in found if what not in ("re.compile",)]


MEANT = {   # (module, what) → why it is no danger: no file that somebody else wrote has a say in it
    ("recipe", "importlib.import_module"): "modules of this package, by the names in its own registries",
    ("nets", "importlib.import_module"): "network definitions of spandrel, by names in the source",
    ("study", "importlib.import_module"): "modules that the parent process has imported before",
    ("export", "torch.jit.load"): "the file that it wrote itself the moment before, to compare it",
}

@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_the_library_runs_nothing_that_it_reads(path):
    assert not [(line, what) for line, what in dangers(path.read_text(encoding="utf-8")) if (path.stem, what) not in MEANT]

def test_every_exception_is_still_one():
    found = {(path.stem, what) for path in LIBRARY for _, what in dangers(path.read_text(encoding="utf-8"))}
    assert set(MEANT) <= found

@pytest.mark.parametrize("code", ["import pickle", "from pickle import loads", "eval(x)", "exec(x)", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "import subprocess",
                                  "os.system(x)", "AutoencoderKL.from_pretrained(p)", "z.extractall(p)", "f(x, shell=True)", "pd.read_pickle(p)", "__import__(x)", "torch.load(p, weights_only=flag)"])
def test_the_scan_finds_what_it_looks_for(code): assert dangers(code)

def test_the_scan_lets_the_safe_forms_pass():
    assert not dangers("torch.load(p, weights_only=True)\nre.compile(x)\nnp.load(p, allow_pickle=False)\nAutoencoderKL.from_pretrained(p, use_safetensors=True)\nmodel.eval()")


# ---- downloads

WITHOUT_HASH = {"taesd3", *priors.STYLEGANS}   # nobody published one; what comes is only read by readers that run nothing

def test_every_address_is_https():
    addresses = {a for path in LIBRARY for a in re.findall(r"\bhttp://[^\s\"'<>)]+", path.read_text(encoding="utf-8"))}
    assert not addresses
    assert all(url.startswith("https://") for files in priors.TINY.values() for url, *_ in files) and data.DIV2K_URL.startswith("https://")

def test_every_download_has_a_hash_where_one_is_known():
    hashes = {name: [record["sha256"]] for name, record in data.DIV2K.items()} | {name: [sha for *_, sha in files] for name, files in priors.TINY.items()} | {name: [sha] for name, (*_, sha) in priors.STYLEGANS.items()}
    assert {name for name, known in hashes.items() if None in known} == WITHOUT_HASH
    assert all(re.fullmatch("[0-9a-f]{64}", sha) for known in hashes.values() for sha in known if sha)

def test_no_redirection_leaves_https(monkeypatch):
    import urllib.error, urllib.request
    handler, request = data._Secure(), urllib.request.Request("https://example.invalid/x")
    for url in ("http://example.invalid/x", "ftp://example.invalid/x", "file:///etc/passwd"):
        with pytest.raises(urllib.error.URLError): handler.redirect_request(request, None, 302, "moved", {}, url)
    assert handler.redirect_request(request, None, 302, "moved", {}, "https://other.invalid/x").full_url == "https://other.invalid/x"
    with pytest.raises(urllib.error.URLError): data.open_url(urllib.request.Request("file:///etc/passwd"))


# ---- strange names

NAMES = ["sp ace", "quo\"te's", "<img src=x onerror=alert(1)>", "<script>alert(2)<", "&amp;{{x}}%s", "emoji😀", "new\nline", "tab\there", "..hidden..", "-rf", "日本語" * 25, "x" * 240]

class Elements(html.parser.HTMLParser):
    "What a page is made of: tags with their attributes."
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.found.append((tag, dict(attrs)))

@pytest.fixture
def strange(tmp_path):
    folder = faults.make_photos(tmp_path / "photos", [name for name in NAMES if "/" not in name])
    if sys.platform == "linux": os.rename(os.fsencode(folder / "-rf.png"), os.fsencode(folder) + b"/no\xfftext.png")   # a name that is no valid text
    return folder

def test_strange_file_names_go_all_the_way(strange, tmp_path, monkeypatch):
    "Through distillation, training, table and report; nothing of a name becomes part of the page."
    from sr_distill.demo import demo
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    for name, few in (("matching.TRAJECTORY_STEPS", 16), ("distill.HELD_OUT_REAL", 2)): monkeypatch.setattr(f"sr_distill.{name}", few)
    config = TrainConfig.for_model("vdsr", depth=2, width=4, steps=5, patch=16, batch=1)
    result = demo(tmp_path / "out", strange, 2, Recipe(size=16, steps=2, networks=2, real=2, pool="random"), config, jobs=1, seeds=1)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    elements = Elements(page).found
    assert len(result.rows) == 7 and len(elements) > 50
    assert not [a for _, attrs in elements for a in attrs if a == "onerror" or a == "onload"]
    assert not re.search(r"<script[^>]*>\s*alert", page) and "{{x}}" not in page
    loads = [v for tag, attrs in elements for k, v in attrs.items() if k in ("src", "href", "action", "data", "poster", "srcset") and v]
    assert loads and all(v.startswith(("data:", "#")) for v in loads)   # no other host is asked
    small = DistilledSet.load(result.sets["distilled"].folder)
    assert len(small) == len(data.image_files(strange)) - 2 >= 8 and describe(small.folder).startswith("valid distilled set")
    stored = [s["file"] for s in small.manifest["sources"]]
    assert "new\nline.png" in [*stored, *(f.name for f in strange.iterdir())]
    assert all(len(os.fsencode(p.name)) < 200 and "\n" not in p.name for p in (tmp_path / "out").rglob("*"))

def test_hostile_text_in_a_manifest_stays_text(tmp_path):
    photos = data.Photos.open(faults.make_photos(tmp_path / "photos"))
    distill(photos, Recipe(size=16, steps=0), tmp_path / "set")
    manifest, evil = core.read_json(tmp_path / "set/manifest.json"), "</p><script>alert(1)</script>"
    for change in (dict(recipe={**manifest["recipe"], "prior": evil, "pool": evil}), dict(source=evil), dict(sources=[dict(name=evil, file=evil, sha256="")])):
        core.write_json(tmp_path / "set/manifest.json", {**manifest, **change})
        assert "<script" not in DistilledSet.load(tmp_path / "set")._repr_html_()
    for field in ("init", "steps", "size"):
        core.write_json(tmp_path / "set/manifest.json", {**manifest, "recipe": {**manifest["recipe"], field: evil}})
        with pytest.raises(UserError, match="manifest.json"): DistilledSet.load(tmp_path / "set")

def test_a_file_name_that_is_no_text_can_be_written_down(tmp_path):
    core.write_json(tmp_path / "x.json", {"file": "no\udcfftext.png"})
    assert core.read_json(tmp_path / "x.json")["file"] == "no\udcfftext.png"


# ---- numbers

@pytest.mark.parametrize("metric", ("whole", "layerwise"))
def test_matching_loss_and_pixel_gradient_in_float64(metric):
    "gradcheck of the DC loss, and of the loss of pixels through the network's own gradient."
    from sr_distill.matching import dc_loss, gradient
    from sr_distill.models import make_model
    net = make_model("srcnn", 2, width=4, generator=core.rng(0, "gradcheck")).double()
    draw = lambda *shape, name: torch.rand(*shape, generator=core.rng(0, name), dtype=torch.float64)
    target = [g.detach() for g in gradient(net, draw(2, 3, 8, 8, name="real"))]
    mine = [g.detach().requires_grad_() for g in gradient(net, draw(1, 3, 8, 8, name="other"))]
    assert torch.autograd.gradcheck(lambda *gs: dc_loss(list(gs), target, metric), mine, atol=1e-6)
    pixels = draw(1, 3, 8, 8, name="synthetic").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dc_loss(gradient(net, x, create_graph=True), target, metric), [pixels], atol=1e-5, fast_mode=True)


# ---- supply chain

def test_licences_are_complete():
    "tools/licences.py finds nothing to add to what is committed: every requirement and every embedded photo is in it."
    sys.path.insert(0, str(REPO / "tools"))
    import licences
    stored = core.read_json(REPO / "nbs/results/licences.json")
    assert {p["name"] for p in stored["photos"]} == set(data.EMBEDDED) and all(p["licence"] for p in stored["photos"])
    assert set(licences.required()) <= {p["name"] for p in stored["packages"]}, "run python tools/licences.py"
    assert all(p["licence"] not in ("", "UNKNOWN") for p in stored["packages"])

def test_without_the_extras_everything_but_them_works():
    "Neither notebook tools nor diffusers are needed to import every module and to print the help."
    code = """
import builtins, sys
real = builtins.__import__
def refuse(name, *a, **k):
    if name.split(".")[0] in ("ipywidgets", "jupyterlab", "IPython", "nbdev", "fastcore", "diffusers", "huggingface_hub", "lpips", "matplotlib", "hypothesis", "pytest"): raise ImportError(name)
    return real(name, *a, **k)
builtins.__import__ = refuse
import importlib, pkgutil, sr_distill
for m in pkgutil.iter_modules(sr_distill.__path__):
    if m.name != "__main__": importlib.import_module("sr_distill." + m.name)
from sr_distill.cli import cli, main
codes = [main([*words, "--help"]) for words in [[], *([name] for name in cli.commands)]]
sys.exit(any(codes))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and "distill" in done.stdout, done.stderr[-2000:]
