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
    assert inspect.signature(module) == inspect.signature(function) and type(module).__call__.__doc__ == function.__doc__, verb
"""

@pytest.mark.parametrize("way", ["import sr_distill as sd; [getattr(sd, v) for v in sd._VERBS]", *[f"for v in {sd._VERBS}: exec(f'{how}')" for how in (
    "from sr_distill import {v}", "import sr_distill.{v}", "import sr_distill.{v} as module", "from sr_distill.{v} import {v}")]])
def test_a_verb_is_its_module_and_its_function(way): run(way + CHECK)

def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'distil'"): sd.distil
