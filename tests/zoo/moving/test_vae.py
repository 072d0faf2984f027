"""A whole clip at once through the autoencoder gives what diffusers' chunks and their cache give."""

from __future__ import annotations

import torch

from fewstep.zoo.moving import vae as whole
from fewstep.zoo.moving.pipeline import LATENT_SHAPE, build_vae


def test_all_frames_at_once_are_the_chunks_together() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    clips = torch.rand(2, 3, 17, 64, 64) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(clips).latent_dist
        mean, log_variance = whole.encode(vae, clips)
        torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(log_variance, posterior.logvar, atol=1e-5, rtol=1e-4)
        latents = torch.randn(mean.shape)
        decoded = whole.decode(vae, latents)
        torch.testing.assert_close(decoded.clamp(-1, 1), vae.decode(latents).sample, atol=1e-5, rtol=1e-4)
    assert mean.shape == (2, vae.config["z_dim"], *LATENT_SHAPE[1:])
    assert decoded.shape == clips.shape


def test_no_frame_is_seen_before_its_time() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    clips = torch.rand(1, 3, 17, 64, 64) * 2 - 1
    changed = clips.clone()
    changed[:, :, 9:] = 0
    with torch.no_grad():
        one, other = (whole.encode(vae, given)[0] for given in (clips, changed))
    assert torch.equal(one[:, :, :3], other[:, :, :3])
    assert (one[:, :, 3] - other[:, :, 3]).abs().max() > 1e-3
