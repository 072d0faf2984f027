"""How to train: the values of a run, with their ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fewstep.distill.engine import optimizers
from fewstep.distill.engine.precision import Precision, check_precision
from fewstep.errors import InputError, bad_value

OWNER = "the training loop"
UNLIKE = ("save_every", "compile", "checkpointing", "accumulate")  # may differ between the parts of one run


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: optimizer steps of the whole run.
        rate: the highest learning rate.
        rates: that of some modules by name, as of a critic that must keep up with its student; the others take `rate`.
        warmup: steps over which the rate rises from 0.
        decay: the part of the run, at its end, over which the rate falls linearly to 0; 1 is all of it.
        optimizer: a name in `optimizers.OPTIMIZERS`.
        betas: of AdamW; DMD2 and most methods with a critic take (0, 0.99).
        weight_decay: decoupled, per unit of rate.
        clip: the largest norm of a module's gradient.
        ema: decay of the average of the weights; it starts lower: (1 + n)/(10 + n) after n updates.
        accumulate: batches whose gradients make one step, on each process: the memory of one, the effect of all.
        precision: "bf16" computes the forward passes under autocast; weights and losses stay float32.
        compile: compile the modules (slow first steps, then faster ones).
        checkpointing: keep no activations inside of blocks, compute them again in the backward pass: a third more work
            for much less memory.
        save_every: steps between checkpoints.
        seed: of every random draw.

    Raises:
        InputError: a value out of its range.
    """

    steps: int
    rate: float = 3e-4
    rates: Mapping[str, float] = field(default_factory=dict)
    warmup: int = 50
    decay: float = 1.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    precision: Precision = "fp32"
    compile: bool = False
    checkpointing: bool = False
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        rules: dict[str, tuple[bool, str]] = {
            "steps": (self.steps >= 1, "at least 1"),
            "rate": (self.rate > 0, "above 0"),
            "rates": (all(rate > 0 for rate in self.rates.values()), "above 0, each"),
            "warmup": (self.warmup >= 0, "0 or more"),
            "decay": (0 <= self.decay <= 1, "in [0, 1]"),
            "optimizer": (self.optimizer in optimizers.OPTIMIZERS, f"one of {', '.join(optimizers.OPTIMIZERS)}"),
            "betas": (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "0 or above"),
            "clip": (self.clip > 0, "above 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "save_every": (self.save_every >= 1, "at least 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(bad_value(name, OWNER, rule, getattr(self, name)))
        check_precision(self.precision)

    def check_names(self, modules: Iterable[str]) -> None:
        """Raises InputError where `rates` names a module that is not trained."""
        known = list(modules)
        if unknown := [name for name in self.rates if name not in known]:
            raise InputError(bad_value("rates", OWNER, f"of {', '.join(known)}", unknown[0]))

    def rate_at(self, step: int, module: str | None = None) -> float:
        """The learning rate of a step, counted from 0: of a module by name, or of those without a rate of their own."""
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        falling = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        highest = self.rate if module is None else self.rates.get(module, self.rate)
        return highest * min(rising, falling)
