"""APT on points of three classes: the judge must know real points and their class, and a student must follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from fewstep.distill.data.samples import PathBatch
from fewstep.distill.engine.loop import Settings, train
from fewstep.distill.engine.roles import Network, student_of
from fewstep.distill.methods.apt import APT, Judge, wronged
from fewstep.distill.methods.backward import Rollout
from fewstep.distill.methods.dmd2 import DMD2
from fewstep.distill.methods.scores import Critic, Levels
from fewstep.errors import InputError
from tests.distill.methods.matching_toys import has_gradient
from tests.distill.toys import CLASSES, MIXTURE, fitted, net, sliced_distance

ONE = Rollout((1.0, 0.0), "euler")


def points(of: Tensor, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return MIXTURE.means[of] + MIXTURE.stds[of, None] * torch.randn(len(of), 2, generator=draw)


def batch(seed: int, size: int = 64) -> PathBatch:
    """Pairs, whose second is of the class after the first's."""
    first = torch.randint(CLASSES, (size // 2,), generator=torch.Generator().manual_seed(seed))
    of = torch.stack([first, (first + 1) % CLASSES], 1).flatten()
    return PathBatch(points(of, seed)[:, None], (0.0,), of)


def method(matching: bool = False, **values: object) -> APT:
    student = fitted()
    beside = DMD2(student, fitted(), Critic(student_of(fitted())), ONE, critic_steps=1) if matching else None
    return APT(student, Judge.over(student_of(fitted()), batch(0), "layers.2"), ONE, matching=beside, **values)


def answered(student: Network, cond: Tensor) -> tuple[float, float]:
    """How often one step from noise comes out nearest to its own class, and the distance to real points."""
    noise = torch.randn(len(cond), 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        made = noise - student(noise, 1.0, cond)
    near = torch.cdist(made, MIXTURE.means).argmin(1)
    return float((near == cond).float().mean()), sliced_distance(made, points(cond, 5))


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "matching"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[APT, Network]:
    one = method(request.param, alone=1 / 6)
    rates = {"judge": 4e-3, **({"critic": 4e-3} if request.param else {})}
    settings = Settings(240, rate=2e-3, rates=rates, betas=(0.0, 0.99), warmup=5, ema=0.95)
    averages = train(one, batch, tmp_path_factory.mktemp("apt"), settings, show=False).averages
    return one, one.student.with_module(averages["student"])


def test_a_student_that_knew_no_classes_answers_in_one_step(done: tuple[APT, Network]) -> None:
    cond = torch.arange(CLASSES).repeat(200)
    before, after = answered(fitted(), cond), answered(done[1], cond)
    assert before[0] < 0.5
    assert after[0] > (0.85 if done[0].matching is None else 0.7)  # scores that know no classes hold it back
    assert after[1] < 0.5 * before[1]


def test_the_judge_knows_what_is_right(done: tuple[APT, Network]) -> None:
    cond, t = torch.arange(CLASSES), torch.full((CLASSES,), 0.1)
    with torch.no_grad():
        logits = torch.stack([done[0].judge(MIXTURE.means, t, cond.roll(shift)) for shift in range(CLASSES)])
        nowhere = done[0].judge(torch.full((CLASSES, 2), 4.0), t, cond)
    assert (logits[0] > logits[1:].amax(0) + 1).all()
    assert (logits[0] > nowhere + 1).all()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, ["student", "judge"]),
        ({"moves": False, "matching": True}, ["judge"]),
        ({"matching": True}, ["critic", "student", "judge"]),
    ],
)
def test_each_loss_trains_its_own_module(values: dict[str, bool], names: list[str]) -> None:
    one, seen = method(**values), []
    for update in one.updates(batch(1), torch.Generator().manual_seed(0)):
        seen.append(update.name)
        update.loss.backward()
        assert [name for name, module in one.modules.items() if has_gradient(module)] == [update.name]
        for module in one.modules.values():
            module.zero_grad()
    assert seen == names


def test_the_pull_is_the_slope_of_the_judge_where_a_sample_is_wrong() -> None:
    """A judge that is a plane: the same slope everywhere, at all noise levels near 0."""
    plane = torch.tensor([3.0, -4.0])
    one = replace(method(), levels=Levels(0.0, 1e-6))
    object.__setattr__(one, "judge", Plane(one.judge, plane))
    made, said = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(-9, 9, 16)
    wanted = -torch.sigmoid(-(made @ plane + said))[:, None] * plane / plane.square().mean().sqrt()
    torch.testing.assert_close(one.pull(made, said, torch.Generator()), wanted, rtol=1e-3, atol=1e-4)
    assert wanted[0].norm() > 100 * wanted[-1].norm()  # what is right already is left alone


@dataclass(frozen=True, eq=False)
class Plane:
    """logit = slope · x_t, plus what the condition says."""

    judge: Judge
    slope: Tensor

    @property
    def module(self) -> nn.Module:
        return self.judge.module

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return x_t @ self.slope + cond


def test_with_matching_the_scores_pull_too() -> None:
    one, made, cond = method(matching=True), batch(3).states[:, -1], batch(3).cond
    one = replace(one, matching=replace(one.matching, critic=Critic(Network(net(1), one.student.schedule))))
    pull = one.pull(made, cond, torch.Generator().manual_seed(1))
    alone = replace(one, matching=None).pull(made, cond, torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(1)
    replace(one, matching=None).pull(made, cond, draw)  # the judge's draws come first
    torch.testing.assert_close(pull - alone, 0.7 * one.matching.matched(made, cond, draw)[2])
    assert (pull - alone).abs().mean() > 1e-2


def test_the_judge_is_alone_at_first() -> None:
    one = method(alone=0.3)
    assert [one.at(step, 10).moves for step in (0, 2, 3, 9)] == [False, False, True, True]
    assert method(alone=0.5).at(1, 2).moves  # as in a rehearsal
    assert method().at(0, 10).moves


def test_wrong_samples_have_their_neighbours_condition_or_are_blends() -> None:
    given = batch(2, 256)
    x0 = given.states[:, -1]
    x, cond = wronged(x0, given.cond, torch.Generator().manual_seed(3))
    own, other = x0[:128], x0[:128].reshape(-1, 2, 2).flip(1).reshape(-1, 2)
    same = (x == own).all(1)
    between = (x - own).norm(dim=1) / (other - own).norm(dim=1)
    assert len(x) == 128
    assert 0.6 < same.float().mean() < 0.9
    assert (cond[same] == given.cond[:128].reshape(-1, 2).flip(1).flatten()[same]).all()
    assert (cond[~same] == given.cond[:128][~same]).all()
    assert ((between[~same] > 0.29) & (between[~same] < 0.71)).all()


def test_without_conditions_only_blends_are_wrong() -> None:
    x0 = batch(2).states[:, -1]
    x, cond = wronged(x0, None, torch.Generator())
    assert cond is None
    assert not (x == x0[: len(x)]).all(1).any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: method(alone=-0.1), "'alone' of APT must be in [0, 1]"),
        (lambda: method(alone=1.1), "'alone' of APT must be in [0, 1]"),
        (lambda: method(weight=-1), "'matching' of APT must be 0 or above. Got -1"),
        (lambda: wronged(torch.zeros(1, 2), None, torch.Generator()), "'batch' of APT must be at least 2"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert said in str(refused.value)
