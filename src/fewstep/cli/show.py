"""How results reach the terminal: a table for people or pure JSON, on stdout; everything else goes to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewstep.machine import keep_freed_memory

if TYPE_CHECKING:
    from fewstep.bench.report.schema import Report

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
RECIPE_HELP = "The tricks to use: a YAML or JSON file, or the name of a ready-made recipe."
Row = Mapping[str, Any]

# Who does the work of many devices.
Workers = Annotated[
    int | None, typer.Option(help="Processes, each with its device; without it one a GPU, or one a machine.")
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of each worker on a CPU; without it the cores are shared out.")
]
RayAddress = Annotated[str | None, typer.Option(help="A Ray cluster's address (HOST:PORT, ray://HOST:PORT, auto).")]


@contextmanager
def working() -> Iterator[None]:
    """While the block runs, whatever prints to stdout goes to stderr, so that stdout holds the result alone.

    The loading bars of diffusers and transformers are off: fewstep shows its own progress. Freed memory is kept: on a
    CPU that is up to a third of a training step's time.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    keep_freed_memory()
    for logging in (of_diffusers, of_transformers):
        logging.disable_progress_bar()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for logging in (of_diffusers, of_transformers):
            logging.enable_progress_bar()


def note(sentence: str) -> None:
    """A line for the person at the terminal, not part of the result."""
    Console(stderr=True, highlight=False).print(sentence, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout. A number that JSON has no word for (NaN, infinity) becomes null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_rows(rows: Sequence[Row], *, as_json: bool, title: str | None = None) -> None:
    """A table with the keys of the first row as its columns; as JSON, a list of objects."""
    if as_json:
        print_json(rows)
        return
    columns = list(rows[0]) if rows else []
    table = Table(title=title, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row[column], int | float) for row in rows)
        names = column == columns[0] == "name"  # which stay in one piece, to be copied
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(Text(column.replace("_", " ")), justify=justify, overflow="fold", no_wrap=names)
    for row in rows:
        table.add_row(*(Text(cell(row[column])) for column in columns))
    Console(highlight=False).print(table)


def print_facts(facts: Row, *, as_json: bool, title: str | None = None) -> None:
    """A two-column table of names and values; as JSON, one object."""
    if as_json:
        print_json(facts)
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(Text(name.replace("_", " ")), Text(cell(value)))
    Console(highlight=False).print(table)


def print_report(report: Report, folder: Path, *, as_json: bool) -> None:
    """A measurement's table, and where its pictures are; as JSON, all of the report."""
    from fewstep.bench.report import terminal

    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        terminal.show(report)
    note(f"{folder / 'report.html'} has the pictures and the plots, {folder / 'report.json'} the numbers.")


def cell(value: Any) -> str:
    """The text of one table cell."""
    if value is None or value in ("", (), [], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(cell(inner) for inner in value)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
