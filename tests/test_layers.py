"""Imports go downwards only, and never in a circle. Read from the source by `ast`: nothing is imported."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
LAYERS = (  # from the ground up; a module may import its own layer and those before it
    {"compilation", "errors", "files", "layout", "machine", "media", "muon", "progress", "text"},
    {"diffusion", "numerics"},
    {"models"},
    {"calibrate"},
    {"techniques"},
    {"accelerate", "recipe", "recipes", "distill", "realtime", "checkpoints"},
    {"zoo"},
    {"batch", "bench", "tune", "plan"},
    {"cli", "server", "__main__", "__init__"},
)


def modules(src: Path) -> dict[str, Path]:
    names = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


def imports(path: Path, known: set[str]) -> set[str]:
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; say 'from fewstep...' instead."
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            named |= inner or {str(node.module)}
    return named & known


def layer(module: str) -> int:
    part = [*module.split("."), "__init__"][1]
    found = [i for i, names in enumerate(LAYERS) if part in names]
    assert found, f"{module} stands in no layer; give {part!r} a place in tests/test_layers.py."
    return found[0]


def graph() -> dict[str, set[str]]:
    found = modules(SRC)
    return {name: imports(path, set(found)) for name, path in found.items()}


def upward(graph: dict[str, set[str]]) -> list[str]:
    return [f"{a} imports {b}" for a, targets in graph.items() for b in targets if layer(b) > layer(a)]


def test_imports_go_downwards() -> None:
    assert not upward(graph())


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"These modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_an_upward_import_would_be_seen() -> None:
    assert upward({"fewstep.models.load": {"fewstep.cli.main", "fewstep.errors"}}) == [
        "fewstep.models.load imports fewstep.cli.main"
    ]


def test_an_import_inside_a_function_is_seen(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f():\n    from fewstep.cli import main\n")
    assert imports(tmp_path / "m.py", {"fewstep.cli", "fewstep.cli.main"}) == {"fewstep.cli.main"}
