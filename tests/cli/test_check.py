"""What is a prompt and what is a count."""

from __future__ import annotations

import pytest

from fewstep.cli.check import at_least, device_here, prompt_text
from fewstep.errors import InputError, MachineError
from fewstep.machine import Machine


@pytest.mark.parametrize("prompt", ["a red ring", "ein großer Ring", "赤い輪", "a ring 👩‍🔬", "two\nlines"])
def test_any_language_is_text(prompt: str) -> None:
    prompt_text(prompt, "fewstep generate")


@pytest.mark.parametrize("prompt", ["", " ", "\x1b[31m", "\udc80"])
def test_what_is_no_text(prompt: str) -> None:
    with pytest.raises(InputError, match="PROMPT"):
        prompt_text(prompt, "fewstep generate")


def test_counts() -> None:
    at_least(1, None, "--steps", "fewstep generate")
    at_least(1, 1, "--steps", "fewstep generate")
    with pytest.raises(InputError, match=r"The '--steps' of fewstep generate must be .* at least 1. Got 0"):
        at_least(1, 0, "--steps", "fewstep generate")


def test_devices(bare_machine: Machine) -> None:
    assert device_here(None) == bare_machine.device
    assert device_here("cpu") == "cpu"
    with pytest.raises(MachineError, match="no device 'cuda:1'; it has cpu"):
        device_here("cuda:1")
