"""A judge: how well a sample answers its condition, told from what right and wrong conditions look like.

It is a copy of the teacher's denoiser, which reads samples and conditions already, with a head on its last block. It
learns from real data that comes in pairs: samples 2i and 2i + 1 are each right under their own condition and wrong
under the other's. Any data will do; what teaches most are near misses, which differ in one thing. A blend of the two,
the ghost of a thing that a student of few steps draws where it can't decide, is wrong too.

    folder = judge_of(pipe, "pictures", "runs/judge")
    distill(pipe, Job(…, ladder=[Rung("dmd2", options={"judge": str(folder)})]))

What it does there is in `methods.reward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.distill.data.captions import Source, source_of
from fewstep.distill.data.encode import encode
from fewstep.distill.data.samples import PathBatch, PathSet
from fewstep.distill.data.seeds import generator as seeded
from fewstep.distill.engine.loop import Settings, Update, train
from fewstep.distill.engine.roles import Swappable, device_of, student_of
from fewstep.distill.methods.backward import noised
from fewstep.distill.methods.discriminator import tap_paths, tapped, tokens
from fewstep.distill.methods.scores import Levels
from fewstep.errors import CheckpointError, InputError, bad_value
from fewstep.files import read_json, replacing, write_json
from fewstep.models.trace import trace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WEIGHTS, FACTS = "judge.safetensors", "judge.json"
LEVELS = Levels(0.02, 0.7)  # above, nobody can tell
BLENDED = 0.25  # of the wrong samples: blends of a pair
HELD, HELD_PART = 512, 8  # samples that it is tested on and never sees, and at most one part in so many
TESTED_AT = 0.1  # noise level
LEAST = 0.6  # of the pairs told right; below it has learnt nothing that a student should follow


class Head(nn.Module):
    """What is made of a feature: (batch, tokens, channels) -> logits (batch,). One token may be enough to be wrong, and
    how many there are of a thing is a sum: so it sees mean, largest and mean square over the tokens."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.SiLU())
        self.whole = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, feature: Tensor) -> Tensor:
        each = self.token(feature)
        logits: Tensor = self.whole(torch.cat([each.mean(1), each.amax(1), each.square().mean(1)], 1))
        return logits[:, 0]


@dataclass(frozen=True, eq=False)
class Judge:
    """A denoiser of its own, the name of the module whose output it goes by, and a head on that."""

    denoiser: Swappable
    feature: str
    head: Head

    @property
    def module(self) -> nn.Module:
        """All of its weights."""
        return nn.ModuleList([self.denoiser.module, self.head])

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Logits (batch,) that x_t (batch, …), noised to t (batch,), answers its condition."""
        (found,) = tapped(self.denoiser, (self.feature,), x_t, t, cond)[1]
        logits: Tensor = self.head(tokens(found.float()))
        return logits.float()

    @classmethod
    def over(cls, teacher: Swappable, batch: PathBatch, feature: str = "", seed: int = 0) -> Judge:
        """One that has learnt nothing: a float32 copy of the teacher, without its guidance, and a new head on what its
        module of this name returns, by default its last block."""
        own, x0 = student_of(teacher), batch.states[:, -1]
        feature = feature or tap_paths(own.module, 1)[0]
        with torch.no_grad():
            (found,) = tapped(own, (feature,), x0, own.schedule.end, batch.cond)[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(own, feature, Head(tokens(found).shape[2]).to(x0.device))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Samples in twos, each next to its near miss: `x` (batch, …) under `cond` is right, `wrong` under `wrong_cond` is
    not."""

    x: Tensor
    cond: Any
    wrong: Tensor
    wrong_cond: Any


def pairs_of(latents: PathSet, samples: int, size: int, seed: int, device: torch.device) -> Callable[[int], Pairs]:
    """Step -> its batch of `size` samples, pairs together, of the first so many of the set."""

    def batch(step: int) -> Pairs:
        draw = seeded(seed, "pairs", step)
        firsts = 2 * torch.randint(samples // 2, (size // 2,), generator=draw)
        rows = torch.stack([firsts, firsts + 1], 1).flatten()
        blended = torch.rand(size, generator=draw) < BLENDED
        strength = 0.3 + 0.4 * torch.rand(size, generator=draw)
        right = latents.read(rows.tolist(), device)
        x = right.states[:, -1]
        other = x.reshape(-1, 2, *x.shape[1:]).flip(1).reshape(x.shape)
        shape = (-1, *[1] * (x.dim() - 1))
        mixed = torch.lerp(x, other, strength.to(x).view(shape))
        wrong_cond = latents.read(torch.where(blended, rows, rows ^ 1).tolist(), device).cond
        return Pairs(x, right.cond, torch.where(blended.to(x.device).view(shape), mixed, x), wrong_cond)

    return batch


@dataclass(frozen=True, eq=False)
class JudgeLessons:
    """Cross-entropy of right and wrong, both noised alike."""

    judge: Judge

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"judge": self.judge.module}

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def updates(self, batch: Pairs, generator: torch.Generator) -> Iterator[Update]:
        schedule = self.judge.denoiser.schedule
        t, noise = LEVELS.draw(schedule, len(batch.x), generator), int(torch.randint(2**31, (), generator=generator))

        def logits(x: Tensor, cond: Any) -> Tensor:
            return self.judge(noised(schedule, x, t, torch.Generator().manual_seed(noise)), t, cond)

        right, wrong = logits(batch.x, batch.cond), logits(batch.wrong, batch.wrong_cond)
        yield Update("judge", self.judge.module, F.softplus(-right).mean() + F.softplus(wrong).mean())


def judge_of(pipe: DiffusionPipeline, data: Source | Path | str, out: Path | str, **lessons: Any) -> Path:
    """Teach one for a pipeline, on data as `captions.source_of` takes it; returns its folder. See `teach_judge`.

    Raises:
        InputError: data that can't be read, and as there.
        TraceError: the pipeline's denoiser can't be found.
    """
    source = source_of(data) if isinstance(data, str | Path) else data
    traced = trace(pipe, prompt=next(iter(source.read(range(1)))).caption)
    return teach_judge(traced, encode(pipe, traced, source, Path(out) / "latents"), out, **lessons)


def teach_judge(
    teacher: Swappable,
    latents: PathSet,
    out: Path | str,
    *,
    steps: int = 1000,
    batch: int = 48,
    rate: float = 6e-4,
    feature: str = "",
    seed: int = 0,
    show: bool = True,
    **training: Any,
) -> Path:
    """Teach one on real data in pairs; returns its folder, `out/judge`. The same call goes on where it stopped.

    Raises:
        InputError: too few samples, an odd batch, `out` holds another run, or it has learnt too little to be of use.
        KeyboardInterrupt: Ctrl-C; all is saved.
    """
    if batch < 2 or batch % 2:
        raise InputError(bad_value("batch", "a judge", "even, as samples come in pairs", batch))
    held = 2 * (min(HELD, len(latents) // HELD_PART) // 2)
    if held < 2:
        raise InputError(f"A judge needs {2 * HELD_PART} samples or more. {latents.folder} has {len(latents)}.")
    device, learnt = device_of(teacher.module), len(latents) - held
    learnt -= learnt % 2
    judge = Judge.over(teacher, latents.read([0, 1], device), feature, seed)
    settings = Settings(steps=steps, seed=seed, rate=rate, **{"optimizer": "muon", "ema": 0.995, **training})
    facts = {"feature": judge.feature, "batch": batch, "data": latents.fingerprint}
    lessons, batches = JudgeLessons(judge), pairs_of(latents, learnt, batch, seed, device)
    done = train(lessons, batches, Path(out), settings, facts=facts, title="judge", show=show)
    if not done.finished:
        raise KeyboardInterrupt
    judge.module.load_state_dict(done.averages["judge"].state_dict())
    right = tested(judge, latents, range(learnt, learnt + held), batch)
    if right < LEAST:
        raise InputError(
            f"The judge tells right conditions from wrong ones for {right:.0%} of {held} samples that it has not seen: "
            "a student would learn nothing from it. Teach it for more steps, or on more data."
        )
    folder = Path(out) / "judge"
    with replacing(folder) as aside:
        aside.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous() for name, value in judge.module.state_dict().items()}
        save_file(weights, aside / WEIGHTS)
        write_json(aside / FACTS, {"right": right, "tested_on": held, "steps": steps, **facts})
    return folder


@torch.no_grad()
def tested(judge: Judge, latents: PathSet, samples: range, batch: int) -> float:
    """How often it tells a sample's own condition from that of its pair: the first has the larger logit."""
    device, schedule = device_of(judge.head), judge.denoiser.schedule
    t = schedule.time_of(torch.tensor(TESTED_AT / (1 - TESTED_AT), dtype=torch.float64))
    right = 0
    for start in range(samples.start, samples.stop, batch):
        rows = list(range(start, min(start + batch, samples.stop)))
        own, other = latents.read(rows, device), latents.read([row ^ 1 for row in rows], device)
        x_t = noised(schedule, own.states[:, -1], t, seeded("judge", "test", start))
        times = t.expand(len(rows))
        right += int((judge(x_t, times, own.cond) > judge(x_t, times, other.cond)).sum())
    return right / len(samples)


def judge_facts(folder: Path | str) -> dict[str, Any]:
    """What a judge's folder says of it: how often it was `right`, and with what it was taught.

    Raises:
        InputError: there is no judge in it.
    """
    path = Path(folder) / FACTS
    if not path.exists():
        raise InputError(f"{folder} holds no judge: it has no {FACTS}. 'fewstep distill judge' makes one.")
    facts: dict[str, Any] = read_json(path)
    return facts


def load_judge(folder: Path | str, teacher: Swappable, batch: PathBatch) -> Judge:
    """What `teach_judge` wrote, over the teacher that it was taught with; `batch`: any of its samples.

    Raises:
        InputError: there is none.
        CheckpointError: it is of another network, or damaged.
    """
    judge = Judge.over(teacher, batch, judge_facts(folder)["feature"])
    try:
        judge.module.load_state_dict(load_file(Path(folder) / WEIGHTS))
    except Exception as error:
        raise CheckpointError(f"The judge in {folder} does not fit this teacher, or is damaged: {error}") from None
    judge.module.eval().requires_grad_(False)
    return judge
