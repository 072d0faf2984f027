"""A small pipeline folder with random weights, and a way to run a command line in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.main import main
from fewstep.machine import Machine


@dataclass(frozen=True)
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def refusal(self) -> str:
        """The one sentence with which the command line was refused."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 2, f"exit code {self.code}: {self.err}"
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return lines[0].removeprefix("error: ")


Fewstep = Callable[..., Ran]


@pytest.fixture
def fewstep(capsys: pytest.CaptureFixture[str]) -> Fewstep:
    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from fewstep.models.manifest import Manifest
    from fewstep.zoo.shapes.pipeline import PROMPT_TOKENS, build_pipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    build_pipeline().save_pretrained(folder)
    call = {"height": 64, "width": 64, "max_sequence_length": PROMPT_TOKENS, "num_inference_steps": 2}
    Manifest(name="tiny", call=call).write(folder)
    return folder


@pytest.fixture
def model(made_once: Path, tmp_path: Path) -> Path:
    """A pipeline folder that a test may spoil."""
    return Path(shutil.copytree(made_once, tmp_path / "tiny"))


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """This machine, as if it had no feature at all."""
    bare = Machine("cpu", "an old CPU", 1, 1.0, frozenset())
    monkeypatch.setattr("fewstep.machine._detect", lambda: bare)
    return bare
