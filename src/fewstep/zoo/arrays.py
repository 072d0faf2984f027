"""Arrays that are made in chunks by all cores, and mapped from their files instead of being read whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.files import replacing
from fewstep.zoo.steps import bar

CHUNK = 1000  # scenes that one process works on at a time


def made_in_parallel(
    path: Path, make: Callable[..., NDArray[Any]], scenes: int, shape: tuple[int, ...], dtype: type
) -> NDArray[Any]:
    """The array at `path`, of `shape` for each scene; made, if there is none, by as many processes as cores.

    Args:
        make: called as `make(start, scenes=scenes)`; gives the rows of the scenes in `chunk(start, scenes)`.
    """
    if path.exists():
        return mapped(path)
    starts = range(0, scenes, CHUNK)
    with bar() as shown, replacing(path) as aside:
        kept = np.lib.format.open_memmap(aside, mode="w+", dtype=dtype, shape=(scenes, *shape))
        blocks = zip(starts, _blocks(partial(make, scenes=scenes), starts), strict=True)
        for start, block in shown.track(blocks, len(starts), description=path.stem):
            kept[start : start + len(block)] = block
        kept.flush()
    return mapped(path)


def _blocks(make: Callable[[int], NDArray[Any]], starts: range) -> Iterator[NDArray[Any]]:
    if len(starts) == 1:  # not worth a process, whose start takes seconds
        yield make(0)
        return
    # Spawned, not forked: a fork of a process whose torch has threads can hang.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield from pool.map(make, starts)


def chunk(start: int, scenes: int) -> range:
    """The scenes of the chunk that begins at `start`."""
    return range(start, min(start + CHUNK, scenes))


def mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array
