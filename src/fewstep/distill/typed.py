"""Values from YAML or a command line as the type that a field or argument is annotated with."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fewstep.errors import InputError, bad_value


def typed(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value as `hint` wants it; YAML reads 3e-4 as text. Hints that are not numbers or made of them leave it.

    Raises:
        InputError: not a number, not whole, not true or false, no list of names, or none of the choices of a Literal.
    """
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        if value is None and type(None) in inside:
            return None
        numbers = [one for one in inside if one in (bool, int, float)]
        return typed(name, value, numbers[0], where) if numbers and len(inside) == 2 else value
    if kind is Literal and value not in inside:
        raise InputError(bad_value(name, where, f"one of {', '.join(map(str, inside))}", value))
    if kind is tuple and isinstance(value, list | tuple) and Ellipsis not in inside:
        if len(value) != len(inside):
            raise InputError(bad_value(name, where, f"{len(inside)} values", value))
        return tuple(typed(name, one, of, where) for one, of in zip(value, inside, strict=True))
    if kind is tuple and inside[0] is str:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise InputError(bad_value(name, where, "a list of names", value))
        return tuple(value)
    if isinstance(value, Mapping) and len(inside) == 2:
        return {key: typed(f"{name}.{key}", one, inside[1], where) for key, one in value.items()}
    if hint is bool and not isinstance(value, bool):
        raise InputError(bad_value(name, where, "true or false", value))
    return _number(name, value, hint, where) if hint in (int, float) else value


def _number(name: str, value: Any, kind: type[int] | type[float], where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not isfinite(number) or number != kind(number):
        raise InputError(bad_value(name, where, "a whole number" if kind is int else "a number", value))
    return kind(number)
