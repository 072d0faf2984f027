"""Skipping block stacks from outside, with the computed call as the oracle, over several families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from fewstep.calibrate.stack import StackWatch, Visit
from fewstep.models.families import IMAGE_FIRST, TENSOR, TEXT_FIRST
from fewstep.models.model import Model
from fewstep.models.streams import Part, Streams, pack, takes_apart, unpack
from tests.techniques.tiny import pipeline, run


class Replay:
    """Computes the first time, and then reuses or not."""

    wants_signal, wants_head = True, True

    def __init__(self) -> None:
        self.on = False
        self.visits: list[Visit] = []

    def start(self) -> dict[str, Any]:
        return {}

    def reuse(self, visit: Visit, state: dict[str, Any]) -> Mapping[str, Streams] | None:
        self.visits.append(visit)
        return self.visits[0].residuals if self.on else None

    def computed(self, visit: Visit, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("places", [TENSOR, TEXT_FIRST, IMAGE_FIRST])
def test_pack_undoes_unpack(places: Any) -> None:
    streams = {"hidden": torch.ones(1)} | ({} if places.encoder is None else {"encoder": torch.zeros(1)})
    assert unpack(pack(streams, places), places) == streams
    assert takes_apart(pack(streams, places), places)


def test_a_stream_that_ends_in_the_last_block_is_left_out() -> None:
    assert unpack((None, torch.ones(1)), TEXT_FIRST).keys() == {"hidden"}
    assert pack({"hidden": torch.ones(1)}, TEXT_FIRST)[0] is None


def test_what_can_not_be_taken_apart() -> None:
    assert not takes_apart((torch.ones(1),), TENSOR)
    assert not takes_apart(torch.ones(2, 2), TEXT_FIRST)
    assert not takes_apart({"hidden": 1}, TENSOR)


def flux() -> tuple[nn.Module, dict[str, Tensor]]:
    return pipeline().transformer, {
        "hidden_states": torch.randn(1, 4, 48),
        "encoder_hidden_states": torch.randn(1, 3, 128),
        "pooled_projections": torch.randn(1, 64),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }


def flux2() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()
    return model, {
        "hidden_states": torch.randn(1, 4, 8),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "img_ids": torch.zeros(4, 4),
        "txt_ids": torch.zeros(3, 4),
        "guidance": torch.ones(1),
    }


def sd3() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    ).eval()
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "pooled_projections": torch.randn(1, 8),
    }


def wan() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    ).eval()
    return model, {"hidden_states": torch.randn(1, 4, 1, 8, 8), "encoder_hidden_states": torch.randn(1, 3, 16)}


def qwen() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    return model, {
        "hidden_states": torch.randn(1, 4, 8),
        "encoder_hidden_states": torch.randn(1, 3, 16),
        "encoder_hidden_states_mask": torch.ones(1, 3, dtype=torch.bool),
        "img_shapes": [[(1, 2, 2)]],
    }


class Bare:
    """As much of a pipeline as a watch needs."""

    def __init__(self, transformer: nn.Module) -> None:
        self.components = {"transformer": transformer}
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        self.scheduler.set_timesteps(4)


@pytest.mark.parametrize("scope", ["blocks", "attention"])
@pytest.mark.parametrize("build", [flux, flux2, sd3, wan, qwen])
@torch.no_grad()
def test_reusing_a_calls_own_residuals_gives_its_own_output(build: Any, scope: str) -> None:
    """The exact oracle for every layout of block lists and streams: the skipped call repeats the computed one."""
    model, given = build()
    call = {**given, "timestep": torch.tensor([0.5]), "return_dict": False}
    plain = model(**call)[0]
    replay = Replay()
    watch = StackWatch(Model(Bare(model)), replay, Part(scope)).install()
    assert torch.equal(model(**call)[0], plain)  # watching changes nothing
    replay.on = True
    called = []
    for module in model.modules():
        if type(module).__name__.endswith("Attention"):
            next(module.children()).register_forward_hook(lambda *_: called.append(1))
    reused = model(**call)[0]
    assert not called  # nothing attended
    assert torch.allclose(reused, plain, atol=1e-5)
    watch.remove()
    assert "forward" not in model.__dict__
    assert torch.equal(model(**call)[0], plain)


@pytest.mark.parametrize("return_dict", [True, False])
@torch.no_grad()
def test_a_whole_denoiser_gives_again_what_it_gave_whatever_was_written_into_it(return_dict: bool) -> None:
    model, given = wan()
    call = {**given, "timestep": torch.tensor([0.5]), "return_dict": return_dict}
    plain = model(**call)[0]
    replay = Replay()
    watch = StackWatch(Model(Bare(model)), replay, Part("output")).install()
    model(**call)[0].zero_()
    replay.on = True
    for timestep in (0.4, 0.3):  # later steps of the same branch
        reused = model(**{**call, "timestep": torch.tensor([timestep])})
        assert isinstance(reused, tuple) is not return_dict
        assert torch.equal(reused[0], plain)
        reused[0].zero_()
    watch.remove()


def test_the_signal_is_the_first_blocks_modulated_input() -> None:
    pipe = pipeline()
    replay = Replay()
    norm, seen = pipe.transformer.transformer_blocks[0].norm1, []
    norm.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    watch = StackWatch(Model(pipe), replay).install()
    run(pipe, steps=2)
    watch.remove()
    (signal,) = replay.visits[-1].signal or ()
    assert torch.equal(signal, seen[-1])


def test_a_block_of_unknown_output_is_never_skipped_and_named() -> None:
    class OddBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([OddBlock(), OddBlock()])

        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            for block in self.blocks:
                hidden_states = block(hidden_states)[0]
            return hidden_states

    model, replay = Odd(), Replay()
    watch = StackWatch(Model(Bare(model)), replay).install()
    model(torch.randn(1, 4), torch.ones(1))
    assert watch.unknown == {"OddBlock"}
    assert replay.visits[0].residuals == {}
