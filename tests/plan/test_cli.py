"""The command, as a person and as a program would read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.plan import LABEL
from tests.cli.conftest import Fewstep

PLAN = ("plan", "parallel")


def test_a_plan_for_people(fewstep: Fewstep) -> None:
    ran = fewstep(*PLAN, "wan2.1-14b", "--machine", "8xH100", "--rows", 3)
    assert ran.code == 0
    assert "guidance 2" in ran.out
    assert "Predicted best of" in ran.out
    assert LABEL in ran.err
    assert "more layouts" in ran.err


def test_a_plan_for_programs(fewstep: Fewstep) -> None:
    size = ("--steps", 20, "--height", 512, "--width", 768, "--batch", 2)
    plan = fewstep(*PLAN, "flux.1-dev", "--machine", "2xL20", *size, "--json").json
    assert plan["label"] == LABEL
    assert (plan["steps"], plan["image tokens"], plan["batch"]) == (20, 32 * 48, 2)
    times = [row["predicted s"] for row in plan["layouts"] if row["fits"]]
    assert times == sorted(times)
    for row in plan["layouts"]:
        assert sum(row["seconds"].values()) == pytest.approx(row["predicted s"], rel=0.01)
        assert sum(row["bytes sent in a step"].values()) / 1e9 == pytest.approx(row["GB sent"], rel=0.01)
        assert sum(row["bytes of memory"].values()) / 1e9 == pytest.approx(row["memory GB"], rel=0.01)
    assert plan["why"].startswith(f"Predicted best of {len(plan['layouts'])}: {plan['layouts'][0]['layout']}")


def test_options_change_the_plan(fewstep: Fewstep, tmp_path: Path) -> None:
    def best(*options: Any) -> Any:
        return fewstep(*PLAN, "flux.1-dev", "-m", "4xH100", *options, "--json").json["layouts"][0]

    usual = best()
    assert best("--eager")["predicted s"] > usual["predicted s"]
    assert best("--encode-elsewhere")["memory GB"] < usual["memory GB"]
    assert best("--branches", 2)["layout"].startswith("guidance 2")
    assert "ulysses" not in best("--without", "ulysses")["layout"]


def test_a_zoo_model_is_planned(fewstep: Fewstep) -> None:
    plan = fewstep(*PLAN, "zoo:moving-shapes", "-m", "2xRTX4090", "--frames", 9, "--json").json
    assert plan["frames"] == 9
    assert plan["layouts"][0]["layout"].startswith("guidance 2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("flux.1-dev", "-m", "8xPotato"), "of the form 8xH100"),
        (("flux.1-dev", "-m", "9xH100"), "write 2x8xH100"),
        (("flux.1-dev", "-m", "7xH100", "--without", "ring"), "can't be shared among 7 devices without ring"),
        (("flux.1-dev", "-m", "2xH100", "--without", "vae"), "'--without'"),
        (("flux.2-dev", "-m", "1xRTX4090"), "No layout of flux.2-dev fits"),
        (("flux.1-dev", "-m", "2xH100", "--height", 1000), "a multiple of 16"),
        (("flux.1-dev", "-m", "2xH100", "--steps", 0), "from 1 on"),
        (("flux.1-dev", "-m", "2xH100", "--frames", 5), "makes pictures"),
        (("flux.1-dev", "-m", "2xH100", "--rows", 0), "'--rows'"),
        (("flux.1-dev", "-m", "2xH100", "--devices", "none.yaml"), "no file none.yaml"),
        (("unicorn", "-m", "2xH100"), "flux.1-dev"),
        (("zoo:unicorn", "-m", "2xH100"), "The zoo has no 'unicorn'"),
    ],
)
def test_bad_input_is_one_sentence(fewstep: Fewstep, options: tuple[object, ...], said: str) -> None:
    assert said in fewstep(*PLAN, *options).refusal
