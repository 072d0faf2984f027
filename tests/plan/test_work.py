"""Work from shapes: exact where arithmetic says it, and beside the sizes that models publish."""

from __future__ import annotations

import pytest

from fewstep.errors import InputError
from fewstep.plan.read import known, network_of
from fewstep.plan.work import Blocks, Decoder, Network, work_of
from tests.plan.conftest import tiny

PUBLISHED = {  # billions of weights that the models' own cards say
    "flux.1-dev": 12,
    "flux.2-dev": 32,
    "chroma": 8.9,
    "qwen-image": 20.4,
    "sd3.5-large": 8.1,
    "z-image-turbo": 6,
    "wan2.1-1.3b": 1.42,
    "wan2.1-14b": 14.3,
    "wan2.2-5b": 5,
    "hunyuan-video": 13,
    "ltx-video": 1.92,
    "cogvideox-5b": 5.57,
    "mochi-1": 10,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_as_many_weights_as_they_say(name: str) -> None:
    assert network_of(name).weights / 1e9 == pytest.approx(PUBLISHED[name], rel=0.05)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("flux.1-dev", 4096), ("hunyuan-video", 33 * 45 * 80), ("wan2.1-14b", 21 * 45 * 80), ("ltx-video", 21 * 16 * 22)],
)
def test_tokens_at_the_usual_size(name: str, tokens: int) -> None:
    assert work_of(network_of(name)).image_tokens == tokens


def test_every_known_model_says_where_it_is_from() -> None:
    for entry in known().values():
        assert entry["source"].startswith("https://")
        assert network_of(entry["hub"][0]) == network_of(entry["name"])


def test_operations_of_a_tiny_layout_by_hand() -> None:
    work = tiny()
    assert (work.image_tokens, work.text_tokens) == (8, 2)
    assert work.linear_flops == 2 * 512 * 10
    assert work.attention_flops == 4 * 8 * 10 * 10
    assert work.features == 10 * 8
    assert work.prediction == 8 * 3 * 2


@pytest.mark.parametrize(
    ("attention", "pairs", "exchanged"),
    [(("self", "cross"), 8 * 8 + 8 * 2, 8 * 8), (("joint", "self"), 10 * 10 + 8 * 8, 10 * 10 + 8 * 8)],
)
def test_kinds_of_attention(attention: tuple[str, ...], pairs: int, exchanged: int) -> None:
    block = Blocks(1, 512, 0, 512, attention, 3)
    work = work_of(Network("tiny", 8, 4, 16, (block,), (1, 2, 2), 3, 2, 0, Decoder(1, 1), tiny().network.call))
    assert work.attention_flops == 4 * 8 * pairs
    assert work.exchanged_flops == 4 * 8 * exchanged


@pytest.mark.parametrize(
    ("given", "rule"),
    [({"height": 5}, "a multiple of 2"), ({"steps": 0}, "from 1 on"), ({"frames": 5}, "makes pictures")],
)
def test_sizes_that_are_none(given: dict[str, int], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        tiny(**given)
