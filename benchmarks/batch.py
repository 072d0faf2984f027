"""A batch one of whose workers is killed twice, beside the same batch undisturbed: is all made, is it equal, how long?

    python benchmarks/batch.py [--prompts 200] [--workers 2] [--kills 2] [--model zoo:shapes] [--steps 12]

Writes out/benchmarks/batch.json; ends with status 1 where a picture is missing or differs, was written twice, or where
the batch with kills took more than 1.3 times as long, Ray's start and the loading of the models included.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.batch.crew import Crew
from fewstep.batch.prompts import Request
from fewstep.batch.run import run
from fewstep.bench import results
from fewstep.cli.show import print_rows, working
from fewstep.zoo.tasks import task_of

SLOWER = 1.3
VICTIM = 1  # the worker that is killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:shapes")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    options = parser.parse_args()

    prompts = [prompt for prompt, _ in task_of(options.model.removeprefix("zoo:")).prompts(options.prompts, seed=0)]
    call = {"steps": options.steps}
    requests = [Request(line, prompt, line, None, call) for line, prompt in enumerate(prompts, 1)]  # no two are equal
    crew = Crew(workers=options.workers)
    with tempfile.TemporaryDirectory() as place, working():
        calm, hit = Path(place) / "calm", Path(place) / "hit"
        undisturbed = run(requests, calm, options.model, crew=crew)
        # Evenly over the run; what is killed last still has time to come back.
        moments = [len(requests) * (kill + 1) // (options.kills + 2) for kill in range(options.kills)]
        with watched(hit, moments) as seen:
            disturbed = run(requests, hit, options.model, crew=crew)
        wrong = differing(pictures(calm), pictures(hit))
    ratio = disturbed.seconds / undisturbed.seconds
    row = {
        "what": f"{len(requests)} prompts, {options.workers} workers, {seen.kills} kills",
        "undisturbed_s": round(undisturbed.seconds, 1),
        "with_kills_s": round(disturbed.seconds, 1),
        "ratio": round(ratio, 3),
        "replaced": disturbed.replaced,
        "made": disturbed.made,
        "wrong": len(wrong),
        "twice": len(seen.twice),
    }
    path = results.save("batch", [row])
    print_rows([row], as_json=False)
    print(path)
    whole = disturbed.made == undisturbed.made == undisturbed.outputs and seen.kills == options.kills
    return int(not whole or bool(wrong) or bool(seen.twice) or ratio > SLOWER)


@dataclass
class Seen:
    """What a second thread saw in the folder of a batch, and did to its worker."""

    kills: int = 0
    written: dict[str, int] = field(default_factory=dict)  # name of a picture -> when
    twice: set[str] = field(default_factory=set)

    def look(self, folder: Path) -> None:
        for path in folder.glob("*.png"):
            written = path.stat().st_mtime_ns
            if self.written.setdefault(path.name, written) != written:
                self.twice.add(path.name)

    def kill(self, folder: Path) -> None:
        """Kill the victim, as the last of its pictures names it."""
        last = max(self.written, key=lambda name: (_facts(folder, name)["worker"] == VICTIM, self.written[name]))
        os.kill(_facts(folder, last)["pid"], signal.SIGKILL)
        self.kills += 1


@contextmanager
def watched(folder: Path, moments: Sequence[int]) -> Iterator[Seen]:
    """While the block runs, look at the folder, and kill the victim when so many pictures are there."""
    seen, over = Seen(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen.look(folder)
            if seen.kills < len(moments) and len(seen.written) >= moments[seen.kills]:
                seen.kill(folder)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        seen.look(folder)


def _facts(folder: Path, name: str) -> dict[str, int]:
    facts: dict[str, int] = json.loads((folder / f"{name}.json").read_text())
    return facts


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[str]:
    """The pictures that only one has, or that differ."""
    return [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


if __name__ == "__main__":
    sys.exit(main())
