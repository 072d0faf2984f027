"""A recipe: which techniques to use; read from and written to YAML or JSON, and checked as a whole."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from fewstep.errors import FewstepError, InputError, RecipeError
from fewstep.files import read_json, read_yaml, write_json, write_text
from fewstep.machine import Machine
from fewstep.models.model import Model
from fewstep.recipes import RECIPES
from fewstep.techniques import TECHNIQUES, Technique

# Pairs that claim the same thing and may, since the order of the stages makes it right.
MAY_SHARE: dict[frozenset[str], str] = {
    # Both change the weights: they are cast first, then quantized from the cast; each puts back what it found.
    frozenset({"precision", "quantize"}): "linear.weight",
    # What a cache keeps of blocks is of a process's own tokens.
    frozenset({"parallel", "cache"}): "block.tokens",
    # The cache stands around the regions: what it spares of a step is the whole call.
    frozenset({"regions", "cache"}): "denoiser.forward",
}

ORDER = list(TECHNIQUES)
FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Recipe:
    """Techniques to use together. Their order here means nothing: `ordered` gives the one that is right."""

    techniques: tuple[Technique, ...] = ()

    @classmethod
    def load(cls, source: RecipeSource) -> Recipe:
        """A recipe from a YAML or JSON file, a ready-made one's name, a technique's name, a dict, or a list.

        A list holds techniques, names, or one-entry mappings of a name to its fields: `[{few_step: {student:
        zoo:NAME}}, compile]`; a dict holds such a list under `techniques`, or one mapping of all names to their fields.

        Raises:
            InputError: no such file, or not YAML or JSON.
            RecipeError: an unknown technique or field, or a bad value; all of them at once.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Technique):
            return cls((source,))
        return cls(tuple(_techniques(_entries(source))))

    def save(self, path: Path | str) -> None:
        """Write the recipe as `.yaml`, `.yml` or `.json`.

        Raises:
            InputError: another ending.
            MachineError: the file can't be written; what was there stays.
        """
        if Path(path).suffix not in FILES:
            raise InputError(f"A recipe is saved as {', '.join(FILES)}. Got {path}.")
        if Path(path).suffix == ".json":
            write_json(path, self.to_dict())
        else:
            write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))

    def to_dict(self) -> dict[str, Any]:
        """What `load` takes: only fields that differ from their defaults are written."""
        return {"techniques": [{t.name: given} if (given := t.given()) else t.name for t in self.techniques]}

    def ordered(self) -> tuple[Technique, ...]:
        """In the order of applying: by stage, and within one stage by the order of `TECHNIQUES`."""
        return tuple(sorted(self.techniques, key=_place))

    def conflicts(self) -> list[str]:
        """Pairs that claim one thing, one sentence each."""
        return [sentence for a, b in combinations(self.ordered(), 2) if (sentence := _conflict(a, b))]

    def wants(self, machine: Machine) -> list[str]:
        """What its techniques will not bring without others; see `Technique.wants`."""
        names = [technique.name for technique in self.techniques]
        return [sentence for technique in self.ordered() for sentence in technique.wants(names, machine)]

    def problems(self, model: Model, machine: Machine) -> list[str]:
        """Everything that keeps this recipe from being applied to `model` on `machine`. Changes nothing."""
        own = [problem for technique in self.ordered() for problem in technique.problems(model, machine)]
        return list(dict.fromkeys([*self.conflicts(), *own]))


RecipeSource = Recipe | Technique | str | Path | Mapping[str, Any] | Iterable[Any]


def _place(technique: Technique) -> tuple[int, int]:
    return technique.stage, ORDER.index(technique.name) if technique.name in ORDER else len(ORDER)


def _conflict(a: Technique, b: Technique) -> str | None:
    if a.name == b.name:
        return f"{a.name} is in the recipe twice: leave one out."
    shared = (a.claimed & b.claimed) - {MAY_SHARE.get(frozenset({a.name, b.name}), "")}
    if not shared:
        return None
    return f"{a.name} and {b.name} can't be used together: both change {', '.join(sorted(shared))}. Leave one out."


def _entries(source: Any) -> Any:
    """The list of entries in whatever a caller gave."""
    if isinstance(source, str) and source in RECIPES:
        return RECIPES[source]
    if isinstance(source, str) and source in TECHNIQUES:
        return [source]
    if isinstance(source, str | Path):
        source = _read(source)
    if isinstance(source, Mapping):
        unknown = [str(key) for key in source if key != "techniques"]
        if unknown or "techniques" not in source:
            got = ", ".join(map(repr, unknown)) or "an empty mapping"
            raise RecipeError(f"A recipe must have one key, 'techniques'. Got {got}.")
        source = source["techniques"]
    if isinstance(source, Mapping):
        return [{name: given} for name, given in source.items()]
    if isinstance(source, str) or not isinstance(source, Iterable):
        raise RecipeError(f"The 'techniques' of a recipe must be a list. Got {source!r}.")
    return list(source)


def _read(path: str | Path) -> Any:
    place = Path(path)
    if place.suffix not in FILES:
        near = _closest(str(path), [*RECIPES, *TECHNIQUES])
        raise RecipeError(
            f"A recipe's file ends in {', '.join(FILES)}, and no ready-made recipe is {str(path)!r}{near}"
        )
    if place.suffix == ".json":
        return read_json(place)
    return read_yaml(place)


def _techniques(entries: list[Any]) -> list[Technique]:
    """The techniques that the entries name; every problem in them is raised at once."""
    made: list[Technique] = []
    problems: list[str] = []
    for entry in entries:
        try:
            made.append(_technique(entry))
        except RecipeError as error:
            problems += error.problems
        except FewstepError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(*problems)
    return made


def _technique(entry: Any) -> Technique:
    if isinstance(entry, Technique):
        return entry
    name, given = _named(entry)
    technique = TECHNIQUES.get(name)
    if technique is None:
        raise RecipeError(f"There is no technique {name!r}{_closest(name, list(TECHNIQUES))}")
    known = [field.name for field in fields(technique)]
    unknown = [field for field in given if field not in known]
    if unknown:
        raise RecipeError(
            *(f"The technique {name!r} has no field {field!r}{_closest(field, known)}" for field in unknown)
        )
    return technique(**{field: tuple(value) if isinstance(value, list) else value for field, value in given.items()})


def _named(entry: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, given = next(iter(entry.items()))
        if isinstance(name, str) and isinstance(given, str):  # `parallel: auto`
            return name, {given: True}
        if isinstance(name, str) and (given is None or isinstance(given, Mapping)):
            return name, {str(field): value for field, value in (given or {}).items()}
    raise RecipeError(
        f"A technique in a recipe must be a name, or one name with its fields. Got {json.dumps(entry, default=repr)}."
    )


def _closest(name: str, known: list[str]) -> str:
    """The end of a sentence: *: did you mean 'compile'?*, or the whole list where nothing is near."""
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}."
