"""What holds the repository together: versions agree, documents point to what exists, CI runs the README's command."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import fewstep

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def test_the_version_is_said_once_and_again_the_same() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == fewstep.__version__


def test_ci_runs_the_command_of_the_readme() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and line[0] not in "#"]
    assert commands[:2] == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."']
    assert commands[-1] == "make test"  # between them, what the tests would otherwise skip is installed
    assert "\nmake test " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_something(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), (
            f"{document.relative_to(ROOT)} points to {target}, which is not there"
        )


def test_every_source_file_says_what_it_is_for_and_stays_short() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not text or text.startswith('"""'), f"{path} does not begin with a docstring"
        assert text.count("\n") < 400, f"{path} is longer than 400 lines"
