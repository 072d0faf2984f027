"""The `fewstep` command: joins the subcommands, and says every error of ours in one sentence.

Exit codes: 0 well, 2 something is wrong with what was asked or with this machine, 130 interrupted. Anything else is a
bug of fewstep, and shows its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from fewstep import __version__
from fewstep.cli import batch, bench, calibrate, checkpoints, demo, distill, doctor, generate, plan, recipe, serve, zoo
from fewstep.cli.quiet import quiet
from fewstep.cli.show import note
from fewstep.errors import FewstepError
from fewstep.files import disk_is_full

REFUSED = 2

app = typer.Typer(
    name="fewstep",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Make a diffusers pipeline fast, trick by trick, and show what the speed cost.",
    epilog="Start with: fewstep demo",
)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("batch")(batch.batch)
app.command("bench")(bench.bench)
app.add_typer(distill.app, name="distill")
app.command("calibrate")(calibrate.calibrate)
app.command("quantize")(checkpoints.quantize)
app.command("inspect")(checkpoints.inspect)
app.command("verify")(checkpoints.verify)
app.command("convert")(checkpoints.convert)
app.add_typer(recipe.app, name="recipe")
app.add_typer(zoo.app, name="zoo")
app.command("serve")(serve.serve)
app.add_typer(serve.keys_app, name="keys")
app.add_typer(plan.app, name="plan")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code."""
    quiet()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="fewstep")
    except FewstepError as error:
        return _refuse(str(error))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if disk_is_full(error):
            return _refuse("The disk is full; free some space and run the same command again. Saved files are whole.")
        if isinstance(error, OSError) and error.filename is not None:
            return _refuse(f"Could not use {error.filename}: {error.strerror}.")
        raise
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main())


def _refuse(message: str) -> int:
    for sentence in message.splitlines():
        note(f"error: {sentence}")
    return REFUSED
