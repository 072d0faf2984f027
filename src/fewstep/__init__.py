"""Make a diffusers pipeline fast, trick by trick, and show what the speed cost.

Names are imported on first use: `import fewstep` alone does not import torch or diffusers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from fewstep.accelerate import Accelerated, accelerate
    from fewstep.checkpoints.load import load
    from fewstep.diffusion.schedule import Schedule
    from fewstep.machine import Machine
    from fewstep.models.trace import TracedDenoiser, trace
    from fewstep.recipe import Recipe
    from fewstep.techniques.base import Technique
    from fewstep.techniques.cache.regions import Regions
    from fewstep.techniques.cache.technique import Cache
    from fewstep.techniques.compile import Compile
    from fewstep.techniques.few_step import FewStep
    from fewstep.techniques.parallel import Parallel
    from fewstep.techniques.precision import Precision
    from fewstep.techniques.quantize import Quantize

__version__ = "0.1.0"

__all__ = [
    "Accelerated",
    "Cache",
    "Compile",
    "FewStep",
    "FewstepError",
    "Machine",
    "Parallel",
    "Precision",
    "Quantize",
    "Recipe",
    "Regions",
    "Schedule",
    "Technique",
    "TracedDenoiser",
    "accelerate",
    "load",
    "trace",
]

_HOME = {
    "Accelerated": "accelerate",
    "accelerate": "accelerate",
    "Cache": "techniques.cache.technique",
    "Compile": "techniques.compile",
    "FewStep": "techniques.few_step",
    "Machine": "machine",
    "Parallel": "techniques.parallel",
    "Precision": "techniques.precision",
    "Quantize": "techniques.quantize",
    "Recipe": "recipe",
    "Regions": "techniques.cache.regions",
    "Schedule": "diffusion.schedule",
    "Technique": "techniques.base",
    "TracedDenoiser": "models.trace",
    "load": "checkpoints.load",
    "trace": "models.trace",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    value: object = getattr(import_module(f"fewstep.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `fewstep.accelerate` the function: importing the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
