"""Telling weights apart without reading them all."""

from __future__ import annotations

from hashlib import sha256

from torch import Tensor, nn

VALUES = 1024  # of each tensor, about, where it has as many


def fingerprint(module: nn.Module) -> str:
    """A hash of the names, the shapes and some values of each tensor, spread over it; quick for large models too."""
    digest = sha256()
    for name, tensor in module.state_dict().items():
        for part in plain_tensors(tensor) if isinstance(tensor, Tensor) else []:
            some = part.detach().flatten()[:: max(1, part.numel() // VALUES)]
            digest.update(f"{name} {tuple(part.shape)}".encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensor itself, or, of one made of others (a quantized weight), those."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_tensors(getattr(tensor, name))]
