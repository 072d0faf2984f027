"""The decoder of a VAE over processes: each has some rows of the picture, and the seams are exact.

A convolution sees the rows beyond its own from its neighbours, a group norm takes its moments over all processes, and
attention is given all rows. Everything else in such a decoder works on each pixel, or makes several rows of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.models.dispatch import attentions
from fewstep.models.hooks import Hook, Hooks
from fewstep.techniques.parallel.groups import gathered, rank_in, same_enough, shares, size_of

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
ROWS = -2  # the axis that is cut: height
# By the end of a class's name: parts of a decoder that are given all rows, as they attend, or hold an attention that is
# given tokens, in which no rows are to be seen; and those that pad what they give to the convolution that they hold.
WHOLE = ("AttentionBlock", "HunyuanVideoMidBlock3D", "HunyuanVideo15MidBlock")
PADDING = "CausalConv3d"
TRIED = 4  # latent rows of each process when a decoder is tried


class SpreadDecoder:
    """A VAE's decoder, each of whose calls is shared by the processes of a group.

    Raises:
        FewstepError: it has no `decoder` module.
    """

    def __init__(self, vae: nn.Module, group: Any) -> None:
        decoder = getattr(vae, "decoder", None)
        if not isinstance(decoder, nn.Module):
            raise FewstepError(f"{type(vae).__name__} has no decoder that could be shared by rows.")
        self._vae, self._group = vae, group
        self._rank, self._size = rank_in(group), size_of(group)
        self._rows: list[int] = []  # latent rows of each process, in the call that runs
        self.facts: dict[str, Any] = {"decoded": 0, "bytes_sent": 0}
        inner = [Hook(part, partial(way, part)) for part, way in self._parts(decoder)]
        self._hooks = Hooks([*inner, Hook(decoder, self._call)])

    def install(self) -> SpreadDecoder:
        self._hooks.install()
        return self

    def remove(self) -> None:
        self._hooks.remove()

    @torch.no_grad()
    def check(self) -> None:
        """Decode a small latent in parts and whole.

        Raises:
            FewstepError: they differ.
        """
        vae: Any = self._vae
        weight = next(vae.parameters())
        channels = getattr(vae.config, "latent_channels", None) or vae.config["z_dim"]
        frames = (2,) if any(isinstance(part, nn.Conv3d) for part in vae.decoder.modules()) else ()
        shape = (1, channels, *frames, TRIED * self._size + 1, TRIED)
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)
        try:
            parts = vae.decode(latent, return_dict=False)[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise FewstepError(
                f"The decoder of {type(vae).__name__} does not run on some rows alone: {error}"
            ) from error
        self.remove()
        whole = vae.decode(latent, return_dict=False)[0]
        self.install()
        self.facts.update(decoded=0, bytes_sent=0)
        if not same_enough(whole, parts):
            raise FewstepError(f"The decoder of {type(vae).__name__} gives something else by rows than whole.")

    def _parts(self, decoder: nn.Module) -> list[tuple[nn.Module, Callable[..., Any]]]:
        whole = [part for part in decoder.modules() if type(part).__name__.endswith(WHOLE)]
        whole += [part for _, part in attentions(decoder)]
        inside = {id(inner) for part in whole for inner in part.modules() if inner is not part}
        found: list[tuple[nn.Module, Callable[..., Any]]] = []
        found += [(part, self._given_all) for part in whole if id(part) not in inside]
        padding = [part for part in decoder.modules() if type(part).__name__.endswith(PADDING)]
        padding = [part for part in padding if isinstance(getattr(part, "conv", None), CONVOLUTIONS)]
        found += [(part, self._convolution) for part in padding if id(part) not in inside]
        inside |= {id(part) for part in whole} | {id(part.conv) for part in padding}
        for part in decoder.modules():
            if id(part) in inside:
                continue
            if isinstance(part, CONVOLUTIONS) and part.kernel_size[ROWS] > 1:
                found.append((part, self._convolution))
            elif isinstance(part, nn.GroupNorm):
                found.append((part, self._norm))
        return found

    def _call(self, forward: Callable[..., Any], latent: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts = shares(latent.shape[ROWS], self._size)
        if len(parts[-1]) < 1:
            raise FewstepError(f"{latent.shape[ROWS]} latent rows can't be decoded by {self._size} processes.")
        own = parts[self._rank]
        self._rows = [len(part) for part in parts]
        output: Tensor = forward(latent.narrow(ROWS, own.start, len(own)).contiguous(), *args, **kwargs)
        scale = output.shape[ROWS] // len(own)
        self.facts["decoded"] += 1
        return self._gathered(output, scale)

    def _gathered(self, part: Tensor, scale: int) -> Tensor:
        self.facts["bytes_sent"] += part.nbytes * (self._size - 1)
        return gathered(part, [scale * rows for rows in self._rows], part.ndim + ROWS, self._group)

    def _convolution(self, module: Any, forward: Callable[..., Any], x: Tensor, *more: Any, **named: Any) -> Any:
        """With the rows that it sees of the neighbours'; what it makes of these is theirs."""
        halo: int = getattr(module, "conv", module).kernel_size[ROWS] // 2
        above, below = halo * (self._rank > 0), halo * (self._rank < self._size - 1)
        extended = partial(self._extended, halo=halo)
        given = [extended(value) if isinstance(value, Tensor) else value for value in more]
        told = {name: extended(value) if isinstance(value, Tensor) else value for name, value in named.items()}
        output: Tensor = forward(extended(x), *given, **told)
        return output.narrow(ROWS, above, output.shape[ROWS] - above - below)

    def _extended(self, x: Tensor, halo: int) -> Tensor:
        """x between the last rows of the process above and the first ones of that below."""
        rows = x.shape[ROWS]
        if rows < halo:
            raise FewstepError(f"A decoder's process has {rows} rows, and its neighbour needs {halo} of them.")
        edges = {-1: x.narrow(ROWS, 0, halo), 1: x.narrow(ROWS, rows - halo, halo)}
        got, waiting = {}, []
        for side, edge in edges.items():
            if not 0 <= self._rank + side < self._size:
                continue
            peer = dist.get_global_rank(self._group, self._rank + side)
            got[side], sent = torch.empty_like(edge, memory_format=torch.contiguous_format), edge.contiguous()
            pair = [
                dist.P2POp(dist.isend, sent, peer, self._group),
                dist.P2POp(dist.irecv, got[side], peer, self._group),
            ]
            waiting += pair
            self.facts["bytes_sent"] += sent.nbytes
        for one in dist.batch_isend_irecv(waiting):
            one.wait()
        return torch.cat([part for part in (got.get(-1), x, got.get(1)) if part is not None], ROWS)

    def _norm(self, module: nn.GroupNorm, forward: Callable[..., Any], x: Tensor) -> Tensor:
        """A group norm whose mean and variance are those of all rows."""
        groups = x.float().reshape(len(x), module.num_groups, -1)
        count = torch.full_like(groups[..., :1], groups.shape[-1])
        moments = torch.cat([groups.sum(-1, keepdim=True), groups.square().sum(-1, keepdim=True), count], -1).double()
        dist.all_reduce(moments, group=self._group)
        mean, square = (moments[..., i : i + 1] / moments[..., 2:] for i in (0, 1))
        scale = (square - mean.square() + module.eps).rsqrt()
        normed = ((groups - mean) * scale).reshape(x.shape).to(x.dtype)
        if module.weight is None:
            return normed
        shape = (1, -1, *[1] * (x.ndim - 2))
        return normed * module.weight.view(shape) + module.bias.view(shape)

    def _given_all(self, module: nn.Module, forward: Callable[..., Any], x: Tensor, *more: Any, **named: Any) -> Any:
        """Of all rows its own are kept."""
        scale = x.shape[ROWS] // self._rows[self._rank]
        start = scale * sum(self._rows[: self._rank])
        output: Tensor = forward(self._gathered(x, scale), *more, **named)
        return output.narrow(ROWS, start, x.shape[ROWS])
