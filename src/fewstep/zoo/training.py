"""What the zoo's recipes share: one run a folder, optimizers by the kind of weight, bfloat16 where it is quick."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.files import read_json, write_json
from fewstep.machine import Machine
from fewstep.models.load import load
from fewstep.muon import Muon


@dataclass(frozen=True)
class Course:
    """What a recipe's run can be told: an autoencoder, text encoders that read, and a teacher, one after the other."""

    scenes: int = 20_000
    vae_steps: int = 4000
    vae_batch: int = 32
    vae_kl: float = 1e-4
    text_steps: int = 1000
    text_batch: int = 128
    text_rate: float = 1e-3
    teacher_steps: int = 10_000
    teacher_batch: int = 64
    muon_rate: float = 5e-3  # the matrices of the transformer's blocks
    adam_rate: float = 1e-3  # everything else
    rate: float = 1.0  # times both of these
    prompt_dropout: float = 0.1  # how often a prompt is left out, which is what guidance needs
    align: float = 0.5  # weight of reading the scene from inside the transformer; fades out before the rates fall
    ema: float = 0.999
    save_every: int = 100
    compile: bool = True
    seed: int = 0
    start: str | None = None  # a pipeline to go on from: its decoder and transformer are trained further
    new_text: bool = False  # with `start`: text encoders with fresh weights learn to read in place of its own


def same_run(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, JSON values, into the run's folder.

    Raises:
        InputError: it holds a run with other settings.
    """
    kept = out / "settings.json"
    if kept.exists() and read_json(kept) != dict(settings):
        raise InputError(f"{kept} is of a run with other settings: take another folder, or delete it to start anew.")
    write_json(kept, dict(settings))


def matrices_in(transformer: nn.Module, blocks: str) -> list[Tensor]:
    """The matrices of those parts of a transformer whose names hold `blocks`."""
    return [p for name, p in transformer.named_parameters() if blocks in name and p.ndim == 2]


def kernels(network: nn.Module) -> list[Tensor]:
    """The kernels of its convolutions."""
    return [part.weight for part in network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the machine is quick at it."""
    return torch.autocast(device, torch.bfloat16, enabled=Machine.detect().missing("bf16") is None)


def optimizers(
    parts: Iterable[nn.Module], matrices: Sequence[Tensor], *, muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for those parameters of `parts` that are among the `matrices`, AdamW for all others."""
    chosen = {id(p) for p in matrices}
    rest = [p for part in parts for p in part.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=muon_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def go_on_from(pipe: DiffusionPipeline, source: str, fresh: Collection[str] = ()) -> None:
    """Gives `pipe` the networks of the pipeline at `source`, except the `fresh` ones.

    Raises:
        InputError: `source` is no pipeline, or one of another architecture.
    """
    begun = load(source)
    for name, own in pipe.components.items():
        if not isinstance(own, nn.Module) or name in fresh:
            continue
        other = getattr(begun, name, None)
        if not _fits(own, other):
            raise InputError(f"{source} is not of this model's architecture: its {name} differs.")
        pipe.register_modules(**{name: other})


def _fits(part: nn.Module, other: Any) -> bool:
    """Whether `other` is a module of the same weights, by name and shape."""
    if not isinstance(other, nn.Module):
        return False
    sizes = {key: value.shape for key, value in part.state_dict().items()}
    return sizes == {key: value.shape for key, value in other.state_dict().items()}
