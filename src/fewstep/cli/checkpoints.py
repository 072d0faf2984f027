"""`fewstep inspect`, `verify` and `convert`: pre-quantized checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.show import AsJson, note, print_facts, print_json, print_rows, working

Place = Annotated[Path, typer.Argument(help="A quantized checkpoint: a .safetensors file or a folder.")]
Config = Annotated[
    str | None,
    typer.Option(help="A diffusers folder or config.json of the model, where a single file does not say it."),
]
FORMAT_HELP = "modelopt, torchao, comfy, comfy-scaled-fp8 or bfl."


def inspect(path: Place, config: Config = None, as_json: AsJson = False) -> None:
    """Say what a quantized checkpoint is: its format, its layers, its size, what stays precise, who made it.

    **Example:** `fewstep inspect flux2-dev-nvfp4.safetensors`
    """
    with working():
        from fewstep.checkpoints.inspect import inspect as look

        found = look(path, config)
    if as_json:
        print_json(asdict(found))
        return
    rows = [{"layers": count, "scheme": scheme} for scheme, count in found.schemes.items()]
    print_rows(rows, as_json=False, title="Quantized layers")
    facts = {key: value for key, value in asdict(found).items() if key not in ("schemes", "warnings", "precise")}
    print_facts({**facts, "precise matrices": len(found.precise)}, as_json=False, title=str(path))
    for warning in found.warnings:
        note(f"warning: {warning}")


def verify(
    path: Place,
    original: Annotated[
        str | None, typer.Option(help="The diffusers folder it was made from: compare every value.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check that a quantized checkpoint is whole and right; every fault is told in a sentence with its layer.

    **Example:** `fewstep verify out/nvfp4 --original FLUX.1-dev`
    """
    with working():
        from fewstep.checkpoints.verify import verify as check

        verdict = check(path, original, config)
    print_facts({key: value for key, value in asdict(verdict).items() if as_json or key != "warnings"}, as_json=as_json)
    for warning in verdict.warnings:
        note(f"warning: {warning}")


def convert(
    source: Annotated[Path, typer.Argument(help="The checkpoint to read.")],
    target: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    format: Annotated[str, typer.Option("--format", "-f", help=FORMAT_HELP)],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write a quantized checkpoint in another format: the same values to the last bit.

    **Example:** `fewstep convert out/nvfp4 out/nvfp4.safetensors --format comfy`
    """
    with working():
        from fewstep.checkpoints.formats import convert as rewrite

        made = rewrite(source, target, format, config)
    if as_json:
        print_json({"written": str(target), "format": format, "layers": len(made.layers), "plain": len(made.plain)})
        return
    note(f"{target} holds {len(made.layers)} quantized layers and {len(made.plain)} other tensors as {format}.")
