"""Find the denoiser inside a pipeline, and sample from it with another solver than the pipeline's own.

Run it with: python examples/find_denoiser.py
"""

import torch

import fewstep
from fewstep.diffusion.samplers import SAMPLERS, flow_times

pipe = fewstep.load("zoo:shapes")
denoiser = fewstep.trace(pipe, prompt="a large red ring left of a small blue square", num_inference_steps=4)

print(f"guidance: {dict(denoiser.weights)}")
print(f"our Euler sampler differs from the pipeline's own latents by at most {denoiser.replay_error:.1e}")

with torch.no_grad():
    for name in ("euler", "dpmpp_2m"):
        x0 = SAMPLERS[name](denoiser, denoiser.noise, flow_times(8, shift=1.5), denoiser.cond)
        print(f"{name}: latents of shape {tuple(x0.shape)}, standard deviation {x0.std():.3f}")
