"""A live model on the disk, small enough for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fewstep.distill.schedulers import student_scheduler
from tests.realtime.live import TIMES, live_model


def save_student(place: Path) -> Path:
    """Write a causal student that was never trained, and has no teacher; returns its folder. A call of it draws no
    noise beyond the seed's, as renoising schedulers do."""
    model = live_model()
    model.pipe.scheduler = student_scheduler(model.pipe, TIMES)
    model.pipe.save_pretrained(place)
    causal = {"size": 1, "window": 3, "sink": 0}
    replace(model.manifest, causal=causal, sampler="euler", teacher=None).write(place)
    return place
