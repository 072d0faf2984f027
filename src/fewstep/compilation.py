"""torch's cache of compiled code: what is said when a file of it is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fewstep.errors import MachineError

CUT = "file too short"  # what the loader says of a library that a killed compilation left empty


@contextmanager
def sound_cache() -> Iterator[None]:
    """Around calls of compiled code.

    Raises:
        MachineError: the cache holds a library that was not written to its end; torch's own error is its cause.
    """
    try:
        yield
    except Exception as error:
        if CUT not in str(error):
            raise
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        empty = f"find {os.path.realpath(cache_dir())} -name '*.so' -size 0 -delete"
        raise MachineError(
            f"A compilation that was killed left an empty library in torch's cache; remove it, and start again: {empty}"
        ) from error
