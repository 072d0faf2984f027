"""Checkpoints of a training run: one folder a step, complete or absent, whatever kills the process.

`run/checkpoints/step-00001000/` holds weights and their averages in safetensors, the optimizers' states, and
`state.json`. A folder is written aside and renamed to a name that was free: at no moment is none whole.

A sharded training (`sharding`) writes the parts of each process to `shards/` instead, by torch's distributed checkpoint
in its safetensors format; either kind loads on any number of processes. Nothing here unpickles more than tensors.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from fewstep.distill.engine.parallel import Parallel
from fewstep.distill.engine.sharding import placed, release
from fewstep.errors import CheckpointError, InputError, MachineError
from fewstep.files import read_json, replacing, write_json

KEEP = 2  # the newest, and one before it in case a disk damages the newest
OPTIMIZERS, SHARDS = "optimizers.pt", "shards"
SCALAR = "()"  # ends the name of a number, which is stored as a vector of one: shards have no others

Optimizers = Mapping[str, Sequence[Optimizer]]  # by the module's name


def save(
    run: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Optimizers,
    state: Mapping[str, Any],
    *,
    keep: Collection[int] = (),
    parallel: Parallel | None = None,
) -> Path:
    """Write the checkpoint of a step, then drop all but the last `KEEP` and those of the steps `keep`.

    `modules`: file stem -> module. All processes must call it; the first writes, or each its shards.

    Raises:
        MachineError: the disk is full or can't be written to; the checkpoints before stay.
    """
    parallel = parallel or Parallel()
    place, sharded = folder(run, step), parallel.kind == "fsdp"
    with ExitStack() as stack:
        aside = stack.enter_context(replacing(place)) if parallel.first else place
        if parallel.first:
            aside.mkdir()
        if sharded:
            _write_shards(Path(parallel.from_first(str(aside))) / SHARDS, modules, optimizers)
        elif parallel.first:
            for name, module in modules.items():
                save_model(module, str(aside / f"{name}.safetensors"))
            states = {name: [one.state_dict() for one in ones] for name, ones in (optimizers or {}).items()}
            torch.save(states, aside / OPTIMIZERS)
        if parallel.first:
            write_json(aside / "state.json", {**state, "step": step})
    if parallel.first:
        kept = {folder(run, one) for one in keep}
        for old in saved(run)[:-KEEP]:
            if old not in kept:
                _drop(old)
    parallel.wait()
    return place


def folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return _all(run) / f"step-{step:08d}"


def saved(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the newest last."""
    return sorted(path for path in _all(run).glob("step-*") if path.is_dir())


def clean(run: Path) -> None:
    """Delete what a killed process left half-written."""
    for aside in _all(run).glob(".step-*"):
        shutil.rmtree(aside, ignore_errors=True)


def go_back(run: Path, step: int, state: Mapping[str, Any]) -> None:
    """Make the checkpoint of a step the newest, with another `state`: first the state, then the later ones go.

    Killed in between, the run goes on from a later one, and comes to the same decision again.
    """
    write_json(folder(run, step) / "state.json", {**state, "step": step})
    for later in reversed(saved(run)):
        if later.name > folder(run, step).name:
            _drop(later)


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


def load(checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers | None = None) -> None:
    """Fill the modules' weights and the optimizers' states in place.

    Raises:
        CheckpointError: a file is missing or damaged, or holds the weights of another model.
    """
    release(modules.values())
    read = _read_shards if (checkpoint / SHARDS).is_dir() else _read_files
    try:
        read(checkpoint, modules, optimizers or {})
    except (SafetensorError, RuntimeError, OSError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise _damaged(checkpoint, (str(error).strip() or type(error).__name__).splitlines()[0]) from error
    except CheckpointException as error:  # not an Exception: it would pass through every handler
        raise _damaged(checkpoint, _why(error)) from error


def _read_files(checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> None:
    for name, module in modules.items():
        file = checkpoint / f"{name}.safetensors"
        if not isinstance(module, FSDPModule):
            load_model(module, file)
            continue
        whole = load_file(file)
        for key, value in module.state_dict().items():
            value.copy_(placed(whole[key], value))
    if not optimizers:
        return
    states = torch.load(checkpoint / OPTIMIZERS, weights_only=True)
    for name, ones in optimizers.items():
        for optimizer, state in zip(ones, states[name], strict=True):
            _fill(optimizer, state["state"])


def _write_shards(place: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> None:
    release(modules.values())
    tensors = _weights(modules)
    for prefix, optimizer in _named(optimizers):
        for i, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                name = f"{prefix}/{i}/{key}"
                tensors |= {name: value} if value.dim() else {name + SCALAR: value.reshape(1)}
    try:
        save_shards(tensors, storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
    except CheckpointException as error:
        raise MachineError(f"Could not write {place}: {_why(error)}.") from error


def _read_shards(checkpoint: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers) -> None:
    """Tensors of the right shapes are made, and filled: each process reads the parts that it needs.

    A state's tensors, but for single numbers, have the shapes of their parameters.
    """
    reader = HuggingFaceStorageReader(str(checkpoint / SHARDS))
    stored = list(reader.read_metadata().state_dict_metadata)
    tensors, states = _weights(modules), {}
    for prefix, optimizer in _named(optimizers):
        for i, p in enumerate(_parameters(optimizer)):
            for name in (name for name in stored if name.startswith(f"{prefix}/{i}/")):
                states[name] = torch.empty(1) if name.endswith(SCALAR) else torch.empty_like(p)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant: nobody has to be asked
        load_shards(tensors | states, storage_reader=reader, no_dist=True)
    for prefix, optimizer in _named(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in states.items():
            if name.startswith(f"{prefix}/"):
                number, key = name.removeprefix(f"{prefix}/").split("/")
                one = value[0] if key.endswith(SCALAR) else value
                state.setdefault(int(number), {})[key.removesuffix(SCALAR)] = one
        _fill(optimizer, state)


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{stem}/{name}": value for stem, module in modules.items() for name, value in module.state_dict().items()}


def _named(optimizers: Optimizers) -> list[tuple[str, Optimizer]]:
    return [(f"{name}.optimizer.{i}", one) for name, ones in optimizers.items() for i, one in enumerate(ones)]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _fill(optimizer: Optimizer, state: Mapping[int, Mapping[str, Tensor]]) -> None:
    """By the parameters' numbers; settings such as the rate are the run's and not the checkpoint's."""
    own = _parameters(optimizer)
    parts = {i: {key: placed(value, own[i]) for key, value in entry.items()} for i, entry in state.items()}
    optimizer.load_state_dict({"state": parts, "param_groups": optimizer.state_dict()["param_groups"]})


def _drop(checkpoint: Path) -> None:
    """Renamed first: half of a checkpoint must not look like one."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    os.rename(checkpoint, hidden)
    shutil.rmtree(hidden)


def _all(run: Path) -> Path:
    return Path(run) / "checkpoints"


def _why(error: CheckpointException) -> str:
    return next((str(failure[0]) for failure in error.failures.values()), "an unknown failure").splitlines()[0]


def _damaged(checkpoint: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {checkpoint} can't be read ({why}); delete that folder to go on from the one before it."
    )
