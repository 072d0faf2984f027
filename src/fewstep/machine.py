"""What this machine can do: its device, its memory, and the features that techniques ask for.

A technique asks `machine.missing("fp8")` and gets a sentence to show, or None. Tests build a `Machine` by hand; only
`Machine.detect()` looks at the real one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import InputError, bad_value

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda", "mps")
FEATURES = ("bf16", "int8", "fp8", "nvfp4", "compile")

# The least compute capability of an NVIDIA GPU whose matrix units take the format.
CUDA_CAPABILITY = {"bf16": (8, 0), "int8": (8, 0), "fp8": (8, 9), "nvfp4": (10, 0)}
# One of these CPU instruction sets is enough. Without one the format works, but slower than float32: no gain to sell.
CPU_INSTRUCTIONS = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "dot"),
}

# glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes.
MALLOC_SETTINGS = {-1: 2**31 - 1, -3: 2**30}

_MISSING = {
    ("bf16", "cpu"): "This CPU has no bfloat16 instructions; a CPU with AVX512-BF16, AMX or Arm BF16 has.",
    ("bf16", "cuda"): "This GPU has no bfloat16 matrix units; NVIDIA Ampere (capability 8.0) and later have.",
    ("int8", "cpu"): "This CPU has no 8-bit dot product; a CPU with AVX-VNNI, AMX or Arm I8MM has.",
    ("int8", "cuda"): "This GPU has no fast INT8 matrix product; NVIDIA Ampere (capability 8.0) and later have.",
    (
        "fp8",
        "cpu",
    ): "FP8 needs an NVIDIA GPU, Ada or Hopper (capability 8.9) or later; this machine computes on a CPU.",
    ("fp8", "cuda"): "This GPU has no FP8 matrix units; NVIDIA Ada and Hopper (capability 8.9) and later have.",
    ("nvfp4", "cpu"): "NVFP4 needs an NVIDIA Blackwell GPU (capability 10.0); this machine computes on a CPU.",
    ("nvfp4", "cuda"): "This GPU has no FP4 matrix units; NVIDIA Blackwell (capability 10.0) and later have.",
    (
        "compile",
        "cpu",
    ): "torch.compile needs a C++ compiler and Python's headers; install g++ and python3-dev.",
    ("compile", "cuda"): "torch.compile needs Triton and a C compiler; install the triton package and gcc.",
}


@dataclass(frozen=True)
class Machine:
    """One machine and the device on it that fewstep computes on.

    `memory_gb` is the device's memory in gigabytes (10⁹ bytes): the GPU's own, else the machine's. `features` holds
    those of `FEATURES` that run fast here.

    Raises:
        InputError: a device or feature that fewstep does not know.
    """

    device: str
    name: str
    cores: int
    memory_gb: float
    features: frozenset[str]

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(bad_value("device", "Machine", f"one of {', '.join(DEVICES)}", self.device))
        for feature in self.features:
            _check_feature(feature)

    @classmethod
    def detect(cls) -> Machine:
        """The machine this process runs on, and the best device of it."""
        return _detect()

    def missing(self, feature: str) -> str | None:
        """Why this machine has no `feature` and what would give it, in one sentence; None if it has it.

        Raises:
            InputError: a feature that fewstep does not know.
        """
        _check_feature(feature)
        if feature in self.features:
            return None
        return _MISSING.get((feature, self.device), f"fewstep does not use {feature} on the device {self.device!r}.")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in ("fewstep", "torch", "diffusers", "transformers", "accelerate", "torchao", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_feature(feature: str) -> None:
    if feature not in FEATURES:
        raise InputError(bad_value("feature", "Machine", f"one of {', '.join(FEATURES)}", feature))


@cache
def _detect() -> Machine:
    import torch  # here, so that `fewstep --help` does not wait for it

    cores = _cores()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        features = cuda_features((properties.major, properties.minor), compiles=_has_triton())
        return Machine("cuda", properties.name, cores, round(properties.total_memory / 1e9, 1), features)
    if torch.backends.mps.is_available():
        return Machine("mps", platform.processor() or "Apple GPU", cores, _memory_gb(), frozenset())
    features = cpu_features(torch.cpu.get_capabilities(), compiles=_has_cpp_toolchain())
    return Machine("cpu", _cpu_name(), cores, _memory_gb(), features)


def cuda_features(capability: tuple[int, int], *, compiles: bool) -> frozenset[str]:
    """Features of an NVIDIA GPU of this compute capability."""
    fast = {feature for feature, least in CUDA_CAPABILITY.items() if capability >= least}
    return frozenset(fast | ({"compile"} if compiles else set()))


def cpu_features(capabilities: Mapping[str, object], *, compiles: bool) -> frozenset[str]:
    """Features of a CPU. `capabilities`: what is there by instruction set, as `torch.cpu.get_capabilities` says it."""
    fast = {
        feature for feature, names in CPU_INSTRUCTIONS.items() if any(capabilities.get(name) is True for name in names)
    }
    return frozenset(fast | ({"compile"} if compiles else set()))


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for its next tensors.

    Else the system takes large blocks back, and clears every page again when they are asked for: on a CPU some 5% of a
    few-step call, and up to a third of a training step. False where the C library has no such setting (it is glibc's).
    """
    mallopt = None if os.name == "nt" else getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(setting, value) for setting, value in MALLOC_SETTINGS.items())


_COUNTING = threading.Lock()


def compute_with(threads: int) -> None:
    """Let torch compute with so many threads where this thread asks it to; all other threads keep their numbers."""
    import torch

    with _COUNTING:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # for this thread, and for threads to come
        after = threading.Thread(target=torch.set_num_threads, args=(before,))
        after.start()
        after.join()


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what this thread asked of it; other devices have by then."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


@contextmanager
def queue_of_its_own(device: torch.device) -> Iterator[None]:
    """Inside, this thread's work on a GPU stands in a queue (a CUDA stream) beside that of other threads. What it reads
    of theirs must be done (`finish`)."""
    import torch

    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        yield


def _has_cpp_toolchain() -> bool:
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++", "cl")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(name and shutil.which(name) for name in compilers)


def _has_triton() -> bool:
    return "triton" in versions() and any(shutil.which(name) for name in ("gcc", "clang", "cc"))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container or taskset may allow fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0.0


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
