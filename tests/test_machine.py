"""What a machine says it can do, for machines made by hand and for this one."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import pytest
import torch

from fewstep.errors import InputError
from fewstep.machine import FEATURES, Machine, compute_with, cpu_features, cuda_features, versions

BARE = Machine("cpu", "an old CPU", 2, 8.0, frozenset())


@pytest.mark.parametrize(
    ("capability", "features"),
    [
        ((7, 5), set()),
        ((8, 0), {"bf16", "int8"}),
        ((8, 9), {"bf16", "int8", "fp8"}),
        ((9, 0), {"bf16", "int8", "fp8"}),
        ((12, 0), {"bf16", "int8", "fp8", "nvfp4"}),
    ],
)
def test_gpu_features_follow_the_capability(capability: tuple[int, int], features: set[str]) -> None:
    assert cuda_features(capability, compiles=False) == features
    assert cuda_features(capability, compiles=True) == features | {"compile"}


def test_cpu_features_need_an_instruction_set_that_is_there() -> None:
    assert cpu_features({"avx2": True, "avx512_vnni": False}, compiles=False) == set()
    assert cpu_features({"avx512_vnni": True, "amx_bf16": True}, compiles=True) == {"int8", "bf16", "compile"}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_what_is_missing_is_one_sentence(device: str, feature: str) -> None:
    sentence = Machine(device, "a machine", 1, 1.0, frozenset()).missing(feature)
    assert sentence is not None
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_nothing_is_missing_that_is_there() -> None:
    assert Machine("cuda", "a GPU", 8, 80.0, frozenset({"fp8"})).missing("fp8") is None


def test_unknown_features_and_devices_are_refused() -> None:
    with pytest.raises(InputError, match="'feature' of Machine must be one of bf16"):
        BARE.missing("fp3")
    with pytest.raises(InputError, match="'device' of Machine must be one of cpu"):
        Machine("toaster", "", 1, 1.0, frozenset())
    with pytest.raises(InputError, match="fp3"):
        Machine("cpu", "", 1, 1.0, frozenset({"fp3"}))


def test_this_machine() -> None:
    machine = Machine.detect()
    assert machine.cores >= 1
    assert machine.name
    assert machine.features <= set(FEATURES)
    if sys.platform == "linux":
        assert machine.memory_gb > 0.1


def test_versions_name_what_is_installed() -> None:
    assert versions()["torch"] == torch.__version__


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    """In a process of its own: page faults of 20 blocks of 64 MiB, one after the other."""
    script = """
import resource
from fewstep.machine import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        keep: int(
            subprocess.run([sys.executable, "-c", script.format(keep=keep)], capture_output=True, check=True).stdout
        )
        for keep in (False, True)
    }
    assert faults[True] < faults[False] / 5


def test_a_thread_computes_with_threads_of_its_own() -> None:
    seen: dict[object, int] = {}

    def work(threads: int) -> None:
        compute_with(threads)
        started.wait()
        seen[threads] = torch.get_num_threads()

    started = threading.Barrier(3)
    before = torch.get_num_threads()
    both = [threading.Thread(target=work, args=(threads,)) for threads in (1, 2)]
    for one in both:
        one.start()
    started.wait()
    for one in both:
        one.join()
    later = threading.Thread(target=lambda: seen.update(later=torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == {1: 1, 2: 2, "later": before}
    assert torch.get_num_threads() == before
