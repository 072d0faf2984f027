"""`Parallel`: the work of one pipeline over the processes that torchrun started, with the same picture on each."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.calibrate.steps import Requests
from fewstep.layout import Layout, chosen, parts_that_fit
from fewstep.machine import Machine
from fewstep.models.causal import causal_of
from fewstep.models.dispatch import attention_of, attentions
from fewstep.models.fingerprint import fingerprint
from fewstep.models.hooks import Hook
from fewstep.models.model import Model
from fewstep.models.streams import block_lists
from fewstep.techniques.base import Engaged, Stage, Technique, undo_all
from fewstep.techniques.linears.kernels import stored_bytes
from fewstep.techniques.parallel.cuts import uncuttable
from fewstep.techniques.parallel.decode import SpreadDecoder
from fewstep.techniques.parallel.exchange import Exchange
from fewstep.techniques.parallel.guidance import Ahead, SharedGuidance, SharedSamples
from fewstep.techniques.parallel.processes import Mesh, check_same, own_device, world
from fewstep.techniques.parallel.sequence import SpreadDenoiser
from fewstep.techniques.parallel.tensor import TensorDenoiser

ROOM = 0.8  # of a device's memory, for weights


@dataclass(frozen=True)
class Parallel(Technique):
    """Share the work of a pipeline among processes; see `layout.Layout` for what can be shared.

    All processes call the pipeline with the same arguments, and all have the whole output.

    Attributes:
        auto: choose the numbers: guidance first, then Ulysses as far as the heads go, then the ring, the decoder
            always; and before all of them `tensor`, if the blocks are too large for one device. A recipe may say
            `parallel: auto`.
        data, guidance, ring, ulysses, vae: parts of each kind of work, where they are not to be chosen.
        tensor: parts of the layers in the denoisers' blocks, which divide their heads. It sends most. A model that is
            too large for one device is cut on the CPU and moved then. The parts are put together again by `remove`,
            which all processes must call then.
    """

    name: ClassVar[str] = "parallel"
    stage: ClassVar[Stage] = Stage.SHARD
    claims: ClassVar[frozenset[str]] = frozenset({"block.tokens", "vae.decode"})

    auto: bool = False
    data: int = 1
    guidance: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1
    vae: int = 1

    @property
    def claimed(self) -> frozenset[str]:
        """Where it shares layers or the decoder alone, tokens are left to others: each process has them all."""
        layout = self.stated
        left = not self.auto and layout.data == layout.guidance == layout.sequence == 1
        return self.claims - {"block.tokens"} if left else self.claims

    def faults(self) -> list[str]:
        if self.auto and self.stated != Layout():
            return ["A parallel layout is either auto or stated in numbers: leave one of the two out."]
        if not self.auto and self.stated == Layout():
            return ["A parallel layout must share something: state its parts (guidance: 2), or 'auto'."]
        return self.stated.faults()

    @property
    def stated(self) -> Layout:
        """Its numbers as a layout."""
        return Layout(self.data, self.guidance, self.ring, self.ulysses, self.tensor, self.vae)

    def problems(self, model: Model, machine: Machine) -> list[str]:
        layout, processes = self.layout(model, machine)[0], world()[1]
        if processes == 1:
            wanted = "several" if self.auto else layout.size
            return [f"A parallel layout needs processes: start {wanted} with torchrun --nproc-per-node."]
        if processes % layout.size:
            return [f"A parallel layout of {layout.size} processes ({layout}) does not divide the {processes} here."]
        found = [problem for name, module in model.denoisers.items() for problem in _unfit(layout, model, name, module)]
        if layout.guidance > 1 and model.manifest is not None and model.manifest.guidance_inside:
            found.append(f"{model.manifest.name} has its guidance inside, so there are no branches to share.")
        if layout.vae > 1 and not isinstance(getattr(model.vae, "decoder", None), nn.Module):
            found.append(f"{type(model.pipe).__name__} has no decoder that could be shared: leave 'vae' out.")
        if layout.vae > 1 and layout.size % layout.vae:
            found.append(f"A decoder in {layout.vae} parts does not divide the {layout.size} processes.")
        return found

    def apply(self, model: Model, machine: Machine) -> Engaged:
        layout, why = self.layout(model, machine)
        mesh = Mesh.of(layout, own_device().type)
        weights = {f"weights of the {part}": fingerprint(module) for part, module in model.modules.items()}
        check_same({"layout": str(layout), **weights}, mesh.all)
        facts: dict[str, Any] = {"layout": str(layout), "why": why, "processes": layout.size}
        undo: list[Callable[[], None]] = []
        requests: Requests[Ahead] = Requests(model.pipe, Ahead)
        try:
            for name, module in model.denoisers.items():
                facts[name] = _share(model, name, module, mesh, requests, undo)
            if mesh.vae is not None and model.vae is not None:
                decoder = SpreadDecoder(model.vae, mesh.vae).install()
                undo.append(decoder.remove)
                decoder.check()
                facts["vae"] = decoder.facts
        except BaseException:
            undo_all(undo)()
            raise
        return Engaged(
            self.name,
            facts,
            undo_all(undo),
            before_call=lambda call: check_same(_told(call), mesh.all),
            reset=requests.forget,
            warnings=partial(_idle, layout, model, facts),
        )

    def layout(self, model: Model, machine: Machine) -> tuple[Layout, str]:
        """What it comes to for this model among the processes that there are, and why."""
        if not self.auto:
            return self.stated, "stated"
        processes = world()[1]
        heads = min((heads for module in model.denoisers.values() for heads in _heads(module)), default=1)
        tensor = parts_that_fit(processes, heads, *_sizes(model, machine))
        return chosen(processes, heads, guides(model), model.vae is not None, tensor)


def _share(
    model: Model, name: str, module: nn.Module, mesh: Mesh, requests: Requests[Ahead], undo: list[Callable[[], None]]
) -> dict[str, Any]:
    """Hooks on one denoiser, the outermost the one that shares guidance; what they count."""
    facts: dict[str, Any] = {}
    signature = inspect.signature(module.forward)
    if mesh.tensor is not None:
        cut = TensorDenoiser(model, name, mesh.tensor).install()
        undo.append(cut.remove)
        undo.append(Hook(module, cut.call).install().remove)
        facts["tensor"] = cut.facts
    if mesh.sequence is not None:
        exchange = Exchange(mesh.ulysses, mesh.ring, mesh.sequence)
        spread = SpreadDenoiser(name, module, block_lists(model, name), exchange).install()
        undo.append(spread.remove)
        undo.append(Hook(module, spread.call).install().remove)
        facts["sequence"], facts["sent"] = spread.facts, exchange.sent
    if mesh.data is not None:
        samples = SharedSamples(name, signature, mesh.data)
        undo.append(Hook(module, samples.call).install().remove)
        facts["data"] = samples.facts
    if mesh.guidance is not None:
        guidance = SharedGuidance(name, signature, requests, mesh.guidance)
        undo.append(Hook(module, guidance.call).install().remove)
        facts["guidance"] = guidance.facts
    if mesh.all is not None:
        module.fewstep_group = mesh.all
        undo.append(partial(delattr, module, "fewstep_group"))
    return facts


def guides(model: Model) -> bool:
    """Whether a call of the pipeline asks its denoiser about more than one branch, by its own defaults."""
    manifest = model.manifest
    if manifest is not None and manifest.guidance_inside:
        return False
    scale = model.guidance_argument
    embedded = any(getattr(module.config, "guidance_embeds", False) for module in model.denoisers.values())
    if scale is None or embedded:
        return False
    call = dict(manifest.call) if manifest else {}
    if scale == "true_cfg_scale" and call.get("negative_prompt") is None:  # these guide by a negative prompt alone
        return False
    value = call.get(scale, inspect.signature(model.pipe.__call__).parameters[scale].default)
    return isinstance(value, int | float) and value > 1


def _sizes(model: Model, machine: Machine) -> tuple[float, float]:
    """Bytes of the denoisers' blocks, and the room that a process has for them beside all other weights."""
    blocks = _bytes(block.module for name in model.denoisers for block in model.blocks(name))
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if machine.device == "cpu" else 1
    return blocks, ROOM * 1e9 * machine.memory_gb / sharing - (_bytes(model.modules.values()) - blocks)


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(map(stored_bytes, modules))


def _heads(module: nn.Module) -> list[int]:
    heads: list[Any] = [getattr(part, "heads", None) for _, part in attentions(module)]
    return [number for number in heads if isinstance(number, int)]


def _unfit(layout: Layout, model: Model, name: str, module: nn.Module) -> list[str]:
    if layout.tensor > 1 and (found := uncuttable(model, name, layout.tensor)):
        return found
    if layout.sequence == 1:
        return []
    kind = type(module).__name__
    parts = [part for block in model.blocks(name) for _, part in attentions(block.module)]
    if not parts:
        return [f"Parallel found no repeated blocks that attend in the {name} ({kind}), so no tokens to share."]
    if strange := {type(part.processor).__name__ for part in parts if attention_of(part) is None}:
        return [f"Parallel does not know how {', '.join(sorted(strange))} attends, in the {name} ({kind})."]
    if layout.ring > 1 and causal_of(module) is not None:
        return [f"The {name} is causal and keeps its past in a window, which no ring passes on: take 'ulysses'."]
    heads = min(_heads(module), default=layout.ulysses * layout.tensor) // layout.tensor
    if heads < layout.ulysses:
        return [
            f"The {heads} heads of the {name} are too few for 'ulysses' in {layout.ulysses} parts: take 'ring' too."
        ]
    return []


def _told(call: Mapping[str, Any]) -> dict[str, str]:
    """What a call's arguments are, in words to compare."""
    return {f"{name!r} in the call": _said(value) for name, value in call.items()}


def _said(value: Any) -> str:
    if isinstance(value, torch.Generator):
        state = sha256(value.get_state().numpy().tobytes()).hexdigest()[:8]
        return f"a generator of seed {value.initial_seed()} at {state}"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of sum {float(value.double().sum())!r}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_said, value))}]"
    if isinstance(value, str | int | float | bool | dict | type(None)):
        return repr(value)
    return type(value).__name__


def _idle(layout: Layout, model: Model, facts: Mapping[str, Any]) -> list[str]:
    """What was to be shared and was not, or not surely."""
    tensor = {name: facts[name]["tensor"] for name in model.denoisers if "tensor" in facts[name]}
    return [
        f"Parallel did not hold all kinds of blocks of the {name} in parts against the whole: some did not run."
        for name, counts in tensor.items()
        if counts["kinds_checked"] < counts["kinds_of_blocks"]
    ] + [
        f"Parallel shared no {kind} of the {name}: {why}."
        for name in model.denoisers
        for kind, why in (
            ("guidance", "each step made one call with one sample"),
            ("data", "no call had as many samples as there are processes"),
        )
        if kind in facts[name] and not facts[name][kind]["calls_shared"]
    ]
