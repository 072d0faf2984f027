"""The main job: the embedded model from 50 steps to 4 and to 1, every trick measured alone and in the stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.bench import budget
from fewstep.bench.candidates import Candidate
from fewstep.bench.publish import publish
from fewstep.bench.report.schema import Report
from fewstep.bench.waterfall import Plan
from fewstep.models.load import load
from fewstep.zoo.tasks import task

MODEL = "zoo:shapes"
FOUR_STEPS: dict[str, Any] = {"few_step": {"student": "zoo:shapes-4step"}}
ONE_STEP: dict[str, Any] = {"few_step": {"student": "zoo:shapes-1step"}}
PRECISION: dict[str, Any] = {"precision": {"dtype": "bfloat16"}}
QUANTIZE: dict[str, Any] = {"quantize": {"scheme": "int8-dynamic"}}
CACHE: dict[str, Any] = {"cache": {"preset": "teacache", "threshold": 0.1}}
COMPILE: dict[str, Any] = {"compile": {}}
# In the stack everything: with four steps or one, what is not the denoiser is a sixth or half of the call. And the
# denoiser whole, since its blocks are small.
COMPONENTS = ["transformer", "vae", "text_encoder", "text_encoder_2"]
COMPILE_ALL: dict[str, Any] = {"compile": {"components": COMPONENTS, "whole": True}}
# What it spares is a fifteenth of a call of one step, and near what counts as nothing in one of four.
HOST: dict[str, Any] = {"host": {}}
PROMPT_SEED = 2024

CANDIDATES = (
    Candidate("baseline", "baseline"),
    *(
        Candidate(f"{steps} step{'s' if steps > 1 else ''}", "steps", call={"num_inference_steps": steps})
        for steps in (10, 4, 1)
    ),
    Candidate("4-step student", "alone", recipe=(FOUR_STEPS,)),
    Candidate("precision", "alone", recipe=(PRECISION,)),
    Candidate("quantize", "alone", recipe=(QUANTIZE,)),
    Candidate("cache", "alone", recipe=(CACHE,)),
    Candidate("compile", "alone", recipe=(COMPILE,)),
)
# Compiling comes before quantizing: fused, the quantized layers' scaling costs nothing; unfused it eats the gain. And
# after caching, which changes what is compiled: on four steps it has nothing to reuse, so that would be for nothing.
GROWTH = (PRECISION, CACHE, COMPILE_ALL, QUANTIZE)


def plan(*, rounds: tuple[int, int] = budget.ROUNDS, limit_seconds: float | None = None) -> Plan:
    """The demo as a plan: `MODEL`, the rows above, as many rounds as the budget, or `limit_seconds`, allows."""
    shapes = task("shapes")
    asked = shapes.prompts(budget.BATCH * rounds[1], PROMPT_SEED)
    return Plan(
        title="From 50 steps to 4 and to 1",
        model=MODEL,
        new_pipe=lambda: load(MODEL),
        candidates=CANDIDATES,
        prompts=tuple(prompt for prompt, _ in asked),
        asks=tuple(ask for _, ask in asked),
        task=shapes,
        solver_steps=4,
        growth=GROWTH,
        grows_from="4-step student",
        finals=(("1-step student", (ONE_STEP,), (HOST,)),),
        batch=budget.BATCH,
        rounds=rounds,
        limit_seconds=budget.run_limit() if limit_seconds is None else limit_seconds,
    )


def run(out: Path | str = "out/demo", *, show: bool = True) -> Report:
    """Measure the demo and write its report to the folder `out`, in the place of an older one.

    Progress goes to stderr; with `show` the table is printed. Ctrl-C leaves an older report as it was.

    Raises:
        FewstepError: the model is damaged, or the report can't be written.
    """
    return publish(plan(), out, show=show)
