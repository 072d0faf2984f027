"""A server under load: many clients with mixed requests, kills with restarts, and its memory over many requests.

    python benchmarks/serve.py [--clients 32] [--requests 500] [--kills 20] [--memory 1000]

Each part starts `fewstep serve` in a process of its own, with the zoo's models. Every answer is checked: a picture
against the one that the library makes of the same seed, a video by its frames, a bad request by its refusal. A 429 is
right only when as many requests wait as may; the client then comes again when it is told to.

Writes out/benchmarks/serve.json; ends with status 1 where a request was lost or answered wrongly, a 429 came too early,
or memory grew by a tenth or more.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import av
import httpx
import numpy as np
import torch
from PIL import Image

import fewstep
from fewstep.bench import results
from fewstep.bench.process import PATIENCE, Server, serving, wait
from fewstep.cli.show import print_rows

QUEUE = 16  # less than there are clients, so that it is full at times
MODELS = (
    {"name": "shapes", "model": "zoo:shapes-1step"},
    {"name": "moving", "model": "zoo:moving-shapes", "call": {"num_inference_steps": 2}},
)
PROMPTS = ("a red ring", "a large blue square left of a small green triangle", "a yellow circle", "a small white ring")
FRAMES = 17
MOMENT = 2.0  # seconds: a kill comes that late at most after videos were asked for
NOISE = 3  # of 255: what a picture may differ by when it shares a call
GROWTH = 0.10


@dataclass
class Tally:
    """What happened to requests: each thread fills its own, and they are added up."""

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    full: int = 0
    early: int = 0
    seconds: list[float] = field(default_factory=list)

    def check(self, kind: str, right: bool, said: object) -> None:
        if right:
            self.right[kind] += 1
        else:
            self.wrong.append(f"{kind}: {said}")

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.asked + other.asked,
            self.right + other.right,
            self.wrong + other.wrong,
            self.full + other.full,
            self.early + other.early,
            self.seconds + other.seconds,
        )

    @property
    def lost(self) -> int:
        return self.asked.total() - self.right.total() - len(self.wrong)


def expected() -> list[Image.Image]:
    """The picture of each prompt, of the seed that is its place."""
    pipe = fewstep.load("zoo:shapes-1step")
    pipe.set_progress_bar_config(disable=True)
    return [pipe(p, generator=torch.Generator().manual_seed(seed)).images[0] for seed, p in enumerate(PROMPTS)]


def close(made: Image.Image, true: Image.Image) -> bool:
    return int(np.abs(np.asarray(made).astype(int) - np.asarray(true)).max()) <= NOISE


def send(http: httpx.Client, tally: Tally, **request: Any) -> httpx.Response:
    """Send a request until it is taken."""
    while True:
        response = http.request(**request)
        if response.status_code != 429:
            return response
        tally.full += 1
        tally.early += f"{QUEUE} requests wait" not in response.text
        time.sleep(int(response.headers["retry-after"]))


def picture(http: httpx.Client, tally: Tally, number: int, truth: Sequence[Image.Image]) -> None:
    seed = number % len(PROMPTS)
    body = {"prompt": PROMPTS[seed], "fewstep": {"seed": seed}, "model": "shapes"}
    response = send(http, tally, method="POST", url="/v1/images/generations", json=body)
    good = response.status_code == 200 and close(opened(response), truth[seed])
    tally.check("picture", good, response.text[:200])


def edit(http: httpx.Client, tally: Tally, number: int, truth: Sequence[Image.Image]) -> None:
    buffer = io.BytesIO()
    truth[number % len(truth)].save(buffer, "PNG")
    form = {"data": {"prompt": "a red ring", "n": "2"}, "files": {"image": buffer.getvalue()}}
    response = send(http, tally, method="POST", url="/v1/images/edits", **form)
    good = response.status_code == 200 and opened(response).size == (64, 64) and len(response.json()["data"]) == 2
    tally.check("edit", good, response.text[:200])


def video(http: httpx.Client, tally: Tally, number: int, truth: Sequence[Image.Image]) -> None:
    body = {"prompt": "a red ring moving left", "model": "moving"}
    response = send(http, tally, method="POST", url="/v1/videos", json=body)
    if response.status_code != 200:
        tally.check("video", False, response.text[:200])
        return
    place = f"/v1/videos/{response.json()['id']}"
    wait(lambda: http.get(place).json()["status"] in ("completed", "failed"), "a video")
    content = http.get(f"{place}/content")
    tally.check("video", content.status_code == 200 and frames(content.content) == FRAMES, content.text[:200])


def bad(http: httpx.Client, tally: Tally, number: int, truth: Sequence[Image.Image]) -> None:
    response = send(http, tally, method="POST", url="/v1/images/generations", json={"prompt": "a", "n": 11})
    tally.check("bad request", response.status_code == 400, response.text[:200])


KINDS = {picture: 14, edit: 2, video: 3, bad: 1}  # of 20


def opened(response: httpx.Response) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"])))


def frames(content: bytes) -> int:
    with av.open(io.BytesIO(content), "r") as container:
        return len(list(container.decode(video=0)))


def load(server: Server, clients: int, requests: int) -> dict[str, Any]:
    """So many clients share so many mixed requests."""
    truth = expected()
    kinds = random.Random(0).choices(list(KINDS), list(KINDS.values()), k=requests)

    def ask(number: int) -> Tally:
        tally, kind = Tally(), kinds[number]
        tally.asked[kind.__name__] += 1
        start = time.perf_counter()
        try:
            with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
                kind(http, tally, number, truth)
        except httpx.HTTPError as error:
            tally.wrong.append(f"{kind.__name__}: {error!r}")
        tally.seconds.append(time.perf_counter() - start)
        return tally

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        tally = sum(pool.map(ask, range(requests)), Tally())
    whole = time.perf_counter() - start
    return {
        "part": "load",
        "what": f"{clients} clients, {requests} requests",
        "right": tally.right.total(),
        "wrong": len(tally.wrong),
        "lost": tally.lost,
        "early_429": tally.early,
        "more": {
            "kinds": dict(tally.asked),
            "full_429": tally.full,
            "seconds": round(whole, 1),
            "median_s": round(float(np.median(tally.seconds)), 3),
            "p95_s": round(float(np.quantile(tally.seconds, 0.95)), 3),
            "said": tally.wrong[:5],
        },
    }


def kills(server: Server, times: int) -> dict[str, Any]:
    """Videos are asked for and the server is killed, over and over; in the end each is there, made once."""
    chance, asked, done, hit = random.Random(0), [], dict[str, int](), 0
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        for _ in range(times):
            for _ in range(2):
                body = {"prompt": "a red ring moving left", "fewstep": {"steps": 4}}
                asked.append(send(http, Tally(), method="POST", url="/v1/videos", json=body).json()["id"])
            time.sleep(chance.uniform(0.0, MOMENT))
            listed = [http.get(f"/v1/videos/{id}").json() for id in asked]
            done |= {v["id"]: v["completed_at"] for v in listed if v["completed_at"] and v["id"] not in done}
            hit += any(v["status"] == "in_progress" for v in listed)
            server.end(signal.SIGKILL)
            server.start()
        wait(lambda: all(http.get(f"/v1/videos/{id}").json().get("status") != "queued" for id in asked), "all videos")
        wait(lambda: http.get(f"/v1/videos/{asked[-1]}").json().get("status") != "in_progress", "the last video")
        last = {id: http.get(f"/v1/videos/{id}").json() for id in asked}
        again = sum(last[id].get("completed_at") != at for id, at in done.items())
        made = {id: http.get(f"/v1/videos/{id}/content") for id in asked}
        whole = [id for id, one in made.items() if one.status_code == 200 and frames(one.content) == FRAMES]
    return {
        "part": "kills",
        "what": f"{times} × kill -9, {len(asked)} videos",
        "right": len(whole),
        "wrong": again,
        "lost": len(asked) - len(whole),
        "early_429": 0,
        "more": {
            "kills_in_the_making": hit,
            "done_before_a_kill": len(done),
            "made_again": again,
            "failed": [last[id]["error"] for id in asked if last[id]["status"] == "failed"],
        },
    }


def memory(server: Server, requests: int) -> dict[str, Any]:
    """What the server holds after all requests, against what it holds after the first tenth of them."""
    tally, truth, after = Tally(), expected(), []
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        for number in range(requests):
            kind = (picture, picture, edit, picture, video)[number % 5]
            tally.asked[kind.__name__] += 1
            kind(http, tally, number, truth)
            if number + 1 in (requests // 10, requests):
                after.append(server.memory())
    growth = after[1] / after[0] - 1
    return {
        "part": "memory",
        "what": f"{requests} requests",
        "right": tally.right.total(),
        "wrong": len(tally.wrong),
        "lost": tally.lost,
        "early_429": tally.early,
        "more": {"mb_after_a_tenth": round(after[0] / 1e6), "mb": round(after[1] / 1e6), "growth": round(growth, 4)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--memory", type=int, default=1000)
    options = parser.parse_args()

    parts: dict[Callable[[Server], dict[str, Any]], int] = {
        lambda server: load(server, options.clients, options.requests): options.requests,
        lambda server: kills(server, options.kills): options.kills,
        lambda server: memory(server, options.memory): options.memory,
    }
    rows: list[dict[str, Any]] = []
    path = results.FOLDER
    for part, size in parts.items():
        if size:
            with serving(MODELS, ("--queue", str(QUEUE))) as server:
                rows.append(part(server))
            path = results.save("serve", rows)  # what was measured stays, whatever the next part does
            print_rows(rows[-1:], as_json=False)
    print(path)
    return int(any(map(failed, rows)))


def failed(row: dict[str, Any]) -> bool:
    return bool(row["wrong"] or row["lost"] or row["early_429"] or row["more"].get("growth", 0) >= GROWTH)


if __name__ == "__main__":
    sys.exit(main())
