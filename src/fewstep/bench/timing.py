"""How long a call takes, how much of it the denoiser takes, and what memory it needs.

Rules: the whole call counts, prompt to pixels; baseline and candidates run in turn in one process (A B A B), so a
slow drift of the machine hits all alike; a speed-up is the median of the ratios *within* a round, not a ratio of
far-apart medians.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from fewstep.errors import InputError, bad_value
from fewstep.models.hooks import wrapped

R = TypeVar("R")
MB = 1024**2
SAMPLE_EVERY = 0.002  # seconds between two looks at the resident memory


@dataclass(frozen=True)
class Run:
    """One whole call. `nfe`: denoiser evaluations for each picture, guidance counted whether it is batched or not."""

    seconds: float
    denoiser_seconds: float
    nfe: float


@dataclass
class Clock:
    """Seconds and samples that went through the denoisers; about 1 µs a call."""

    spans: list[Callable[[], float]] = field(default_factory=list)
    samples: int = 0

    def timed(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The hook: `forward`'s output, its time kept."""
        x = _first_tensor(args, kwargs)
        span = _CudaSpan() if x is not None and x.is_cuda else _HostSpan()
        output = forward(*args, **kwargs)
        span.stop()
        self.spans.append(span.seconds)
        self.samples += x.shape[0] if x is not None else 0
        return output

    @property
    def seconds(self) -> float:
        return sum(seconds() for seconds in self.spans)


class _HostSpan:
    def __init__(self) -> None:
        self._start = self._end = time.perf_counter()

    def stop(self) -> None:
        self._end = time.perf_counter()

    def seconds(self) -> float:
        return self._end - self._start


class _CudaSpan:
    """Events on the stream: asking the host's clock would need a synchronisation per call and cost speed."""

    def __init__(self) -> None:
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._start.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float:
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000


def _first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 0), None)


def measured(call: Callable[[], R], denoisers: Iterable[nn.Module], samples: int) -> tuple[R, Run]:
    """The result of `call`, which makes `samples` pictures, and its `Run`.

    Raises:
        InputError: samples < 1.
    """
    if samples < 1:
        raise InputError(bad_value("samples", "measured", "at least 1", samples))
    clock = Clock()
    with ExitStack() as hooks:
        for module in denoisers:
            hooks.enter_context(wrapped(module, clock.timed))
        start = now()
        result = call()
        seconds = now() - start
    return result, Run(seconds, clock.seconds, clock.samples / samples)


def now() -> float:
    """Seconds on a monotonic clock, after all work queued on the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(subjects: Mapping[str, Callable[[int], R]], rounds: Iterable[int]) -> Iterator[tuple[int, str, R]]:
    """Every subject once a round, in the mapping's order: yields (round, name, result)."""
    for number in rounds:
        for name, subject in subjects.items():
            yield number, name, subject(number)


def speedup(baseline: Sequence[float], candidate: Sequence[float]) -> float:
    """Median over the rounds of baseline seconds / candidate seconds.

    Raises:
        InputError: the two have not one time for each round.
    """
    if len(baseline) != len(candidate) or not baseline:
        raise InputError(f"A speed-up needs one time a round of both. Got {len(baseline)} and {len(candidate)}.")
    return statistics.median(a / b for a, b in zip(baseline, candidate, strict=True))


def spread(seconds: Sequence[float]) -> float:
    """(slowest − fastest) / median: how far runs of the same thing lie apart."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@dataclass
class Peak:
    """How far memory rose above where it stood, in MB; set when the block ends."""

    rise_mb: float = 0.0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """The most that memory rises inside the block: allocated on a GPU, resident (sampled every 2 ms) on a CPU."""
    peak = Peak()
    _give_back_freed()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        torch.cuda.synchronize()
        peak.rise_mb = (torch.cuda.max_memory_allocated() - before) / MB
        return
    with sampled(_resident()) as seen:
        yield peak
    peak.rise_mb = (max(seen) - seen[0]) / MB


def _resident() -> Callable[[], int]:
    process = psutil.Process()
    return lambda: int(process.memory_info().rss)


@contextmanager
def sampled(read: Callable[[], int]) -> Iterator[list[int]]:
    """What `read` gives before the block, every 2 ms inside, and after it."""
    stop = threading.Event()
    seen = [read()]

    def watch() -> None:
        while not stop.wait(SAMPLE_EVERY):
            seen.append(read())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        seen.append(read())


def _give_back_freed() -> None:
    """Freed memory goes back to the system, else a call would hide in what an earlier one left behind."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def weights_mb(modules: Iterable[nn.Module]) -> float:
    """Parameters and buffers of `modules` in MB, shared ones counted once."""
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values()) / MB
