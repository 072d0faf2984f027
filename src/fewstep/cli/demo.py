"""`fewstep demo`: the main job on the model that comes with fewstep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.show import AsJson, print_report, working


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the report.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Make the model that comes with fewstep fast: measure each trick alone and all of them stacked.

    Prints the table, and writes report.html (open it in a browser), report.json and the pictures.

    **Example:** `fewstep demo --out out/demo`
    """
    with working():
        from fewstep.bench.demo import run

        report = run(out, show=False)
    print_report(report, out, as_json=as_json)
