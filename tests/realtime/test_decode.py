"""A stream decodes to what the whole clip decodes to."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from fewstep.errors import InputError
from fewstep.realtime.decode import StreamDecoder, to_bytes
from fewstep.zoo.moving.pipeline import build_vae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    made = build_vae().eval()
    made.register_to_config(latents_mean=[0.1] * 24, latents_std=[1.3] * 24)
    return made


@torch.no_grad()
def whole(vae, latents):
    decoded = vae.decode(latents * 1.3 + 0.1, return_dict=False)[0]
    return (decoded[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)


def test_frames_that_come_one_by_one_are_those_of_the_whole_clip(vae):
    latents = torch.randn(1, 24, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    stream, other = StreamDecoder(vae), StreamDecoder(vae)
    parts = []
    for part in latents.split([1, 2, 1], 2):
        parts.append(stream(part))
        other(torch.randn_like(part))  # a stream beside it, on the same VAE
    assert [len(part) for part in parts] == [1, 8, 4]
    assert torch.allclose(torch.cat(parts), whole(vae, latents), atol=1e-5)


def test_after_a_cut_nothing_of_the_past_shows(vae):
    first, second = torch.randn(2, 1, 24, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    stream = StreamDecoder(vae)
    stream(first)
    stream.cut()
    assert torch.allclose(stream(second), whole(vae, second), atol=1e-5)


def test_bytes_are_rounded_and_in_place():
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    made = to_bytes(pixels)
    assert made.shape == (2, 4, 5, 3)
    assert made[0, 0, 0].tolist() == [0, 128, 255]


def test_another_vae_is_refused_by_name():
    with pytest.raises(InputError, match="AutoencoderKL can't decode a stream"):
        StreamDecoder(AutoencoderKL())
