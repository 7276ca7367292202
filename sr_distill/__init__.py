"""Dataset distillation for image super-resolution.

`import sr_distill as sd` offers the names below; each is imported when you use it."""
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:   # what editors and type checkers see
    from .advise import advise
    from .compare import compare
    from .core import rng
    from .data import Photos
    from .demo import demo
    from .distill import distill
    from .explore import explore
    from .export import export_model
    from .metrics import evaluate
    from .models import load_model, make_model, save_model
    from .plots import plot_losses
    from .priors import Prior
    from .recipe import (CompareOptions, Recipe, RunError, RunOptions, TrainConfig, UserError, recommended,
                         register_degradation, register_metric, register_model, register_objective, register_prior,
                         register_start, register_statistic)
    from .sets import DistilledSet
    from .study import load_study, study
    from .train import train
    from .upscale import upscale

_MODULES = {   # name → the module that it lies in
    "rng": "core", "Photos": "data", "DistilledSet": "sets", "evaluate": "metrics", "export_model": "export",
    "load_model": "models", "make_model": "models", "save_model": "models", "Prior": "priors", "load_study": "study",
    "plot_losses": "plots",
    **dict.fromkeys(("CompareOptions", "Recipe", "RunOptions", "TrainConfig", "UserError", "RunError", "recommended",
                     "register_degradation", "register_metric", "register_model", "register_objective",
                     "register_prior", "register_start", "register_statistic"), "recipe"),
}
# modules with the name of their function
_VERBS = ("distill", "train", "study", "compare", "advise", "upscale", "explore", "demo")
__all__ = ["__version__", *_MODULES, *_VERBS]


def __getattr__(name: str):
    if name in _MODULES:
        globals()[name] = value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value
    if name in _VERBS: return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

def __dir__() -> list: return sorted({*globals(), *__all__})
