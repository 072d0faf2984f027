"""The page: one HTML file with everything in it, drawn from report.json and the pictures beside it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fewstep.bench.quality import Array
from fewstep.bench.report import plots, reuse
from fewstep.bench.report.schema import EngagedRow, Report
from fewstep.bench.report.style import STYLE
from fewstep.files import replacing

PICTURES = "pictures"


def write(report: Report, pictures: Mapping[str, Array], out: Path | str) -> None:
    """The folder `out`: report.json, report.html, waterfall.png and the pictures. It appears whole or not at all.

    pictures: row name -> (n, height, width, 3) or (n, frames, height, width, 3), values in [0, 1]; of frames the middle
    one is shown.

    Raises:
        MachineError: the disk is full or the place can't be written to. What was there before stays.
    """
    with replacing(out) as folder:
        folder.mkdir()
        report.save(folder / "report.json")
        for name, images in pictures.items():
            _save_pictures(folder / PICTURES / slug(name), images)
        with mpl.rc_context(STYLE):
            plots.save_png(plots.waterfall(report), folder / "waterfall.png")
        (folder / "report.html").write_text(render(report, pictures), encoding="utf-8")


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def render(report: Report, pictures: Mapping[str, Array]) -> str:
    """The whole page as text; it asks the network for nothing."""
    with mpl.rc_context(STYLE):
        charts = {
            "waterfall": plots.as_svg(plots.waterfall(report)),
            "speed_quality": plots.as_svg(plots.speed_quality(report)),
        }
        spared = {(row.name, one.name): spared_chart(one) for row in report.rows for one in row.engaged}
    images = {name: [inline(picture) for picture in shown] for name, shown in pictures.items()}
    return (
        environment()
        .get_template("report/report.html.j2")
        .render(
            report=report,
            charts=charts,
            spared={key: chart for key, chart in spared.items() if chart},
            drawn=reuse.DRAWN,
            pictures=images,
            titles=plots.TITLES,
            colours=plots.COLOURS,
        )
    )


def spared_chart(engaged: EngagedRow) -> str | None:
    """What a technique spared step by step, where it tells."""
    figure = reuse.figure(engaged.facts)
    return plots.as_svg(figure) if figure else None


def environment() -> Environment:
    """Templates of all reports, named by their folder in `fewstep.bench`, and the filters that they share."""
    found = Environment(loader=PackageLoader("fewstep.bench", "."), autoescape=True, undefined=StrictUndefined)
    found.filters |= {"factor": plots.factor, "seconds": seconds, "number": number, "facts": facts}
    return found


def _still(picture: Array) -> Image.Image:
    still = picture[len(picture) // 2] if picture.ndim == 4 else picture
    return Image.fromarray((np.clip(still, 0, 1) * 255).round().astype(np.uint8))


def _save_pictures(folder: Path, pictures: Array) -> None:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        _still(picture).save(folder / f"{number}.png")


def inline(picture: Array) -> str:
    """A picture, values in [0, 1], as an address that holds the whole of it."""
    data = io.BytesIO()
    _still(picture).save(data, format="png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def seconds(value: float) -> str:
    """7.52 s, 182 ms: three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def number(value: float | None, form: str = ".3g") -> str:
    """The number in that form, a dash where nothing was measured."""
    return "–" if value is None else format(value, form)


def facts(value: Any) -> str:
    """A counter's value for people: lists joined, mappings as `key: value`."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {facts(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(facts(inner) for inner in value) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
