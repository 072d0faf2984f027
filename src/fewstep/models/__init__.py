"""Views of a diffusers pipeline: loading it, finding its parts, and tracing its denoiser."""
