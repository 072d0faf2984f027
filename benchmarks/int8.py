"""INT8 on this CPU: linear layers one by one (ours, torchao's, float32, bfloat16), and a denoiser with each stack.

    python benchmarks/int8.py [--rounds 7] [--no-compile]

Batch 16, 96 tokens, 192 features: the shapes of the zoo's Flux. Writes out/benchmarks/int8.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fewstep
from fewstep.bench import results
from fewstep.bench.timing import interleaved, now
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.techniques import Compile, Precision, Quantize, Technique
from fewstep.techniques.linears import Int8Linear, torchao_linear
from fewstep.zoo.shapes.pipeline import LATENT_CHANNELS, PROMPT_TOKENS, build_pipeline

BATCH, IMAGE, CHANNELS, TEXT = 16, 64, 4 * LATENT_CHANNELS, PROMPT_TOKENS
SHAPES = ((192, 192), (192, 768), (960, 192))  # (in, out): attention, MLP, the single blocks' output
Call = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled rows, which take a minute")
    options = parser.parse_args()

    torch.manual_seed(0)
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            rows += measured(f"linear {shape[0]}->{shape[1]}", dict(linears(*shape)), options.rounds)
        rows += measured("denoiser", dict(stacks(compiled=not options.no_compile)), options.rounds)
    for row in rows:
        print(
            f"{row['what']:20} {row['stack']:28} {row['ms']:8.2f} ms  {row['speedup']:5.2f}×  error {row['error']:.4f}"
        )
    print(results.save("int8", rows))


def linears(inputs: int, outputs: int) -> Iterator[tuple[str, Call]]:
    x, linear = torch.randn(BATCH * (IMAGE + TEXT), inputs), nn.Linear(inputs, outputs)
    half = copy.deepcopy(linear).bfloat16()
    for name, layer, dtype in (
        ("float32", linear, torch.float32),
        ("bfloat16", half, torch.bfloat16),
        ("int8", Int8Linear(linear), torch.float32),
        ("bfloat16 + int8", Int8Linear(half), torch.bfloat16),
        ("torchao int8", torchao_linear(linear, "int8-dynamic"), torch.float32),
    ):
        yield name, partial(layer, x.to(dtype))


def stacks(*, compiled: bool) -> Iterator[tuple[str, Call]]:
    pipe = build_pipeline()
    given = {
        "hidden_states": torch.randn(BATCH, IMAGE, CHANNELS),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 128),
        "pooled_projections": torch.randn(BATCH, 64),
        "timestep": torch.full((BATCH,), 0.5),
        "img_ids": torch.zeros(IMAGE, 3),
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }
    sixteen = Precision(components=("transformer",))
    for name, techniques in (
        ("float32", ()),
        ("bfloat16", (sixteen,)),
        ("int8", (Quantize(),)),
        ("bfloat16 + int8", (sixteen, Quantize())),
    ):
        yield name, _denoiser(pipe, techniques, given)
        if compiled:
            yield f"{name}, compiled", _denoiser(pipe, (*techniques, Compile()), given)


def _denoiser(pipe: Any, techniques: tuple[Technique, ...], given: dict[str, Any]) -> Call:
    own = copy.copy(pipe)
    own.transformer = copy.deepcopy(pipe.transformer)
    for technique in techniques:
        technique.apply(Model(own), Machine.detect())
    return lambda: own.transformer(**given)[0]


def measured(what: str, calls: dict[str, Call], rounds: int) -> list[dict[str, Any]]:
    """One row a call: its best time (what else runs only adds to it), and speedup and error against the first."""
    outputs = {name: call().double() for name, call in calls.items()}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    timed = {name: lambda _, call=call: _seconds(call) for name, call in calls.items()}
    for _, name, seconds in interleaved(timed, range(rounds)):
        times[name].append(seconds)
    base = next(iter(outputs))
    best = {name: min(seconds) for name, seconds in times.items()}
    return [
        {
            "what": what,
            "stack": name,
            "ms": best[name] * 1e3,
            "speedup": best[base] / best[name],
            "error": float((output - outputs[base]).abs().mean() / outputs[base].abs().mean()),
        }
        for name, output in outputs.items()
    ]


def _seconds(call: Call) -> float:
    start = now()
    call()
    return now() - start


if __name__ == "__main__":
    try:
        main()
    except fewstep.FewstepError as error:
        sys.exit(str(error))
