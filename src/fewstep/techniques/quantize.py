"""Linear layers in 8 or 4 bits: which scheme, by which kernel, in which layers, at which steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fewstep.calibrate.recorded import Call, largest_inputs, record
from fewstep.calibrate.sensitivity import BUDGET, Budget, Sensitivity
from fewstep.calibrate.signature import signature
from fewstep.errors import FewstepError, InputError, bad_value
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.numerics.schemes import SCHEMES, Scheme
from fewstep.techniques.base import Engaged, Stage, Technique, strings, undo_all
from fewstep.techniques.linears import choice, kernels
from fewstep.techniques.linears.emulated import smoothing
from fewstep.techniques.linears.layers import Layer, Rules, find_layers, left_alone, why_none
from fewstep.techniques.linears.phases import Phases, Swap

PROMPT = "a large red ring left of a small blue square"
Smooth = Mapping[str, Tensor]  # layer name -> λ


@dataclass(frozen=True)
class Quantize(Technique):
    """Linear layers in few bits.

    Attributes:
        scheme: a name in `fewstep.numerics.schemes.SCHEMES`; on a CPU without AMX `int8-dynamic` has one scale per
            tensor of activations.
        skip: substrings of layer paths to leave alone.
        min_features: layers with fewer inputs or outputs are left alone: converting their input costs more than it
            saves.
        components: component -> scheme, of all that are to be quantized; empty: the denoisers, in `scheme`. Kept as
            pairs.
        emulate: show the scheme's quality in plain torch, on any machine and slower than without it.
        keep: full names of the layers that stay precise (`transformer.proj_out`, …) in place of all hints, as
            `settled` gives them; None: the hints hold (only layers in blocks, none that the model's family names).
        budget: keep by measurement: the relative error that the denoisers' outputs may have (0.02), or the size that
            they may take ("60%" of before, "6.5GB"). Each layer of the denoisers is measured in a calibration run.
        sensitivity: a file of such a measurement; made where it does not exist yet. One of another model, precision or
            scheme is refused.
        prompts: of the calibration run.
        smooth: with `emulate`: how much of the outliers of the inputs is moved into the weights, 0 to 1, measured in a
            calibration run; None: nothing.
        precise_steps: how many of the first and of the last steps of each call run the layers as they were.
    """

    name: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    claims: ClassVar[frozenset[str]] = frozenset({"linear.weight"})

    scheme: str = "int8-dynamic"
    skip: tuple[str, ...] = ()
    min_features: int = 128
    components: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    emulate: bool = False
    keep: tuple[str, ...] | None = None
    budget: float | str | None = None
    sensitivity: str | None = None
    prompts: tuple[str, ...] = (PROMPT,)
    smooth: float | None = None
    precise_steps: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if isinstance(self.components, Mapping):
            object.__setattr__(self, "components", tuple(self.components.items()))
        super().__post_init__()

    def faults(self) -> list[str]:
        schemes = f"one of {', '.join(SCHEMES)}"
        pairs = self.components if isinstance(self.components, tuple) else ((self.components, None),)
        rules = {
            "scheme": (self.scheme in SCHEMES, schemes),
            "skip": (strings(self.skip), "a list of parts of layer names"),
            "min_features": (type(self.min_features) is int and self.min_features >= 1, "a whole number, at least 1"),
            "components": (all(_is_pair(pair) for pair in pairs), f"a component's name for each scheme, {schemes}"),
            "emulate": (isinstance(self.emulate, bool), "true or false"),
            "keep": (self.keep is None or (strings(self.keep) and self.budget is None), "names of layers, no budget"),
            "budget": (self.budget is None or Budget.parse(self.budget) is not None, BUDGET),
            "sensitivity": (self.sensitivity is None or isinstance(self.sensitivity, str), "the path of a file"),
            "prompts": (strings(self.prompts) and bool(self.prompts), "a list of prompts"),
            "smooth": (self.smooth is None or (_is_share(self.smooth) and self.emulate), "in [0, 1], with emulate"),
            "precise_steps": (_is_ends(self.precise_steps), "two whole numbers, at least 0"),
        }
        return [bad_value(name, "Quantize", rule, getattr(self, name)) for name, (ok, rule) in rules.items() if not ok]

    def given(self) -> dict[str, Any]:
        values = super().given()
        return {**values, "components": dict(self.components)} if "components" in values else values

    def problems(self, model: Model, machine: Machine) -> list[str]:
        found = [
            bad_value("components", "Quantize", f"names among {', '.join(model.modules)}", name)
            for name in self._schemes(model)
            if name not in model.modules
        ]
        if found:
            return found
        if not self.emulate:
            schemes = dict.fromkeys(self._schemes(model).values())
            found += [problem for scheme in schemes if (problem := kernels.problem(scheme, machine))]
        layers = self.layers(model, machine)
        for name in self._schemes(model):
            own = [layer for layer in layers if layer.component == name]
            if all(layer.skipped for layer in own):
                place = f"the {name} of {type(model.pipe).__name__}"
                found.append(f"Quantize found no layer to quantize in {place}: {why_none(own)}.")
        if unknown := sorted(set(self.keep or ()) - {layer.name for layer in layers}):
            found.append(
                bad_value("keep", "Quantize", f"names of linear layers of {model.pipe.__class__.__name__}", unknown[0])
            )
        return [*found, *self._calibration_problems(model)]

    def _calibration_problems(self, model: Model) -> list[str]:
        if self.budget is None and self.smooth is None:
            return []
        if not set(model.denoisers) & set(self._schemes(model)):
            return ["Quantize measures layers of denoisers only, and 'components' names none."]
        saved = self.sensitivity is not None and Path(self.sensitivity).exists()
        if self.sensitivity is not None and saved:
            try:
                Sensitivity.load(self.sensitivity)
            except FewstepError as error:
                return [str(error)]
        if not choice.takes_prompts(model) and (self.smooth is not None or not saved):
            return [
                f"Quantize calibrates with prompts, and {type(model.pipe).__name__} takes none: save what "
                "Quantize.measure gives for calls of your own, and name that file in 'sensitivity'."
            ]
        return []

    def wants(self, beside: Collection[str], machine: Machine) -> list[str]:
        dynamic = [one for one in self._named() if SCHEMES[one].input is not None]
        if self.emulate or not dynamic or machine.device != "cuda" or "compile" in beside:
            return []
        return [
            f"{dynamic[0]} converts the inputs of each layer in many small kernels, which took more time than it saved "
            "on an H200 (2.2 to 2.5 times bfloat16's): put compile into the recipe, which makes one of them."
        ]

    def _named(self) -> list[str]:
        """The schemes that the fields name."""
        return list(dict(self.components).values()) or [self.scheme]

    def apply(self, model: Model, machine: Machine) -> Engaged:
        calls = choice.calls_of(self.prompts)
        layers, facts, ready = self.layers(model, machine), dict[str, Any](), dict[str, nn.Module]()
        recorded = record(model, *calls) if self.smooth is not None else None
        convert = self._converter(machine, self._smoothing(model, layers, recorded))
        if self.budget is not None:
            found, ready = self._sensitivity(model, layers, convert, calls, recorded)
            budget = Budget.parse(self.budget)
            assert budget is not None
            chosen = choice.within(model, layers, found, budget)
            layers, facts = chosen.layers, chosen.facts
        return self._put(model, layers, lambda layer: ready.get(layer.name) or convert(layer), facts)

    def _put(
        self, model: Model, layers: list[Layer], convert: Callable[[Layer], nn.Module], facts: dict[str, Any]
    ) -> Engaged:
        """Swap the layers in, and say what was done."""
        steps: list[Callable[[], None]] = []
        undo = undo_all(steps)
        swaps: list[Swap] = []
        try:
            for layer in layers:
                if layer.skipped is None:
                    quantized = convert(layer).train(layer.linear.training)
                    swap = Swap(layer.root, layer.path, layer.linear, quantized)
                    swap.put(quantized=True)
                    steps.append(partial(swap.put, quantized=False))
                    swaps.append(swap)
        except BaseException:
            undo()
            raise
        facts = {**self._counts(model, layers, swaps), **facts}
        loud = partial(_emulation_warning, self) if self.emulate else list
        if self.precise_steps == (0, 0):
            return Engaged(self.name, facts, undo, warnings=loud)
        phases = Phases(model, swaps, self.precise_steps, facts).install()
        steps.append(phases.remove)
        return Engaged(self.name, facts, undo, reset=phases.forget, warnings=lambda: [*loud(), *phases.warnings()])

    def measure(self, pipe: Any, *calls: Mapping[str, Any], machine: Machine | None = None) -> Sensitivity:
        """What each layer does to the denoisers' outputs when it alone is quantized so, over calls of the pipeline.

        Args:
            calls: keyword arguments of each; without any, the field `prompts`.
        """
        model, machine = Model(pipe), machine or Machine.detect()
        calls = calls or tuple(choice.calls_of(self.prompts))
        recorded = record(model, *calls)
        layers = replace(self, budget=None, keep=()).layers(model, machine)
        convert = self._converter(machine, self._smoothing(model, layers, recorded))
        return choice.sensitivity(model, self._measurable(model, layers), convert, self._text(model), calls, recorded)[
            0
        ]

    def settled(self, engaged: Engaged) -> Quantize:
        """This technique with what its budget chose written down as names: it needs no calibration."""
        return replace(self, budget=None, sensitivity=None, keep=tuple(engaged.facts["keep"]))

    def layers(self, model: Model, machine: Machine) -> list[Layer]:
        """Every plain linear layer and convolution of the chosen components, with what happens to it.

        With a budget, the denoisers' layers are all candidates.
        """
        tile = partial(kernels.tile, device=machine.device, emulate=self.emulate)
        found: list[Layer] = []
        for name, scheme in self._schemes(model).items():
            keep = () if self.budget is not None and name in model.denoisers else self.keep
            found += find_layers(model, name, scheme, Rules(self.skip, self.min_features, keep), tile)
        return found

    def _schemes(self, model: Model) -> dict[str, Scheme]:
        """Component -> scheme."""
        chosen = dict(self.components) or dict.fromkeys(model.denoisers, self.scheme)
        return {name: SCHEMES[scheme] for name, scheme in chosen.items()}

    def _text(self, model: Model) -> str:
        smooth = "" if self.smooth is None else f", smooth {self.smooth}"
        return ", ".join(f"{name} {scheme.name}" for name, scheme in self._schemes(model).items()) + smooth

    def _measurable(self, model: Model, layers: list[Layer]) -> list[Layer]:
        return [layer for layer in layers if layer.skipped is None and layer.component in model.denoisers]

    def _smoothing(self, model: Model, layers: list[Layer], recorded: list[Call] | None) -> Smooth:
        if self.smooth is None or recorded is None:
            return {}
        linears = {layer.name: layer.linear for layer in self._measurable(model, layers)}
        largest = largest_inputs(model, linears, recorded)
        return {name: smoothing(seen, linears[name].weight, self.smooth) for name, seen in largest.items()}

    def _converter(self, machine: Machine, smooth: Smooth) -> Callable[[Layer], nn.Module]:
        return lambda layer: _converted(layer, machine.device, self.emulate, smooth.get(layer.name))

    def _sensitivity(
        self,
        model: Model,
        layers: list[Layer],
        convert: Callable[[Layer], nn.Module],
        calls: list[dict[str, Any]],
        recorded: list[Call] | None,
    ) -> tuple[Sensitivity, dict[str, nn.Module]]:
        """From the file where it is there, else measured (and then with the layers made for that)."""
        if self.sensitivity is not None and Path(self.sensitivity).exists():
            found = Sensitivity.load(self.sensitivity)
            if differences := found.differences(signature(model, calls[0]), self._text(model)):
                raise InputError(
                    f"{self.sensitivity} was made on something else, {'; '.join(differences)}: delete the file to "
                    "measure anew."
                )
            return found, {}
        found, ready = choice.sensitivity(
            model, self._measurable(model, layers), convert, self._text(model), calls, recorded
        )
        if self.sensitivity is not None:
            found.save(self.sensitivity)
        return found, ready

    def _counts(self, model: Model, layers: list[Layer], swaps: list[Swap]) -> dict[str, Any]:
        reasons = left_alone(layers)
        return {
            "schemes": {name: scheme.name for name, scheme in self._schemes(model).items()},
            "emulated": self.emulate,
            "layers_quantized": len(swaps),
            "layers_skipped": sum(reasons.values()),
            "skipped": reasons,
            "bytes_before": sum(kernels.stored_bytes(swap.precise) for swap in swaps),
            "bytes_after": sum(kernels.stored_bytes(swap.quantized) for swap in swaps),
        }


def _converted(layer: Layer, device: str, emulate: bool, smooth: Tensor | None) -> nn.Module:
    kernel = None if emulate else kernels.KERNELS.get((layer.scheme.name, device))
    if kernel is not None and kernel.only not in (None, layer.linear.weight.dtype):
        raise InputError(
            f"The kernel of {layer.scheme.name} takes weights in {kernel.only} only: put precision into the recipe. "
            f"Got {layer.linear.weight.dtype} in {layer.name}."
        )
    return kernels.convert(layer.linear, layer.scheme, device, emulate=emulate, smooth=smooth)


def _emulation_warning(technique: Quantize) -> list[str]:
    schemes = ", ".join(dict.fromkeys(dict(technique.components).values())) or technique.scheme
    return [f"Quantize emulates {schemes}: the quality is the scheme's, the time is not: slower than without it."]


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and pair[1] in SCHEMES


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_ends(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n >= 0 for n in value)
