"""Blocks on some of their tokens: with keys and values kept from the same call, those come out as they did with all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from fewstep.calibrate.stack import first_of
from fewstep.models.dispatch import attention_of, attentions
from fewstep.models.grid import Grid
from fewstep.models.hooks import wrapped
from fewstep.models.model import Model
from fewstep.models.passes import Kept, Rows
from fewstep.models.sparse import NotSparse, Sparse
from fewstep.models.streams import block_lists
from tests.models.tiny import PIPELINES, noise, wan_transformer

ABLE = (
    *("flux", "flux2", "sd3", "wan", "wan_two", "wan_expanded", "ltx", "pixart", "qwen_image", "cogvideox", "dit"),
    *("hunyuan_video", "mochi", "kontext", "img2img"),
)
UNABLE = {"sd15": "between its lists", "lumina2": "between its lists"}
NEAR = 1e-6  # of the largest number: another number of rows may be added up in another order


def check(name: str, rows: Callable[[int, int], Tensor]) -> None:
    """Run a pipeline of two steps; at each call of a denoiser compare some tokens with all."""
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    compared = []

    def compare(sparse: Sparse, module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        run, kept = partial(forward, *args, **kwargs), Kept()
        plain = first_of(run())
        assert torch.equal(first_of(sparse.run(run, kept)), plain)
        grid = Grid.of(module, plain)
        assert grid.tokens == sparse.tokens
        active = rows(1 if sparse.alike else len(plain), grid.tokens)
        wanted, got = grid.split(plain), grid.split(first_of(sparse.run(run, kept, Rows(active, grid.tokens))))
        index = active.expand(len(plain), -1)[..., None].expand(-1, -1, wanted.shape[2])
        near = NEAR * float(plain.abs().max())
        assert torch.allclose(got.gather(1, index), wanted.gather(1, index), atol=near, rtol=0)
        assert not torch.allclose(got, wanted, atol=near, rtol=0)  # the others hold nothing of use
        compared.append(name)
        return run()

    denoisers = Model(pipe).denoisers
    plain_processors = [part.processor for module in denoisers.values() for _, part in attentions(module)]
    sparses = [Sparse(block_lists(Model(pipe), one)).install() for one in denoisers]
    hooks = [wrapped(m, partial(compare, s, m)) for s, m in zip(sparses, denoisers.values(), strict=True)]
    for hook in hooks:
        hook.__enter__()
    try:
        with torch.no_grad():
            pipe(**{"num_inference_steps": 2, "output_type": "latent", **call})
    finally:
        for hook in hooks:
            hook.__exit__(None, None, None)
        for sparse in sparses:
            sparse.remove()
    assert compared
    after = [part.processor for module in denoisers.values() for _, part in attentions(module)]
    assert all(a is b for a, b in zip(plain_processors, after, strict=True))


def every_other(batch: int, tokens: int) -> Tensor:
    return torch.arange(1, tokens, 2).expand(batch, -1)


@pytest.mark.parametrize("name", ABLE)
def test_some_tokens_come_out_as_they_did_with_all(name: str) -> None:
    check(name, every_other)


@pytest.mark.parametrize("name", UNABLE)
def test_a_model_of_another_structure_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotSparse, match=UNABLE[name]):
        check(name, every_other)


def test_attention_without_keys_for_each_token_is_not_known() -> None:
    pipe, _ = PIPELINES["sana"]()
    kinds = {type(part.processor).__name__: attention_of(part) for _, part in attentions(pipe.transformer)}
    assert kinds["SanaLinearAttnProcessor2_0"] is None


class Bare:
    """As much of a pipeline as a model needs."""

    def __init__(self, transformer: nn.Module) -> None:
        self.components = {"transformer": transformer}


def wan() -> tuple[WanTransformer3DModel, Sparse, Callable[[Tensor], Tensor]]:
    """Two samples a call."""
    model = wan_transformer(0)
    sparse = Sparse(block_lists(Model(Bare(model)), "transformer")).install()
    text = noise(2, 3, model.config["text_dim"])
    time = torch.tensor([500.0, 500.0])
    return model, sparse, lambda x: model(hidden_states=x, timestep=time, encoder_hidden_states=text)[0]


@torch.no_grad()
def test_each_sample_of_a_batch_has_its_own_tokens() -> None:
    model, sparse, call = wan()
    x, kept = noise(2, model.config["in_channels"], 2, 8, 8), Kept()
    plain = sparse.run(partial(call, x), kept)
    grid = Grid.of(model, plain)
    active = torch.tensor([[0, 5], [2, 3]])
    got = grid.split(sparse.run(partial(call, x), kept, Rows(active, grid.tokens)))
    for sample, rows in enumerate(active):
        assert torch.allclose(got[sample, rows], grid.split(plain)[sample, rows], atol=1e-6)


@torch.no_grad()
def test_active_tokens_see_the_others_as_they_last_were() -> None:
    """The oracle: a whole call whose input changed in the active tokens alone. The others' keys would have changed too,
    from the second block on; with one block there is nothing else they could be."""
    model, sparse, call = wan()
    model.blocks = model.blocks[:1]
    sparse = Sparse(block_lists(Model(Bare(model)), "transformer")).install()
    kept = Kept()
    x = noise(2, model.config["in_channels"], 2, 8, 8)
    grid = Grid.of(model, sparse.run(partial(call, x), kept))
    active = torch.tensor([[1, 4, 6]])
    tokens = grid.split(x)
    tokens[:, active[0]] += noise(2, 3, tokens.shape[2], seed=1)
    moved = grid.join(tokens)
    got = grid.split(sparse.run(partial(call, moved), kept, Rows(active, grid.tokens)))
    assert torch.allclose(got[:, active[0]], grid.split(call(moved))[:, active[0]], atol=1e-5)
    assert not torch.allclose(got[:, active[0]], grid.split(call(x))[:, active[0]], atol=1e-3)
