"""torch.compile by region: each class of repeated blocks is compiled once and serves all its blocks. Or all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.compilation import sound_cache
from fewstep.errors import bad_value
from fewstep.machine import Machine
from fewstep.models.hooks import Hook, Hooks
from fewstep.models.model import Model
from fewstep.techniques.base import Engaged, Stage, Technique, strings
from fewstep.techniques.rewrites import quick_on_cpu

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
SHAPES = (
    64  # graphs a region may have, one for each shape of its input; torch's own limit of 8 ends in silent eager runs
)


@dataclass(frozen=True)
class Region:
    """Modules that share one compiled function."""

    label: str
    modules: tuple[nn.Module, ...]


def regions(model: Model, components: tuple[str, ...], whole: bool = False) -> list[Region]:
    """One region a class of blocks in the chosen denoisers (`whole`: a denoiser), a VAE's decoder, a text encoder.

    A module whose forward is wrapped already is a region of its own, so that the wrapping is compiled with it.
    """
    found: dict[tuple[str, object], list[nn.Module]] = {}
    for name in components:
        for module in _inside(model, name, whole):
            key = id(module) if "forward" in module.__dict__ else type(module)
            found.setdefault((f"{name}: {type(module).__name__}", key), []).append(module)
    return [Region(label, tuple(modules)) for (label, _), modules in found.items()]


def _inside(model: Model, name: str, whole: bool = False) -> list[nn.Module]:
    """What is compiled in a component."""
    if name in model.denoisers and not whole:
        return [block.module for block in model.blocks(name)]
    if model.modules[name] is model.vae:
        decoder = getattr(model.vae, "decoder", None)
        return [decoder] if isinstance(decoder, nn.Module) else []
    return [model.modules[name]]


@dataclass(frozen=True)
class Compile(Technique):
    """Compile the blocks of the denoisers, and more on wish.

    Attributes:
        mode: torch.compile's own.
        components: names of pipeline components; empty: the denoisers. Of a VAE its decoder is compiled.
        dynamic: one graph for all shapes instead of one for each: slower, but a new shape does not compile again.
        whole: a denoiser is one graph, its ends included. Less is done between blocks, which counts where they are
            small; compiling takes longer the more of them there are. A cache decides between blocks: not with one.
    """

    name: ClassVar[str] = "compile"
    stage: ClassVar[Stage] = Stage.COMPILE
    claims: ClassVar[frozenset[str]] = frozenset({"block.code"})

    mode: str = "default"
    components: tuple[str, ...] = ()
    dynamic: bool = False
    whole: bool = False

    @property
    def claimed(self) -> frozenset[str]:
        return self.claims | ({"denoiser.forward"} if self.whole else set())

    def faults(self) -> list[str]:
        rules = {
            "mode": (self.mode in MODES, f"one of {', '.join(MODES)}"),
            "components": (strings(self.components), "a list of names of components"),
            "dynamic": (isinstance(self.dynamic, bool), "true or false"),
            "whole": (isinstance(self.whole, bool), "true or false"),
        }
        return [bad_value(name, "Compile", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        found = [missing] if (missing := machine.missing("compile")) else []
        if self.whole and self.components and not model.denoisers.keys() & set(self.components):
            found.append(
                "Compile's 'whole' is about denoisers, and its components name none: add one, or leave it out."
            )
        for name in self.components or model.denoisers:
            if name not in model.modules:
                found.append(bad_value("components", "Compile", f"names among {', '.join(model.modules)}", name))
            elif not _inside(model, name, self.whole):
                found.append(f"Compile found no repeated blocks in the {name} ({type(model.modules[name]).__name__}).")
        return found

    def apply(self, model: Model, machine: Machine) -> Engaged:
        chosen = regions(model, self.components or tuple(model.denoisers), self.whole)
        graphs: Counter[str] = Counter()
        facts: dict[str, Any] = {"regions": len(chosen), "modules": sum(len(r.modules) for r in chosen)}
        facts |= {"graphs": 0, "rewritten": 0}
        hooks = Hooks(hook for region in chosen for hook in self._hooks(region, graphs, facts)).install()
        return Engaged(self.name, facts, hooks.remove, warnings=partial(_warnings, chosen, graphs))

    def _hooks(self, region: Region, graphs: Counter[str], facts: dict[str, Any]) -> list[Hook]:
        first = region.modules[0]
        plain = "forward" not in first.__dict__
        # Isolated, so that another pipeline's shapes don't use up this one's limit.
        torch_compile: Any = torch.compile  # its stubs lack recompile_limit
        compiled = torch_compile(
            type(first).forward if plain else first.forward,
            backend=partial(_backend, region.label, graphs, facts, self.mode),
            dynamic=self.dynamic,
            isolate_recompiles=True,
            recompile_limit=SHAPES,
        )
        return [Hook(module, partial(_run, compiled, module if plain else None)) for module in region.modules]


def _run(
    compiled: Callable[..., Any], module: nn.Module | None, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    with sound_cache():
        return compiled(*args, **kwargs) if module is None else compiled(module, *args, **kwargs)


def _backend(
    label: str, graphs: Counter[str], facts: dict[str, Any], mode: str, graph: torch.fx.GraphModule, inputs: list[Any]
) -> Any:
    """Inductor, counted, on the graph with what is slow on a CPU rewritten."""
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    graphs[label] += 1
    facts["graphs"] += 1
    facts["rewritten"] += quick_on_cpu(graph.graph)
    graph.recompile()
    options = {} if mode == "default" else list_mode_options(mode)
    return compile_fx(graph, inputs, config_patches=options)


def _warnings(chosen: list[Region], graphs: Counter[str]) -> list[str]:
    unused = sorted({region.label for region in chosen} - set(graphs))
    return [f"Compile never ran {label}: this call did not use it." for label in unused]
