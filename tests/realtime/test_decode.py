"""A stream decodes to what the whole clip decodes to."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from fewstep.distill.decoder import decode_pairs, small_decoder
from fewstep.errors import InputError
from fewstep.realtime.decode import SmallStream, StreamDecoder, to_bytes
from fewstep.zoo.moving.pipeline import build_vae
from tests.distill.pipes import video_pipeline


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
    stream.follow(None)
    assert torch.allclose(stream(second), whole(vae, second), atol=1e-5)


def test_bytes_are_rounded_and_in_place():
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    made = to_bytes(pixels)
    assert made.shape == (2, 4, 5, 3)
    assert made[0, 0, 0].tolist() == [0, 128, 255]


def test_another_vae_is_refused_by_name():
    with pytest.raises(InputError, match="AutoencoderKL can't decode a stream"):
        StreamDecoder(AutoencoderKL())


def test_a_small_decoder_of_a_stream_is_that_of_the_whole_clip() -> None:
    torch.manual_seed(0)
    pipe = video_pipeline()
    small = small_decoder(pipe, width=8).eval()
    latents = torch.randn(1, 24, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = decode_pairs(small, latents).flatten(1, 2)[0, 3:]
    stream = SmallStream(small, pipe.vae, 4)
    made = torch.cat([stream(part) for part in latents.split([1, 2, 1], 2)])
    assert made.shape == (13, 3, 16, 16)
    assert torch.allclose(made, (whole / 2 + 0.5).clamp(0, 1), atol=1e-6)
    stream.follow(None)
    pipe.vae.bfloat16()  # as the technique `precision` does, and it may do so in mid-stream
    half = torch.cat([stream(part) for part in latents.split([1, 2, 1], 2)])
    assert 0 < float((half - made).abs().max()) < 0.05
    pipe.vae.float()
    stream.follow(None)
    assert torch.allclose(torch.cat([stream(part) for part in latents.split([1, 2, 1], 2)]), made, atol=1e-5)


def test_one_decoder_goes_on_where_another_was(vae) -> None:
    latents = torch.randn(1, 24, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    first, second = StreamDecoder(vae), StreamDecoder(vae)
    first(latents[:, :, :1])
    second.follow(first.last)
    assert torch.allclose(second(latents[:, :, 1:]), first(latents[:, :, 1:]), atol=1e-6)
