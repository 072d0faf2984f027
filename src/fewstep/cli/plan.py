"""`fewstep plan`: what a machine would give, before it is rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.check import at_least
from fewstep.cli.show import AsJson, note, print_json, print_rows
from fewstep.errors import InputError, bad_value

if TYPE_CHECKING:
    from fewstep.plan.cost import Prediction
    from fewstep.plan.machines import Cluster
    from fewstep.plan.work import Work

COMMAND = "fewstep plan parallel"
LABEL = "Predictions, from shapes and data sheets; nothing was run. Memory and GB sent (in a step) are of one device."

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Predict time and memory on machines that are not here.",
)


@app.callback()
def _options() -> None:
    pass  # keeps `parallel` a subcommand while it is the only one


@app.command()
def parallel(
    model: Annotated[
        str, typer.Argument(help="A known model (flux.1-dev), a zoo model, a diffusers pipeline folder, or a hub id.")
    ],
    machine: Annotated[
        str, typer.Option("--machine", "-m", help="8xH100, or 2x8xH100 for two nodes of eight; see --devices.")
    ],
    steps: Annotated[int | None, typer.Option(help="Denoising steps; without it, the model's usual.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the picture, in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the picture, in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of a clip.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures or clips in one call.")] = None,
    branches: Annotated[
        int | None, typer.Option(help="Denoiser calls a step: 2 with guidance, 1 where it is off or distilled.")
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(help="A YAML file of devices like fewstep's own, with bandwidths that you measured.")
    ] = None,
    eager: Annotated[bool, typer.Option("--eager", help="Without torch.compile.")] = False,
    encode_elsewhere: Annotated[
        bool, typer.Option("--encode-elsewhere", help="Prompts come encoded: text encoders take no memory.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(help="data, guidance, ring, ulysses or tensor: a way of sharing to leave out; may be repeated."),
    ] = None,
    rows: Annotated[int, typer.Option(help="How many layouts the table shows.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Predict time, memory and traffic of each layout of parallelism, the best first, and say why it is best.

    **Example:** `fewstep plan parallel wan2.1-14b --machine 8xH100`
    """
    from fewstep.plan.cost import COMPILED, EAGER
    from fewstep.plan.explain import REASONS, explain
    from fewstep.plan.layouts import alone, ranked
    from fewstep.plan.machines import cluster_of
    from fewstep.plan.read import network_of
    from fewstep.plan.work import work_of

    at_least(1, rows, "--rows", COMMAND)
    if unknown := set(without or ()) - set(REASONS):
        raise InputError(bad_value("--without", COMMAND, f"one of {', '.join(REASONS)}", min(unknown)))
    cluster = cluster_of(machine, devices)
    sizes = {"height": height, "width": width, "frames": frames}
    work = work_of(network_of(model), steps=steps, batch=batch, branches=branches, **sizes)
    mode, encoders = EAGER if eager else COMPILED, not encode_elsewhere
    left_out = tuple(without or ())
    found = ranked(work, cluster, mode, encoders=encoders, without=left_out)
    one = alone(work, cluster, mode, encoders=encoders)
    reason = explain(work, cluster, found, mode, encoders=encoders, without=left_out)
    layouts = [_row(prediction, one.seconds) for prediction in found]
    if as_json:
        facts = _facts(work, cluster, eager=eager, encoders=encoders)
        whole = [{**row, **_parts(prediction)} for row, prediction in zip(layouts, found, strict=True)]
        print_json({**facts, "layouts": whole, "why": reason})
        return
    print_rows(layouts[:rows], as_json=False, title=f"{_title(work)} on {cluster}, {'eager' if eager else 'compiled'}")
    if len(layouts) > rows:
        note(f"{len(layouts) - rows} more layouts: --rows {len(layouts)} shows them.")
    print(reason)
    note(LABEL)


def _row(prediction: Prediction, alone: float) -> dict[str, Any]:
    return {
        "layout": str(prediction.layout),
        "predicted s": _rounded(prediction.seconds),
        "speed-up": _rounded(alone / prediction.seconds),
        "memory GB": _rounded(prediction.need / 1e9),
        "GB sent": _rounded(prediction.moved / 1e9),
        "fits": prediction.fits,
    }


def _parts(prediction: Prediction) -> dict[str, Any]:
    return {
        "seconds": {name: getattr(prediction, name) for name in ("encoding", "denoising", "decoding")},
        "step": {name: getattr(prediction, name) for name in ("compute", "launching", "exposed", "hidden")},
        "bytes sent in a step": prediction.sent,
        "bytes of memory": prediction.memory,
    }


def _facts(work: Work, cluster: Cluster, *, eager: bool, encoders: bool) -> dict[str, Any]:
    return {
        "label": LABEL,
        "model": work.network.name,
        "source": work.network.source,
        "machine": str(cluster),
        "compiled": not eager,
        "text encoders in memory": encoders,
        **{name: getattr(work, name) for name in ("height", "width", "frames", "steps", "branches", "batch")},
        "image tokens": work.image_tokens,
        "text tokens": work.text_tokens,
        "weights": work.network.weights,
    }


def _title(work: Work) -> str:
    frames = f"x{work.frames}" if work.frames > 1 else ""
    batch = f", batch {work.batch}" if work.batch > 1 else ""
    return f"{work.network.name}, {work.height}x{work.width}{frames}, {work.steps} steps{batch}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
