"""What a plan says that a layout sends is what its processes send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fewstep.accelerate import accelerate
from fewstep.layout import Layout
from fewstep.plan import traffic
from fewstep.plan.blocks import BLOCKS, hidden_of, width_of
from fewstep.plan.work import BF16, Decoder, Network, Work
from fewstep.techniques import Parallel
from fewstep.techniques.parallel.processes import joined
from tests.distill.processes import start
from tests.models.tiny import noise
from tests.techniques.parallel.test_tensor import output, tiny

STEPS = 2
FLOAT32 = 4


@dataclass(frozen=True)
class Case:
    """A tiny pipeline: the rows and columns of its tokens, numbers a token, branches, names of its prompts, and what
    else its transformer is made with."""

    tokens: tuple[int, int]
    values: int
    branches: int
    prompts: tuple[str, ...]
    config: dict[str, int] = field(default_factory=dict)


CASES = {
    "flux": Case((2, 2), 16, 1, ("prompt_embeds",)),
    # Wide, since the norms of Wan's queries and keys go over all heads: a number a token, which no plan counts.
    "wan": Case((2, 4), 16, 2, ("prompt_embeds", "negative_prompt_embeds"), {"attention_head_dim": 48}),
    "qwen_image": Case((2, 2), 16, 1, ("prompt_embeds",)),
}


def _planned(case: Case, transformer: Any, text: int) -> Work:
    """One token a pixel, so that the tokens are those of the case."""
    config = {"_class_name": type(transformer).__name__, **transformer.config}
    network = Network(
        name="tiny",
        width=width_of(config),
        heads=config["num_attention_heads"],
        hidden=hidden_of(config),
        blocks=BLOCKS[config["_class_name"]](config),
        span=(1, 1, 1),
        values=case.values,
        text_tokens=text,
        encoders=0,
        decoder=Decoder(0, 0),
        call={},
    )
    return Work(network, *case.tokens, frames=1, steps=STEPS, branches=case.branches)


def _called(name: str, case: Case, text: int) -> tuple[Any, dict[str, Any]]:
    pipe, call = tiny(name, **case.config)
    width = call["prompt_embeds"].shape[-1]
    call |= {key: noise(1, text, width, seed=i) for i, key in enumerate(case.prompts)}
    masks = {key: value.new_ones(1, text) for key, value in call.items() if key.endswith("_mask")}
    return pipe, {**call, **masks}


def _counted(rank: int) -> None:
    with joined():
        for name, case in CASES.items():
            text = 8
            pipe, call = _called(name, case, text)
            work = _planned(case, pipe.transformer, text)
            for layout in (Layout(ulysses=2), Layout(ring=2), Layout(tensor=2)):
                fast = accelerate(pipe, Parallel(ulysses=layout.ulysses, ring=layout.ring, tensor=layout.tensor))
                facts = fast.engaged[0].facts["transformer"]
                output(fast, call)  # the first call is made whole, too
                before = _sent(facts)
                output(fast, call)
                sent = {way: bytes_ - before[way] for way, bytes_ in _sent(facts).items()}
                calls = STEPS * case.branches * FLOAT32 / BF16
                assert any(sent.values())
                for way in sent:
                    planned = getattr(traffic, way)(work, layout, 1).bytes * calls
                    assert sent[way] == pytest.approx(planned, rel=0.01), (name, layout, way)
                fast.remove()
            if case.branches == 2:
                fast = accelerate(pipe, Parallel(guidance=2))
                output(fast, call)
                got = fast.engaged[0].facts["transformer"]["guidance"]["bytes_sent"]
                planned = traffic.guidance(work, Layout(guidance=2), 1).bytes * FLOAT32 / BF16
                assert got == (STEPS - 1) * planned  # the first step is computed by both


def _sent(facts: dict[str, Any]) -> dict[str, int]:
    return {"tensor": facts["tensor"]["bytes_sent"]} if "tensor" in facts else dict(facts["sent"])


def test_two_processes_send_what_was_planned() -> None:
    start(_counted, 2)
