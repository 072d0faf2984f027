"""Quantization on this machine: what each scheme brings in time and bytes, and what it costs in pictures.

    python benchmarks/quantize.py speed [--rounds 5] [--no-compile] [--size flux] [--schemes …]
    python benchmarks/quantize.py quality [--prompts 64] [--steps 16] [--schemes …] [--models …] [--budgets 0.05]
    python benchmarks/quantize.py pairs [--rounds 4] [--steps 24]
    python benchmarks/quantize.py memory [--width 1536]

speed: a Flux of 102 million random parameters, 1024 image tokens, one call of the denoiser; every scheme that has
a kernel here, in the layers that it is meant for and everywhere, alone, compiled and on bfloat16. Rows run in turn; a
speed-up is the median of the ratios within a round. A row that is slower than its like without quantization says so.
`--size flux` is for a GPU: every layer and the 4096 + 512 tokens as in FLUX.1 at 1024², a third of its blocks, in
bfloat16, and only the layers that a scheme is meant for.

quality: zoo:shapes and its 4-step student under every scheme, emulated where no kernel runs it; prompt accuracy,
Fréchet distance, and PSNR to the same seeds without quantization, beside the noise floor (the same model in bfloat16,
where the machine has that). With --budgets the layers are chosen by measurement too.

pairs: zoo:shapes under each other trick, without and with int8-dynamic: whole calls of 16 pictures in turns, and what
the pictures are worth; of a cache also the steps that it reused.

memory: `fewstep quantize` of a larger Flux in shards, each scheme in a process of its own; what its private memory
rises by, beside the size of what it writes and of the largest layer in the dtype that it is stored in. Pages of the
files that it reads, which the system may drop at any time, are not private.

Writes out/benchmarks/quantize-speed.json, -quality.json, -pairs.json and -memory.json.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

import fewstep
from fewstep.bench import results
from fewstep.bench.candidates import Candidate
from fewstep.bench.quality import psnr
from fewstep.bench.timing import MB, interleaved, measured, now, sampled, speedup
from fewstep.bench.verdict import WORK_KEYS
from fewstep.bench.waterfall import Plan, measure
from fewstep.checkpoints.make import make
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.numerics.schemes import SCHEMES
from fewstep.techniques import Compile, Precision, Quantize, Technique
from fewstep.techniques.linears.kernels import problem, stored_bytes
from fewstep.zoo.evaluate import REAL, REAL_SEED, generate
from fewstep.zoo.metrics import frechet
from fewstep.zoo.shapes.pipeline import build_pipeline
from fewstep.zoo.tasks import task

PRECISIONS: dict[str, tuple[Technique, ...]] = {"float32": (), "bfloat16": (Precision(components=("transformer",)),)}
SLOWER = 0.97  # of the speed of its like without quantization: below it a row is told to be slower
MODELS = {"zoo:shapes": True, "zoo:shapes-4step": False}  # model -> whether it takes `--steps`
PROMPT_SEED = 31
PARTNERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "precision": {"precision": {"dtype": "bfloat16"}},
    "cache": {"cache": {"preset": "teacache", "threshold": 0.1}},
    "compile": {"compile": {}},
    "precision and compile": {"precision": {"dtype": "bfloat16"}, "compile": {}},
    "4-step student": {"few_step": {"student": "zoo:shapes-4step"}},
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A Flux: tokens of a picture and of its prompt, the network's measures, and which rows there are of it."""

    tokens: int = 1024
    text: int = 128
    width: int = 768
    heads: int = 12
    double: int = 3
    single: int = 4
    text_width: int = 512
    pooled_width: int = 256
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    everywhere: bool = True


SIZES = {"small": Size(), "flux": Size(4096, 512, 3072, 24, 6, 13, 4096, 768, ("bfloat16",), False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    speed = parts.add_parser("speed")
    speed.add_argument("--rounds", type=int, default=5)
    speed.add_argument("--no-compile", action="store_true")
    speed.add_argument("--size", choices=list(SIZES), default="small")
    speed.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    quality = parts.add_parser("quality")
    quality.add_argument("--prompts", type=int, default=64)
    quality.add_argument("--steps", type=int, default=16, help="of the teacher")
    quality.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    quality.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    quality.add_argument("--budgets", nargs="*", type=float, default=[], help="relative errors of the output")
    pairs = parts.add_parser("pairs")
    pairs.add_argument("--rounds", type=int, default=4)
    pairs.add_argument("--steps", type=int, default=24, help="of the teacher")
    memory = parts.add_parser("memory")
    memory.add_argument("--width", type=int, default=1536, help="of the model; its parameters grow by the square")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # that emulation is no speed-up, which every row says
    rows = list({"speed": speeds, "quality": qualities, "pairs": paired, "memory": memories}[options.part](options))
    print(results.save(f"quantize-{options.part}", rows))


# Time and bytes.


def speeds(options: argparse.Namespace) -> Iterator[Row]:
    machine, size = Machine.detect(), SIZES[options.size]
    rows, first = dict(stacks(machine, size, options)), size.precisions[0]
    plain = transformer(size).to(machine.device, getattr(torch, first))
    given = inputs(size, next(plain.parameters()))
    denoisers = {name: stacked(plain, techniques, machine) for name, techniques in rows.items()}
    with torch.no_grad():
        outputs = {name: denoiser(**given)[0].double() for name, denoiser in denoisers.items()}  # compiles, too
        timed = {name: timing(denoiser, given) for name, denoiser in denoisers.items()}
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _, name, seconds in interleaved(timed, range(options.rounds)):
            times[name].append(seconds)
    base = outputs[first]
    for name, techniques in rows.items():
        like = name.split(", ", 1)[1] if scheme_of(techniques) else name
        against = speedup(times[like], times[name])
        row = {
            "machine": machine.name,
            "stack": name,
            "ms": 1e3 * float(np.median(times[name])),
            f"over_{first}": speedup(times[first], times[name]),
            "over_its_like": against,
            "slower": against < SLOWER,
            "error": float((outputs[name] - base).norm() / base.norm()),
            "bytes": weights(denoisers[name]) / weights(plain),
        }
        note = f"  SLOWER than {like}" if row["slower"] else ""
        print(
            f"{name:44} {row['ms']:8.1f} ms  {row[f'over_{first}']:5.2f}× {first}  {against:5.2f}× its like  "
            f"error {row['error']:.4f}  weights {row['bytes']:.1%}{note}"
        )
        yield row


def transformer(size: Size) -> FluxTransformer2DModel:
    """With random weights."""
    torch.manual_seed(0)
    part = size.width // size.heads
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=size.double,
        num_single_layers=size.single,
        attention_head_dim=part,
        num_attention_heads=size.heads,
        joint_attention_dim=size.text_width,
        pooled_projection_dim=size.pooled_width,
        axes_dims_rope=(part // 8, *[part * 7 // 16] * 2),
    ).eval()


def inputs(size: Size, like: torch.Tensor) -> dict[str, Any]:
    rng, side = torch.Generator().manual_seed(1), int(size.tokens**0.5)
    places = torch.stack(
        torch.meshgrid(torch.zeros(1).long(), torch.arange(side), torch.arange(side), indexing="ij"), -1
    )
    given = {
        "hidden_states": torch.randn(1, size.tokens, 64, generator=rng).to(like),
        "encoder_hidden_states": torch.randn(1, size.text, size.text_width, generator=rng).to(like),
        "pooled_projections": torch.randn(1, size.pooled_width, generator=rng).to(like),
        "timestep": torch.full((1,), 0.5).to(like),
        "img_ids": places.reshape(size.tokens, 3).float().to(like.device),
        "txt_ids": torch.zeros(size.text, 3, device=like.device),
    }
    return {**given, "return_dict": False}


def stacks(machine: Machine, size: Size, options: argparse.Namespace) -> Iterator[tuple[str, tuple[Technique, ...]]]:
    """Row -> its techniques: each number format of the activations, with and without each scheme and compilation."""
    unable = {name: why for name in options.schemes if (why := problem(SCHEMES[name], machine)) is not None}
    for name, why in unable.items():
        print(f"no row of {name}: {why}")
    schemes = [name for name in options.schemes if name not in unable]
    ends: list[tuple[str, tuple[Technique, ...]]] = [("", ())]
    if not options.no_compile and machine.missing("compile") is None:
        ends.append((", compiled", (Compile(),)))
    for precision in size.precisions:
        if precision == "bfloat16" and (why_not := machine.missing("bf16")) is not None:
            print(f"no row of bfloat16: {why_not}")
            continue
        first = PRECISIONS[precision]
        for end, last in ends:
            yield f"{precision}{end}", (*first, *last)
            for scheme in schemes:
                yield f"{scheme}, {precision}{end}", (*first, Quantize(scheme), *last)
                if size.everywhere:
                    yield f"{scheme} everywhere, {precision}{end}", (*first, Quantize(scheme, keep=()), *last)


def scheme_of(techniques: Sequence[Technique]) -> str | None:
    return next((one.scheme for one in techniques if isinstance(one, Quantize)), None)


def stacked(plain: FluxTransformer2DModel, techniques: Sequence[Technique], machine: Machine) -> Any:
    pipe = build_pipeline()
    pipe.transformer = copy.deepcopy(plain)
    for technique in techniques:
        technique.apply(Model(pipe), machine)
    return pipe.transformer


def timing(denoiser: Any, given: Mapping[str, Any]) -> Callable[[int], float]:
    def once(_: int) -> float:
        return measured(lambda: denoiser(**given), (), 1)[1].seconds

    return once


def weights(denoiser: Any) -> int:
    """Bytes of all linear layers as they are stored."""
    return sum(stored_bytes(m) for m in denoiser.modules() if hasattr(m, "in_features"))


# Pictures.


def qualities(options: argparse.Namespace) -> Iterator[Row]:
    shapes = task("shapes")
    asked = shapes.prompts(options.prompts, PROMPT_SEED)
    real = shapes.features(shapes.reference(REAL, REAL_SEED))
    for name in options.models:
        call = {"num_inference_steps": options.steps} if MODELS[name] else {}
        baseline: Any = None
        for label, technique in settings(options):
            pipe = fewstep.load(name)
            pipe.set_progress_bar_config(disable=True)
            fast = fewstep.accelerate(pipe, [] if technique is None else [technique])
            pictures = generate(fast, [text for text, _ in asked], range(len(asked)), **call)
            baseline = pictures if baseline is None else baseline
            facts = fast.engaged[0].facts if technique is not None else {}
            row = {
                "model": name,
                "scheme": label,
                "emulated": facts.get("emulated", False),
                "layers": facts.get("layers_quantized"),
                "prompt_accuracy": shapes.accuracy([ask for _, ask in asked], pictures),
                "frechet": frechet(shapes.features(pictures), real),
                "psnr": psnr(pictures, baseline),
                "prompts": len(asked),
                "steps": call.get("num_inference_steps"),
            }
            print(
                f"{name:18} {label:28} accuracy {row['prompt_accuracy']:.3f}  Fréchet {row['frechet']:6.2f}  "
                f"{row['psnr']:5.1f} dB  {'emulated' if row['emulated'] else ''}"
            )
            yield row


def settings(options: argparse.Namespace) -> Iterator[tuple[str, Technique | None]]:
    machine = Machine.detect()
    yield "float32", None
    if machine.missing("bf16") is None:
        yield "bfloat16 (the noise floor)", Precision(components=("transformer",))
    for name in options.schemes:
        real = problem(SCHEMES[name], machine) is None
        scheme = Quantize(name, emulate=not real)
        yield name, scheme
        for budget in options.budgets:
            yield f"{name}, error ≤ {budget:g}", replace(scheme, budget=budget)


# With other tricks.


def paired(options: argparse.Namespace) -> Iterator[Row]:
    yield from pairs_of(PARTNERS, lambda: fewstep.load("zoo:shapes"), options)
    yield from pairs_of({"a LoRA": {}}, with_lora, options)


def with_lora() -> Any:
    """An adapter of rank 8 on the attention's inputs, untrained: it costs time and changes nothing."""
    pipe = fewstep.load("zoo:shapes")
    pipe.transformer.add_adapter(LoraConfig(r=8, target_modules=["to_q", "to_k", "to_v"]))
    return pipe


def pairs_of(
    partners: Mapping[str, Mapping[str, Any]], new_pipe: Callable[[], Any], options: argparse.Namespace
) -> Iterator[Row]:
    """A row for each partner and one with int8 on it; the first partner is nothing but the pipeline."""
    shapes = task("shapes")
    asked = shapes.prompts(16 * options.rounds, PROMPT_SEED)
    steps = {"num_inference_steps": options.steps}
    candidates = []
    for name, recipe in partners.items():
        call = {} if "few_step" in recipe else steps
        without = tuple({key: value} for key, value in recipe.items())
        candidates.append(Candidate(name, "alone" if recipe else "baseline", without, call))
        with_int8 = (*without, {"quantize": {"scheme": "int8-dynamic"}})
        candidates.append(Candidate(f"{name} + int8", "stack", with_int8, call, grows_from=name))
    plan = Plan(
        title="int8 with other tricks",
        model="zoo:shapes",
        new_pipe=new_pipe,
        candidates=tuple(candidates),
        prompts=tuple(prompt for prompt, _ in asked),
        asks=tuple(ask for _, ask in asked),
        task=shapes,
        rounds=(options.rounds, options.rounds),
    )
    report = measure(plan, print).report
    for one in report.skipped:
        print(f"no row of {one.name}: {one.why}")
    seconds = {row.name: row.runs for row in report.rows}
    for row in report.rows:
        reused = {k: v for one in row.engaged if one.name == "cache" for k, v in one.facts.items() if k in WORK_KEYS}
        over = speedup(seconds[row.grows_from], row.runs) if row.grows_from in seconds else None
        kept = {"seconds": row.seconds, "speedup": row.speedup, "over_without_int8": over, **reused}
        quality = {"prompt_accuracy": row.prompt_accuracy, "frechet": row.frechet, "psnr": row.psnr}
        print(row.name, {**kept, **quality}, *row.warnings)
        yield {"stack": row.name, "samples": row.samples, **kept, **quality, "warnings": row.warnings}


# Memory of making a checkpoint.


def memories(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "model")
        plain = transformer(Size(width=options.width)).bfloat16()
        largest = max(module.weight.nbytes for module in plain.modules() if isinstance(module, torch.nn.Linear))
        parameters = sum(p.numel() for p in plain.parameters())
        plain.save_pretrained(source, max_shard_size="200MB")
        del plain
        for scheme in ("fp8-dynamic", "mxfp8", "nvfp4"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                risen, written, seconds = alone.submit(risen_by, source, Path(place, scheme), scheme).result()
            bound = written + 2 * largest
            row = {
                "scheme": scheme,
                "parameters": parameters,
                "seconds": seconds,
                "risen_mb": risen / MB,
                "written_mb": written / MB,
                "largest_layer_mb": largest / MB,
                "of_the_bound": risen / bound,
            }
            print(
                f"{scheme:12} {parameters / 1e6:.0f}M parameters  private memory +{row['risen_mb']:.0f} MB  written "
                f"{row['written_mb']:.0f} MB  largest layer {row['largest_layer_mb']:.0f} MB  {seconds:.1f} s"
            )
            yield row


def risen_by(source: Path, out: Path, scheme: str) -> tuple[int, int, float]:
    """Bytes that this process's private memory rose by while it made the checkpoint, bytes written, and seconds."""
    start = now()
    with sampled(private) as seen:
        made = make(source, out, SCHEMES[scheme])
    return max(seen) - seen[0], made.bytes_after, now() - start


def private() -> int:
    """Bytes of this process that are no pages of files, as Linux counts them."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


if __name__ == "__main__":
    main()
