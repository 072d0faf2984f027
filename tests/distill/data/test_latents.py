"""Latents of many families: what is packed here is what the pipeline's own decoding takes apart again."""

from __future__ import annotations

import diffusers
import pytest
import torch

from fewstep.distill.data.latents import find_space
from fewstep.distill.data.seeds import generator
from fewstep.errors import InputError
from fewstep.models.trace import trace
from tests.models import tiny

SMALL = {"height": 16, "width": 16}
MOMENTS = {"latents_mean": [0.5, -1.0, 0.2, 0.0], "latents_std": [2.0, 0.5, 1.5, 3.0]}
BLOCKS = {"block_out_channels": (4, 4), "norm_num_groups": 2, "latent_channels": 4}
PLAIN = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **BLOCKS}
VIDEO = {"z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "base_dim": 4, **MOMENTS}


def plain(**config):
    return diffusers.AutoencoderKL(**PLAIN, **config)


def batch_normed():
    vae = diffusers.AutoencoderKLFlux2(**PLAIN)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def cogvideox():
    config = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    return diffusers.AutoencoderKLCogVideoX(**config, scaling_factor=0.7)


FAMILIES = {
    "sd3": (tiny.sd3, lambda: plain(shift_factor=0.6, scaling_factor=1.5), SMALL),
    "pixart": (tiny.pixart, lambda: plain(scaling_factor=0.13), SMALL),
    "sd15, its shift unused": (tiny.sd15, lambda: plain(shift_factor=0.6, scaling_factor=0.18), SMALL),
    "sdxl, with moments": (tiny.sdxl, lambda: plain(scaling_factor=0.13, **MOMENTS), SMALL),
    "flux": (tiny.flux_off, lambda: plain(shift_factor=0.1, scaling_factor=0.36), {"height": 16, "width": 24}),
    "flux2": (tiny.flux2, batch_normed, {"height": 16, "width": 24}),
    "qwen_image": (tiny.qwen_image, lambda: diffusers.AutoencoderKLQwenImage(**VIDEO), {"height": 32, "width": 48}),
    "wan": (tiny.wan, lambda: diffusers.AutoencoderKLWan(**VIDEO), {"height": 16, "width": 32}),
    "cogvideox": (tiny.cogvideox, cogvideox, {"height": 16, "width": 32}),
}


def built(name):
    make, vae, call = FAMILIES[name]
    pipe, given = make()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe = type(pipe)(**{**pipe.components, "vae": tiny.eval_(vae())})
    pipe.set_progress_bar_config(disable=True)
    return pipe, {**given, **call}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pipeline_decodes_what_was_packed(name):
    pipe, call = built(name)
    traced = trace(pipe, **call)
    space = find_space(pipe, traced)
    assert space.shape == traced.noise.shape[1:]
    assert "decode" not in vars(pipe.vae)
    latents = tiny.noise(1, *space.latent)
    states = space.pack(latents)
    pipe.scheduler.step = lambda *given, **rest: (states,)  # as if sampling had led there
    out = pipe(**call, num_inference_steps=2, output_type="pt")
    pixels = out.images if hasattr(out, "images") else out.frames.transpose(1, 2)
    with torch.no_grad():
        decoded = (pipe.vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    assert decoded.shape[1:] == space.pixels
    torch.testing.assert_close(pixels.reshape(decoded.shape), decoded, rtol=0, atol=1e-5)
    assert decoded.std() > 1e-3  # or anything would do


@pytest.mark.parametrize("name", ["sd3", "flux2", "qwen_image", "wan", "cogvideox"])
def test_pixels_become_states(name):
    pipe, call = built(name)
    space = find_space(pipe, trace(pipe, **call))
    pixels = torch.rand(2, *space.pixels, generator=generator("pixels"))
    mean = space.encode(pixels)
    with torch.no_grad():
        spread = pipe.vae.encode(2 * pixels - 1).latent_dist
    torch.testing.assert_close(mean, space.pack(spread.mean))
    one, again, other = (space.encode(pixels, "sample", [generator(n, i) for i in range(2)]) for n in ("a", "a", "b"))
    assert torch.equal(one, again)
    wide = space.pack(spread.mean + 6 * spread.std) - mean
    for drawn in (one, other):
        assert ((drawn - mean).abs() <= wide.abs()).all()
    assert not torch.allclose(one, other, rtol=0, atol=1e-7)


def test_other_sizes_than_the_traced_call_has():
    pipe, call = built("wan")
    space = find_space(pipe, trace(pipe, **call), height=32, width=16, num_frames=9)
    assert space.pixels == (3, 9, 32, 16)
    assert space.shape == (4, 3, 4, 2)


class Mirrored(diffusers.FluxPipeline):
    """Unpacks its latents as no other pipeline does."""

    @staticmethod
    def _unpack_latents(*given):
        return diffusers.FluxPipeline._unpack_latents(*given).flip(-1)


def test_what_can_not_be_had_is_refused_by_name():
    pipe, call = tiny.sd3()
    with pytest.raises(InputError, match=r"^StableDiffusion3Pipeline can't be given data: it has no VAE that could"):
        find_space(pipe, trace(pipe, **call))
    pipe, call = built("flux")
    pipe = Mirrored(**pipe.components)
    with pytest.raises(
        InputError, match=r"^Mirrored can't be given data: .*, \(4, 8, 12\), into .*, \(24, 16\); the nea"
    ):
        find_space(pipe, trace(pipe, **call))
    pipe, call = built("sd3")
    space = find_space(pipe, trace(pipe, **call))
    with pytest.raises(
        InputError, match=r"^AutoencoderKL encodes pixels of .* and its pipeline decodes \(4, 8, 8\)\.$"
    ):
        space.encode(torch.zeros(1, 3, 32, 32))
