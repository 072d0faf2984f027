"""Caches on a trained zoo model: our gates and plans, the caches of diffusers and cache-dit, and fewer steps.

    python benchmarks/caches.py [--model zoo:shapes] [--steps 50 28] [--prompts 8] [--rounds 3] [--only WORDS]

Every setting of every method draws the same prompts with the same noise, in turns with the full run; a speed-up is the
median over the rounds of full seconds / its seconds, of whole calls, calibration and warm-up not counted. Quality is
the PSNR of each picture to that of the full run. For each quality asked for, each method's fastest setting whose mean
keeps it is named. Plans and curves come from one calibration, made in 50 steps on prompts that are not drawn here.

cache-dit is an extra: pip install cache-dit. MagCache's ratios are what its own calibration prints; it has none for
this model. diffusers' SeaCache takes video models alone, its FasterCache needs attention classes that Flux has not.

Writes out/benchmarks/caches-STEPS.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fewstep
from fewstep.bench import results
from fewstep.bench.timing import interleaved, now, speedup
from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate
from fewstep.machine import keep_freed_memory
from fewstep.techniques.cache.budget import psnr_each
from fewstep.techniques.cache.tuner import GAINS, generators
from fewstep.zoo.tasks import task

TARGETS = (40.0, 35.0, 30.0, 25.0)  # dB
LEARNED, LEARN_SEED, DRAW_SEED = 8, 31, 77
CALIBRATION = Path("out/benchmarks/caches-calibration.json")

PutOn = Callable[[Any, int], Callable[[], None]]  # (pipeline, steps) -> what takes it off again


@dataclass(frozen=True)
class Setting:
    """One setting of one method; `steps`: the share of the full run's steps that the call has."""

    method: str
    what: str
    put_on: PutOn
    steps: float = 1.0


@dataclass(frozen=True)
class Pipes:
    """cache-dit leaves its blocks in a pipeline when it is taken off, so it gets one of its own."""

    plain: Any
    cache_dit: Any

    def of(self, setting: Setting) -> Any:
        return self.cache_dit if setting.method.startswith("cache-dit") else self.plain


def nothing(pipe: Any, steps: int) -> Callable[[], None]:
    return lambda: None


def ours(fields: Mapping[str, Any], pipe: Any, steps: int) -> Callable[[], None]:
    fast = fewstep.accelerate(pipe, [{"cache": {"calibration": str(CALIBRATION), **fields}}])
    fast.engaged[0].before_call({"num_inference_steps": steps})
    return fast.remove


def planned(predictor: str, speed: float, pipe: Any, steps: int) -> Callable[[], None]:
    return ours({"target_speedup": speed, "predictor": predictor}, pipe, steps)


def of_diffusers(config: Any, pipe: Any, steps: int) -> Callable[[], None]:
    pipe.transformer.enable_cache(config(steps))
    return partial(pipe.transformer.disable_cache)


def magcache(threshold: float, longest: int, steps: int) -> MagCacheConfig:
    """With the ratios of our calibration, which are those that its own calibration would print."""
    known = Calibration.load(CALIBRATION)
    sigmas = known.of("stack", "transformer")[0].sigmas
    levels = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(sigmas)), sigmas).tolist()
    return MagCacheConfig(
        threshold=threshold,
        max_skip_steps=longest,
        num_inference_steps=steps,
        mag_ratios=known.ratios("transformer", levels),
    )


def cache_dit(threshold: float, front: int, order: int, pipe: Any, steps: int) -> Callable[[], None]:
    os.environ.setdefault("CACHE_DIT_ENABLE_LOGGERS_SUPPRESS", "1")
    peer = import_module("cache_dit")
    config = peer.DBCacheConfig(
        num_inference_steps=steps,
        Fn_compute_blocks=front,
        residual_diff_threshold=threshold,
        max_warmup_steps=4,
    )
    calibrator = {"calibrator_config": peer.TaylorSeerCalibratorConfig(taylorseer_order=order)} if order else {}
    peer.enable_cache(pipe, cache_config=config, **calibrator)
    return partial(peer.disable_cache, pipe)


def settings() -> list[Setting]:
    found = [Setting("fewer steps", f"{share:.0%}", nothing, share) for share in
             (0.8, 0.6, 0.5, 0.4, 0.32, 0.24, 0.2, 0.16, 0.12)]  # fmt: skip
    for predictor in ("linear", "fitted"):
        found += [
            Setting(f"fewstep planned, {predictor}", f"1 in {speed:g}", partial(planned, predictor, speed))
            for speed in (2.0, 2.5, 3.0, 3.6, 4.2, 5.0, 6.0, 7.2, 8.4)
        ]
    presets = {
        "teacache": (0.1, 0.2, 0.4, 0.8),
        "first_block": (0.04, 0.08, 0.15, 0.3),
        "magcache": (0.06, 0.12, 0.24),
        "easycache": (0.05, 0.1, 0.2, 0.4),
    }
    for name, thresholds in presets.items():
        found += [
            Setting(f"fewstep {name}", f"{threshold:g}", partial(ours, {"preset": name, "threshold": threshold}))
            for threshold in thresholds
        ]
    found += [
        Setting("fewstep never (armed, reuses nothing)", scope, partial(ours, {"gate": "never", "scope": scope}))
        for scope in ("output", "blocks")
    ]
    found += [
        Setting("diffusers FirstBlockCache", f"{t:g}",
                partial(of_diffusers, lambda steps, t=t: FirstBlockCacheConfig(threshold=t)))
        for t in (0.02, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
    ]  # fmt: skip
    found += [
        Setting("diffusers TaylorSeer", f"every {n}, order {order}",
                partial(of_diffusers, lambda steps, n=n, order=order: TaylorSeerCacheConfig(
                    cache_interval=n, max_order=order, disable_cache_before_step=3,
                    taylor_factors_dtype=torch.float32)))
        for n in (2, 3, 4, 5, 6) for order in (1, 2)
    ]  # fmt: skip
    found += [
        Setting("diffusers MagCache", f"{t:g}, at most {longest}", partial(of_diffusers, partial(magcache, t, longest)))
        for t, longest in ((0.03, 2), (0.06, 3), (0.12, 4), (0.24, 5), (0.5, 7), (1.0, 10))
    ]
    if find_spec("cache_dit") is not None:
        found += [
            Setting(f"cache-dit F1{f' Taylor {order}' if order else ''}", f"{t:g}", partial(cache_dit, t, 1, order))
            for order in (0, 1, 2)
            for t in (0.06, 0.1, 0.15, 0.25, 0.4, 0.7)
        ]
    return found


@contextmanager
def on(setting: Setting, pipe: Any, steps: int) -> Iterator[None]:
    take_off = setting.put_on(pipe, steps)
    try:
        yield
    finally:
        take_off()


def draw(setting: Setting, pipe: Any, call: Mapping[str, Any], steps: int, number: int) -> tuple[float, Any]:
    """Seconds of the call, and its pictures. The setting is put on before the clock starts."""
    noise = generators(len(call["prompt"]), DRAW_SEED)
    with warnings.catch_warnings(), on(setting, pipe, steps):
        warnings.simplefilter("ignore")
        start = now()
        images = pipe(**call, num_inference_steps=max(1, round(setting.steps * steps)), generator=noise).images
        return now() - start, images


def measure(pipes: Pipes, steps: int, prompts: int, rounds: int, only: str, model: str) -> list[dict[str, Any]]:
    drawn = [text for text, _ in task(model.removeprefix("zoo:")).prompts(prompts, DRAW_SEED)]
    call = {"prompt": drawn, "output_type": "np"}
    full = Setting("full", "", nothing)
    chosen = [one for one in settings() if only in one.method]
    seconds: dict[Setting, list[float]] = {}
    quality: dict[Setting, tuple[float, ...]] = {}
    failed: dict[Setting, str] = {}
    reference = draw(full, pipes.plain, call, steps, 0)[1]
    subjects = {str(i): partial(attempt, one, pipes.of(one), call, steps) for i, one in enumerate((full, *chosen))}
    turns = interleaved(subjects, range(rounds))
    for _, name, outcome in track(turns, f"{steps} steps", total=rounds * len(subjects)):
        one = (full, *chosen)[int(name)]
        if isinstance(outcome, str):
            failed[one] = outcome
            continue
        seconds.setdefault(one, []).append(outcome[0])
        quality[one] = psnr_each(outcome[1], reference)
    for one, why in failed.items():
        Console(stderr=True).print(f"{one.method} {one.what}: {why}", markup=False)
    return [
        {
            "method": one.method,
            "setting": one.what,
            "speedup": speedup(seconds[full], seconds[one]),
            "psnr": statistics.mean(quality[one]),
            "psnr_worst": min(quality[one]),
        }
        for one in chosen
        if one in seconds and one not in failed
    ]


def attempt(setting: Setting, pipe: Any, call: Mapping[str, Any], steps: int, number: int) -> tuple[float, Any] | str:
    """`draw`, or in one line why the method can't."""
    try:
        return draw(setting, pipe, call, steps, number)
    except Exception as error:  # a peer's own, whatever it is: the row says so and the others go on
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def best(rows: list[dict[str, Any]], target: float) -> dict[str, dict[str, Any]]:
    """Each method's fastest setting whose mean PSNR is at least `target`."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = found.get(row["method"])
        if row["psnr"] >= target and (known is None or row["speedup"] > known["speedup"]):
            found[row["method"]] = row
    return found


def show(rows: list[dict[str, Any]], steps: int) -> None:
    table = Table("method", *(f"≥ {target:g} dB" for target in TARGETS), title=f"{steps} steps: speed-up at a quality")
    by_target = [best(rows, target) for target in TARGETS]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for found in by_target:
            row = found.get(method)
            cells.append(f"{row['speedup']:.2f}× ({row['setting']}; {row['psnr']:.1f})" if row else "–")
        table.add_row(method, *cells)
    Console(width=170).print(table)


def learn(pipe: Any, model: str) -> None:
    prompts = [text for text, _ in task(model.removeprefix("zoo:")).prompts(LEARNED, LEARN_SEED)]
    call = {"prompt": prompts, "generator": generators(LEARNED, LEARN_SEED), "num_inference_steps": 50}
    calibrate(pipe, call, gains=GAINS).save(CALIBRATION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:shapes")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 28])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods whose names hold this")
    parser.add_argument("--keep-calibration", action="store_true", help="use the file of an earlier run")
    given = parser.parse_args()
    keep_freed_memory()
    pipes = Pipes(fewstep.load(given.model), fewstep.load(given.model))
    for pipe in (pipes.plain, pipes.cache_dit):
        pipe.set_progress_bar_config(disable=True)
    if not (given.keep_calibration and CALIBRATION.exists()):
        learn(pipes.plain, given.model)
    for steps in given.steps:
        rows = measure(pipes, steps, given.prompts, given.rounds, given.only, given.model)
        show(rows, steps)
        print(results.save(f"caches-{steps}", rows))


if __name__ == "__main__":
    main()
