"""The catalog against what is there: every method's file, the guide's table, and options of the right type."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.distill import methods
from fewstep.distill.catalog import CATALOG, card
from fewstep.errors import InputError

HELPERS = {"adversary", "backward", "discriminator", "scores"}
GUIDE = Path(__file__).parents[2] / "docs" / "distillation.md"


def table() -> str:
    head = "| method | needs | sampled by | JVP | networks | cost | paper | when to take it |"
    rows = [
        f"| `{name}`: {one.title} | {one.needs} | {' or '.join(one.samplers)} | {'yes' if one.jvp else ''} | "
        f"{one.networks} | {one.cost} | {one.paper} | {one.when} |"
        for name, one in CATALOG.items()
    ]
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- | --- | --- |", *rows])


def test_every_methods_file_is_in_the_catalog() -> None:
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__"} - HELPERS
    assert files == set(CATALOG) - {"dmd2_gan"}


def test_the_guide_has_this_table() -> None:
    assert table() in GUIDE.read_text(encoding="utf-8")


def test_options_get_their_types_and_wrong_ones_are_named() -> None:
    dmd2 = card("dmd2")
    assert dmd2.options({"critic_steps": "2", "simulated": False}, "x") == {"critic_steps": 2, "simulated": False}
    for given, said in (
        ({"critics": 2}, "has no option 'critics': it has critic_steps, simulated"),
        ({"simulated": "yes"}, "'simulated' of .* must be true or false"),
    ):
        with pytest.raises(InputError, match=said):
            dmd2.options(given, "The method 'dmd2'")
    assert card("ladd").options({"features": ["layers.0"]}, "x") == {"features": ("layers.0",)}
    for features in ("layers.0", 3, [3]):
        with pytest.raises(InputError, match="'features' of x must be a list of names"):
            card("ladd").options({"features": features}, "x")
    with pytest.raises(InputError, match="it has none"):
        card("kd").options({"critic_steps": 2}, "The method 'kd'")
    with pytest.raises(InputError, match="'divergence' of x must be one of"):
        card("f_distill").options({"divergence": "chi"}, "x")
    with pytest.raises(InputError, match="'method' of distillation must be one of kd"):
        card("magic")
