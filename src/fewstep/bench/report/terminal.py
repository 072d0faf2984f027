"""The report in the terminal: a progress bar while the rows run, and the table after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    console.print(_table(report))
    best = report.best
    console.print(f"\n[bold]{factor(best.speedup)}[/bold] as fast as the baseline: {best.name}.")
    for row in report.rows:
        if row.verdict in ("loses", "slower"):
            console.print(Text(f"{row.name} {row.verdict}: {row.why}", style="red"))
        for warning in row.warnings:
            console.print(Text(f"{row.name}: {warning}", style="yellow"))
    for skipped in report.skipped:
        console.print(Text(f"{skipped.name} was not measured: {skipped.why}", style="yellow"))


def _table(report: Report) -> Table:
    caption = (
        f"{report.samples} pictures a row, {report.batch} a call; seconds are medians of {report.rounds} whole calls"
    )
    table = Table(title=report.title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("")
    for column in ("speed-up", "seconds", "NFE", "MB", *(("accuracy", "Fréchet") if report.task else ()), "PSNR"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for kind in TITLES:
        rows = report.of_kind(kind)
        if rows and kind != "baseline":
            table.add_section()
            table.add_row(Text(TITLES[kind], style="bold"))
        for row in rows:
            table.add_row(*_cells(row, report), style="on #0b3d38" if row.name == report.best.name else None)
    return table


def _cells(row: Row, report: Report) -> list[str | Text]:
    oracle = [number(row.prompt_accuracy, ".3f"), number(row.frechet)] if report.task else []
    return [
        Text(row.name),
        factor(row.speedup),
        seconds(row.seconds),
        number(row.nfe, "g"),
        number(row.peak_memory_mb, ".0f"),
        *oracle,
        number(row.psnr, ".1f"),
        Text(row.verdict, style=VERDICT_STYLES.get(row.verdict, "")),
    ]
