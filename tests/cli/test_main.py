"""The command as a whole: quick help, exit codes, and which errors become a sentence."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep
from fewstep.cli import doctor
from fewstep.errors import RecipeError
from tests.cli.conftest import Fewstep

COMMANDS = ["demo", "generate", "serve", "keys", "bench", "calibrate", "distill", "recipe", "zoo", "doctor"]
SUBCOMMANDS = [
    *([name] for name in COMMANDS if name not in ("distill", "keys", "recipe", "zoo")),
    ["keys", "add"],
    *(["distill", name] for name in ("train", "methods", "report")),
    *(["recipe", name] for name in ("list", "show", "check")),
    *(["zoo", name] for name in ("list", "eval", "export", "train")),
]


def test_help_names_every_command(fewstep: Fewstep) -> None:
    ran = fewstep("--help")
    assert ran.code == 0
    for name in COMMANDS:
        assert f" {name} " in ran.out


@pytest.mark.parametrize("command", SUBCOMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example(fewstep: Fewstep, command: list[str]) -> None:
    ran = fewstep(*command, "--help")
    assert ran.code == 0
    shown = [word for word in command if word != "train" or command[0] != "distill"]  # where it may be left out
    assert f"Example: fewstep {' '.join(shown)}" in ran.out


def test_help_waits_for_nothing_heavy() -> None:
    code = "import sys; from fewstep.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers", "numpy", "matplotlib"} & set(ran.stderr.split())


def test_version(fewstep: Fewstep) -> None:
    import fewstep as package

    assert fewstep("--version").out == f"fewstep {package.__version__}\n"


def test_an_unknown_command_is_refused(fewstep: Fewstep) -> None:
    ran = fewstep("fly")
    assert ran.code == 2
    assert "fly" in ran.err


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(doctor, "_fitting", fails)


def test_each_problem_of_a_recipe_is_a_line(fewstep: Fewstep, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(RecipeError("One thing.", "Another."), monkeypatch)
    ran = fewstep("doctor")
    assert (ran.code, ran.out, ran.err) == (2, "", "error: One thing.\nerror: Another.\n")


def test_an_interrupt_exits_with_130(fewstep: Fewstep, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert fewstep("doctor").code == 130


class LibraryError(Exception):
    """An error of a library that hides the system's own."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        LibraryError("I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch.save
    ],
)
def test_a_full_disk_is_said_also_from_inside_a_library(
    fewstep: Fewstep, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_with(error, monkeypatch)
    assert fewstep("doctor").refusal.startswith("The disk is full")


def test_a_file_that_may_not_be_read_is_named(fewstep: Fewstep, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(PermissionError(errno.EACCES, "Permission denied", "secret.yaml"), monkeypatch)
    assert fewstep("doctor").refusal == "Could not use secret.yaml: Permission denied."


def test_a_bug_of_ours_is_not_hidden(fewstep: Fewstep, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        fewstep("doctor")


def test_it_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "fewstep", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"fewstep {fewstep.__version__}\n"


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).parent / "fewstep"
    ran = subprocess.run([script, "recipe", "--help"], capture_output=True, text=True, check=True)
    assert "check" in ran.stdout
