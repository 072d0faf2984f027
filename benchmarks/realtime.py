"""A live model end to end: frames a second, deadlines, jitter and accuracy, trick by trick, beside its teacher.

    python benchmarks/realtime.py [--model zoo:moving-shapes-live] [--teacher zoo:moving-shapes]
                                  [--seconds 60] [--each 10] [--prompts 16]
                                  [--served | --only-served] [--viewers 10] [--folder out/benchmarks]

Each row adds one trick to those above it; the last ones do less work with all of them: only what moves after a chunk's
first step (`regions`), or fewer steps. Frames a second are those of a session whose frames are taken as fast as they
come, the median of three turns with all other rows; jitter, missed deadlines and the time to the first frame are those
of a viewer at 16 frames a second, for `--each` seconds, and for `--seconds` where all tricks are on. The teacher makes
one clip of 17 frames at a time, in its own steps and in as few as the student. Accuracy, with all tricks, without a
choice among openings, and with less work: the first clip of each prompt as the task judges it, pieces of the first and
the last five seconds, and pieces from one second after another prompt was asked for.

`--served` goes on through the socket: `fewstep serve` runs in a process of its own, and viewers measure from the prompt
that they send to the frame in pixels. Frames a second are those of a server whose clock is at 120, without fewer steps
under load; the rest is that of one at 16: the first frame of a new session (the median of several), one viewer for
`--seconds`, `--viewers` of them at once for `--each`, three of them to whom the others come in one moment, and one
beside a viewer who reads one message in ten.

Writes realtime.json and the waterfall (realtime.png, realtime.svg) to `--folder`; `--only-served` measures the socket
alone and writes realtime-served.json. Ends with status 1 where a frame was missing that no server told as dropped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fewstep
from fewstep.bench import results, served
from fewstep.bench.live import Watched, drift, kept, throughput, watch
from fewstep.bench.process import serving
from fewstep.bench.report import live as picture
from fewstep.machine import keep_freed_memory
from fewstep.realtime import LiveModel, Session
from fewstep.realtime.tricks import ADAPT, CHOOSE, REGIONS
from fewstep.techniques import Compile, Precision
from fewstep.zoo.evaluate import generate
from fewstep.zoo.tasks import task

FPS, FREE = 16, 120  # frames a second: of a viewer, and as high as a server's clock goes
STACK = ("window", "precision", "compile", "overlap", "small_decoder")  # what each row adds
TIMES = 9  # sessions whose first frame is waited for
WATCHING = 3  # viewers to whom the others come
TURNS, TURN = 3, 4.0  # measurements of each row, and the seconds of one
Row = dict[str, Any]


def main() -> int:
    given = arguments()
    moving = task("moving-shapes")
    asked = [(text, ask) for text, ask in moving.prompts(4 * given.prompts, 11) if moving.single(ask)][: given.prompts]
    rows = [] if given.only_served else in_process(given, asked)
    if given.served or given.only_served:
        rows += through_the_socket(given, [text for text, _ in asked])
    show(rows)
    print(results.save("realtime-served" if given.only_served else "realtime", rows, given.folder))
    if not given.only_served:
        print(*picture.save(rows, FPS, given.folder / "realtime"), sep="\n")
    return int(any(row.get("unsaid", 0) for row in rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:moving-shapes-live")
    parser.add_argument("--teacher", default="zoo:moving-shapes")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--each", type=float, default=10.0)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--served", action="store_true", help="through the socket, too")
    parser.add_argument("--only-served", action="store_true", help="through the socket alone")
    parser.add_argument("--viewers", type=int, default=10, help="at once")
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="docs/benchmarks is where it is published")
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------------------------
# In this process


def in_process(given: argparse.Namespace, asked: list[tuple[str, Any]]) -> list[Row]:
    keep_freed_memory()
    model = LiveModel.of(fewstep.load(given.model), (Precision(), Compile()))
    stack = STACK if model.small is not None else STACK[:-1]
    prompt, last = asked[0][0], len(stack)
    teachers = [teacher(given.teacher, asked, steps) for steps in (None, model.steps)]
    trials = [trial(stack, n, model.steps) for n in range(last + 1)]
    less = less_work(model)
    trials += less
    made = in_turns(model, prompt, [one.options for one in trials])
    live = []
    for i, (one, rates) in enumerate(zip(trials, made, strict=True)):
        seconds = given.seconds if i == last else given.each
        throughput(model, prompt, 0.1, **one.options)  # the row before may have other techniques on
        seen: Watched = watch(Session(model, prompt, fps=FPS, seed=0, **one.options), seconds)
        row = {"kind": one.kind, "trick": one.trick, "made": statistics.median(rates), "all": {"made": rates}}
        live.append(row | asdict(seen))
    steps = in_steps(model.steps)
    judged = [replace(trials[last], trick=steps), Trial("stack", f"{steps}, − {CHOOSE}", {"off": (ADAPT, CHOOSE)})]
    answers = [accuracy(model, asked, given.seconds, one) for one in (*judged, *less)]
    return [*teachers, *live, *answers]


def accuracy(model: LiveModel, asked: list[tuple[str, Any]], seconds: float, one: Trial) -> Row:
    """How well a row's sessions answer. Another prompt cuts, as the server does it: no student so far has learnt to go
    over from one to the next."""
    quality = kept(model, asked, seconds=seconds, fps=FPS, **one.options)
    return {"kind": "accuracy", "trick": one.trick, **asdict(quality), "drift": drift(quality)}


def teacher(name: str, asked: list[tuple[str, Any]], steps: int | None) -> Row:
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
    made = clip.shape[1] / statistics.median(seconds)
    return {"kind": "teacher", "trick": in_steps(len(pipe.scheduler.timesteps)), "made": made, "accuracy": mean(right)}


@dataclass(frozen=True)
class Trial:
    """A row to measure, and what its sessions are told."""

    kind: str
    trick: str
    options: dict[str, Any]


def trial(stack: Sequence[str], tricks: int, steps: int) -> Trial:
    """The first so many of the stack on, the others off."""
    trick = f"+ {stack[tricks - 1]}" if tricks else f"none: {in_steps(steps)}, float32"
    return Trial("stack", trick, {"off": (*stack[tricks:], ADAPT)})


def less_work(model: LiveModel) -> list[Trial]:
    """All tricks, and less work for each chunk: the levels to which a session goes down where time runs short."""
    whole = {"off": (ADAPT,)}
    parts = [Trial("fewer", f"{in_steps(model.steps)}, + {REGIONS}", whole | {"on": (REGIONS,)})]
    few = [Trial("fewer", in_steps(steps), whole | {"steps": steps}) for steps in (2, 1) if steps < model.steps]
    return (parts if REGIONS in model.tricks else []) + few


def in_turns(model: LiveModel, prompt: str, trials: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Frames a second of each, measured several times in turns; what is compiled is so before `throughput` counts."""
    found = [[throughput(model, prompt, TURN, **options) for options in trials] for _ in range(TURNS)]
    return [list(rates) for rates in zip(*found, strict=True)]


def in_steps(steps: int) -> str:
    return f"{steps} steps" if steps > 1 else "1 step"


def mean(shares: list[Any]) -> float:
    return float(np.mean(shares))


# ---------------------------------------------------------------------------------------------------------------------
# Through the socket


def through_the_socket(given: argparse.Namespace, prompts: list[str]) -> list[Row]:
    model = {"name": given.model, "model": given.model}
    with serving([{**model, "fps": FREE}]) as server:
        free = served.freely(server.url, prompts[0], given.each)
    with serving([{**model, "fps": FPS}], ["--viewers", str(given.viewers + 2)]) as server:
        waits = served.delays(server.url, prompts, TIMES)
        one = served.seen(server.url, prompts[0], given.seconds, adapt=False)
        many = served.together(server.url, prompts, given.viewers, given.each)
        joined = served.joined(server.url, prompts, WATCHING, max(1, given.viewers - WATCHING), given.each)
        slow = served.beside_slow(server, prompts, given.each)
    alone = {**asdict(one.watched), "dropped": one.dropped, "unsaid": one.unsaid, **free, **waits}
    return [
        {"kind": "served", "trick": "one viewer", **alone},
        {"kind": "viewers", "trick": f"{given.viewers} viewers", **many},
        {"kind": "viewers", "trick": f"{WATCHING} viewers, to whom others come", **joined},
        {"kind": "viewers", "trick": "beside a slow viewer", **slow},
    ]


# ---------------------------------------------------------------------------------------------------------------------


COLUMNS = {  # of the table: how each figure is told
    "made": "{:.1f}",
    "first_frame_s": "{:.2f} s",
    "another_prompt_s": "{:.2f} s",
    "another_prompt_shown_s": "{:.2f} s",
    "jitter_ms": "{:.1f} ms",
    "standstill_s": "{:.2f} s",
    "missed": "{}",
    "dropped": "{}",
    "unsaid": "{}",
    "window_mb": "{:.1f} MB",
    "grown_mb": "{:+.1f} MB",
}


def show(rows: list[Row]) -> None:
    drawn = [one for one in rows if "made" in one]
    columns = {name: form for name, form in COLUMNS.items() if any(name in one for one in drawn)}
    table = Table("", "", title=f"Live video; viewers are shown {FPS} frames a second")
    for name in columns:
        table.add_column({"made": "frames/s"}.get(name, name.rsplit("_", 1)[0].replace("_", " ")), justify="right")
    for one in drawn:
        figures = [form.format(one[name]) if name in one else "" for name, form in columns.items()]
        table.add_row(one["kind"], one["trick"], *figures)
    Console(width=170).print(table)
    right = {row["trick"]: row["accuracy"] for row in rows if row["kind"] == "teacher"}
    if right:
        print("accuracy of the teacher's clips: " + told(right))
    for one in rows:
        if one["kind"] == "accuracy":
            shares = {name: share for name, share in one.items() if isinstance(share, float)}
            print(f"accuracy, {one['trick']}: {told(shares)}")


def told(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            sys.exit(main())
        except fewstep.FewstepError as error:
            sys.exit(str(error))
