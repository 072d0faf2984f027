"""Architectures of real size with random weights, on one GPU: what needs the size and not the weights.

    python benchmarks/full_size.py distil-flux     DMD2 on Flux (12B): one backbone, adapters for student and critic
    python benchmarks/full_size.py distil-wan      DMD2 on Wan 2.1 (1.3B): a copy for each of the three roles
    python benchmarks/full_size.py live-wan        Wan 2.1 (1.3B) causal, 480×832: frames a second of a live session

The first two train `--iterations` of the loop on prompts alone, each two updates of the critic and one of the student,
batch 1, bfloat16, activations computed again; the first few, in which kernels are chosen, are left out of the median.
The last makes chunks of three latent frames in 4 steps, with and without regions, and in 2, in bfloat16, with FP8 and
with compilation, without a clock. Text encoders have one layer (they do not run while it is measured), all else is as
published. `--tiny` takes small networks, to see that it runs on any machine.

Writes out/benchmarks/full-size-NAME.json, or to `--folder`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

import fewstep
from fewstep.bench import results
from fewstep.diffusion.samplers import flow_times
from fewstep.distill.job import Job, Rung
from fewstep.distill.pipelines import PipelineJob
from fewstep.models.causal import make_causal
from fewstep.models.manifest import Manifest
from fewstep.models.model import Model
from fewstep.models.trace import trace
from fewstep.models.window import Chunks
from fewstep.realtime import LiveModel, Session
from fewstep.realtime.regions import Parts
from fewstep.realtime.told import Chunk
from fewstep.realtime.tricks import ADAPT, REGIONS
from fewstep.techniques import Compile, Precision, Quantize
from fewstep.zoo.shapes.scenes import vocabulary
from fewstep.zoo.words import word_tokenizer

PROMPTS = [" ".join(random.Random(i).choices(vocabulary(), k=500)) for i in range(4)]  # long ones, as they cost most
WAN_1B = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
TINY_WAN = {"num_attention_heads": 2, "ffn_dim": 64, "num_layers": 2, "attention_head_dim": 32}
TINY_FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "axes_dims_rope": (4, 14, 14),
}
SHIFT = 5.0  # of Wan's times
FP8 = Quantize("fp8-dynamic")
CHUNKS, FILLED = Chunks(size=3, window=12, sink=3), 4  # latent frames; chunks until the window is full
WARM = 3  # iterations before those that count
GIB = 2**30
Row = dict[str, Any]


class Enough(BaseException):
    """Ends a training without a checkpoint: one of this size is tens of gigabytes."""


def main() -> None:
    given = arguments()
    rows = {"distil-flux": distil_flux, "distil-wan": distil_wan, "live-wan": live_wan}[given.what](given)
    table = Table(*rows[0], title=f"{given.what}, {device_name()}")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=170).print(table)
    print(results.save(f"full-size-{given.what}", rows, given.folder))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["distil-flux", "distil-wan", "live-wan"])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--frames", type=int, default=17, help="of distil-wan's clips")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row of live-wan")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips")
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="docs/benchmarks is where it is published")
    return parser.parse_args()


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def peak() -> float:
    """GiB of the GPU that were held at most; 0 without one."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


# ---------------------------------------------------------------------------------------------------------------------
# Training


def distil_flux(given: argparse.Namespace) -> list[Row]:
    side = 64 if given.tiny else 512
    call = {"height": side, "width": side, "max_sequence_length": 64 if given.tiny else 512, "guidance_scale": 3.5}
    return [trained(flux(given.tiny), "lora", call, given.iterations)]


def distil_wan(given: argparse.Namespace) -> list[Row]:
    return [trained(wan(given.tiny), "copies", wan_call(given.tiny, given.frames), given.iterations)]


def trained(pipe: Any, roles: Any, call: Mapping[str, Any], iterations: int) -> Row:
    """Seconds and memory of an iteration of DMD2 for a student of four steps."""
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        rung = Rung(
            "dmd2",
            iterations,
            batch=1,
            options={"critic_steps": 2},
            training={"precision": "bf16", "checkpointing": True, "rate": 1e-5, "save_every": 10**6},
        )
        job = Job(
            PROMPTS, folder, steps=4, ladder=[rung], samples=4, roles=roles, call=call, check_every=0, show_every=0
        )
        ladder = PipelineJob.of(pipe, job).ladder

        def watch(step: int, averages: Mapping[str, nn.Module]) -> None:
            if step == iterations:
                raise Enough

        ladder = replace(ladder, domain=replace(ladder.domain, watch=lambda lesson, place: watch))
        try:
            ladder.climb()
        except Enough:
            lines = (Path(folder) / "1-dmd2" / "losses.jsonl").read_text().splitlines()
            seconds = [json.loads(line)["seconds"] for line in lines]
    network = pipe.transformer
    return {
        "network": type(network).__name__,
        "billions": sum(p.numel() for p in network.parameters()) / 1e9,
        "roles": roles,
        "call": ", ".join(f"{name} {value}" for name, value in call.items()),
        "iterations": len(seconds),
        "seconds an iteration": statistics.median(seconds[WARM:] or seconds),
        "peak GiB": peak(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Live


def live_wan(given: argparse.Namespace) -> list[Row]:
    pipe, call = wan(given.tiny), {**wan_call(given.tiny, frames=9), "guidance_scale": 1.0}
    causal = make_causal(pipe.transformer, CHUNKS)
    denoiser = trace(pipe, prompt=PROMPTS[0], num_inference_steps=4, output_type="latent", **call)
    manifest = Manifest("wan-live", call=call, steps=4, times=tuple(flow_times(4, SHIFT)), sampler="renoise")
    rows: list[Row] = []
    eight = [FP8] if torch.cuda.is_available() and not given.tiny else []
    for more in ([], eight, [Compile()], [*eight, Compile()]):
        techniques = [Precision(), *more]
        named = {one.name: one for one in techniques}
        model = LiveModel(pipe, denoiser, causal, manifest, named, parts=Parts.of(Model(pipe)))
        for steps, on in ((4, ()), (4, (REGIONS,)), (2, ())):
            told = {"techniques": " + ".join((*named, *on)), "steps": steps}
            rows.append(told | streamed(model, steps, on, given.seconds))
            print(rows[-1], flush=True)
        model.put_on(frozenset())
    return rows


def streamed(model: LiveModel, steps: int, on: Sequence[str], seconds: float) -> Row:
    """Frames a second of a session that is not paced, once its window is full, and what a chunk takes."""
    reset_peak()
    with Session(model, PROMPTS[0], seed=0, steps=steps, off=(ADAPT,), on=on, paced=False) as session:
        for _ in islice(session, FILLED + 2):
            pass
        chunks: list[Chunk] = []
        begun = time.perf_counter()
        while not chunks or time.perf_counter() - begun < seconds:
            chunks.append(next(iter(session)))
        passed = time.perf_counter() - begun
    return {
        "frames a second": sum(len(chunk.frames) for chunk in chunks) / passed,
        "denoising, ms a chunk": statistics.median(float(chunk.work["denoise_ms"]) for chunk in chunks),
        "decoding, ms a chunk": statistics.median(float(chunk.work["decode_ms"]) for chunk in chunks),
        "window MiB": chunks[-1].work["window_mb"],
        "peak GiB": peak(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines


def flux(tiny: bool) -> FluxPipeline:
    """FLUX.1's, in bfloat16."""
    tokenizer = word_tokenizer(vocabulary(), 512)
    text, joint = (32, 48) if tiny else (768, 4096)
    clip = {"hidden_size": text, "intermediate_size": text, "num_attention_heads": 4, "max_position_embeddings": 512}
    t5 = {"d_model": joint, "d_ff": joint, "d_kv": joint // 4, "num_heads": 4}
    with made(torch.bfloat16):
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                latent_channels=16,
                block_out_channels=(8, 8, 8, 8) if tiny else (128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=8 if tiny else 32,
                use_quant_conv=False,
                use_post_quant_conv=False,
                shift_factor=0.1159,
                scaling_factor=0.3611,
            ),
            text_encoder=CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, **special(tokenizer), **clip)),
            tokenizer=tokenizer,
            text_encoder_2=T5EncoderModel(T5Config(num_layers=1, **special(tokenizer), **t5)),
            tokenizer_2=tokenizer,
            transformer=FluxTransformer2DModel(
                guidance_embeds=True,
                joint_attention_dim=joint,
                pooled_projection_dim=text,
                **(TINY_FLUX if tiny else {}),
            ),
        )


def wan(tiny: bool) -> WanPipeline:
    """Wan 2.1's of 1.3B, in float32."""
    tokenizer = word_tokenizer(vocabulary(), 512)
    width = 32 if tiny else 4096
    with made(torch.float32):
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(
                UMT5Config(num_layers=1, d_model=width, d_ff=width, d_kv=width // 4, num_heads=4, **special(tokenizer))
            ),
            vae=AutoencoderKLWan(base_dim=8 if tiny else 96),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            transformer=reading(WanTransformer3DModel(text_dim=width, **(TINY_WAN if tiny else WAN_1B))),
        )


def reading(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """One whose prompts matter: with weights as they are drawn, guidance would be below what bfloat16 tells apart."""
    for block in transformer.blocks:
        nn.init.normal_(block.attn2.to_out[0].weight, std=2.0)
    return transformer


def wan_call(tiny: bool, frames: int) -> dict[str, Any]:
    sides = {"height": 32, "width": 32} if tiny else {"height": 480, "width": 832}
    return {**sides, "num_frames": frames, "max_sequence_length": 64 if tiny else 512}


def special(tokenizer: Any) -> dict[str, int]:
    end = tokenizer.eos_token_id
    return {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": end, "eos_token_id": end}


@contextmanager
def made(dtype: torch.dtype) -> Iterator[None]:
    """Networks come to life on the device, from a fixed seed."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device()):
            yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    try:
        main()
    except fewstep.FewstepError as error:
        sys.exit(str(error))
