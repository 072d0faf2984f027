"""The report in the terminal: a progress bar while the rows run, and the table after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fewstep.bench.report.page import number, seconds
from fewstep.bench.report.plots import TITLES, factor
from fewstep.bench.report.schema import Report, Row

VERDICT_STYLES = {
    "wins": "green",
    "keeps the pictures": "blue",
    "loses": "red",
    "slower": "red",
    "fewer steps": "yellow",
}
WIDE = 100  # columns of a terminal that shows every figure


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr of `total` steps; what it yields is told what each next step does."""
    columns = (SpinnerColumn(), BarColumn(bar_width=28), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def tell(doing: str) -> None:
            bar.update(task, advance=1, description=Text(doing).plain)

        yield tell


def show(report: Report, console: Console | None = None) -> None:
    """Print the table, the rows that lose and the warnings."""
    console = console or Console(highlight=False)
    console.print(_table(report, console.width))
    best, fastest = report.best, report.fastest
    console.print(f"\n[bold]{factor(best.speedup)}[/bold] as fast as the baseline: {best.name}.")
    if fastest is not best:
        console.print(
            f"{factor(fastest.speedup)} with less of what was asked for ({number(fastest.prompt_accuracy, '.3f')}, "
            f"baseline {number(report.baseline.prompt_accuracy, '.3f')}): {fastest.name}."
        )
    for row in report.rows:
        if row.verdict in ("loses", "slower"):
            console.print(Text(f"{row.name} {row.verdict}: {row.why}", style="red"))
        for warning in row.warnings:
            console.print(Text(f"{row.name}: {warning}", style="yellow"))
    for skipped in report.skipped:
        console.print(Text(f"{skipped.name} was not measured: {skipped.why}", style="yellow"))


def _table(report: Report, width: int) -> Table:
    caption = (
        f"{report.samples} pictures a row, {report.batch} a call; seconds are medians of {report.rounds} whole calls"
    )
    table = Table(
        title=report.title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", min_width=20, overflow="fold")
    for column in _columns(report, width):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    for kind in TITLES:
        rows = report.of_kind(kind)
        if rows and kind != "baseline":
            table.add_section()
            table.add_row(Text(TITLES[kind], style="bold"))
        for row in rows:
            table.add_row(*_cells(row, report, width), style="on #0b3d38" if row.name == report.best.name else None)
    return table


def _columns(report: Report, width: int) -> dict[str, Callable[[Row], str]]:
    """Titles of the figures that fit, with how each is read from a row; a narrow terminal gets the most needed."""
    columns: dict[str, Callable[[Row], str]] = {
        "speed-up": lambda row: factor(row.speedup),
        "seconds": lambda row: seconds(row.seconds),
        "NFE": lambda row: number(row.nfe, "g"),
    }
    if report.task:
        columns |= {
            "accuracy": lambda row: number(row.prompt_accuracy, ".3f"),
            "Fréchet": lambda row: number(row.frechet),
        }
    if width >= WIDE or not report.task:
        columns |= {"PSNR": lambda row: number(row.psnr, ".1f")}
    if width >= WIDE:
        columns |= {"MB": lambda row: number(row.peak_memory_mb, ".0f")}
    return columns


def _cells(row: Row, report: Report, width: int) -> list[str | Text]:
    figures = [read(row) for read in _columns(report, width).values()]
    return [Text(row.name), *figures, Text(row.verdict, style=VERDICT_STYLES.get(row.verdict, ""))]
