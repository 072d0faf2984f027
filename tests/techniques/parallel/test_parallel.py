"""A pipeline over several processes gives what it gives in one, in every kind of layout and every family."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)
from torch import Tensor, nn

from fewstep.accelerate import accelerate
from fewstep.errors import FewstepError, RecipeError
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.recipe import Recipe
from fewstep.techniques import Cache, Parallel, Quantize
from fewstep.techniques.parallel.decode import SpreadDecoder
from fewstep.techniques.parallel.processes import joined
from fewstep.techniques.parallel.technique import guides
from tests.distill.processes import start
from tests.models.tiny import PIPELINES

# Each with a call of two samples and one of one; sizes are such that tokens do not divide evenly everywhere.
FAMILIES = ("flux", "flux2", "sd3", "wan", "qwen_image", "ltx", "hunyuan_video", "flux_true_cfg")
GUIDED = ("sd3", "wan", "ltx", "flux_true_cfg")
TWO = (Parallel(ulysses=2), Parallel(ring=2))
FOUR = (Parallel(ulysses=2, ring=2), Parallel(guidance=2, ulysses=2), Parallel(guidance=2, ring=2), Parallel(ring=4))
NEAR = 1e-5


def output(pipe: Any, call: dict[str, Any], samples: int) -> Tensor:
    """Latents of one prompt, or of two different ones."""
    given = call
    if samples == 2:
        given = {k: torch.cat([v, v.roll(1, -1)]) if isinstance(v, Tensor) else v for k, v in call.items()}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Tensor = pipe(**{"num_inference_steps": 3, **given}, output_type="latent", generator=generator)[0]
    return made


def check(name: str, parallel: Parallel) -> None:
    pipe, call = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    if parallel.guidance > 1 and name not in GUIDED:
        return
    for samples in (1, 2):
        plain = output(pipe, call, samples)
        fast = accelerate(pipe, parallel)
        got = output(fast, call, samples)
        again = output(fast, call, samples)
        facts = fast.engaged[0].facts
        for denoiser in Model(pipe).denoisers:
            if parallel.stated.sequence > 1:
                assert facts[denoiser]["sequence"]["calls_spread"] > 0
            if parallel.guidance > 1:
                assert facts[denoiser]["guidance"]["calls_shared"] > 0
        fast.remove()
        near = NEAR * max(1.0, float(plain.abs().max()))
        assert float((got - plain).abs().max()) <= near, (name, parallel, samples)
        assert float((again - plain).abs().max()) <= near, (name, parallel, samples)  # the first call learns, whole
        assert torch.equal(output(pipe, call, samples), plain), (name, parallel)


def all_families(layouts: tuple[Parallel, ...], families: tuple[str, ...] = FAMILIES) -> Callable[[int], None]:
    def work(rank: int) -> None:
        with joined():
            for name in families:
                for parallel in layouts:
                    check(name, parallel)

    return work


def test_two_processes_give_what_one_does() -> None:
    start(all_families(TWO), 2)


def test_two_processes_share_the_branches_of_guidance() -> None:
    start(all_families((Parallel(guidance=2),)), 2)


def test_four_processes_give_what_one_does() -> None:
    start(all_families(FOUR[:2], ("wan", "sd3")), 4)


@pytest.mark.slow
def test_four_processes_give_what_one_does_in_every_family() -> None:
    start(all_families(FOUR), 4, 900)


def _few_bits(rank: int) -> None:
    """A scale a token: what a token's numbers are rounded to does not depend on who has the others."""
    quantize = Quantize("fp8-dynamic", min_features=8, emulate=True)
    with joined():
        for name, parallel in (("wan", Parallel(ulysses=2)), ("wan", Parallel(guidance=2)), ("flux", Parallel(ring=2))):
            pipe, call = PIPELINES[name]()
            pipe.set_progress_bar_config(disable=True)
            alone = accelerate(pipe, quantize)
            plain = output(alone, call, 1)
            alone.remove()
            fast = accelerate(pipe, [quantize, parallel])
            got = output(fast, call, 1)
            # A number between two of FP8 may be rounded to the other one.
            assert float((got - plain).abs().mean()) <= 1e-4 * float(plain.abs().mean()), (name, parallel)


def test_quantized_weights_on_two_processes_give_what_they_give_on_one() -> None:
    start(_few_bits, 2)


def _apart(rank: int) -> None:
    """Two copies of a layout: ranks 0 and 1 make three steps, ranks 2 and 3 make two, each with a cache."""
    with joined():
        pipe, call = PIPELINES["wan"]()
        pipe.set_progress_bar_config(disable=True)
        call["num_inference_steps"] = 5 - rank // 2
        planned = Cache(target_speedup=2)
        alone = accelerate(pipe, planned)
        plain, reused = output(alone, call, 1), alone.engaged[0].facts["steps_reused"]
        alone.remove()
        fast = accelerate(pipe, [Parallel(ulysses=2), planned])
        got = output(fast, call, 1)
        assert fast.engaged[1].facts["steps_reused"] == reused > 0
        assert float((got - plain).abs().max()) <= NEAR * max(1.0, float(plain.abs().max()))
        fast.remove()
        # A gate that looks at its own tokens: one of them decides for its group.
        fast = accelerate(pipe, [Parallel(ulysses=2), Cache("first_block", threshold=0.6, warmup=0)])
        output(fast, call, 1)
        said: list[dict[str, str]] = [{}] * 4
        dist.all_gather_object(said, fast.engaged[1].facts["last_request"])
        assert said[0] == said[1]
        assert said[2] == said[3]
        assert {len(signs) for signs in said[0].values()} == {5}
        assert {len(signs) for signs in said[2].values()} == {4}


def test_two_groups_with_different_steps_and_a_cache_each_do_not_disturb_each_other() -> None:
    start(_apart, 4)


def _bytes(rank: int) -> None:
    """Wan's tiny transformer has two blocks of width 24; a call of 32×32 pixels and 5 frames has 8 tokens."""
    blocks, tokens, width, number, steps = 2, 8, 24, 4, 3
    with joined() as (_, size):
        for ulysses, ring in [(2, 1), (1, 2)] if size == 2 else [(2, 2), (1, 4)]:
            pipe, call = PIPELINES["wan"]()
            pipe.set_progress_bar_config(disable=True)
            fast = accelerate(pipe, Parallel(ulysses=ulysses, ring=ring))
            output(fast, call, 1)
            facts = fast.engaged[0].facts["transformer"]
            before, calls = dict(facts["sent"]), 2 * steps
            output(fast, call, 1)
            sent = {name: (facts["sent"][name] - before[name]) / calls for name in before}
            own = tokens // size * width * number  # bytes of the own tokens at full width
            assert sent["ulysses"] == pytest.approx(4 * (ulysses - 1) / ulysses * own * blocks, rel=0.01)
            assert sent["ring"] == pytest.approx((ring - 1) * 2 * own * blocks, rel=0.01)
            assert sent["gather"] == pytest.approx((size - 1) * own, rel=0.01)
            fast.remove()
        if size == 2:
            fast = accelerate(pipe, Parallel(guidance=2))
            latents = output(fast, call, 1)
            sent = fast.engaged[0].facts["transformer"]["guidance"]["bytes_sent"]
            assert sent == (steps - 1) * latents.nbytes  # one prediction a step; the first is computed by both


@pytest.mark.parametrize("processes", [2, 4])
def test_what_a_step_sends_is_what_the_formulas_say(processes: int) -> None:
    start(_bytes, processes)


def decoders() -> list[nn.Module]:
    torch.manual_seed(0)
    pictures: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    small: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1}
    residual = {**small, "dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "is_residual": True}
    residual |= {"patch_size": 2, "in_channels": 12, "out_channels": 12}
    four: dict[str, Any] = {"block_out_channels": (8,) * 4}
    ltx: dict[str, Any] = {"decoder_block_out_channels": (8,) * 4, "decoder_inject_noise": (False,) * 5}
    ltx |= dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), (1,) * 5)
    scaled = (True, True, False, False)
    ltx |= dict.fromkeys(("spatio_temporal_scaling", "decoder_spatio_temporal_scaling"), scaled)
    return [
        AutoencoderKL(**pictures),
        AutoencoderKLFlux2(**pictures),
        AutoencoderKLWan(**small, temperal_downsample=[True]),
        AutoencoderKLWan(**residual),
        AutoencoderKLQwenImage(**small, temperal_downsample=[False]),
        AutoencoderKLHunyuanVideo(**four, latent_channels=4, layers_per_block=1, norm_num_groups=4),
        AutoencoderKLLTXVideo(**four, **ltx, latent_channels=8),
    ]


def _decode(rank: int) -> None:
    with joined(), torch.no_grad():
        for vae in decoders():
            vae = vae.eval()
            frames = (3,) if any(isinstance(part, nn.Conv3d) for part in vae.decoder.modules()) else ()
            channels = vae.config.get("latent_channels") or vae.config["z_dim"]
            z = torch.randn(2, channels, *frames, 11, 7, generator=torch.Generator().manual_seed(1))
            whole = vae.decode(z, return_dict=False)[0]
            spread = SpreadDecoder(vae, dist.group.WORLD).install()
            spread.check()
            got = vae.decode(z, return_dict=False)[0]
            assert spread.facts["decoded"] > 0
            spread.remove()
            assert float((got - whole).abs().max()) <= NEAR * max(1.0, float(whole.abs().max())), type(vae)
            assert torch.equal(vae.decode(z, return_dict=False)[0], whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_a_decoder_by_rows_has_exact_seams(processes: int) -> None:
    start(_decode, processes)


def _unlike(rank: int) -> None:
    with joined():
        pipe, call = PIPELINES["wan"]()
        pipe.set_progress_bar_config(disable=True)
        fast = accelerate(pipe, Parallel(ulysses=2))
        with pytest.raises(FewstepError, match="same 'generator' in the call: on rank 1 it is a generator of seed 1"):
            fast(**call, num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(rank))
        with pytest.raises(FewstepError, match="'num_inference_steps' in the call: on rank 1 it is 3, on rank 0 2"):
            fast(**call, num_inference_steps=2 + rank, output_type="latent")
        fast.remove()
        with pytest.raises(FewstepError, match="same layout: on rank 1 it is ulysses 2, on rank 0 ring 2"):
            accelerate(pipe, Parallel(ulysses=2) if rank else Parallel(ring=2))
        with torch.no_grad():
            pipe.transformer.proj_out.weight += rank
        with pytest.raises(FewstepError, match="same weights of the transformer: on rank 1"):
            accelerate(pipe, Parallel(ulysses=2))


def test_what_differs_between_processes_is_named() -> None:
    start(_unlike, 2)


def _refused(rank: int) -> None:
    with joined():
        pipe, _ = PIPELINES["wan"]()
        for parallel, said in (
            (Parallel(ulysses=3), "layout of 3 processes .ulysses 3. does not divide the 2 here"),
            (Parallel(ring=2, vae=2), "has no decoder that could be shared"),
        ):
            with pytest.raises(RecipeError, match=said):
                accelerate(pipe, parallel)
        sana, _ = PIPELINES["sana"]()
        with pytest.raises(RecipeError, match="does not know how SanaLinearAttnProcessor2_0 attends"):
            accelerate(sana, Parallel(ulysses=2))
        mochi, call = PIPELINES["mochi"]()
        fast = accelerate(mochi, Parallel(ulysses=2))
        with pytest.raises(FewstepError, match="does not run on a part of its tokens"):
            fast(**call, num_inference_steps=2, output_type="latent")


def test_what_can_not_be_shared_is_refused_by_name() -> None:
    start(_refused, 2)


def test_one_process_is_not_enough() -> None:
    pipe, _ = PIPELINES["wan"]()
    with pytest.raises(RecipeError, match="start 4 with torchrun"):
        accelerate(pipe, Parallel(ulysses=4))
    with pytest.raises(RecipeError, match="start several with torchrun"):
        accelerate(pipe, [{"parallel": "auto"}])


def test_a_pipeline_guides_by_its_own_defaults_or_does_not() -> None:
    guided = {name: guides(Model(PIPELINES[name]()[0])) for name in FAMILIES}
    assert guided == {name: name in ("sd3", "wan", "ltx") for name in FAMILIES}


def test_a_recipe_says_auto_in_one_word() -> None:
    assert Recipe.load([{"parallel": "auto"}]).techniques == (Parallel(auto=True),)
    with pytest.raises(RecipeError, match="has no field 'autoo': did you mean 'auto'"):
        Recipe.load([{"parallel": "autoo"}])
    with pytest.raises(FewstepError, match="must share something"):
        Parallel()
    with pytest.raises(FewstepError, match="either auto or stated in numbers"):
        Parallel(auto=True, ring=2)


def test_auto_cuts_layers_where_memory_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    model = Model(PIPELINES["wan"]()[0])
    gigabytes = sum(value.nbytes for part in model.modules.values() for value in part.parameters()) / 1e9

    def layout(memory: float) -> str:
        return str(Parallel(auto=True).layout(model, Machine("cuda", "a GPU", 1, memory, frozenset()))[0])

    assert layout(2 * gigabytes) == "guidance 2, ulysses 2"
    assert layout(1.1 * gigabytes) == "guidance 2, tensor 2"
