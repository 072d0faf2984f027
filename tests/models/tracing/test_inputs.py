"""How x_t stands in an argument, and where the prediction stands in an output: found, and made again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.models.tracing.inputs import Scaling, find_inputs
from fewstep.models.tracing.leaves import get
from fewstep.models.tracing.outputs import find_outputs

X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
REST = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))

ARGUMENTS: dict[str, Any] = {
    "as it is": X,
    "repeated": torch.cat([X, X, X]),
    "cast": X.to(torch.bfloat16),
    "with an axis of 1": X.unsqueeze(2),
    "a list of samples": list(X),
    "a list of samples with an axis": list(torch.cat([X, X]).unsqueeze(2)),
    "joined before": torch.cat([torch.cat([X, X]), REST], dim=1),
    "joined after": torch.cat([REST, torch.cat([X, X])], dim=1),
}


@pytest.mark.parametrize("form", ARGUMENTS)
def test_x_is_found_and_the_argument_made_again(form: str) -> None:
    value = ARGUMENTS[form]
    args = {"other": torch.randn(2, 4, 6), "deep": {"x": value}, "embeds": torch.randn(2, 7, 6)}
    ((found, scale),) = find_inputs(args, X)
    assert found.path == ("deep", "x")
    assert scale == pytest.approx(1.0, abs=1e-2 if form == "cast" else 1e-6)
    again = found.build(X, 0.5, found.rest(get(args, found.path)), found.dtype)
    if isinstance(value, Tensor):
        assert torch.equal(again, value)
    else:
        assert all(torch.equal(a, b) for a, b in zip(again, value, strict=True))


def test_a_scale_is_measured() -> None:
    ((_, scale),) = find_inputs({"x": torch.cat([X, X]) * 0.25}, X)
    assert scale == pytest.approx(0.25)


@pytest.mark.parametrize("other", [X + 1e-4, X.flip(1), torch.cat([X, X.flip(0)]), X[:, :, :5], X * X])
def test_what_is_not_x_is_not_found(other: Tensor) -> None:
    assert list(find_inputs({"x": other}, X)) == []


@pytest.mark.parametrize("data", [None, 1.0, 0.25])
def test_scalings(data: float | None) -> None:
    times = [14.6, 3.2, 0.4, 0.03]
    found = Scaling.fit(times, [1 / Scaling(data).divisor(t) for t in times], 1e-6)
    assert found == Scaling(data)
    expected = X if data is None else X / (2.0**2 + data) ** 0.5
    assert torch.equal(found(X, 2.0), expected)
    torch.testing.assert_close(found(X, torch.tensor([2.0, 2.0])), expected)


def test_another_scaling_is_refused() -> None:
    assert Scaling.fit([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], 1e-6) is None


OUTPUTS: dict[str, tuple[Any, int]] = {
    "a tuple": ((X,), 1),
    "an object": ({"sample": X, "other": None}, 1),
    "learned variances behind": ((torch.cat([X, X + 1], dim=1),), 1),
    "tokens of an image before": ((torch.cat([X + 1, X], dim=1),), 2),
    "a list of samples": ((list(X),), 1),
    "with an axis of 1": ((list(X.unsqueeze(2)),), 1),
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_prediction_is_among_the_candidates(form: str) -> None:
    output, place = OUTPUTS[form]
    found = list(find_outputs(output, 2, X.shape[1:]))
    assert torch.equal(found[place - 1].take(output), X)


def test_an_output_of_another_shape_has_no_prediction() -> None:
    assert list(find_outputs((torch.ones(2, 3, 5),), 2, X.shape[1:])) == []
