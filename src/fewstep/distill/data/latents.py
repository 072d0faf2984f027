"""From pixels to the states of a pipeline's denoiser: encoded by its VAE, scaled and packed as the denoiser sees them.

How latents are scaled and packed stands in each pipeline's code. Here the few known ways are tried, and held against
the pipeline's own run: what its scheduler ends with must be what its VAE is given to decode, scaled and packed. A way
that fits no run is never used, and a pipeline that none fits is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.models.model import Model
from fewstep.models.trace import STEPS, TracedDenoiser
from fewstep.models.tracing.record import record

Posterior = Literal["mean", "sample"]
Arrange = Callable[[Tensor], Tensor]
TOLERANCE = 1e-4  # of the largest value of a state; rounding in half precision is coarser
HALF_TOLERANCE = 2e-2
MOMENTS = ((("latents_mean", "shift_factor"), 0.0), (("latents_std",), 1.0))  # names of mean and std, and the default


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Pixels to states of one pipeline: state = (latent in another order − mean) / std.

    Attributes:
        vae: what encodes.
        pixels: (3, H, W) of a picture, (3, F, H, W) of a video.
        latent: shape of what the VAE makes of it, (channels, …).
        order: int64, shape of a state: where in the latent, flattened, each of its elements stands.
        mean, std: float32, shape of a state.
        device: where the VAE runs.
        signed: the VAE takes pixels in [-1, 1], else in [0, 1].
    """

    vae: nn.Module
    pixels: tuple[int, ...]
    latent: tuple[int, ...]
    order: Tensor
    mean: Tensor
    std: Tensor
    device: torch.device
    signed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return tuple(self.order.shape)

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (batch, channels, …) of the VAE -> states (batch, …), float32, on the CPU."""
        flat = latents.float().cpu().flatten(1)
        return (flat[:, self.order.flatten()].view(-1, *self.shape) - self.mean) / self.std

    @torch.no_grad()
    def encode(self, pixels: Tensor, posterior: Posterior = "mean", draws: Sequence[torch.Generator] = ()) -> Tensor:
        """Pixels (batch, 3, …) in [0, 1] -> states (batch, …). A "sample" of the posterior takes a draw for each.

        Raises:
            InputError: the VAE makes latents of another shape than it decodes, or has no posterior to sample.
        """
        given = (pixels * 2 - 1 if self.signed else pixels).to(self.device, next(self.vae.parameters()).dtype)
        latents = _latents(self.vae, given, posterior, draws)
        if latents.shape[1:] != self.latent:
            raise InputError(
                f"{type(self.vae).__name__} encodes pixels of {self.pixels} to latents of {tuple(latents.shape[1:])}, "
                f"and its pipeline decodes {self.latent}."
            )
        return self.pack(latents)


def find_space(pipe: Any, traced: TracedDenoiser, **call: Any) -> LatentSpace:
    """What leads from pixels to the states of the traced call, with these arguments in the place of its own.

    The pipeline runs once, to its pixels; their size is the one that data must have.

    Raises:
        InputError: it has no VAE of its own, or scales or packs its latents in a way that is not known here.
    """
    name, whole = type(pipe).__name__, Model(pipe)
    vae = whole.vae
    if vae is None or not hasattr(vae, "encode") or not hasattr(vae, "decode"):
        raise InputError(f"{name} can't be given data: it has no VAE that could encode it.")
    with _listening(vae) as heard:
        tape = record(pipe, whole.denoisers, _to_pixels(pipe, {**traced.call, **call}))
    if not heard or tape.steps[-1].result is None:
        raise InputError(f"{name} can't be given data: it makes its pixels without a call of its VAE's decode.")
    latent, pixels = heard[0]
    if pixels.shape[1] != 3:
        raise InputError(f"{name} can't be given data: its VAE decodes {pixels.shape[1]} channels, not colours.")
    order, mean, std = _matched(pipe, vae, latent[:1], tape.steps[-1].result[:1])
    return LatentSpace(
        vae, tuple(pixels.shape[1:]), tuple(latent.shape[1:]), order, mean, std, pipe._execution_device, _signed(pipe)
    )


def _to_pixels(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with few steps, where it does not say how many, and with decoding."""
    takes = inspect.signature(type(pipe).__call__).parameters
    full = dict(call)
    if "num_inference_steps" in takes and not {"num_inference_steps", "timesteps", "sigmas"} & set(call):
        full["num_inference_steps"] = STEPS
    if "output_type" in takes:
        full["output_type"] = "pt"
    return full


@contextmanager
def _listening(vae: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(latents, pixels) of each call of the VAE's decode inside the block."""
    heard: list[tuple[Tensor, Tensor]] = []
    decode = vae.decode

    def listened(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = z.detach().clone()
        output = decode(z, *args, **kwargs)
        heard.append((given, (output[0] if isinstance(output, tuple) else output.sample).detach()))
        return output

    vars(vae)["decode"] = listened
    try:
        yield heard
    finally:
        del vars(vae)["decode"]


def _signed(pipe: Any) -> bool:
    processor = getattr(pipe, "video_processor", None) or getattr(pipe, "image_processor", None)
    return bool(getattr(getattr(processor, "config", None), "do_normalize", True))


def _latents(vae: Any, pixels: Tensor, posterior: Posterior, draws: Sequence[torch.Generator]) -> Tensor:
    made = vae.encode(pixels)
    spread = getattr(made, "latent_dist", None)
    if spread is None and posterior == "sample":
        raise InputError(f"{type(vae).__name__} has no posterior to sample: take its 'mean'.")
    latents: Tensor
    if spread is None:
        latents = made.latent if hasattr(made, "latent") else made.latents
    else:
        latents = spread.sample(list(draws)) if posterior == "sample" else spread.mode()
    return latents


def _matched(pipe: Any, vae: Any, latent: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order, mean, std) that make the state (1, …) of the latent (1, channels, …)."""
    z, x0 = latent.double().cpu().flatten(), state[0].double().cpu()
    best = float("inf")
    found: tuple[Tensor, Tensor, Tensor] | None = None
    for way in _ways(pipe, vae, latent):
        if way[0].numel() == x0.numel():
            order, mean, std = (value.reshape(x0.shape) for value in way)
            error = float(((z[order] - mean) / std - x0).abs().max())
            if error < best:
                best, found = error, (order, mean.float(), std.float())
    half = {latent.dtype, state.dtype} & {torch.float16, torch.bfloat16}
    if found is not None and best < (HALF_TOLERANCE if half else TOLERANCE) * max(1.0, float(x0.abs().max())):
        return found
    near = f"the nearest is off by {best:.2g}" if best < float("inf") else "none gives its number of elements"
    raise InputError(
        f"{type(pipe).__name__} can't be given data: no known way to scale and pack turns the latents of its VAE, "
        f"{tuple(latent.shape[1:])}, into the states of its denoiser, {tuple(state.shape[1:])}; {near}."
    )


def _ways(pipe: Any, vae: Any, latent: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every known (order, mean, std), float64, in the order of a state's elements."""
    places = torch.arange(latent.numel()).view(latent.shape)
    for patch, pack in _arrangements(pipe, latent):
        try:
            patched = patch(places)
            order = pack(patched)
        except (RuntimeError, ValueError, TypeError, IndexError):  # not meant for latents of this shape
            continue
        for scales in _scales(vae):
            for shape, arrange in ((places.shape, _after(patch, pack)), (patched.shape, pack)):
                # One number a channel: of the latents or, where patches become channels (Flux 2), of those.
                if all(len(value) in (1, shape[1]) for value in scales):
                    mean, std = (arrange(_over(value, shape)) for value in scales)
                    yield order, mean, std
                    break


def _over(values: Tensor, shape: torch.Size) -> Tensor:
    """One number a channel, or one for all, as a tensor of this shape (1, channels, …)."""
    return values.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()


def _after(patch: Arrange, pack: Arrange) -> Arrange:
    return lambda x: pack(patch(x))


def _arrangements(pipe: Any, latent: Tensor) -> Iterator[tuple[Arrange, Arrange]]:
    """(what makes patches, what packs them)."""
    yield _same, _same
    if latent.dim() == 5:
        yield _same, lambda x: x.transpose(1, 2)  # frames before channels, as CogVideoX has them
    if hasattr(pipe, "_pack_latents"):
        yield getattr(pipe, "_patchify_latents", _same), _packer(pipe)


def _same(x: Tensor) -> Tensor:
    return x


def _packer(pipe: Any) -> Arrange:
    """The pipeline's own packing, whatever of the latents' shape and the patches' size it asks for."""
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    patch = {name: getattr(config, name, 1) or 1 for name in ("patch_size", "patch_size_t")}
    takes = inspect.signature(pipe._pack_latents).parameters

    def pack(x: Tensor) -> Tensor:
        sizes = {
            "batch_size": x.shape[0],
            "num_channels_latents": x.shape[1],
            "height": x.shape[-2],
            "width": x.shape[-1],
        }
        packed: Tensor = pipe._pack_latents(x, **{k: v for k, v in {**sizes, **patch}.items() if k in takes})
        return packed

    return pack


def _scales(vae: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The known (mean, std), float64, each of shape (channels,) or (1,)."""
    known = {**vae.config, **dict(vae.named_buffers())}  # some keep them beside their weights
    scale = float(known.get("scaling_factor") or 1.0)
    means, stds = ([*(known.get(name) for name in names), default] for names, default in MOMENTS)
    for mean in (_vector(value) for value in means if value is not None):
        for std in (_vector(value) for value in stds if value is not None):
            yield from ((mean, std / scale), (mean, std))
    if "bn.running_var" in known:
        yield _vector(known["bn.running_mean"]), (_vector(known["bn.running_var"]) + known["batch_norm_eps"]).sqrt()


def _vector(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).cpu().reshape(-1)
