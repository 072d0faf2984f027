"""The guard: detectors by hand, verdicts as sentences, and a run that collapses, goes back, stops, and is resumed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from fewstep.distill.engine.checkpoint import saved
from fewstep.distill.engine.loop import Settings, Update, train
from fewstep.distill.watching.guard import (
    Guard,
    History,
    Measurement,
    Policy,
    Probe,
    Reference,
    decide,
    diversity,
    heard,
    measured,
    saturation,
    sizes,
    wrong,
)
from fewstep.errors import InputError

POLICY = Policy(every=10, patience=1)
SOUND = History(best=100)


def samples(spread=1.0, scale=1.0, conditions=6, draws=8, seed=0):
    """Gaussians about means of their own; `spread` is that within a condition."""
    draw = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(conditions, 1, 4, generator=draw)
    return scale * (means + spread * torch.randn(conditions, draws, 4, generator=draw))


def test_sizes_and_saturation_by_hand():
    x0 = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-5.0, 5.0], [1.0, -1.0]])
    torch.testing.assert_close(sizes(x0), torch.tensor([math.sqrt(12.5), 0, 5, 1], dtype=torch.float64))
    assert saturation(x0, reach=2.0) == 0.5
    assert saturation(x0, reach=5.0) == 0.0


def test_diversity_by_hand():
    """Two draws 2 apart at 0 and at 10: 2 within; across 10 twice, 8 and 12."""
    within, across = diversity(torch.tensor([[[-1.0], [1.0]], [[9.0], [11.0]]]))
    assert (within, across) == (pytest.approx(2.0), pytest.approx(10.0))


def test_the_teacher_itself_is_sound_and_what_is_wrong_shows_in_its_own_number():
    teacher = samples()
    reference = Reference.of(teacher)
    again = measured(5, samples(seed=0), reference)
    assert again == Measurement(5, saturation=0.0, within=pytest.approx(1), across=pytest.approx(1))
    narrow = measured(5, samples(spread=0.2), reference)
    assert narrow.within < 0.3 < 0.8 < narrow.across
    one_picture = measured(5, teacher[:1].expand(6, -1, -1), reference)
    assert one_picture.within > 0.6 > 0.5 > one_picture.across
    loud = measured(5, samples(scale=3.0), reference)
    assert loud.saturation > 0.5
    for broken in (math.nan, math.inf):
        x0 = teacher.clone()
        x0[0, 0, 0] = broken
        assert not measured(5, x0, reference).finite
    assert not measured(5, teacher, reference, score=math.nan).finite


def test_few_of_the_teachers_own_samples_are_beyond_its_reach():
    reference, draw = Reference.of(samples(draws=32)), torch.Generator().manual_seed(9)
    means = samples(spread=0.0, draws=32)
    others = (means + torch.randn(means.shape, generator=draw) for _ in range(8))
    shares = [measured(0, x0, reference).saturation for x0 in others]
    assert max(shares) < 0.05


@pytest.mark.parametrize(
    ("measurement", "says"),
    [
        (Measurement(7, saturation=0.31), "31% of the samples are larger than any of the teacher's, where 20% may be"),
        (
            Measurement(7, within=0.3),
            "samples of one condition are 0.30 times as far apart as the teacher's, where 0.5",
        ),
        (Measurement(7, across=0.6), "samples of different conditions are 0.60 times as far apart"),
        (Measurement(7, finite=False, within=9.0), "numbers are no longer finite"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_numbers(measurement, says):
    verdict = decide(POLICY, SOUND, measurement)
    assert verdict.action == "back"
    assert verdict.reason.startswith(f"At step 7 {says}")
    assert verdict.reason.endswith(": back to step 100, at 0.5 of the rate.")
    assert "\n" not in verdict.reason


def test_several_faults_are_one_sentence_too():
    verdict = decide(POLICY, SOUND, Measurement(7, saturation=0.5, within=0.1))
    assert " may be and samples of one condition are 0.10 times" in verdict.reason


def test_the_critics_loss_is_held_against_its_start():
    policy = Policy(window=10, critic=4.0)
    history = History()
    for loss in [1.0] * 10 + [2.0] * 30:
        history = heard(policy, history, loss)
    assert history.start == 1.0
    assert 1.9 < history.running < 2.0
    assert not wrong(policy, history, Measurement(0))
    for loss in [9.0] * 30:
        history = heard(policy, history, loss)
    (lost,) = wrong(policy, history, Measurement(0))
    assert "the critic's loss is 8.7" in lost
    assert "times the 1 it started with" in lost
    for loss in [0.01] * 100:
        history = heard(policy, history, loss)
    assert len(wrong(policy, history, Measurement(0))) == 1  # all samples alike
    early = heard(policy, History(), 50.0)
    assert not wrong(policy, early, Measurement(0))


def test_the_start_is_a_plain_mean_and_only_the_critic_is_heard():
    guard = Guard(Probe(lambda module: samples(), Reference(1, 1, 1)), Policy(window=4))
    history = History()
    for loss in (1.0, 2.0, 3.0, 6.0, 100.0):
        history = guard.heard(history, {"student": 1e9, "critic": loss})
    assert history.start == pytest.approx(3.0)
    assert guard.heard(history, {"student": 1.0}) is history


def test_the_best_is_the_newest_sound_step_or_the_one_of_the_lowest_score():
    history = History()
    for step in (10, 20):
        verdict = decide(POLICY, history, Measurement(step))
        assert (verdict.action, verdict.history.best) == ("keep", step)
        history = verdict.history
    history = decide(POLICY, History(), Measurement(10, score=2.0)).history
    worse = decide(POLICY, history, Measurement(20, score=2.5))
    assert (worse.action, worse.history.best, worse.history.score) == ("go on", 10, 2.0)
    better = decide(POLICY, worse.history, Measurement(30, score=1.5))
    assert (better.action, better.history.best, better.history.score) == ("keep", 30, 1.5)
    verdict = decide(replace(POLICY, score=1.5), better.history, Measurement(40, score=2.3))
    assert verdict.action == "back"
    assert "the score is 2.3, more than 1.5 times the best, 1.5" in verdict.reason


def test_nothing_is_done_before_it_was_sound_once_but_for_nan():
    start = decide(POLICY, History(), Measurement(10, within=0.0))
    assert (start.action, start.history) == ("go on", History())
    assert start.reason.endswith("it has not been sound yet.")
    broken = decide(POLICY, History(), Measurement(10, finite=False))
    assert broken.action == "stop"
    assert "no sound step to go back to" in broken.reason


def test_patience_waits_for_a_second_bad_measurement_in_a_row():
    policy, bad = replace(POLICY, patience=2), Measurement(7, within=0.1)
    first = decide(policy, SOUND, bad)
    assert (first.action, first.history.bad) == ("go on", 1)
    assert "1 of 2 such measurements" in first.reason
    assert decide(policy, decide(policy, first.history, Measurement(8)).history, bad).action == "go on"
    assert decide(policy, first.history, bad).action == "back"
    assert decide(policy, SOUND, Measurement(7, finite=False)).action == "back"


def test_it_goes_back_so_often_and_stops():
    history, actions = SOUND, []
    for _ in range(4):
        verdict = decide(POLICY, history, Measurement(200, within=0.1))
        actions.append((verdict.action, verdict.history.rate))
        history = verdict.history
    assert actions == [("back", 0.5), ("back", 0.25), ("back", 0.125), ("stop", 0.125)]
    assert history.stopped == verdict.reason
    assert "it went back 3 times, so training stops" in verdict.reason
    assert not decide(replace(POLICY, backs=0), SOUND, Measurement(2, within=0.1)).history.backs


def test_a_probe_measures_in_evaluation_without_a_gradient_and_leaves_the_mode():
    net, seen = nn.Linear(4, 4), []

    def sample(module):
        seen.append((module.training, torch.is_grad_enabled()))
        return module(samples())

    reference = Reference.of(net(samples()).detach())
    guard = Guard(Probe(sample, reference, score=lambda x0: float(x0.abs().mean())), POLICY)
    found = guard.measure(10, {"student": net.train()})
    assert seen == [(False, False)]
    assert net.training
    assert (found.step, found.saturation, found.within) == (10, 0.0, pytest.approx(1.0, abs=1e-5))
    assert found.score > 0
    assert [step for step in range(1, 31) if guard.due(step)] == [10, 20, 30]


class Scale(nn.Module):
    """A student whose samples are the teacher's times a number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Collapsing:
    """A method that pulls the scale to `goal`, under noise of the batch and of the step's generator."""

    def __init__(self, goal=100.0, broken=()):
        self.net, self.goal, self.broken = Scale(), goal, broken

    @property
    def modules(self):
        return {"student": self.net}

    @property
    def frozen(self):
        return {}

    def updates(self, batch, generator):
        noise = batch + float(torch.randn((), generator=generator))
        factor = math.nan if batch in self.broken else 1.0
        yield Update("student", self.net, factor * (self.net.scale - self.goal - noise).square())


SETTINGS = Settings(steps=200, rate=0.02, warmup=0, decay=0.0, ema=0.0, save_every=7)
GROWS = replace(POLICY, backs=2)


def guard(policy=GROWS):
    return Guard(Probe(lambda net: net.scale * samples(), Reference.of(samples())), policy)


def go(folder, method=None, settings=SETTINGS, policy=GROWS, **kwargs):
    method = method or Collapsing()
    return train(method, kwargs.pop("batches", float), folder, settings, guard=guard(policy), show=False, **kwargs)


def verdicts(folder):
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


def logged(folder):
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["rate"]) for line in lines]


def test_a_run_that_saturates_goes_back_at_lower_rates_and_stops(tmp_path):
    asked, seen = [], []

    def batches(number):
        asked.append(number)
        return float(number % 7)

    def watch(step, averages):
        seen.append((step, float(averages["student"].scale)))

    done = go(tmp_path, batches=batches, watch=watch)
    said = verdicts(tmp_path)
    assert [one["action"] for one in said if one["action"] != "keep"] == ["back", "back", "stop"]
    assert [one["rate"] for one in said if one["action"] != "keep"] == [0.5, 0.25, 0.25]
    assert all("larger than any of the teacher's" in one["reason"] for one in said if one["action"] != "keep")
    assert (done.finished, done.stopped) == (False, said[-1]["reason"])
    assert "it went back 2 times, so training stops" in done.stopped
    assert len(set(asked)) == len(asked) > done.step  # what is drawn again is drawn anew
    # What is handed out is the best, and it is sound.
    assert done.best == max(one["step"] for one in said if one["action"] == "keep") < done.step
    assert float(done.averages["student"].scale) == [scale for step, scale in seen if step == done.best][-1]
    assert not wrong(GROWS, SOUND, guard().measure(done.best, done.averages))
    # The log is that of the steps which count, each once, and the last of them at a quarter of the rate.
    lines = logged(tmp_path)
    assert [step for step, _, _ in lines] == list(range(1, done.step + 1))
    assert [lines[0][2], lines[-1][2]] == [pytest.approx(0.02), pytest.approx(0.005)]
    # And it stays stopped.
    assert replace(go(tmp_path), averages={}) == replace(done, averages={})


def test_killed_and_resumed_anywhere_it_is_the_same_run(tmp_path):
    whole, killed = go(tmp_path / "whole"), 0
    for calls in (9, 8, 12, 8, 9, 15, 8, 9):
        left = [calls]

        def watch(step, averages, left=left):
            left[0] -= 1
            if not left[0]:
                raise TimeoutError  # as a kill does, it leaves the loop without saving

        try:
            go(tmp_path / "parts", watch=watch)
        except TimeoutError:
            killed += 1
    parts = go(tmp_path / "parts")
    assert killed >= 4
    assert verdicts(tmp_path / "parts") == verdicts(tmp_path / "whole")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert replace(parts, averages={}) == replace(whole, averages={})
    assert torch.equal(parts.averages["student"].scale, whole.averages["student"].scale)


def test_a_lower_rate_saves_a_run_that_only_went_too_fast(tmp_path):
    """Around its goal the scale walks by the rate: at 0.5 it leaves what the guard allows, at a part of it no more."""
    settings = replace(SETTINGS, steps=120, rate=0.5, warmup=60)
    done = go(tmp_path, Collapsing(goal=1.0), settings, replace(POLICY, backs=8), batches=lambda number: 0.0)
    actions = [one["action"] for one in verdicts(tmp_path)]
    assert "back" in actions
    assert (done.finished, done.stopped, done.best) == (True, None, 120)
    assert actions[-1] == "keep"


def test_a_gradient_that_is_not_finite_is_a_reason_to_go_back(tmp_path):
    method = Collapsing(broken=(24.0,))
    done = go(tmp_path, method, replace(SETTINGS, steps=30, rate=1e-4))
    said = verdicts(tmp_path)
    assert [(one["step"], one["action"]) for one in said] == [
        (10, "keep"),
        (20, "keep"),
        (25, "back"),
        (30, "keep"),
    ]
    assert "At step 25 numbers are no longer finite: back to step 20" in said[2]["reason"]
    assert (done.finished, done.best) == (True, 30)
    early = go(tmp_path / "early", Collapsing(broken=(4.0,)), replace(SETTINGS, steps=30))
    assert "no sound step to go back to" in early.stopped
    assert (early.step, early.best, early.finished) == (5, None, False)


def test_the_best_is_kept_on_disk_and_what_came_after_it_is_not(tmp_path):
    patient = replace(GROWS, patience=3, backs=1)  # the best gets older than the newest two
    done = go(tmp_path, policy=patient, settings=replace(SETTINGS, save_every=2))
    names = [path.name for path in saved(tmp_path)]
    assert f"step-{done.best:08d}" == names[0]
    assert len(names) == 3
    assert done.step - done.best >= 30


def test_a_run_with_another_policy_is_another_run(tmp_path):
    go(tmp_path, settings=replace(SETTINGS, steps=10))
    with pytest.raises(InputError, match="holds a run with guard ="):
        go(tmp_path, settings=replace(SETTINGS, steps=10), policy=replace(GROWS, factor=0.9))


def test_history_is_plain_json():
    history = heard(Policy(), replace(SOUND, score=0.1, stopped="At step 1 …"), 1 / 3)
    assert History(**json.loads(json.dumps(asdict(history)))) == history


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("every", 0),
        ("saturation", 2.0),
        ("critic", 1.0),
        ("score", 0.5),
        ("patience", 0),
        ("factor", 0.0),
        ("backs", -1),
    ],
)
def test_bad_policies_are_one_sentence(field, value):
    with pytest.raises(InputError, match=f"^The '{field}' of the collapse guard must be"):
        replace(Policy(), **{field: value})


def test_samples_that_tell_nothing_are_refused():
    for x0 in (torch.zeros(4, 3), torch.zeros(1, 4, 3), torch.zeros(4, 1, 3)):
        with pytest.raises(InputError, match="'x0' of diversity"):
            diversity(x0)
    with pytest.raises(InputError, match="'within' of the teacher's samples must be above 0"):
        Reference.of(samples(spread=0.0))
