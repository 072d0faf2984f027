"""`fewstep quantize`, `inspect`, `verify` and `convert`: quantized checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.check import recipe_of
from fewstep.cli.show import AsJson, note, print_facts, print_json, print_rows, working
from fewstep.errors import InputError

if TYPE_CHECKING:
    from fewstep.techniques.quantize import Quantize

Place = Annotated[Path, typer.Argument(help="A quantized checkpoint: a .safetensors file or a folder.")]
Config = Annotated[
    str | None,
    typer.Option(help="A diffusers folder or config.json of the model, where a single file does not say it."),
]
FORMAT_HELP = "modelopt, torchao, comfy, comfy-scaled-fp8 or bfl."


def quantize(
    model: Annotated[str, typer.Argument(help="A pipeline (zoo:NAME, folder or hub id), or the folder of one model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder or file to write.")],
    scheme: Annotated[
        str | None, typer.Option("--scheme", "-s", help="nvfp4, mxfp8, fp8-dynamic, int8-dynamic, …")
    ] = None,
    format: Annotated[str, typer.Option("--format", "-f", help=FORMAT_HELP)] = "modelopt",
    component: Annotated[str, typer.Option(help="The pipeline's component to quantize.")] = "transformer",
    skip: Annotated[
        list[str] | None, typer.Option(help="Part of a layer's path to leave alone; may be repeated.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Take scheme and layers from its technique 'quantize'.")
    ] = None,
    check: Annotated[bool, typer.Option(help="Verify every value beside the original afterwards.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write a quantized checkpoint, a matrix at a time: a model need not fit into memory.

    In the format of a folder (modelopt, torchao) a pipeline becomes a whole pipeline; the others are one file with the
    model alone.

    **Example:** `fewstep quantize black-forest-labs/FLUX.1-dev --scheme nvfp4 -o out/nvfp4`
    """
    technique = _technique(recipe, scheme, tuple(skip or ()))
    with working():
        from fewstep.checkpoints.make import facts_of, make
        from fewstep.checkpoints.verify import verify as see
        from fewstep.numerics.schemes import SCHEMES
        from fewstep.techniques.linears.layers import Rules

        rules = Rules(technique.skip, technique.min_features, technique.keep)
        made = make(model, out, SCHEMES[technique.scheme], format=format, component=component, rules=rules)
        facts = facts_of(made)
        if check:
            facts["verified"] = see(made.checkpoint, made.original).beside_original
    print_facts(facts, as_json=as_json)


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
        str | None, typer.Option(help="The model it was made from (zoo:NAME, folder or hub id): compare every value.")
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


def _technique(recipe: str | None, scheme: str | None, skip: tuple[str, ...]) -> Quantize:
    """The technique whose scheme and layers are meant: that of the recipe, with the options put over it."""
    from dataclasses import replace

    from fewstep.techniques.quantize import Quantize

    found = [t for t in recipe_of(recipe).techniques if isinstance(t, Quantize)]
    if not found and scheme is None:
        raise InputError("fewstep quantize needs --scheme, or a --recipe with the technique 'quantize'.")
    technique = found[0] if found else Quantize()
    if technique.budget is not None:
        raise InputError("A 'budget' needs calls of the pipeline: put what Quantize.settled gives into the recipe.")
    return replace(technique, scheme=scheme or technique.scheme, skip=technique.skip + skip)
