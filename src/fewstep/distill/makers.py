"""How each method is made of what a run gives it; the keyword arguments are the method's options."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.lora import Adapter
from fewstep.distill.engine.roles import Swappable
from fewstep.distill.engine.state import take_averages
from fewstep.distill.losses import Distance
from fewstep.distill.methods.adversary import Adversary, Gan
from fewstep.distill.methods.apt import APT, Judge
from fewstep.distill.methods.backward import Rollout, Stepping
from fewstep.distill.methods.causal_kd import CausalKD, whole_chunks
from fewstep.distill.methods.consistency import Consistency, Shrinking
from fewstep.distill.methods.discriminator import FeatureDiscriminator, tap_paths
from fewstep.distill.methods.dmd import DMD
from fewstep.distill.methods.dmd2 import DMD2
from fewstep.distill.methods.f_distill import Divergence, FDistill
from fewstep.distill.methods.finetune import Finetune
from fewstep.distill.methods.flow_map import FlowMap
from fewstep.distill.methods.kd import KD
from fewstep.distill.methods.ladd import LADD
from fewstep.distill.methods.meanflow import MeanFlow
from fewstep.distill.methods.perceptual import Perceptual
from fewstep.distill.methods.progressive import Progressive
from fewstep.distill.methods.rcm import RCM, RandomRollout
from fewstep.distill.methods.reflow import Reflow
from fewstep.distill.methods.scm import SCM
from fewstep.distill.methods.scores import EVERYWHERE, Critic, Levels
from fewstep.distill.methods.self_forcing import ChunkRollout
from fewstep.distill.methods.sid import SiD
from fewstep.distill.methods.tcm import TCM
from fewstep.errors import InputError
from fewstep.models.causal import make_causal
from fewstep.models.window import Chunks


@dataclass(frozen=True, eq=False)
class Given:
    """What a method is made of.

    Attributes:
        teacher: guided, not trained.
        student: to be trained, one call a step; over `TwoTimes` for a card that says so.
        another: makes one more network to be trained, from the teacher's weights: a critic.
        times: of the student's steps, falling.
        finer: of twice as many steps, which hold the same.
        sampler: how the student is sampled.
        batch: an example of what it will be trained on.
        distance: the loss, where a method leaves it open.
        seed: of what is made at random.
        data: batches of real data, for a method of teacher paths that can use both; None: there is none.
    """

    teacher: Swappable
    student: Swappable
    another: Callable[[], Swappable]
    times: tuple[float, ...]
    finer: tuple[float, ...]
    sampler: Stepping
    batch: PathBatch
    distance: Distance = field(default_factory=Distance)
    seed: int = 0
    data: Callable[[torch.Generator], PathBatch] | None = None

    @property
    def critic(self) -> Critic:
        return Critic(self.another())

    def first(self) -> Swappable:
        """The student as it is before training."""
        return self.student.with_module(copy.deepcopy(self.student.module).eval().requires_grad_(False))

    def causal(self, chunks: Chunks) -> Swappable:
        """The student, which from now on sees only the past.

        Raises:
            InputError: it can't, or its clips are no whole chunks; or it shares its backbone with a teacher, who must
                see everything.
        """
        if isinstance(self.student.module, Adapter):
            raise InputError("A causal student can't share its teacher's backbone: take roles: copies.")
        whole_chunks(self.batch.states[:, -1], chunks)
        make_causal(self.student.module, chunks)
        return self.student

    def rollout(self, simulated: bool) -> Rollout:
        return Rollout(self.times, self.sampler, simulated)

    def gan(self, weight: float, kind: Adversary, r1: float, features: tuple[str, ...]) -> Gan:
        """Heads over what the teacher's modules of these names return; without names, its blocks."""
        x_t, t = self.batch.states[:, -1], self.times[0]
        heads = FeatureDiscriminator.over(self.teacher, x_t, t, self.batch.cond, paths=features, seed=self.seed)
        return Gan(heads, weight, kind=kind, r1=r1)


def kd(given: Given) -> KD:
    return KD(given.student, given.distance)


def perceptual(
    given: Given,
    *,
    weight: float = 0.1,
    levels: tuple[float, float] = (0.02, 0.6),
    features: tuple[str, ...] = (),
) -> Perceptual:
    names = features or tap_paths(given.teacher.module)
    return Perceptual(given.student, given.teacher, names, given.sampler, weight, Levels(*levels))


def causal_kd(
    given: Given, *, chunk: int = 1, window: int | None = None, sink: int = 0, past_noise: float = 0.1
) -> CausalKD:
    chunks = Chunks(chunk, window, sink)
    return CausalKD(given.causal(chunks), chunks, given.sampler, given.distance, past_noise, given.data)


def self_forcing(
    given: Given,
    *,
    chunk: int = 1,
    window: int | None = None,
    sink: int = 0,
    critic_steps: int = 5,
    guided: tuple[float, float] = EVERYWHERE,
) -> DMD2:
    chunks = Chunks(chunk, window, sink)
    rollout = ChunkRollout(given.times, chunks)
    student, critic = given.causal(chunks), given.critic
    return DMD2(student, given.teacher, critic, rollout, critic_steps, guided=guided).checked(given.batch)


def reflow(given: Given) -> Reflow:
    return Reflow(given.student, distance=given.distance)


def progressive(given: Given, *, renoise: bool = True) -> Progressive:
    return Progressive(given.student, given.teacher, given.finer, renoise, given.distance)


def finetune(given: Given) -> Finetune:
    return Finetune(given.student)


def consistency(
    given: Given, *, taught: bool = True, q: float = 2.0, k: float = 8.0, stages: int = 8, huber: float = 0.00054
) -> Consistency:
    teacher = given.teacher if taught else None
    return Consistency(given.student, teacher, Shrinking(q, k), stages, huber=huber)


def tcm(
    given: Given,
    *,
    taught: bool = True,
    q: float = 256.0,
    k: float = 8.0,
    boundary: float = 0.5,
    share: float = 0.25,
    weight: float = 0.1,
) -> TCM:
    second = consistency(given, taught=taught, q=q, k=k, stages=1)
    return TCM(second, given.first(), boundary, share, weight)


def scm(given: Given, *, taught: bool = True, sigma_data: float = 1.0, warmup: float = 0.1, c: float = 0.1) -> SCM:
    teacher = given.teacher if taught else None
    return SCM(given.student, teacher, sigma_data=sigma_data, warmup=warmup, c=c).checked(given.batch)


def meanflow(given: Given, *, taught: bool = True, p: float = 0.75, c: float = 1e-3) -> MeanFlow:
    return MeanFlow(given.student, given.teacher if taught else None, p=p, c=c).checked(given.batch)


def flow_map(given: Given, *, part: float = 0.25, huber: float = 0.0) -> FlowMap:
    return FlowMap(given.student, given.teacher, part=part, huber=huber)


def dmd2(
    given: Given, *, critic_steps: int = 5, simulated: bool = True, guided: tuple[float, float] = EVERYWHERE
) -> DMD2:
    rollout = given.rollout(simulated)
    return DMD2(given.student, given.teacher, given.critic, rollout, critic_steps, guided=guided).checked(given.batch)


def dmd(
    given: Given,
    *,
    critic_steps: int = 2,
    simulated: bool = True,
    guided: tuple[float, float] = EVERYWHERE,
    weight: float = 0.25,
) -> DMD:
    return DMD(dmd2(given, critic_steps=critic_steps, simulated=simulated, guided=guided), weight, given.distance)


def dmd2_gan(
    given: Given,
    *,
    critic_steps: int = 5,
    simulated: bool = True,
    guided: tuple[float, float] = EVERYWHERE,
    weight: float = 3e-3,
    kind: Adversary = "softplus",
    r1: float = 0.0,
    features: tuple[str, ...] = (),
) -> DMD2:
    matching = dmd2(given, critic_steps=critic_steps, simulated=simulated, guided=guided)
    return replace(matching, gan=given.gan(weight, kind, r1, features))


def f_distill(
    given: Given,
    *,
    divergence: Divergence = "js",
    critic_steps: int = 5,
    simulated: bool = True,
    guided: tuple[float, float] = EVERYWHERE,
    weight: float = 3e-3,
    r1: float = 0.0,
    features: tuple[str, ...] = (),
) -> FDistill:
    matching = dmd2(given, critic_steps=critic_steps, simulated=simulated, guided=guided)
    return FDistill(replace(matching, gan=given.gan(weight, "softplus", r1, features)), divergence)


def apt(
    given: Given,
    *,
    alone: float = 0.0,
    matching: float = 0.7,
    critic_steps: int = 1,
    guided: tuple[float, float] = EVERYWHERE,
    simulated: bool = True,
    feature: str = "",
    judge: str = "",
) -> APT:
    judging = Judge.over(given.another(), given.batch, feature, given.seed)
    if judge:
        take_averages(Path(judge), {"judge": judging.module})
    beside = dmd2(given, critic_steps=critic_steps, simulated=simulated, guided=guided) if matching else None
    return APT(given.student, judging, given.rollout(simulated), alone, beside, matching or 1.0)


def ladd(
    given: Given,
    *,
    discriminator_steps: int = 1,
    simulated: bool = False,
    weight: float = 1.0,
    kind: Adversary = "hinge",
    r1: float = 0.1,
    features: tuple[str, ...] = (),
) -> LADD:
    return LADD(given.student, given.gan(weight, kind, r1, features), given.rollout(simulated), discriminator_steps)


def sid(given: Given, *, critic_steps: int = 1, alpha: float = 1.0, simulated: bool = True) -> SiD:
    return SiD(given.student, given.teacher, given.critic, given.rollout(simulated), critic_steps, alpha)


def rcm(
    given: Given,
    *,
    critic_steps: int = 4,
    most: int = 4,
    warmup: float = 0.1,
    sigma_data: float = 1.0,
    scm_weight: float = 100.0,
    dmd_weight: float = 1.0,
) -> RCM:
    matching = DMD2(given.student, given.teacher, given.critic, RandomRollout(given.times[0], most), critic_steps)
    return RCM(scm(given, sigma_data=sigma_data, warmup=warmup), matching, scm_weight, dmd_weight)
