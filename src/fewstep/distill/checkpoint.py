"""Checkpoints of a training run: one folder a step, complete or absent, whatever kills the process.

`run/checkpoints/step-00001000/` holds weights and their averages in safetensors, the optimizers' states, and
`state.json`. A folder is written aside and renamed to a name that was free: at no moment is none whole.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from fewstep.errors import CheckpointError, InputError
from fewstep.files import read_json, replacing, write_json

KEEP = 2  # the newest, and one before it in case a disk damages the newest


def save(run: Path, step: int, modules: Mapping[str, nn.Module], optimizers: Any, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step, then drop all but the last `KEEP`.

    `modules`: file stem -> module. `optimizers`: nested lists and dicts of tensors and numbers.

    Raises:
        MachineError: the disk is full or can't be written to; the checkpoints before stay.
    """
    place = _folder(run) / f"step-{step:08d}"
    with replacing(place) as aside:
        aside.mkdir()
        for name, module in modules.items():
            save_model(module, str(aside / f"{name}.safetensors"))
        torch.save(optimizers, aside / "optimizers.pt")
        write_json(aside / "state.json", {**state, "step": step})
    for old in saved(run)[:-KEEP]:
        shutil.rmtree(old)
    return place


def saved(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the newest last."""
    return sorted(path for path in _folder(run).glob("step-*") if path.is_dir())


def clean(run: Path) -> None:
    """Delete what a killed process left half-written."""
    for aside in _folder(run).glob(".step-*"):
        shutil.rmtree(aside, ignore_errors=True)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save` was given as `state`, and the `step`.

    Raises:
        CheckpointError: it is not there or damaged.
    """
    try:
        state: dict[str, Any] = read_json(checkpoint / "state.json")
    except InputError as error:
        raise _damaged(checkpoint, str(error)) from None
    return state


def load(checkpoint: Path, modules: Mapping[str, nn.Module]) -> Any:
    """Fill the modules' weights in place; returns the optimizers' states.

    Raises:
        CheckpointError: a file is missing or damaged, or holds the weights of another model.
    """
    try:
        for name, module in modules.items():
            load_model(module, checkpoint / f"{name}.safetensors")
        return torch.load(checkpoint / "optimizers.pt", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(checkpoint, str(error).strip().splitlines()[0]) from error


def _folder(run: Path) -> Path:
    return Path(run) / "checkpoints"


def _damaged(checkpoint: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {checkpoint} can't be read ({why}); delete that folder to go on from the one before it."
    )
