"""Evaluation, on painters whose quality is known: they call code instead of a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.errors import InputError
from fewstep.zoo.evaluate import evaluate, generate
from fewstep.zoo.shapes.pipeline import build_pipeline
from fewstep.zoo.tasks import task

SHAPES = task("shapes")


class Painter:
    """Takes a pipeline's call and draws real answers to the prompts it knows, from each sample's own generator."""

    def __init__(self, seed: int, prompts: int, alike: bool = False) -> None:
        self.asks = dict(SHAPES.prompts(prompts, seed))
        self.alike = alike
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompt: list[str], generator: list[torch.Generator], **call: Any) -> Any:
        self.calls.append({"count": len(prompt), **call})
        seeds = [0 if self.alike else int(torch.randint(2**31, (), generator=one)) for one in generator]
        drawn = [SHAPES.answering(self.asks[text], 1, seed)[0] for text, seed in zip(prompt, seeds, strict=True)]
        return SimpleNamespace(images=np.stack(drawn))


def test_a_perfect_painter_is_perfect() -> None:
    quality = evaluate(Painter(0, 64), SHAPES, prompts=64, seed=0, show=False)
    assert quality.prompt_accuracy == 1
    assert quality.one_object_accuracy == 1
    assert quality.frechet < 8  # 64 real pictures have 4
    assert quality.diversity == pytest.approx(1, abs=0.12)
    assert quality.n == 64


def test_a_painter_of_one_picture_a_prompt_has_no_diversity() -> None:
    quality = evaluate(Painter(0, 8, alike=True), SHAPES, prompts=8, seed=0, show=False)
    assert quality.diversity == pytest.approx(0, abs=1e-6)
    assert quality.prompt_accuracy == 1


def test_clips_are_judged_like_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.zoo.evaluate.REAL", 48)
    moving = task("moving-shapes")
    asks = dict(moving.prompts(12, 0))

    def animate(prompt: list[str], generator: list[torch.Generator], **call: Any) -> Any:
        seeds = [int(torch.randint(2**31, (), generator=one)) for one in generator]
        drawn = [moving.answering(asks[text], 1, seed)[0] for text, seed in zip(prompt, seeds, strict=True)]
        return SimpleNamespace(frames=np.stack(drawn))

    quality = evaluate(animate, moving, prompts=12, seed=0, show=False)
    assert quality.prompt_accuracy == 1
    assert quality.diversity == pytest.approx(1, abs=0.2)
    still = evaluate(
        lambda **call: SimpleNamespace(frames=animate(**call).frames[:, :1].repeat(17, 1)),
        moving,
        prompts=12,
        seed=0,
        show=False,
    )
    assert still.prompt_accuracy == 0
    assert still.frechet > quality.frechet


def test_the_call_goes_to_the_pipeline_in_batches() -> None:
    painter = Painter(0, 5)
    generate(painter, list(painter.asks), range(5), batch=2, show=False, num_inference_steps=3, negative_prompt="")
    assert [call["count"] for call in painter.calls] == [2, 2, 1]
    assert [call["negative_prompt"] for call in painter.calls] == [[""] * 2, [""] * 2, [""]]
    assert {call["num_inference_steps"] for call in painter.calls} == {3}


def test_pictures_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    texts = [text for text, _ in SHAPES.prompts(3, 0)]
    call: dict[str, Any] = {"height": 64, "width": 64, "max_sequence_length": 24, "num_inference_steps": 1}
    guided: dict[str, Any] = {**call, "negative_prompt": "", "true_cfg_scale": 2.5}
    one = generate(pipe, texts, range(3), batch=1, show=False, **guided)
    all_ = generate(pipe, texts, range(3), batch=3, show=False, **guided)
    assert one.shape == (3, 64, 64, 3)
    np.testing.assert_allclose(one, all_, atol=1e-4)
    again = generate(pipe, texts[2:], [2], show=False, **guided)
    np.testing.assert_allclose(again[0], all_[2], atol=1e-4)
    other = generate(pipe, texts[2:], [2], seed=1, show=False, **guided)
    assert np.abs(other[0] - all_[2]).max() > 0.01


@pytest.mark.parametrize("given", [{"prompts": 1}, {"batch": 0}])
def test_counts_must_be_counts(given: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        evaluate(Painter(0, 4), SHAPES, **{"prompts": 4, **given}, show=False)


def test_a_sample_for_each_text() -> None:
    with pytest.raises(InputError, match="samples"):
        generate(Painter(0, 2), ["a", "b"], [0], show=False)
