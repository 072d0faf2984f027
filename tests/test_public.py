"""The names that a user of the library sees, and what importing them costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import FunctionType

import pytest

import fewstep

ROOT = Path(__file__).parents[1]


def test_there_are_few_names_and_each_is_there() -> None:
    assert len(fewstep.__all__) <= 20
    assert len(set(fewstep.__all__)) == len(fewstep.__all__)
    for name in fewstep.__all__:
        assert getattr(fewstep, name).__doc__, f"fewstep.{name} has no docstring"
        assert name in dir(fewstep)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'warp'"):
        _ = fewstep.warp


def test_importing_fewstep_imports_nothing_heavy() -> None:
    code = "import sys, fewstep; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers", "numpy", "typer"} & set(ran.stdout.split())


@pytest.mark.parametrize(
    "first", ["import fewstep.accelerate", "from fewstep.accelerate import Accelerated", "import fewstep"]
)
def test_accelerate_is_the_function_whatever_was_imported_first(first: str) -> None:
    code = f"{first}\nimport fewstep\nprint(type(fewstep.accelerate).__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == FunctionType.__name__


def test_every_error_is_a_fewstep_error() -> None:
    from fewstep import errors

    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(kinds) > 1
    assert all(issubclass(kind, fewstep.FewstepError) for kind in kinds)


def test_what_the_source_imports_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    declared = {re.split(r"[><=\[]", line)[0].lower() for line in wanted}
    distributions = packages_distributions()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for package in third_party(path) - {"fewstep"}:
            names = {name.lower().replace("_", "-") for name in distributions.get(package, [package])}
            assert names & declared, f"{path} imports {package}, which pyproject.toml does not declare"


def third_party(path: Path) -> set[str]:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    return imported - sys.stdlib_module_names
