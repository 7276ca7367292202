"""The front door: `import sr_distill as sd`, and every way in which people spell it."""
import inspect
import subprocess
import sys

import pytest

import sr_distill as sd


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

def test_the_import_is_light():
    "Nothing heavy is imported before something is used."
    heavy = run("import sys, sr_distill\nprint([m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'matplotlib', 'skimage', 'IPython') if m in sys.modules])")
    assert heavy.strip() == "[]"
    assert run("import sys, sr_distill as sd\nsd.Recipe(), sd.register_model\nprint('torch' in sys.modules)").strip() == "False"

@pytest.mark.parametrize("name", [n for n in sd.__all__ if n != "__version__"])
def test_every_name_is_there(name):
    assert callable(getattr(sd, name)) and name in dir(sd)

def test_type_checkers_see_the_same_names():
    source = inspect.getsource(sd)
    block = source[source.index("if TYPE_CHECKING"):source.index("_MODULES")]
    seen = {word.strip(" ()") for line in block.splitlines() for word in line.partition("import ")[2 if "import " in line else 0].split(",")}
    assert {n for n in sd.__all__ if n != "__version__"} <= seen

CHECK = """
import inspect, sys
from importlib import import_module
import sr_distill
for verb in sr_distill._VERBS:
    module = sys.modules[f"sr_distill.{verb}"]
    function = getattr(module, verb)
    assert getattr(sr_distill, verb) is module and inspect.isfunction(function), verb
    assert type(module).__call__.__wrapped__ is function, verb   # with all that decorates it
    assert inspect.signature(module) == inspect.signature(function) and type(module).__call__.__doc__ == function.__doc__, verb
"""

@pytest.mark.parametrize("way", ["import sr_distill as sd; [getattr(sd, v) for v in sd._VERBS]", *[f"for v in {sd._VERBS}: exec(f'{how}')" for how in (
    "from sr_distill import {v}", "import sr_distill.{v}", "import sr_distill.{v} as module", "from sr_distill.{v} import {v}")]])
def test_a_verb_is_its_module_and_its_function(way): run(way + CHECK)

def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'distil'"): sd.distil


OVERRIDE = """
import sr_distill as sd
try: sd.register_objective("layerwise")(lambda s, r: (s[0] - r[0]).square().sum())
except sd.UserError as e: print(e)
from sr_distill.recipe import OBJECTIVES
assert OBJECTIVES["layerwise"].__module__ == "sr_distill.matching"
"""

def test_a_script_cannot_take_a_name_of_the_package():
    assert "'layerwise' comes with sr_distill" in run(OVERRIDE)

def test_other_code_has_another_hash():
    from functools import partial
    from sr_distill.recipe import Registry, code_sha256
    def closing(by): return lambda x: x * by
    def compiled(text):
        exec(text, space := {})
        return space["f"]
    same = [closing(2), closing(2)], [partial(pow, 2), partial(pow, 2)], [compiled("def f(x): return x * .5")] * 2
    other = [closing(2), closing(3)], [partial(pow, 2), partial(pow, 3)], [compiled(f"def f(x, y={y}): return x * {k}") for k, y in ((.5, 1), (50., 1))]
    assert all(code_sha256(a) == code_sha256(b) for a, b in same) and all(code_sha256(a) != code_sha256(b) for a, b in other)
    teas = Registry("tea", {"green": "no_such_module"})
    teas.register("mint")(closing(2))
    before = teas.code("mint")
    teas.register("mint")(closing(3))
    assert teas.code("green") == [] == teas.code("unknown") and len(before) == 1 and teas.code("mint") != before


def test_paths_stand_for_photos_and_models(tmp_path):
    from sr_distill.models import save_model
    photos, recipe = sd.Photos.open("embedded").subset([0]), sd.Recipe(size=32, steps=0)
    small = sd.distill(photos, recipe, tmp_path / "set")
    again = sd.distill(tmp_path / "set", recipe, tmp_path / "again")   # a set is a folder of photos too
    assert again.images.shape == small.images.shape and again.manifest["source"] == str(tmp_path / "set")
    net = sd.make_model("edsr", depth=1, width=4, generator=sd.rng(0))
    folder = save_model(net, tmp_path / "model")
    assert sd.evaluate(folder, photos, lpips="none").mean == sd.evaluate(net, photos, lpips="none").mean
    with pytest.raises(sd.UserError, match="bicubc: no such folder"): sd.evaluate("bicubc", photos)
