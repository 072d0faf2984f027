"""How long a call takes in a layout, how much memory, how much is sent: a prediction, from a handful of constants.

    the call = text + steps x step + decoding
    step     = max(device + sending - hidden, the host's starting of kernels and collectives)
    device   = branches x (matrices + attention + passes over memory + starts and ends of kernels)

The constants are the same for every model, device and layout. They were set once, by hand, from counts and rounded;
docs/planning-parallel.md says what each rests on, and how far predictions are from published runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

from fewstep.plan import traffic
from fewstep.plan.machines import Cluster
from fewstep.plan.traffic import Traffic
from fewstep.plan.work import BF16, Work

if TYPE_CHECKING:
    from fewstep.layout import Layout

LINK_SHARE = 0.7  # of a link's bandwidth that collectives reach
MEMORY_SHARE = 0.8  # of the memory's bandwidth that passes over activations reach
KERNEL = 3e-6  # seconds that a kernel's start and end take on the device
DECODER_SHARE = 0.10  # of a device's tflops that convolutions of a decoder reach
DECODER_REST = 0.2  # of decoding that sharing does not shorten: seams that neighbours both compute, and their exchange
MERGE = 12  # passes that joining two parts of an attention takes: in float32, read both, write one, and their weights
MERGE_KERNELS = 8
USABLE = 0.92  # of a device's memory: the rest is the driver's, the libraries' and lost between allocations
LIVE = (
    16  # copies of all tokens at full width in memory at once: residual, q, k, v (rotated in float32), the MLP's inside
)


@dataclass(frozen=True)
class Mode:
    """How the blocks run.

    Attributes:
        outer, inner: passes over all tokens at full width in a block (a read or a write of each value) by norms,
            modulation and residuals, and by rotations, activations and copies between the matrices. Tensor parallelism
            shares only the inner ones.
        kernels: that a block starts.
        launch: seconds in which the host starts one.
        collective: seconds in which the host starts one collective, with the copies around it.
    """

    outer: int
    inner: int
    kernels: int
    launch: float
    collective: float


EAGER = Mode(outer=22, inner=46, kernels=100, launch=10e-6, collective=300e-6)
COMPILED = Mode(outer=10, inner=14, kernels=30, launch=6e-6, collective=30e-6)


@dataclass(frozen=True)
class Prediction:
    """What a layout is predicted to give. Seconds are of one call of the pipeline, bytes of one device.

    Attributes:
        layout: what is predicted.
        denoising, decoding, encoding: seconds of the parts.
        compute: seconds of one step without sending.
        launching: of those, what the device waits for the host to start its kernels.
        sending: seconds of one step, by the way of sharing.
        hidden: of those, what passes behind attention.
        sent: bytes that leave a device in one step, by the way of sharing.
        memory: bytes, by what they hold.
        capacity: bytes that a device can use.
    """

    layout: Layout
    denoising: float
    decoding: float
    encoding: float
    compute: float
    launching: float
    sending: dict[str, float]
    hidden: float
    sent: dict[str, float]
    memory: dict[str, float]
    capacity: float

    @property
    def seconds(self) -> float:
        return self.encoding + self.denoising + self.decoding

    @property
    def exposed(self) -> float:
        """Seconds of one step that computing waits for what is sent."""
        return sum(self.sending.values()) - self.hidden

    @property
    def fits(self) -> bool:
        return self.need <= self.capacity

    @property
    def need(self) -> float:
        """Bytes of one device."""
        return sum(self.memory.values())

    @property
    def moved(self) -> float:
        """Bytes that leave one device in one step."""
        return sum(self.sent.values())


def predict(
    work: Work, cluster: Cluster, layout: Layout, mode: Mode = COMPILED, *, encoders: bool = True
) -> Prediction:
    """Time, memory and traffic of `work` on `cluster` in `layout`.

    `encoders` says whether the text encoders stay on each device; without, prompts are encoded elsewhere.
    """
    branches, batch = ceil(work.branches / layout.guidance), ceil(work.batch / layout.data)
    ways = {
        "guidance": traffic.guidance(work, layout, branches * batch),
        "ring": _times(traffic.ring(work, layout, batch), branches),
        "ulysses": _times(traffic.ulysses(work, layout, batch), branches),
        "tensor": _times(traffic.tensor(work, layout, batch), branches),
        "gather": _times(traffic.gather(work, layout, batch), branches),
    }
    sending = {name: _seconds(name, way, cluster, layout) for name, way in ways.items()}
    hidden = min(sending["ring"], branches * _behind_ring(work, cluster, layout, batch))
    device = branches * _device(work, cluster, layout, mode, batch)
    collectives = sum(way.collectives for way in ways.values())
    host = branches * _kernels(work, layout, mode) * mode.launch + collectives * mode.collective
    launching = max(0.0, host - device - sum(sending.values()) + hidden)
    return Prediction(
        layout=layout,
        denoising=work.steps * (device + launching + sum(sending.values()) - hidden),
        decoding=decoding(work, cluster, layout),
        encoding=encoding(work, cluster),
        compute=device + launching,
        launching=launching,
        sending=sending,
        hidden=hidden,
        sent={name: way.bytes for name, way in ways.items()},
        memory=memory(work, layout, branches * batch, encoders=encoders),
        capacity=USABLE * cluster.device.memory * 1e9,
    )


def encoding(work: Work, cluster: Cluster) -> float:
    """Seconds for the prompts, which every device encodes for itself: 2 operations a weight and token."""
    flops = 2.0 * work.network.encoders * work.text_tokens * work.branches * work.batch
    return flops / cluster.device.rate(cluster.device.linear)


def decoding(work: Work, cluster: Cluster, layout: Layout) -> float:
    """Seconds from latents to pixels; in parts, `rest + (1 - rest)/p` of the whole batch, and a gather of pixels."""
    one = work.pixels * work.network.decoder.flops / cluster.device.rate(DECODER_SHARE)
    if layout.vae == 1:
        return one * ceil(work.batch / layout.data)
    gather = _seconds("vae", traffic.decoded(work, layout), cluster, layout)
    return one * work.batch * (DECODER_REST + (1 - DECODER_REST) / layout.vae) + gather


def memory(work: Work, layout: Layout, samples: int, *, encoders: bool) -> dict[str, float]:
    """Bytes of one device: weights, which only tensor parallelism shares, and the larger of denoising and decoding."""
    network, batch = work.network, ceil(work.batch / layout.data)
    tokens = (work.image_tokens + work.text_tokens) / layout.sequence
    whole = (1 + 1 / layout.tensor) / 2  # half of the copies lie between the matrices, which tensor parallelism shares
    denoiser = LIVE * whole * tokens * network.width * BF16 * samples
    layers = work.height * work.width * min(work.frames, network.decoder.frames) * network.decoder.values / layout.vae
    decoder = (layers + work.pixels * traffic.PIXEL * batch) * BF16
    return {
        "denoiser": network.experts * network.weights * work.weight_bytes / layout.tensor,
        "text encoders": float(network.encoders * BF16 * encoders),
        "activations": max(denoiser, decoder),
    }


def _device(work: Work, cluster: Cluster, layout: Layout, mode: Mode, batch: int) -> float:
    """Seconds of one denoiser call on the device, without what is sent."""
    device, parts = cluster.device, layout.sequence * layout.tensor
    matrices = work.linear_flops / parts / device.rate(device.linear)
    attention = work.attention_flops / parts / device.rate(device.attention)
    passes = mode.outer + mode.inner / layout.tensor + MERGE * (layout.ring - 1) / layout.tensor
    memory = passes * work.features * BF16 / layout.sequence / (device.memory_bandwidth * 1e9 * MEMORY_SHARE)
    return batch * (matrices + attention + memory) + _kernels(work, layout, mode) * KERNEL


def _kernels(work: Work, layout: Layout, mode: Mode) -> int:
    """That one denoiser call starts."""
    merges = (layout.ring - 1) * work.network.exchanged
    return work.network.depth * mode.kernels + merges * MERGE_KERNELS


def _behind_ring(work: Work, cluster: Cluster, layout: Layout, batch: int) -> float:
    """Seconds of attention behind which a ring's sends hide: all parts but the last."""
    seconds = work.exchanged_flops * batch / cluster.device.rate(cluster.device.attention)
    return seconds / (layout.sequence * layout.tensor) * (layout.ring - 1) / layout.ring


def _seconds(way: str, sent: Traffic, cluster: Cluster, layout: Layout) -> float:
    link = cluster.link(reach(layout, way))
    return sent.bytes / (link.bandwidth * LINK_SHARE) + sent.collectives * link.latency


def reach(layout: Layout, way: str) -> int:
    """How many neighbouring ranks hold a group of a way of sharing: its parts times those of all inner dimensions."""
    from fewstep.layout import DIMENSIONS

    if way == "vae":
        return layout.vae
    own = DIMENSIONS.index("ring" if way == "gather" else way)
    return prod(getattr(layout, name) for name in DIMENSIONS[own:])


def _times(way: Traffic, calls: int) -> Traffic:
    return Traffic(way.bytes * calls, way.collectives * calls)
