"""A pipeline whose layers are cut over processes gives what it gives in one, and is put together again to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.accelerate import accelerate
from fewstep.errors import FewstepError, RecipeError
from fewstep.machine import Machine
from fewstep.models.hooks import Hook
from fewstep.models.model import Model
from fewstep.numerics.quantized import dequantize
from fewstep.numerics.schemes import SCHEMES
from fewstep.techniques import Parallel, Quantize, Regions
from fewstep.techniques.linears import torchao_linear
from fewstep.techniques.linears.held import Held
from fewstep.techniques.linears.kernels import held_by
from fewstep.techniques.parallel.cuts import Cut, plan
from fewstep.techniques.parallel.processes import joined
from fewstep.techniques.parallel.tensor import own_rotations
from tests.distill.processes import start
from tests.models.tiny import PIPELINES, eval_
from tests.techniques.tiny import distance

WITH_INT8 = pytest.mark.skipif(Machine.detect().missing("int8") is not None, reason="no 8-bit products here")

FAMILIES = ("flux", "flux2", "wan", "qwen_image", "ltx", "sd3", "hunyuan_video", "flux_true_cfg")
GUIDED = ("wan", "ltx", "sd3", "flux_true_cfg")
NEAR = 1e-4
TWO = Parallel(tensor=2)
QUANTIZED = (
    ("wan", Quantize("int8-dynamic", min_features=8)),
    ("wan", Quantize("int8-weight-only", min_features=8, emulate=True)),
    ("flux", Quantize("fp8-weight-only", min_features=8, emulate=True)),
    ("flux2", Quantize("fp8-dynamic", min_features=8, emulate=True)),
    ("ltx", Quantize("int8-weight-only", min_features=8, emulate=True)),
)
FOUR = (Parallel(tensor=2, guidance=2), Parallel(tensor=2, ulysses=2))


def tiny(name: str, **config: Any) -> tuple[Any, dict[str, Any]]:
    """One of the tiny pipelines, with four heads, so that two processes share them and two more the rest."""
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    config = {**pipe.transformer.config, "num_attention_heads": 4, **config}
    pipe.transformer = eval_(type(pipe.transformer).from_config(config))
    return pipe, {**call, "num_inference_steps": 2, "output_type": "latent"}


def output(pipe: Any, call: dict[str, Any], samples: int = 1) -> Tensor:
    """Latents of one prompt, or of two different ones."""
    if samples == 2:
        call = {k: torch.cat([v, v.roll(1, -1)]) if isinstance(v, Tensor) else v for k, v in call.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Tensor = pipe(**call, generator=torch.Generator().manual_seed(5))[0]
    return made


def same(got: Tensor, whole: Tensor) -> bool:
    return float((got - whole).abs().max()) <= NEAR * max(1.0, float(whole.abs().max()))


def check(name: str, parallel: Parallel) -> None:
    if parallel.guidance > 1 and name not in GUIDED:
        return
    pipe, call = tiny(name)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    plain = {samples: output(pipe, call, samples) for samples in (1, 2)}
    fast = accelerate(pipe, parallel)
    facts = fast.engaged[0].facts["transformer"]["tensor"]
    # The first call checks on the way, and the second one does not.
    assert [same(output(fast, call, samples), plain[samples]) for samples in (1, 1, 2)] == [True] * 3, (name, parallel)
    assert facts["kinds_checked"] == facts["kinds_of_blocks"] > 0, name
    assert facts["bytes_sent"] > 0
    assert set(facts["whole"].values()) <= {"sets scale and shift"}, (name, facts["whole"])
    blocks = Model(pipe).blocks("transformer")
    now = {f"{block.path}.{path}": value for block in blocks for path, value in block.module.named_parameters()}
    whole = sum(value.nbytes for path, value in now.items() if value.shape == before[path].shape)
    assert facts["bytes_after"] == sum(value.untyped_storage().nbytes() for value in now.values())  # what is held
    assert facts["bytes_after"] - whole == (facts["bytes_before"] - whole) / parallel.tensor > 0, name
    fast.remove()
    after = pipe.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[path], value) for path, value in before.items()), name
    assert torch.equal(output(pipe, call), plain[1]), name


def all_families(layouts: tuple[Parallel, ...], families: tuple[str, ...] = FAMILIES) -> Callable[[int], None]:
    def work(rank: int) -> None:
        with joined():
            for name in families:
                for parallel in layouts:
                    check(name, parallel)

    return work


def test_two_processes_give_what_one_does() -> None:
    start(all_families((TWO,)), 2, 900)


def test_four_processes_cut_layers_and_share_guidance_or_tokens() -> None:
    start(all_families(FOUR, ("wan", "sd3")), 4, 900)


@pytest.mark.slow
def test_four_processes_do_so_in_every_family() -> None:
    start(all_families((*FOUR, Parallel(tensor=2, ring=2), Parallel(tensor=2, data=2), Parallel(tensor=4))), 4, 1800)


def _quantized(rank: int) -> None:
    """Codes and scales are the whole weight's. A layer that rounds its input rounds each part by a scale of its own."""
    with joined():
        for name, quantize in QUANTIZED:
            pipe, call = tiny(name)
            exact = output(pipe, call)
            alone = accelerate(pipe, quantize)
            codes = held_values(pipe)
            stored = sum(held.weight.codes.nbytes for held in all_held(pipe))
            one = output(alone, call)
            alone.remove()
            fast = accelerate(pipe, [quantize, TWO])
            facts = fast.engaged[1].facts["transformer"]["tensor"]
            two = [output(fast, call) for _ in range(2)]  # the first one is checked on the way
            assert torch.equal(*two)
            assert facts["kinds_checked"] == facts["kinds_of_blocks"] > 0
            assert facts["bytes_before"] - facts["bytes_after"] >= stored / 2
            if SCHEMES[quantize.scheme].input is None:
                assert same(two[0], one), (name, quantize)
            else:
                assert distance(two[0], one) < distance(one, exact), (name, quantize)
            assert not same(one, exact), (name, quantize)
            fast.engaged[1].undo()
            assert all(torch.equal(now, then) for now, then in zip(held_values(pipe), codes, strict=True))
            assert torch.equal(output(pipe, call), one)
            fast.engaged[0].undo()
            assert torch.equal(output(pipe, call), exact)


def held_values(pipe: Any) -> list[Tensor]:
    """The weights of all quantized layers, read back."""
    return [dequantize(held.weight) for held in all_held(pipe)]


def all_held(pipe: Any) -> list[Held]:
    """What each quantized layer holds."""
    return [held for held in map(held_by, pipe.transformer.modules()) if held is not None]


@WITH_INT8
def test_quantized_layers_are_cut_as_they_are() -> None:
    start(_quantized, 2, 900)


def _loaded(rank: int) -> None:
    """A pipeline whose layers were quantized when it was loaded, by torchao."""
    with joined():
        pipe, call = tiny("wan")
        for path, layer in list(pipe.transformer.blocks.named_modules()):
            if type(layer) is nn.Linear:
                pipe.transformer.blocks.set_submodule(path, torchao_linear(layer, "int8-weight-only"))
        pipe.transformer.requires_grad_(False)
        one = output(pipe, call)
        fast = accelerate(pipe, TWO)
        assert same(output(fast, call), one)
        assert type(pipe.transformer.blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"
        assert pipe.transformer.blocks[0].attn1.to_q.weight.shape[0] == pipe.transformer.blocks[0].attn1.inner_dim
        fast.remove()
        assert torch.equal(output(pipe, call), one)


def test_layers_that_came_quantized_are_cut_too() -> None:
    start(_loaded, 2, 900)


def _converted(rank: int) -> None:
    with joined():
        pipe, _ = tiny("sd3")
        before = {name: value.double() for name, value in pipe.transformer.state_dict().items()}
        fast = accelerate(pipe, TWO)
        pipe.transformer.double()
        fast.remove()
        after = pipe.transformer.state_dict()
        assert all(
            torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
        )


def test_a_model_that_was_converted_meanwhile_stays_so() -> None:
    start(_converted, 2)


def _compiled(rank: int) -> None:
    """Two blocks with norms and rotations over all heads are one graph without a break, checked as the eager ones."""
    with joined():
        pipe, call = tiny("ltx", num_layers=2)
        plain = output(pipe, call)
        fast = accelerate(pipe, TWO)
        graphs: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            graphs.append(graph)
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        blocks = [block.module for block in Model(pipe).blocks("transformer")]
        compiled: Any = torch.compile(type(blocks[0]).forward, backend=backend, fullgraph=True)
        hooks = [Hook(block, partial(_through, compiled, block)).install() for block in blocks]
        assert same(output(fast, call), plain)
        assert len(graphs) == 1
        assert same(output(fast, call), plain)
        assert len(graphs) == 1
        for hook in hooks:
            hook.remove()
        fast.remove()
        assert torch.equal(output(pipe, call), plain)


def _through(compiled: Callable[..., Any], block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    return compiled(block, *args, **kwargs)


def test_compiled_blocks_stay_one_graph() -> None:
    start(_compiled, 2, 900)


def _refused(rank: int) -> None:
    with joined():
        odd, _ = PIPELINES["qwen_image"]()
        with pytest.raises(RecipeError, match=r"The 3 heads of the transformer can't be shared by 2 \(tensor\)"):
            accelerate(odd, TWO)
        wan, call = tiny("wan")
        for quantize, why in (
            (Quantize("nvfp4", min_features=8, emulate=True), r"whose parts of \d+ features are no whole blocks of 16"),
            (Quantize("int8-dynamic", min_features=8, precise_steps=(1, 0)), "is another one at 'precise_steps'"),
        ):
            with pytest.raises(FewstepError, match=r"can't cut the blocks\.0\..* of the transformer, .*" + why):
                accelerate(wan, [quantize, TWO])
        block = wan.transformer.blocks[0]
        block.attn2.to_q.weight = block.attn1.to_q.weight
        with pytest.raises(RecipeError, match="whose weight another layer has, too"):
            accelerate(wan, TWO)

        pipe, call = tiny("sd3")
        fast = accelerate(pipe, TWO)
        with torch.no_grad():  # a part that is not the whole's
            pipe.transformer.transformer_blocks[0].attn.heads = 1
        with pytest.raises(
            FewstepError, match="The JointTransformerBlock of the transformer gives something else in parts"
        ):
            output(fast, call)
        fast.remove()

        mochi, call = PIPELINES["mochi"]()  # whose rotations are each head's own
        mochi.set_progress_bar_config(disable=True)
        whole = mochi.transformer.transformer_blocks[0].attn1.to_q.weight.clone()
        fast = accelerate(mochi, TWO)
        with pytest.raises(FewstepError, match=r"The MochiTransformerBlock .* does not run on a part of its features"):
            output(fast, {**call, "num_inference_steps": 2, "output_type": "latent"})
        fast.remove()
        assert torch.equal(mochi.transformer.transformer_blocks[0].attn1.to_q.weight, whole)


@WITH_INT8
def test_what_can_not_be_cut_is_refused_by_name() -> None:
    start(_refused, 2, 900)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 4), st.sampled_from([0, 1]))
def test_the_parts_of_a_cut_are_of_each_stretch_and_make_the_whole(lengths: list[int], parts: int, axis: int) -> None:
    cut = Cut("layer", axis, tuple(length * parts for length in lengths))
    weight = torch.arange(3 * sum(cut.stretches)).reshape(-1, 3)
    weight = weight.T if axis else weight
    own = [cut.own(weight, axis, rank, parts) for rank in range(parts)]
    assert len({part.shape for part in own}) == 1
    # Of each stretch the first process has the start, and all of them together have everything once.
    starts = [sum(cut.stretches[:i]) for i in range(len(lengths))]
    first = torch.cat([weight.narrow(axis, s, n) for s, n in zip(starts, lengths, strict=True)], axis)
    assert torch.equal(own[0], first)
    assert torch.equal(torch.cat(own).flatten().sort().values, weight.flatten().sort().values)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4))
def test_what_is_shorter_by_a_factor_is_cut_where_its_numbers_are(lengths: list[int], parts: int, factor: int) -> None:
    """Two codes in a byte, or a scale for sixteen: one number for so many of the weight's."""
    cut = Cut("layer", 0, tuple(length * parts * factor for length in lengths))
    short = torch.arange(sum(lengths) * parts, dtype=torch.uint8).view(torch.int8)
    long = short.repeat_interleave(factor)
    for rank in range(parts):
        own = cut.own(short, 0, rank, parts)
        assert own.dtype == short.dtype
        assert torch.equal(own.repeat_interleave(factor), cut.own(long, 0, rank, parts))
    assert cut.divides(short, 0, parts)


def test_parts_are_whole_numbers_of_every_stretch() -> None:
    cut = Cut("layer", 0, (8, 4))
    assert [cut.divides(torch.zeros(n), 0, 2) for n in (12, 6, 3)] == [True, True, False]  # 3 are 2 and 1


def test_what_a_block_does_not_explain_stays_whole_and_says_why() -> None:
    def whole(name: str, parts: int = 2) -> dict[str, str]:
        model = Model(PIPELINES[name]()[0])
        block = model.blocks("transformer")[0].module
        return dict(plan(block, parts, model.family("transformer").keep).whole)

    assert whole("sana") == dict.fromkeys(
        ("ff.conv_inverted", "ff.conv_depth", "ff.conv_point"), "what it is for is not known"
    )
    assert whole("z_image")["feed_forward.w2"] == "its 85 features can't be shared by 2"
    assert whole("flux")["norm1.linear"] == "sets scale and shift"
    block = PIPELINES["wan"]()[0].transformer.blocks[0]
    block.attn1.norm_q = nn.LayerNorm(24)
    block.attn2.to_gate = nn.Linear(24, 2)
    left = plan(block, 2, ()).whole
    assert ("attn1.to_q", "its norm_q is a LayerNorm of all heads") in left
    assert ("attn2.to_out.0", "it has to_gate, which is not known") in left


def test_rotations_over_all_heads_are_cut_and_others_are_not() -> None:
    wide, narrow = torch.arange(8.0).reshape(1, 8), torch.ones(1, 4)
    hook = own_rotations(8, 1, 2)
    assert hook is own_rotations(8, 1, 2)
    _, given = hook(nn.Identity(), (), {"rotary_emb": (wide, narrow), "hidden_states": wide})
    assert torch.equal(given["rotary_emb"][0], wide[:, 4:])
    assert given["rotary_emb"][1] is narrow
    assert given["hidden_states"] is wide


def test_one_process_is_not_enough() -> None:
    with pytest.raises(RecipeError, match="start 2 with torchrun"):
        accelerate(PIPELINES["wan"]()[0], TWO)


def _regional(rank: int) -> None:
    """Tokens are chosen by the first process, and each computes its features of them."""
    with joined():
        for name in ("wan", "flux"):
            pipe, call = tiny(name)
            call["num_inference_steps"] = 8
            regions = Regions(share=0.5, refresh=3, limit=10.0)
            fast = accelerate(pipe, regions)
            alone = output(fast, call)
            fast.remove()
            fast = accelerate(pipe, [TWO, regions])
            assert same(output(fast, call), alone), name
            assert fast.engaged[1].facts["steps_regional"] > 0
            with pytest.raises(RecipeError, match=r"block\.tokens"):
                accelerate(pipe, [Parallel(ulysses=2), regions])


def test_regions_are_those_of_one_process() -> None:
    start(_regional, 2)
