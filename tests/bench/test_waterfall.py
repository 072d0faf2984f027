"""The rows of a waterfall: which are measured, how the stack grows, and what the report says of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fewstep.bench import waterfall
from fewstep.bench.candidates import Candidate
from fewstep.bench.waterfall import Plan, measure
from fewstep.errors import InputError


def plan(new_toy, **changes) -> Plan:
    values = {
        "title": "t",
        "model": "toy",
        "new_pipe": new_toy,
        "candidates": (
            Candidate("baseline", "baseline"),
            Candidate("4 steps", "steps", call={"num_inference_steps": 4}),
            Candidate("no guidance", "alone", call={"guidance": False}),
        ),
        "prompts": ("a", "b", "c"),
        "batch": 2,
        "rounds": (2, 2),
    }
    return Plan(**(values | changes))


class Told:
    """A session that runs nothing: tricks in `helpful` help, those in `refused` can't be opened."""

    def __init__(self, helpful: set[str], refused: set[str]) -> None:
        self.helpful, self.refused = helpful, refused
        self.records = {"student": object()}
        self.added: list[Candidate] = []

    def add(self, candidate: Candidate) -> bool:
        self.added.append(candidate)
        return not self.refused & set(candidate.recipe)

    def helps(self, name: str, without: str) -> bool:
        return name.rsplit(" + ", 1)[1] in self.helpful


def test_the_stack_grows_by_one_trick_a_row_and_leaves_out_what_does_not_help(new_toy) -> None:
    student = Candidate("student", "alone", recipe=("few_step",))
    told = Told(helpful={"a", "d"}, refused={"c"})
    kept = waterfall._grow(
        plan(new_toy, candidates=(Candidate("baseline", "baseline"), student), growth=("a", "b", "c", "d"),
             grows_from="student", finals=(("1-step", ("other",), ("x",)),)), told)  # fmt: skip
    assert [c.name for c in told.added] == [
        "student + a", "student + a + b", "student + a + c", "student + a + d", "1-step + a + d", "1-step + a + d + x",
    ]  # fmt: skip
    assert [c.recipe for c in told.added] == [
        ("few_step", "a"), ("few_step", "a", "b"), ("few_step", "a", "c"), ("few_step", "a", "d"), ("other", "a", "d"),
        ("other", "a", "d", "x"),
    ]  # fmt: skip
    assert [c.grows_from for c in told.added] == ["student", *["student + a"] * 3, None, "1-step + a + d"]
    assert kept == {"student + a": True, "student + a + b": False, "student + a + d": True}


def test_without_the_student_the_stack_grows_from_the_baseline(new_toy) -> None:
    told = Told(helpful={"a"}, refused=set())
    told.records = {}
    waterfall._grow(plan(new_toy, growth=("a",), grows_from="student"), told)
    assert [(c.name, c.recipe) for c in told.added] == [("baseline + a", ("a",))]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_a_measured_plan_is_a_report(new_toy, side_by_side) -> None:
    told: list[str] = []
    what = plan(new_toy, side_by_side=side_by_side)
    measured = measure(what, told.append)
    report = measured.report
    assert [row.name for row in report.rows] == ["baseline", "4 steps", "no guidance"]
    assert [row.nfe for row in report.rows] == [40, 8, 20]
    assert (report.samples, report.rounds, report.batch) == (4, 2, 2)
    assert report.baseline.speedup == 1
    assert report.baseline.psnr == 100
    assert report.noise.repeat_psnr == 100
    assert report.row("4 steps").psnr < 100
    assert all(len(row.runs) == 2 and row.seconds > row.denoiser_seconds for row in report.rows)
    assert all(row.peak_memory_mb > 2.2 for row in report.rows)  # the weights alone are 2.25 MB
    assert {name: shown.shape for name, shown in measured.pictures.items()} == dict.fromkeys(
        ("baseline", "4 steps", "no guidance"), (2, 16, 16, 3)
    )
    assert len(told) <= what.steps


def test_a_tasks_oracle_judges_the_rows(new_toy) -> None:
    task = SimpleNamespace(
        name="grey",
        features=lambda pictures: np.asarray(pictures).reshape(len(pictures), -1)[:, :3],
        reference=lambda n, seed: np.random.default_rng(seed).random((n, 16, 16, 3)),
        accuracy=lambda asks, pictures: float(np.mean([ask == "yes" for ask, _ in zip(asks, pictures, strict=True)])),
        correct=lambda asks, pictures: [ask == "yes" for ask, _ in zip(asks, pictures, strict=True)],
    )
    report = measure(plan(new_toy, task=task, asks=("yes", "no", "yes", "yes"))).report
    assert report.task == "grey"
    assert report.baseline.prompt_accuracy == 0.75
    assert report.baseline.shown == (True, False)
    assert 0 < report.baseline.diversity < 1
    assert report.baseline.frechet > 0
    assert report.noise.real_frechet is not None
    assert report.noise.accuracy_step == 0.25


def test_prompts_begin_again_with_other_noise(new_toy) -> None:
    batches = plan(new_toy).batches()
    assert [batch.prompts for batch in batches] == [("a", "b"), ("c", "a")]
    assert len({seed for batch in batches for seed in batch.seeds}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch": 0}, "batch"), ({"rounds": (0, 1)}, "rounds"), ({"rounds": (3, 2)}, "rounds"),
     ({"prompts": ()}, "at least one prompt"), ({"prompts": ("a", 3)}, "Got 3")],
)  # fmt: skip
def test_what_can_not_be_measured_is_refused(new_toy, change, message) -> None:
    with pytest.raises(InputError, match=message):
        plan(new_toy, **change)


def test_an_interrupt_closes_everything(new_toy, toys) -> None:
    def stop(doing: str) -> None:
        if doing.startswith("round"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan(new_toy), stop)
    assert all("forward" not in toy.transformer.__dict__ for toy in toys)


def test_only_the_best_solver_has_a_row() -> None:
    from fewstep.zoo.shapes.pipeline import build_pipeline

    def small():
        pipe = build_pipeline()
        call = type(pipe).__call__

        def short(self, **kwargs):
            return call(self, height=64, width=64, max_sequence_length=24, **kwargs)

        pipe.__class__ = type("FluxPipeline", (type(pipe),), {"__call__": short})
        return pipe

    base = Candidate("baseline", "baseline", call={"num_inference_steps": 3})
    report = measure(
        Plan("t", "random weights", small, (base,), ("a red ring",), solver_steps=2, batch=1, rounds=(1, 1))
    ).report
    assert set(report.solvers_tried) == {"dpmpp_2m", "unipc", "heun"}
    best = min(report.solvers_tried, key=report.solvers_tried.__getitem__)
    assert [row.name for row in report.rows] == ["baseline", f"2 steps, best solver ({best})"]
    assert report.rows[1].solver == best


def test_the_command_is_the_one_that_was_given(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/bin/fewstep", "demo", "--out", "my report"])
    assert waterfall.command() == "fewstep demo --out 'my report'"
    monkeypatch.setattr("sys.argv", ["benchmarks/overhead.py"])
    assert waterfall.command() == "python benchmarks/overhead.py"
