"""A judge on points of three classes: told which class a point is of, it must tell right from wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.samples import Index, PathSet
from fewstep.distill.data.store import Sizes, fill, samples_of
from fewstep.distill.engine.roles import Network
from fewstep.distill.job import Job, Rung
from fewstep.distill.judge import Pairs, load_judge, pairs_of, teach_judge
from fewstep.distill.ladder import Domain, Ladder
from fewstep.errors import CheckpointError, InputError
from tests.distill.toys import CLASSES, MIXTURE, net

LESSONS = {"feature": "layers.2", "batch": 64, "rate": 3e-3, "optimizer": "adamw", "warmup": 5, "show": False}


def classes(samples: int) -> torch.Tensor:
    """Of pairs, whose second is of the class after the first's."""
    first = torch.randint(CLASSES, (samples // 2,), generator=torch.Generator().manual_seed(1))
    return torch.stack([first, (first + 1) % CLASSES], 1).flatten()


def latents(folder: Path, samples: int = 800, told: bool = True) -> PathSet:
    """Points with their class; not `told`: with any class."""
    of, draw = classes(samples), torch.Generator().manual_seed(2)
    x0 = MIXTURE.means[of] + MIXTURE.stds[of, None] * torch.randn(samples, 2, generator=draw)
    said = of if told else torch.randint(CLASSES, (samples,), generator=draw)

    def make(rows: range) -> dict[str, torch.Tensor]:
        return samples_of({"": said[rows.start : rows.stop]}, x0[rows.start : rows.stop, None])

    fill(folder, Index("latents", (0.0,), {"prompts": samples, "shape": [2]}), make, Sizes(64, 256), show=False)
    return PathSet(folder, torch.zeros(1, dtype=torch.long))


def teacher() -> Network:
    return Network(net(), Schedule.flow())


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PathSet]:
    place = tmp_path_factory.mktemp("judge")
    data = latents(place / "latents")
    return teach_judge(teacher(), data, place / "run", steps=150, **LESSONS), data


def test_it_tells_samples_that_it_has_not_seen(taught):
    folder, data = taught
    facts = json.loads((folder / "judge.json").read_text())
    assert facts["right"] > 0.9
    assert facts["tested_on"] == 100
    judge, cond = load_judge(folder, teacher(), data.read([0, 1])), torch.arange(CLASSES)
    logits = torch.stack(
        [judge(MIXTURE.means, torch.full((CLASSES,), 0.05), cond.roll(shift)) for shift in range(CLASSES)]
    )
    assert (logits[0] > 0).all()
    assert (logits[1:] < 0).all()


def test_pairs_stay_together_and_blends_are_wrong_for_their_own_class(taught):
    _, data = taught
    batch = pairs_of(data, 700, 256, seed=3, device=torch.device("cpu"))(5)
    other = batch.x.reshape(-1, 2, 2).flip(1).reshape(-1, 2)
    same, between = (batch.wrong == batch.x).all(1), (batch.wrong - batch.x).norm(dim=1) / (other - batch.x).norm(dim=1)
    assert 0.6 < same.float().mean() < 0.9
    assert (batch.wrong_cond[~same] == batch.cond[~same]).all()
    assert (batch.wrong_cond[same] == batch.cond.reshape(-1, 2).flip(1).flatten()[same]).all()
    assert ((between[~same] > 0.29) & (between[~same] < 0.71)).all()


class Killed(Exception):
    """What a lesson does not know of."""


def test_a_lesson_that_was_killed_goes_on_to_the_same_judge(taught, tmp_path, monkeypatch):
    folder, data = taught

    def until(step: int) -> Pairs:
        if step == 100:
            raise Killed
        return pairs_of(data, 700, 64, 0, torch.device("cpu"))(step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("fewstep.distill.judge.pairs_of", lambda *given: until)
        teach_judge(teacher(), data, tmp_path, steps=150, save_every=60, **LESSONS)
    assert not (tmp_path / "judge").exists()
    again = teach_judge(teacher(), data, tmp_path, steps=150, save_every=60, **LESSONS)
    assert (again / "judge.safetensors").read_bytes() == (folder / "judge.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run with rate"):
        teach_judge(teacher(), data, tmp_path, steps=150, **{**LESSONS, "rate": 1e-3})


def test_what_can_be_no_judge_is_refused(taught, tmp_path):
    folder, data = taught
    with pytest.raises(InputError, match="'batch' of a judge must be even"):
        teach_judge(teacher(), data, tmp_path / "odd", steps=1, **{**LESSONS, "batch": 3})
    with pytest.raises(InputError, match="A judge needs 16 samples or more"):
        teach_judge(teacher(), latents(tmp_path / "few", 8), tmp_path / "small", steps=1, **LESSONS)
    with pytest.raises(InputError, match="holds no judge"):
        load_judge(tmp_path, teacher(), data.read([0]))
    with pytest.raises(CheckpointError, match="does not fit this teacher, or is damaged"):
        load_judge(folder, Network(net(width=16), Schedule.flow()), data.read([0, 1]))
    with pytest.raises(InputError, match="a student would learn nothing from it"):
        teach_judge(teacher(), latents(tmp_path / "any", told=False), tmp_path / "blind", steps=20, **LESSONS)


def test_a_student_follows_it_and_ends_where_its_class_is(taught, tmp_path):
    """Teacher and critic know no classes; only the judge can tell the student which of the three it was asked for."""
    folder, _ = taught
    prompts = [i % CLASSES for i in range(64)]
    domain = Domain(Network(net(), Schedule.flow()), prompts, lambda some: torch.tensor(list(some)), (2,))
    right = {}
    for name, options in {"without": {}, "with": {"judge": str(folder), "judge_weight": 3.0}}.items():
        training = {"rate": 3e-3, "warmup": 5, "ema": 0.9}
        rung = Rung("dmd2", 60, 64, training=training, options={"critic_steps": 1, **options})
        job = Job((), tmp_path / name, steps=1, ladder=[rung], samples=64, check_every=0, show_every=0)
        student = domain.teacher.with_module(Ladder(domain, job).climb(show=False))
        cond = torch.arange(CLASSES).repeat(100)
        noise = torch.randn(len(cond), 2, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            made = noise - student(noise, 1.0, cond)
        right[name] = float((torch.cdist(made, MIXTURE.means).argmin(1) == cond).float().mean())
    assert right["with"] > right["without"] + 0.2, right
