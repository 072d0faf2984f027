"""Compilation and activation checkpointing are on inside their blocks only, and refused in one sentence."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from fewstep.distill.engine.precision import (
    checkpointed,
    compiled,
    trained_attention,
    uncompiled,
    warn_if_emulated,
)
from fewstep.errors import InputError, MachineError
from fewstep.machine import Machine
from tests.distill import pipes


def machine(*features):
    return Machine("cpu", "made up", 2, 8.0, frozenset(features))


def test_compilation_is_taken_back_and_can_be_paused(monkeypatch):
    monkeypatch.setattr(Machine, "detect", lambda: machine("compile"))
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.compile()  # the caller's own, to be left alone
    own = other._compiled_call_impl
    with compiled([module, other]):
        inside = module._compiled_call_impl
        assert inside is not None
        with uncompiled(module):
            assert module._compiled_call_impl is None
        assert module._compiled_call_impl is inside
    assert module._compiled_call_impl is None
    assert other._compiled_call_impl is own
    with compiled([module], wanted=False):
        assert module._compiled_call_impl is None


def test_a_network_is_compiled_by_its_blocks(monkeypatch):
    monkeypatch.setattr(Machine, "detect", lambda: machine("compile"))
    network = pipes.pipeline().transformer
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]

    def compiled_parts():
        return {part for part in network.modules() if part._compiled_call_impl is not None}

    with compiled([network]):
        assert compiled_parts() == set(blocks)
        with uncompiled(network):
            assert not compiled_parts()
        with uncompiled(network, around=[blocks[1].attn]):
            assert compiled_parts() == {*blocks} - {blocks[1]}
        assert compiled_parts() == set(blocks)
    assert not compiled_parts()


def test_bfloat16_that_is_emulated_is_told(monkeypatch, recwarn):
    monkeypatch.setattr(Machine, "detect", lambda: machine("bf16"))
    warn_if_emulated("bf16")
    monkeypatch.setattr(Machine, "detect", lambda: machine())
    warn_if_emulated("fp32")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="slower than fp32.*no bfloat16 instructions"):
        warn_if_emulated("bf16")


def test_a_machine_that_can_not_compile_says_why(monkeypatch):
    monkeypatch.setattr(Machine, "detect", lambda: machine())
    with pytest.raises(MachineError, match="needs a C"), compiled([nn.Linear(2, 2)]):
        pass


def gradients(module):
    """And how many tensors were kept for the backward pass."""
    draw, kept = torch.Generator().manual_seed(0), []
    inputs = {
        "hidden_states": torch.randn(1, 4, module.config.in_channels, generator=draw),
        "encoder_hidden_states": torch.randn(1, 3, 128, generator=draw),
        "pooled_projections": torch.randn(1, 64, generator=draw),
        "timestep": torch.full((1,), 0.5),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        loss = module(**inputs, return_dict=False)[0].square().mean()
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None], sum(kept)


def test_checkpointing_keeps_less_for_the_same_gradients_and_is_taken_back():
    module, heads = pipes.transformer(), nn.Linear(2, 1)
    plain, much = gradients(module)
    with checkpointed({"student": module, "discriminator": heads}):
        assert module.is_gradient_checkpointing
        again, little = gradients(module)
    assert not module.is_gradient_checkpointing
    assert little < much / 2
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)
    with checkpointed({"student": module}, wanted=False):
        assert not module.is_gradient_checkpointing


def test_a_network_that_can_not_recompute_says_so():
    class TinyBlock(nn.Sequential):
        pass

    blocks = nn.Sequential()
    blocks.layers = nn.ModuleList(TinyBlock(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    for modules in ({"student": blocks}, {"student": nn.Linear(2, 2)}, {"a": pipes.transformer(), "student": blocks}):
        with (
            pytest.raises(InputError, match=r"'student' of this method, .* has no enable_gradient_checkpointing"),
            checkpointed(modules),
        ):
            pass


def test_plain_attention_gives_the_same_gradients_on_a_cpu_and_is_taken_back():
    module = pipes.pipeline().transformer.requires_grad_(True)
    processors = [part.processor for part in module.modules() if hasattr(part, "processor")]
    own = processors[0]
    own._attention_backend = AttentionBackendName.NATIVE
    fused, _ = gradients(module)
    with trained_attention([module], torch.device("cpu")):
        assert own._attention_backend is AttentionBackendName.NATIVE
        assert {one._attention_backend for one in processors[1:]} == {AttentionBackendName._NATIVE_MATH}
        plain, _ = gradients(module)
    assert {one._attention_backend for one in processors[1:]} == {None}
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_gpu_does_not_train_with_the_attention_of_cudnn_and_has_it_back_afterwards():
    module = pipes.pipeline().transformer
    processors = [part.processor for part in module.modules() if hasattr(part, "processor")]
    kept = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for before in (True, False):
            torch.backends.cuda.enable_cudnn_sdp(before)
            with trained_attention([module], torch.device("cuda")):
                assert not torch.backends.cuda.cudnn_sdp_enabled()
                assert {one._attention_backend for one in processors} == {None}
            assert torch.backends.cuda.cudnn_sdp_enabled() == before
            with trained_attention([module], torch.device("cpu")):
                assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)
