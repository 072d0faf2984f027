"""All layouts of a number of devices, predicted and put in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING

from fewstep.errors import InputError
from fewstep.plan.cost import COMPILED, Mode, Prediction, predict
from fewstep.plan.machines import Cluster
from fewstep.plan.work import Work

if TYPE_CHECKING:
    from fewstep.layout import Layout

# Into how many parts a decoder is cut at most: 16 were no faster than 8 (0.85 s, 0.83 s) where it was published:
# https://github.com/NVIDIA/TensorRT-LLM/blob/main/docs/source/blogs/tech_blog/blog25_Scaling_Video_Generation_Across_NVL72_Rack_with_TensorRT-LLM.md
DECODER_PARTS = 8


def candidates(work: Work, devices: int, without: Collection[str] = ()) -> list[Layout]:
    """Every layout that keeps `devices` busy, but for ways of sharing to leave out; the decoder's parts are still 1.

    `data` divides the batch, `guidance` the branches, `ulysses` times `tensor` the heads, `tensor` the features of the
    MLP. Tokens need no even cut, only one for each part.
    """
    from fewstep.layout import DIMENSIONS, Layout

    found = (Layout(**dict(zip(DIMENSIONS, parts, strict=True))) for parts in _products(devices, len(DIMENSIONS)))
    return [one for one in found if _cuts(work, one) and all(getattr(one, way) == 1 for way in without)]


def _cuts(work: Work, layout: Layout) -> bool:
    network = work.network
    return (
        work.batch % layout.data == 0
        and work.branches % layout.guidance == 0
        and network.heads % (layout.ulysses * layout.tensor) == 0
        and network.hidden % layout.tensor == 0
        and work.image_tokens >= layout.sequence
    )


def ranked(
    work: Work, cluster: Cluster, mode: Mode = COMPILED, *, encoders: bool = True, without: Collection[str] = ()
) -> list[Prediction]:
    """A prediction for every candidate, those that fit first, each group from the fastest on.

    The decoder is shared among as many devices as it scales to, where that is predicted to be faster than decoding on
    each.

    Raises:
        InputError: the work can't be cut into so many parts, or no layout fits the memory.
    """
    found = candidates(work, cluster.devices, without)
    if not found:
        raise InputError(_no_cut(work, cluster, without))
    predictions = [_with_decoder(work, cluster, layout, mode, encoders) for layout in found]
    predictions.sort(key=lambda one: (not one.fits, one.seconds, one.need))
    if not predictions[0].fits:
        raise InputError(_no_fit(work, cluster, predictions))
    return predictions


def alone(work: Work, cluster: Cluster, mode: Mode = COMPILED, *, encoders: bool = True) -> Prediction:
    """The same work on one device, whether or not it fits there: what speed-ups are counted from."""
    from fewstep.layout import Layout

    return predict(work, Cluster(cluster.device), Layout(), mode, encoders=encoders)


def _with_decoder(work: Work, cluster: Cluster, layout: Layout, mode: Mode, encoders: bool) -> Prediction:
    parts = max(parts for parts in range(1, DECODER_PARTS + 1) if layout.size % parts == 0)
    choices = (layout, replace(layout, vae=parts))
    return min((predict(work, cluster, one, mode, encoders=encoders) for one in choices), key=lambda one: one.seconds)


def _products(number: int, factors: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `number` as a product of so many factors, in order."""
    if factors == 1:
        yield (number,)
        return
    for first in _divisors(number):
        yield from ((first, *rest) for rest in _products(number // first, factors - 1))


def _divisors(number: int) -> list[int]:
    small = [one for one in range(1, isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def _no_cut(work: Work, cluster: Cluster, without: Collection[str]) -> str:
    network, left_out = work.network, f" without {' and '.join(without)}" if without else ""
    fewer = range(cluster.devices - 1, max(0, cluster.devices - 65), -1)
    works = next(count for count in (*fewer, 1) if candidates(work, count, without))
    return (
        f"{network.name} can't be shared among {cluster.devices} devices{left_out}: its {network.heads} heads, "
        f"{work.image_tokens} image tokens, {work.branches} guidance branches and batch of {work.batch} don't divide "
        f"so; the next number that works is {works}."
    )


def _no_fit(work: Work, cluster: Cluster, predictions: list[Prediction]) -> str:
    least = min(predictions, key=lambda one: one.need)
    held = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in least.memory.items())
    return (
        f"No layout of {work.network.name} fits {cluster}: the smallest ({least.layout}) needs {least.need / 1e9:.1f} "
        f"GB a device ({held}), and {least.capacity / 1e9:.1f} of {cluster.device.memory:.0f} GB can be used; take "
        "larger or more devices, or encode the prompts elsewhere."
    )
