"""The mathematics of diffusion: schedules, samplers, guidance and mixtures whose denoiser is known exactly."""
