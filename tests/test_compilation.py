"""A damaged cache of torch's is told in one sentence, with what mends it; other errors pass."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fewstep.compilation import sound_cache
from fewstep.errors import MachineError

PROGRAM = """
import torch
from fewstep.compilation import sound_cache
from fewstep.errors import MachineError
try:
    with sound_cache():
        torch.compile(lambda x: (x.sin() + x.cos()).exp())(torch.ones(64))
except MachineError as error:
    print(error)
else:
    print("sound")
"""


def run(cache):
    given = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_library_that_was_not_written_to_its_end_is_named_with_the_command_that_removes_it(tmp_path):
    assert run(tmp_path) == "sound"
    libraries = sorted(tmp_path.rglob("*.so"), key=lambda library: library.stat().st_mtime_ns)
    libraries[-1].write_bytes(b"")  # the function's own; the others are torch's trials of the compiler
    said = run(tmp_path)
    assert said.startswith("A compilation that was killed left an empty library in torch's cache; remove it")
    subprocess.run(said.split("start again: ")[1], shell=True, check=True)
    assert run(tmp_path) == "sound"


def test_other_errors_pass_as_they_are():
    with pytest.raises(ValueError, match="other"), sound_cache():
        raise ValueError("other")
    with pytest.raises(MachineError, match="empty library") as caught, sound_cache():
        raise ImportError("kernel.so: file too short")
    assert isinstance(caught.value.__cause__, ImportError)
