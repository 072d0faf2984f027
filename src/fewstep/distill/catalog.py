"""All methods of distillation as data: what each needs, costs and is good for, and how it is made.

`CATALOG` is read by the jobs, by the command line and by the guide's table. A method's options are the keyword
arguments of its maker, so a wrong name or type is found before any work starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_type_hints

from fewstep.distill import makers
from fewstep.distill.data.samples import Content
from fewstep.distill.engine.loop import Distiller
from fewstep.distill.methods.backward import Stepping
from fewstep.distill.typed import typed
from fewstep.errors import InputError, bad_value


@dataclass(frozen=True)
class Card:
    """A method.

    Attributes:
        make: `makers.Given` and the method's options -> its `Distiller`.
        title, paper: what it is called, and where it comes from.
        needs: teacher paths, latents (of real data, or the ends of teacher paths), or prompts alone.
        samplers: with which its students can be sampled; the first is the default.
        networks: in memory while it trains, the teacher among them.
        cost: of a training step, in forward passes of the network for each sample; a backward pass counts two, a guided
            teacher two.
        rate, rates: learning rates that small networks did well with; large ones want a tenth or less.
        betas: of AdamW.
        least_batch: an effective batch below this gives noisy students; a run that has less is told so.
        two_times: the student is told how long its step is.
        jvp: it takes a derivative along the path, by forward mode or a difference.
        with_data: it takes teacher paths, and data beside them.
        video: its students are causal, of video transformers alone.
        when: the case to take it in.
    """

    make: Callable[..., Distiller[Any]]
    title: str
    paper: str
    needs: Content
    samplers: tuple[Stepping, ...]
    networks: int
    cost: int
    when: str
    rate: float = 3e-4
    rates: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.99)
    least_batch: int = 32
    two_times: bool = False
    jvp: bool = False
    with_data: bool = False
    video: bool = False

    @property
    def choices(self) -> dict[str, Any]:
        """The names of its options, and what they are by default."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def options(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The options with their types, as YAML may have given them.

        Raises:
            InputError: one that this method does not have, or of another type.
        """
        if unknown := [name for name in given if name not in self.choices]:
            has = f"it has {', '.join(self.choices)}" if self.choices else "it has none"
            raise InputError(f"{where} has no option {unknown[0]!r}: {has}.")
        hints = get_type_hints(self.make)
        return {name: typed(name, value, hints[name], where) for name, value in given.items()}


DETERMINISTIC: tuple[Stepping, ...] = ("euler",)
RENOISED: tuple[Stepping, ...] = ("renoise",)
EITHER: tuple[Stepping, ...] = ("euler", "renoise")
BETAS = (0.0, 0.99)  # of DMD2: no momentum where two networks chase each other
CRITIC = {"critic": 2e-4}
CRITICS = {"critic": 2e-4, "discriminator": 2e-4}
matching = partial(Card, networks=3, least_batch=64, rate=5e-5, rates=CRITIC, betas=BETAS)  # of a critic's scores

CATALOG: dict[str, Card] = {
    "kd": Card(
        makers.kd,
        "Knowledge distillation on teacher paths",
        "arXiv 2101.02388",
        "paths",
        EITHER,
        networks=1,
        cost=3,
        when="The first rung, always safe: it can't collapse. Alone it blurs at one and two steps.",
    ),
    "perceptual": Card(
        makers.perceptual,
        "Knowledge distillation in the teacher's features",
        "arXiv 2401.00110",
        "paths",
        EITHER,
        networks=2,
        cost=7,
        when="After others: brings a student's pictures back to the teacher's, without a critic; can't collapse.",
    ),
    "reflow": Card(
        makers.reflow,
        "Reflow",
        "arXiv 2209.03003",
        "paths",
        DETERMINISTIC,
        networks=1,
        cost=3,
        when="Straighter paths for any number of steps, when the number is not decided yet.",
    ),
    "progressive": Card(
        makers.progressive,
        "Progressive distillation",
        "arXiv 2202.00512",
        "latents",
        DETERMINISTIC,
        networks=2,
        cost=7,
        when="Eight and four steps with little thought: each stage halves the steps.",
    ),
    "finetune": Card(
        makers.finetune,
        "Plain fine-tuning",
        "arXiv 2209.03003",
        "latents",
        DETERMINISTIC,
        networks=1,
        cost=3,
        when="Adapting to data, or putting guidance inside; it brings no fewer steps by itself.",
    ),
    "consistency": Card(
        makers.consistency,
        "Consistency distillation with ECT's schedule",
        "arXiv 2303.01469, 2406.14548",
        "latents",
        RENOISED,
        networks=2,
        cost=6,
        when="Two to four steps, keeps the teacher's diversity; also from data alone (taught: false).",
        rate=1e-4,
        least_batch=128,
    ),
    "tcm": Card(
        makers.tcm,
        "Truncated consistency, second stage",
        "arXiv 2410.14895",
        "latents",
        RENOISED,
        networks=3,
        cost=7,
        when="After consistency, for one and two steps.",
        rate=5e-5,
        least_batch=128,
    ),
    "scm": Card(
        makers.scm,
        "Continuous-time consistency",
        "arXiv 2410.11081",
        "latents",
        RENOISED,
        networks=2,
        cost=7,
        when="Consistency without a step size, where derivatives can be taken.",
        rate=1e-4,
        least_batch=128,
        jvp=True,
    ),
    "meanflow": Card(
        makers.meanflow,
        "MeanFlow",
        "arXiv 2505.13447",
        "latents",
        DETERMINISTIC,
        networks=2,
        cost=7,
        when="One training for every number of steps, where derivatives can be taken.",
        rate=1e-4,
        least_batch=128,
        two_times=True,
        jvp=True,
    ),
    "flow_map": Card(
        makers.flow_map,
        "Flow map, Eulerian (AYF) without derivatives",
        "arXiv 2506.14603",
        "latents",
        DETERMINISTIC,
        networks=2,
        cost=8,
        when="One training for every number of steps, with any attention kernel.",
        rate=1e-4,
        least_batch=64,
        two_times=True,
    ),
    "dmd": matching(
        makers.dmd,
        "Distribution matching with regression (DMD)",
        "arXiv 2311.18828",
        "paths",
        EITHER,
        cost=17,
        when="After kd on the same paths: sharpens as dmd2 does, and they hold it where it was.",
    ),
    "dmd2": matching(
        makers.dmd2,
        "Distribution matching (DMD2) without a discriminator",
        "arXiv 2405.14867",
        "prompts",
        EITHER,
        cost=26,
        when="The last rung: sharpens one to four steps from prompts alone. Watch diversity.",
    ),
    "dmd2_gan": matching(
        makers.dmd2_gan,
        "Distribution matching (DMD2) with a discriminator",
        "arXiv 2405.14867",
        "latents",
        EITHER,
        cost=39,
        when="As dmd2, where real pictures or many teacher samples are at hand to pass the teacher.",
        rates=CRITICS,
    ),
    "f_distill": matching(
        makers.f_distill,
        "f-distill",
        "arXiv 2502.15681",
        "latents",
        EITHER,
        cost=39,
        when="As dmd2_gan, where its diversity falls: the Jensen-Shannon divergence seeks modes less.",
        rates=CRITICS,
    ),
    "sid": matching(
        makers.sid,
        "Score identity distillation",
        "arXiv 2404.04057",
        "prompts",
        EITHER,
        cost=15,
        when="In place of dmd2, with fewer critic steps and more memory: gradients pass through all networks.",
    ),
    "apt": Card(
        makers.apt,
        "Adversarial post-training",
        "arXiv 2501.08316",
        "latents",
        EITHER,
        networks=4,
        cost=22,
        when="After kd, on real pictures with captions: in one step it draws what was asked for.",
        rate=1.5e-4,
        rates={"critic": 6e-4, "judge": 2e-4},
        betas=BETAS,
    ),
    "ladd": Card(
        makers.ladd,
        "Latent adversarial distillation",
        "arXiv 2403.12015",
        "latents",
        EITHER,
        networks=2,
        cost=9,
        when="Sharp pictures from many samples and large batches; a small run is unstable.",
        least_batch=128,
        rate=5e-5,
        rates={"discriminator": 2e-4},
        betas=BETAS,
    ),
    "rcm": matching(
        makers.rcm,
        "Score-regularised consistency",
        "arXiv 2510.08431",
        "latents",
        RENOISED,
        cost=36,
        when="One to four steps at once with more diversity than dmd2, where derivatives can be taken.",
        jvp=True,
    ),
    "causal_kd": Card(
        makers.causal_kd,
        "Knowledge distillation into a causal video student",
        "arXiv 2412.07772",
        "paths",
        EITHER,
        networks=1,
        cost=3,
        when="The first rung of live video: the student makes a video chunk by chunk, from the past alone.",
        with_data=True,
        video=True,
    ),
    "self_forcing": matching(
        makers.self_forcing,
        "Self-Forcing: distribution matching on the student's own rollouts",
        "arXiv 2506.08009",
        "prompts",
        RENOISED,
        cost=30,
        when="The second rung of live video: mends what the student's own past does to it.",
        video=True,
    ),
}


def card(method: str) -> Card:
    """The card of a method.

    Raises:
        InputError: there is none of that name.
    """
    if method not in CATALOG:
        raise InputError(bad_value("method", "distillation", f"one of {', '.join(CATALOG)}", method))
    return CATALOG[method]
