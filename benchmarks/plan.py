"""Predictions of `fewstep plan parallel` beside published runs, and how far they are from each other.

    python benchmarks/plan.py [--series]

Every run of published.yaml is predicted twice. *Scaled*: the published time of its series' base, times the ratio of the
two predictions; that is the speed-up alone. *Absolute*: the prediction as it is, from the data sheet of the device. An
error is predicted / published - 1; medians are of its size. Series marked `seen` (*) were at hand when the constants
were chosen, so the medians are given without them too. *Choice*: where a series has several layouts of as many devices,
whether the one predicted to be the fastest is the fastest that was published.

--series prints a line a series, as Markdown. Needs no device and no weights. Writes out/benchmarks/plan.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fewstep.bench import results
from fewstep.layout import Layout
from fewstep.plan.cost import COMPILED, EAGER, predict
from fewstep.plan.machines import Cluster, devices
from fewstep.plan.read import network_of
from fewstep.plan.work import work_of

PUBLISHED = Path(__file__).with_name("published.yaml")
PARTS = {"call": "seconds", "denoising": "denoising", "decoding": "decoding"}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", action="store_true", help="print a line a series, as Markdown")
    options = parser.parse_args()
    rows = [row for series in published() for row in compared(series)]
    for line in by_series(rows) if options.series else by_run(rows):
        print(line)
    choices = list(chosen(rows))
    summary = [*medians(rows), {"choices": len(choices), "right": sum(choices)}]
    print(results.save("plan", [*rows, *summary]))
    for row in summary[:-1]:
        print(
            "{runs}: median error {scaled:.0%} scaled ({of scaled}), {absolute:.0%} absolute ({of absolute})".format(
                **row
            )
        )
    print(f"The fastest layout of as many devices was predicted in {sum(choices)} of {len(choices)} cases.")


def published() -> list[Mapping[str, Any]]:
    return list(yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))["series"])


def compared(series: Mapping[str, Any]) -> Iterator[Row]:
    """The base, which has no scaled prediction, and each run."""
    base = series["base"]
    at_base = predicted(series, base["layout"])
    for run in (base, *series["runs"]):
        layout, absolute = Layout(**run["layout"]), predicted(series, run["layout"])
        scaled = None if run is base else base["seconds"] * absolute / at_base
        yield {
            "series": series["name"],
            "layout": str(layout),
            "devices": layout.size,
            "published": run["seconds"],
            "scaled": scaled,
            "scaled error": None if scaled is None else scaled / run["seconds"] - 1,
            "absolute": absolute,
            "absolute error": absolute / run["seconds"] - 1,
            "measured": series.get("measured", "call"),
            "seen": bool(series.get("seen")),
            "note": series.get("note", ""),
            "source": series["source"],
        }


def predicted(series: Mapping[str, Any], layout: Mapping[str, int]) -> float:
    """Seconds of the part that was measured."""
    work, how = work_of(network_of(series["model"]), **series.get("call", {})), Layout(**layout)
    cluster = Cluster(devices()[series["device"].lower()], per_node=how.size)
    prediction = predict(work, cluster, how, COMPILED if series["compiled"] else EAGER)
    return float(getattr(prediction, PARTS[series.get("measured", "call")]))


def by_run(rows: Sequence[Row]) -> Iterator[str]:
    line = "{:36} {:32} {:>9} {:>9} {:>6} {:>9} {:>6}".format
    yield line("series", "layout", "published", "scaled", "error", "absolute", "error")
    for row in rows:
        scaled = "" if row["scaled"] is None else f"{row['scaled']:.4g}"
        errors = ["" if row[name] is None else f"{row[name]:+.0%}" for name in ("scaled error", "absolute error")]
        published, absolute = f"{row['published']:.4g}", f"{row['absolute']:.4g}"
        name = row["series"] + "*" * row["seen"]
        yield line(name, row["layout"], published, scaled, errors[0], absolute, errors[1])


def by_series(rows: Sequence[Row]) -> Iterator[str]:
    yield "| published runs | layouts | median error, scaled | worst | median error, absolute |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, some in grouped(rows, lambda row: row["series"]).items():
        scaled = [row for row in some if row["scaled error"] is not None]
        worst = max(scaled, key=lambda row: abs(row["scaled error"]))
        middle = f"{median(scaled, 'scaled error'):.0%} | {worst['scaled error']:+.0%} ({worst['layout']})"
        link = f"[{name}]({some[0]['source']})" + "\\*" * some[0]["seen"]
        yield f"| {link} | {len(scaled)} | {middle} | {median(some, 'absolute error'):.0%} |"


def medians(rows: Sequence[Row]) -> Iterator[Row]:
    for name, some in (
        ("all runs", rows),
        ("runs not seen before the constants stood", [row for row in rows if not row["seen"]]),
    ):
        scaled = [row for row in some if row["scaled error"] is not None]
        yield {
            "runs": name,
            "scaled": median(scaled, "scaled error"),
            "of scaled": len(scaled),
            "absolute": median(some, "absolute error"),
            "of absolute": len(some),
        }


def chosen(rows: Sequence[Row]) -> Iterator[bool]:
    """For all layouts of one series with as many devices: whether the same one is the fastest by both."""
    for some in grouped(rows, lambda row: (row["series"], row["devices"])).values():
        if len(some) > 1:
            yield min(some, key=lambda row: row["absolute"]) is min(some, key=lambda row: row["published"])


def median(rows: Iterable[Row], name: str) -> float:
    return float(statistics.median(abs(row[name]) for row in rows))


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


if __name__ == "__main__":
    main()
