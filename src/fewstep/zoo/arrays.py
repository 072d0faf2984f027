"""Arrays that are made in chunks by all cores, and mapped from their files instead of being read whole."""

from __future__ import annotations

from collections.abc import Callable
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
    # Spawned, not forked: a fork of a process whose torch has threads can hang.
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    with bar() as shown, pool, replacing(path) as aside:
        kept = np.lib.format.open_memmap(aside, mode="w+", dtype=dtype, shape=(scenes, *shape))
        blocks = pool.map(partial(make, scenes=scenes), starts)
        for start, block in shown.track(zip(starts, blocks, strict=True), len(starts), description=path.stem):
            kept[start : start + len(block)] = block
        kept.flush()
    return mapped(path)


def chunk(start: int, scenes: int) -> range:
    """The scenes of the chunk that begins at `start`."""
    return range(start, min(start + CHUNK, scenes))


def mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array
