"""From a plan to the report's folder and the table in the terminal."""

from __future__ import annotations

from pathlib import Path

from fewstep.bench.report import page, terminal
from fewstep.bench.report.schema import Report
from fewstep.bench.waterfall import Plan, measure


def publish(plan: Plan, out: Path | str, *, show: bool) -> Report:
    """Measure a plan under a progress bar, write the report's folder, and with `show` print the table.

    Raises:
        FewstepError: the baseline can't run, or the report can't be written; then an older one stays as it was.
    """
    with terminal.progress_bar(plan.steps) as tell:
        measured = measure(plan, tell)
    page.write(measured.report, measured.pictures, out)
    if show:
        terminal.show(measured.report)
        print(f"\n{Path(out) / 'report.html'} has the pictures and the plots, {Path(out) / 'report.json'} the numbers.")
    return measured.report
