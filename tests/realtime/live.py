"""A live model small enough for tests: the tiny video pipeline as a causal student that was never trained."""

from __future__ import annotations

import torch

from fewstep.diffusion.samplers import flow_times
from fewstep.distill.decoder import small_decoder
from fewstep.distill.schedulers import student_scheduler
from fewstep.models.causal import make_causal
from fewstep.models.load import with_defaults
from fewstep.models.manifest import Manifest
from fewstep.models.window import Chunks
from fewstep.realtime import LiveModel
from fewstep.techniques import Technique
from tests.distill.pipes import video_pipeline

CHUNKS = Chunks(1, window=3)
TIMES = tuple(flow_times(4, 3.0))


def live_model(
    *techniques: Technique,
    chunks: Chunks = CHUNKS,
    small: bool = False,
    width: int = 16,
    device: str | torch.device = "cpu",
) -> LiveModel:
    pipe = video_pipeline().to(device)
    pipe.scheduler = student_scheduler(pipe, TIMES, renoise=True)
    make_causal(pipe.transformer, chunks)
    call = {"height": 16, "width": width, "num_frames": 9, "max_sequence_length": 8, "guidance_scale": 1.0}
    call["num_inference_steps"] = 4
    manifest = Manifest("tiny live", call=call, steps=4, times=TIMES, sampler="renoise", guidance_inside=True)
    return LiveModel.of(with_defaults(pipe, manifest), techniques, small_decoder(pipe, width=8) if small else None)
