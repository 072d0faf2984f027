"""A live model end to end: frames a second, deadlines, jitter and accuracy, trick by trick, beside its teacher.

    python benchmarks/realtime.py [--model zoo:moving-shapes-live] [--teacher zoo:moving-shapes]
                                  [--seconds 60] [--each 10] [--prompts 16]

Each row adds one trick to those above it. Its frames a second are those of a session whose frames are taken as fast as
they come; jitter, missed deadlines and the time to the first frame are those of a viewer at 16 frames a second, for
`--each` seconds, and for `--seconds` in the last row. The teacher makes one clip of 17 frames at a time, in its own
steps and in as few as the student. Accuracy: the first clip of each prompt as the task judges it, pieces of the first
and the last five seconds, and pieces from one second after another prompt was asked for.

Writes out/benchmarks/realtime.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fewstep
from fewstep.bench import results
from fewstep.bench.live import Watched, drift, kept, throughput, watch
from fewstep.machine import keep_freed_memory
from fewstep.realtime import LiveModel, Session
from fewstep.techniques import Compile, Precision
from fewstep.zoo.evaluate import generate
from fewstep.zoo.tasks import task

FPS = 16.0
STACK = ("window", "precision", "compile", "overlap")  # what each row adds


def main() -> None:
    given = arguments()
    keep_freed_memory()
    moving = task("moving-shapes")
    asked = [(text, ask) for text, ask in moving.prompts(4 * given.prompts, 11) if moving.single(ask)][: given.prompts]
    texts = [text for text, _ in asked]
    model = LiveModel.of(fewstep.load(given.model), (Precision(), Compile()))
    teachers = [teacher_row(given.teacher, asked, steps) for steps in (None, model.steps)]
    rows = [row(model, texts[0], n, given.each if n < len(STACK) else given.seconds) for n in range(len(STACK) + 1)]
    fewer = [few(model, texts[0], steps, given.each) for steps in (2, 1) if steps < model.steps]
    quality = kept(model, asked, seconds=given.seconds, fps=FPS, off=("adapt",))
    found: dict[str, Any] = {
        "teachers": teachers,
        "rows": rows,
        "fewer": fewer,
        "kept": asdict(quality),
        "drift": drift(quality),
    }
    show(found)
    accuracy = {"accuracy of": given.model, **found["kept"], "drift": found["drift"]}
    print(results.save("realtime", [*teachers, *rows, *fewer, accuracy]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:moving-shapes-live")
    parser.add_argument("--teacher", default="zoo:moving-shapes")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--each", type=float, default=10.0)
    parser.add_argument("--prompts", type=int, default=16)
    return parser.parse_args()


def teacher_row(name: str, asked: list[tuple[str, Any]], steps: int | None) -> dict[str, Any]:
    """Frames a second of one clip at a time, and how many clips are right."""
    pipe = fewstep.load(name)
    pipe.set_progress_bar_config(disable=True)
    call = {} if steps is None else {"num_inference_steps": steps}
    generate(pipe, [asked[0][0]], [0], show=False, **call)
    seconds, right = [], []
    for i, (text, ask) in enumerate(asked):
        start = time.perf_counter()
        clip = generate(pipe, [text], [i], show=False, **call)
        seconds.append(time.perf_counter() - start)
        right += task("moving-shapes").correct([ask], clip)
    trick = f"teacher, {steps or 'its own'} steps, a clip at a time"
    return {"trick": trick, "made": clip.shape[1] / statistics.median(seconds), "accuracy": float(np.mean(right))}


def row(model: LiveModel, prompt: str, tricks: int, seconds: float) -> dict[str, Any]:
    """The first so many of the stack on, the others off."""
    off = (*STACK[tricks:], "adapt")
    return {"trick": STACK[tricks - 1] if tricks else "none", **measured(model, prompt, seconds, off=off)}


def few(model: LiveModel, prompt: str, steps: int, seconds: float) -> dict[str, Any]:
    return {"trick": f"{steps} steps", **measured(model, prompt, seconds, off=("adapt",), steps=steps)}


def measured(model: LiveModel, prompt: str, seconds: float, **options: Any) -> dict[str, Any]:
    made = throughput(model, prompt, 5.0, **options)  # warms up too
    seen: Watched = watch(Session(model, prompt, fps=FPS, seed=0, **options), seconds)
    return {"made": made, **asdict(seen)}


def show(found: dict[str, Any]) -> None:
    table = Table(title="Live video, 16 frames a second asked for")
    columns = ("trick", "frames/s", "× teacher", "first frame", "jitter", "missed", "window")
    for column in columns:
        table.add_column(column, justify="left" if column == "trick" else "right")
    slow = found["teachers"][0]["made"]
    for one in found["teachers"]:
        table.add_row(one["trick"], f"{one['made']:.1f}", f"{one['made'] / slow:.1f}", "", "", "", "")
    for one in (*found["rows"], *found["fewer"]):
        table.add_row(
            one["trick"],
            f"{one['made']:.1f}",
            f"{one['made'] / slow:.1f}",
            f"{one['first_frame_s']:.2f} s",
            f"{one['jitter_ms']:.1f} ms",
            str(one["missed"]),
            f"{one['window_mb']:.1f} MB",
        )
    Console().print(table)
    taught = {one["trick"]: one["accuracy"] for one in found["teachers"]}
    shares = {**found["kept"], "late / early": found["drift"], **taught}
    Console().print("accuracy: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        main()
