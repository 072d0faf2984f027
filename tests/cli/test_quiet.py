"""Known chatter is dropped; our own warnings, and everything else that these packages say, come through."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fewstep.cli.quiet import CHATTER, Chatter


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("torchao", logging.WARNING, __file__, 1, message, None, None)


def test_only_the_known_message_is_dropped() -> None:
    chatter = Chatter("torchao", "Failed to load ")
    assert not chatter.filter(record("Failed to load _C_mxfp8.so"))
    assert chatter.filter(record("This layer was not quantized."))


@pytest.mark.parametrize(("cuda", "kept"), [(None, False), ("13.0", True)])
def test_what_could_matter_on_a_gpu_stays_there(cuda: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(cuda=cuda)))
    chatter = Chatter("torchao", "Failed to load ", only_without_cuda=True)
    assert chatter.filter(record("Failed to load _C_cutlass_90a.so")) is kept


def test_nothing_of_ours_is_filtered() -> None:
    assert not [chatter for chatter in CHATTER if chatter.logger.startswith("fewstep")]


def test_importing_a_pipeline_says_nothing() -> None:
    code = (
        "import logging; from fewstep.cli.quiet import quiet; quiet(); from diffusers import FluxPipeline; "
        "logging.getLogger('torchao').warning('a real one')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in ran.stderr.splitlines() if "_C_" not in line]  # there is CUDA where these are said
    assert [line for line in lines if "a real one" not in line] == []
    assert "a real one" in ran.stderr


def warned(code: str) -> str:
    """What a process that was made quiet says of these warnings."""
    code = f"import warnings; from fewstep.cli import quiet; quiet.quiet()\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_known_warnings_are_dropped_and_others_of_their_kind_stay() -> None:
    said = warned(
        "for text in (*(begin + ' and more' for begin in quiet.WARNINGS), 'Dynamo detected a real problem'):\n"
        "    warnings.warn_explicit(text, UserWarning, '/elsewhere/lib.py', 7)"
    )
    assert said == "/elsewhere/lib.py:7: UserWarning: Dynamo detected a real problem\n"


def test_our_warnings_are_one_plain_line() -> None:
    said = warned(
        "warnings.warn_explicit('No step was reused.', RuntimeWarning, str(quiet.PACKAGE / 'cli' / 'generate.py'), 1)\n"
        "warnings.warn_explicit('theirs', UserWarning, '/elsewhere/lib.py', 7)"
    )
    assert said == "warning: No step was reused.\n/elsewhere/lib.py:7: UserWarning: theirs\n"
