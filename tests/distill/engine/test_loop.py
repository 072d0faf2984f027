"""The loop: resumed equals uninterrupted to the bit, also after kill -9; averages, clipping, Ctrl-C, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.distill.engine.checkpoint import saved
from fewstep.distill.engine.loop import Settings, Update, train
from fewstep.errors import CheckpointError, FewstepError, InputError

SETTINGS = Settings(steps=6, rate=1e-2, warmup=2, save_every=3)


@dataclass(eq=False)
class Fit:
    """Fits y = 2x under dropout: uses the batch, the step's generator and the global random state."""

    net: nn.Module
    scale: float = 1.0

    @property
    def modules(self):
        return {"student": self.net}

    @property
    def frozen(self):
        return {}

    def updates(self, batch, generator):
        x = batch + 0.1 * torch.randn(batch.shape, generator=generator)
        yield Update("student", self.net, self.scale * (self.net(x) - 2 * x).square().mean())


def fit(scale=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Fit(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.SiLU(), nn.Linear(16, 4)), scale)


def batches(step):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def losses(folder: Path):
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]["student"], line["gradient"]["student"], line["rate"]) for line in lines]


def run(folder, settings=SETTINGS, **kwargs):
    return train(fit(), batches, folder, settings, show=False, **kwargs)


def stop_at(step):
    def watch(now, averages):
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": "muon"},
        {"accumulate": 2, "betas": (0.0, 0.99), "weight_decay": 0.1, "rates": {"student": 0.1}},
    ],
)
def test_ctrl_c_and_resume_equals_a_run_without_to_the_bit(tmp_path, changed):
    settings = replace(SETTINGS, **changed, save_every=100)
    whole = run(tmp_path / "whole", settings)
    first = run(tmp_path / "parts", settings, watch=stop_at(3))
    assert (first.step, first.finished) == (3, False)
    second = run(tmp_path / "parts", settings)
    assert (second.step, second.finished, whole.finished) == (6, True, True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for a, b in zip(second.averages["student"].parameters(), whole.averages["student"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_method_is_told_of_the_step_and_resumes_at_it(tmp_path):
    told = []

    @dataclass(eq=False)
    class Warming(Fit):
        """Counts more as the run goes on, as methods with a warm-up do."""

        def at(self, step, steps):
            told.append((step, steps))
            return replace(self, scale=(step + 1) / steps)

    def go(folder, **kwargs):
        return train(Warming(fit().net), batches, folder, SETTINGS, show=False, **kwargs)

    whole, first, second = go(tmp_path / "whole"), go(tmp_path / "parts", watch=stop_at(4)), go(tmp_path / "parts")
    assert told == 2 * [(step, 6) for step in range(6)]
    assert (whole.step, first.step, second.step) == (6, 4, 6)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    train(fit(scale=1 / 6), batches, tmp_path / "plain", SETTINGS, show=False)
    assert losses(tmp_path / "plain")[0] == losses(tmp_path / "whole")[0]
    assert losses(tmp_path / "plain")[1] != losses(tmp_path / "whole")[1]


def test_kill_9_and_resume_equals_a_run_without_to_the_bit(tmp_path):
    settings = replace(SETTINGS, steps=400)
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_loop import *
run(Path({str(tmp_path / "killed")!r}), replace(SETTINGS, steps=400), watch=lambda step, averages: time.sleep(0.01))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    log, deadline = tmp_path / "killed" / "losses.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = log.read_text().count("\n")
    assert 20 < before < 400
    run(tmp_path / "killed", settings)
    run(tmp_path / "whole", settings)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    done = run(tmp_path)
    again = run(tmp_path)
    assert again.finished
    assert torch.equal(done.averages["student"][0].weight, again.averages["student"][0].weight)
    assert len(losses(tmp_path)) == 6


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, replace(SETTINGS, save_every=1))
    assert [path.name for path in saved(tmp_path)] == ["step-00000005", "step-00000006"]


def test_a_half_written_checkpoint_is_ignored_and_cleaned(tmp_path):
    run(tmp_path, watch=stop_at(3))
    (tmp_path / "checkpoints" / ".step-00000004.abc").mkdir()
    with (tmp_path / "losses.jsonl").open("a") as log:
        log.write('{"step": 4, "loss"')
    assert run(tmp_path).finished
    assert [line[0] for line in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["student.safetensors", "optimizers.pt", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    run(tmp_path)
    path = saved(tmp_path)[-1] / name
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(CheckpointError, match=r"step-00000006 can't be read .*delete that folder"):
        run(tmp_path)


def test_other_settings_do_not_go_on_with_a_run(tmp_path):
    run(tmp_path, watch=stop_at(3), facts={"method": "kd"})
    with pytest.raises(InputError, match=r"rate = 0\.01, this one has 0\.5"):
        run(tmp_path, replace(SETTINGS, rate=0.5), facts={"method": "kd"})
    with pytest.raises(InputError, match="method = 'kd', this one has None"):
        run(tmp_path)


def test_averages_follow_the_weights(tmp_path):
    distiller, seen = fit(), []
    average = {}

    def watch(step, averages):
        decay = min(0.999, (1 + step) / (10 + step))
        weight = distiller.net[0].weight.detach()
        average["w"] = decay * average.get("w", start) + (1 - decay) * weight
        seen.append(float((average["w"] - averages["student"][0].weight).abs().max()))

    start = distiller.net[0].weight.detach().clone()
    train(distiller, batches, tmp_path, SETTINGS, watch=watch, show=False)
    assert max(seen) < 1e-6
    assert not torch.equal(average["w"], distiller.net[0].weight)


def test_gradients_are_clipped(tmp_path):
    distiller = fit(scale=1e6)
    start = distiller.net[0].weight.detach().clone()
    settings = replace(SETTINGS, steps=1, clip=1e-12, warmup=0, decay=0.0)
    train(distiller, batches, tmp_path, settings, show=False)
    assert losses(tmp_path)[0][2] > 1e3
    moved = (distiller.net[0].weight - start).abs().max()
    assert moved < 1e-3 * settings.rate * 100  # Adam's epsilon rules when the gradient is that small


@dataclass(eq=False)
class Plain(Fit):
    """The same without random numbers: a loss that is a mean over the batch."""

    def updates(self, batch, generator):
        yield Update("student", self.net, (self.net(batch) - 2 * batch).square().mean())


def plain():
    net = fit().net
    net[1] = nn.Identity()
    return Plain(net)


def test_two_batches_a_step_are_one_batch_of_both(tmp_path):
    asked = []

    def halves(number):
        asked.append(number)
        return batches(number // 2)[4 * (number % 2) :][:4]

    one = train(plain(), batches, tmp_path / "one", SETTINGS, show=False).averages["student"]
    two = train(plain(), halves, tmp_path / "two", replace(SETTINGS, accumulate=2), show=False).averages["student"]
    assert asked == list(range(12))
    for a, b in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_batch_of_a_step_has_draws_of_its_own(tmp_path):
    drawn = []

    class Drawing(Fit):
        def updates(self, batch, generator):
            drawn.append(float(torch.rand((), generator=generator)))
            yield from super().updates(batch, generator)

    train(Drawing(fit().net), batches, tmp_path, replace(SETTINGS, accumulate=3, steps=2), show=False)
    assert len(set(drawn)) == 6


@dataclass(eq=False)
class Turns(Plain):
    """A critic's update, then the student's, noting when each is computed and with which weights of the critic."""

    def __post_init__(self):
        self.critic, self.seen = nn.Linear(4, 4), []

    @property
    def modules(self):
        return {"student": self.net, "critic": self.critic}

    def updates(self, batch, generator):
        for name, module in (("critic", self.critic), ("student", self.net)):
            self.seen.append((name, float(self.critic.weight.detach().sum())))
            yield Update(name, module, (module(batch) - 2 * batch).square().mean())


def test_an_update_of_all_batches_is_applied_before_the_next_is_computed(tmp_path):
    method = Turns(fit().net)
    train(method, batches, tmp_path, replace(SETTINGS, steps=1, accumulate=2), show=False)
    assert [name for name, _ in method.seen] == ["critic", "critic", "student", "student"]
    (_, before), (_, still), (_, after), (_, after_too) = method.seen
    assert before == still != after == after_too


def test_batches_that_give_different_updates_are_refused(tmp_path):
    class Odd(Turns):
        def updates(self, batch, generator):
            order = list(super().updates(batch, generator))
            yield from order if float(batch[0, 0]) > 0 else order[:1]

    number = next(n for n in range(9) if float(batches(2 * n)[0, 0]) * float(batches(2 * n + 1)[0, 0]) < 0)
    with pytest.raises(FewstepError, match=r"step 1 must give the same updates .* Got '?\w+'? of one and"):
        train(
            Odd(fit().net),
            lambda n: batches(2 * number + n),
            tmp_path,
            replace(SETTINGS, accumulate=2),
            show=False,
        )


def test_a_module_has_its_own_rate(tmp_path):
    method = Turns(fit().net)
    before = {name: next(module.parameters()).detach().clone() for name, module in method.modules.items()}
    settings = replace(SETTINGS, steps=1, warmup=0, rate=1e-3, rates={"critic": 1e-2})
    train(method, batches, tmp_path, settings, show=False)
    moved = {name: (next(method.modules[name].parameters()) - before[name]).abs().max().item() for name in before}
    assert moved == {"student": pytest.approx(1e-3, rel=1e-3), "critic": pytest.approx(1e-2, rel=1e-3)}
    with pytest.raises(InputError, match=r"'rates' of the training loop must be of student, critic. Got 'critics'"):
        train(method, batches, tmp_path / "x", replace(settings, rates={"critics": 1.0}), show=False)


def test_another_effective_batch_is_another_run(tmp_path):
    run(tmp_path, watch=stop_at(3))
    with pytest.raises(InputError, match="batches a step = 1, this one has 2"):
        run(tmp_path, replace(SETTINGS, accumulate=2))


def test_activation_checkpointing_is_refused_where_a_network_has_none(tmp_path):
    with pytest.raises(InputError, match="'student' of this method, Sequential, has no enable_gradient_checkpointing"):
        run(tmp_path, replace(SETTINGS, checkpointing=True))


def test_a_method_must_give_updates(tmp_path):
    class Nothing(Fit):
        def updates(self, batch, generator):
            yield from ()

    with pytest.raises(FewstepError, match="Nothing gave nothing to minimise at step 1"):
        train(Nothing(fit().net), batches, tmp_path, SETTINGS, show=False)


def test_the_rate_rises_and_falls():
    settings = Settings(steps=100, rate=1.0, warmup=9, decay=0.5)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(FewstepError, match=r"step 1 of .* take a lower rate"):
        train(fit(scale=float("nan")), batches, tmp_path, SETTINGS, show=False)


@pytest.mark.usefixtures("able_machine")
def test_bfloat16_computes_the_forward_only(tmp_path):
    kinds = []

    class Looking(Fit):
        def updates(self, batch, generator):
            kinds.append(self.net(batch).dtype)
            yield from super().updates(batch, generator)

    distiller = Looking(fit().net)
    train(distiller, batches, tmp_path, replace(SETTINGS, precision="bf16"), show=False)
    assert kinds == [torch.bfloat16] * 6
    assert distiller.net[0].weight.dtype == torch.float32


def test_the_callers_random_state_is_kept(tmp_path):
    before = torch.get_rng_state()
    run(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_two_modules_are_updated_in_turn_and_do_not_leak_gradients(tmp_path):
    """As in methods with a critic: the second loss reaches through the first module, which must not feel it."""

    class Pair(Fit):
        @property
        def modules(self):
            return {"critic": self.net[0], "student": self.net[3]}

        def updates(self, batch, generator):
            yield Update("student", self.net[3], self.net(batch).square().mean())
            assert all(p.grad is None for p in self.net.parameters())
            yield Update("critic", self.net[0], (self.net[0](batch) * 0).sum())

    distiller = Pair(fit().net)
    start = distiller.net[0].weight.detach().clone()
    train(distiller, batches, tmp_path, SETTINGS, show=False)
    assert torch.equal(start, distiller.net[0].weight)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("rate", 0.0),
        ("rates", {"critic": 0.0}),
        ("decay", 2),
        ("optimizer", "sgd"),
        ("betas", (0.9, 1.0)),
        ("weight_decay", -0.1),
        ("ema", 1.0),
        ("accumulate", 0),
        ("precision", "fp8"),
        ("clip", 0),
    ],
)
def test_bad_settings_are_one_sentence(field, value):
    with pytest.raises(InputError, match=f"^The '{field}' of .* must be"):
        replace(SETTINGS, **{field: value})
