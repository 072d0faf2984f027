"""Turns, shared calls, failures and cancelling, with real small models."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import InputError, RecipeError
from fewstep.server.config import Limits, ModelEntry, ServerConfig
from fewstep.server.engine import Shot, Work
from fewstep.server.errors import ApiError
from fewstep.server.service import Service
from fewstep.server.worker import PICTURES_IN_A_ROW, Ticket, failure, gather, turn
from tests.server.running import MOVING, SHAPES, Running, running, until

WORK = Work("shapes", "default", (64, 64))
CPU_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 9")


def ticket(prompt: str = "a red ring", seed: int = 0, count: int = 1, work: Work = WORK, owner: str = "a") -> Ticket:
    return Ticket(work, [Shot(prompt, seed + i) for i in range(count)], owner)


def test_pictures_go_first_but_never_starve_the_videos() -> None:
    assert turn(0, 0, 0) is None
    assert turn(1, 1, 0) == "image"
    assert turn(1, 1, PICTURES_IN_A_ROW) == "video"
    assert turn(1, 0, PICTURES_IN_A_ROW) == "image"
    assert turn(0, 1, 0) == "video"


def test_equal_work_shares_a_call_up_to_its_size() -> None:
    first, other, pair, last = ticket(), ticket(work=replace(WORK, steps=2)), ticket(count=2), ticket()
    assert gather([first, other, pair, last], 4) == [first, pair, last]
    assert gather([first, other, pair, last], 2) == [first, last]
    assert gather([other, first], 4) == [other]
    assert gather([ticket(count=10)], 4)


def test_edits_go_alone() -> None:
    edit = Ticket(WORK, [Shot("a", 0, Image.new("RGB", (64, 64)))], "a")
    first = ticket()
    assert gather([first, edit], 4) == [first]
    assert gather([edit, first], 4) == [edit]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MemoryError(), 500, "out_of_memory"),
        (CPU_FULL, 500, "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), 500, "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 500, "disk_full"),
        (InputError("Not so."), 400, "invalid_value"),
        (RecipeError("This.", "That."), 400, "invalid_value"),
        (ValueError("`strength` is too small"), 400, "invalid_value"),
        (KeyError("x"), 500, "server_error"),
        (ApiError(404, "No.", "not_found"), 404, "not_found"),
    ],
)
def test_each_failure_has_its_code(error: Exception, status: int, code: str) -> None:
    told = failure(error, "shapes")
    assert (told.status, told.code) == (status, code)
    assert "Traceback" not in told.message


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Its worker waits for the test to start it."""
    made = Service.of(ServerConfig(models=(SHAPES, MOVING), folder=tmp_path, limits=Limits(queue=12)))
    yield made
    if made.worker.is_alive():
        made.worker.stop()
    made.jobs.close()


def queue_video(service: Service, steps: int = 1, id: str = "video_1") -> None:
    call = {"model": "moving", "recipe": "default", "size": [64, 64], "steps": steps, "frames": 5}
    same = {"owner": "a", "model": "moving", "prompt": "a", "size": "64x64", "seconds": "0.3"}
    service.jobs.add({"id": id, **same, "work": {"call": call, "seed": 0}}, now=service.results.clock(), most=99)


def status(service: Service, id: str = "video_1") -> str | None:
    job = service.jobs.get(id)
    return job.status if job else None


def watch_calls(
    service: Service, monkeypatch: pytest.MonkeyPatch, before: Callable[[Any], None] = lambda shots: None
) -> list[tuple[str, int]]:
    """What calls were made of the engine once it is warm: the model, and how many shots."""
    calls: list[tuple[str, int]] = []
    run = service.engine.run

    def watched(work: Work, shots: Any, on_step: Any) -> Any:
        if service.worker.ready.is_set():
            calls.append((work.model, len(shots)))
            before(shots)
        return run(work, shots, on_step)

    monkeypatch.setattr(service.engine, "run", watched)
    return calls


def test_a_picture_does_not_depend_on_its_companions(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch_calls(service, monkeypatch)
    prompts = ["a red ring", "a large blue square left of a small green triangle", "a yellow circle"]
    together = [ticket(prompt, seed) for seed, prompt in enumerate(prompts)]
    for one in together:
        service.worker.submit(one)
    service.worker.start()
    wait([one.future for one in together], 60)
    assert calls == [("shapes", 3)]
    for seed, (prompt, one) in enumerate(zip(prompts, together, strict=True)):
        alone = ticket(prompt, seed)
        service.worker.submit(alone)
        [expected], [made] = alone.future.result(60), one.future.result()
        assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).max() <= 2


def test_a_large_request_is_made_in_several_calls(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch_calls(service, monkeypatch)
    large = ticket(count=10)
    service.worker.submit(large)
    service.worker.start()
    assert len(large.future.result(60)) == 10
    assert calls == [("shapes", 8), ("shapes", 2)]


def test_a_cache_takes_one_picture_a_call(tmp_path: Path) -> None:
    entry = ModelEntry(name="shapes", model="zoo:shapes-4step", recipes={"cached": [{"cache": {"preset": "teacache"}}]})
    service = Service.of(ServerConfig(models=(entry,), folder=tmp_path))
    service.engine.load()
    assert service.engine.most(replace(WORK, recipe="default")) == 8
    assert service.engine.most(replace(WORK, recipe="cached")) == 1
    service.jobs.close()


def test_a_video_has_its_turn_among_pictures(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch_calls(service, monkeypatch)
    many = [ticket(work=replace(WORK, steps=i + 1)) for i in range(8)]  # which share no call
    for one in many:
        service.worker.submit(one)
    queue_video(service)
    service.worker.start()
    wait([one.future for one in many], 60)
    assert [model for model, _ in calls] == ["shapes"] * PICTURES_IN_A_ROW + ["moving"] + ["shapes"] * 4
    assert status(service) == "completed"


def test_a_full_queue_says_when_to_come_again(service: Service) -> None:
    for _ in range(12):
        service.worker.submit(ticket())
    with pytest.raises(ApiError) as caught:
        service.worker.submit(ticket())
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert service.worker.count("a") == 12


def test_only_the_guilty_request_of_a_shared_call_fails(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def bomb(shots: Any) -> None:
        if any(shot.prompt == "bomb" for shot in shots):
            raise CPU_FULL

    watch_calls(service, monkeypatch, bomb)
    good, bad, other = ticket(), ticket("bomb"), ticket()
    for one in (good, bad, other):
        service.worker.submit(one)
    service.worker.start()
    assert good.future.result(60)
    assert other.future.result(60)
    with pytest.raises(ApiError) as caught:
        bad.future.result(60)
    assert caught.value.code == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CPU_FULL, "out_of_memory", "ask for a smaller size"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "disk is full"),
        (ZeroDivisionError("by zero"), "server_error", "ZeroDivisionError: by zero"),
    ],
)
def test_a_video_that_fails_says_why_and_the_next_is_made(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, said: str
) -> None:
    errors = [error]

    def fail_once(shots: Any) -> None:
        if errors:
            raise errors.pop()

    watch_calls(service, monkeypatch, fail_once)
    queue_video(service)
    queue_video(service, id="video_2")
    service.worker.start()
    until(lambda: status(service, "video_2") == "completed")
    job = service.jobs.get("video_1")
    assert job
    assert (job.status, job.error_code) == ("failed", code)
    assert said in (job.error_message or "")


def test_a_stop_ends_between_two_steps_and_puts_the_video_back(service: Service) -> None:
    queue_video(service, steps=1000)
    service.worker.start()
    until(lambda: (service.jobs.get("video_1") or 0) and service.jobs.get("video_1").progress)  # type: ignore[union-attr]
    late = ticket()
    service.worker.submit(late)
    service.worker.stop()
    job = service.jobs.get("video_1")
    assert job
    assert (job.status, job.attempts) == ("queued", 0)
    with pytest.raises(ApiError, match="stopping"):
        late.future.result(0)
    with pytest.raises(ApiError, match="stopping"):
        service.worker.submit(ticket())


def test_a_video_of_a_model_that_is_served_no_more_fails(service: Service) -> None:
    call = {"model": "gone", "recipe": "default", "size": [64, 64], "frames": 5}
    same = {"owner": "a", "model": "gone", "prompt": "a", "size": "64x64", "seconds": "1"}
    service.jobs.add({"id": "video_1", **same, "work": {"call": call, "seed": 0}}, now=service.results.clock(), most=9)
    service.worker.start()
    until(lambda: status(service) == "failed")


def test_models_that_can_t_be_loaded_end_the_worker(tmp_path: Path) -> None:
    wrong = ModelEntry(name="shapes", model="zoo:shapes-1step", recipe=[{"few_step": {"student": "zoo:moving-shapes"}}])
    service = Service.of(ServerConfig(models=(wrong,), folder=tmp_path))
    told = threading.Event()
    service.worker.when_broken = told.set
    service.worker.start()
    assert told.wait(60)
    assert isinstance(service.worker.broken, RecipeError)
    service.close()


def test_a_client_that_hangs_up_ends_its_work(server: Running) -> None:
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/images/generations", json={"prompt": "a", "fewstep": {"steps": 1000}}, timeout=0.5)
    until(lambda: server.service.worker.count("everyone") == 0, 5)
    assert 'fewstep_jobs_total{end="cancelled",kind="image"} 1.0' in server.service.metrics.text().decode()


def test_until_the_models_are_warm_the_server_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr("fewstep.server.engine.load", lambda *a, **k: go.wait(60) and 1 / 0)
    with running(ServerConfig(models=(SHAPES,), folder=tmp_path), warm=False) as server, server.http() as http:
        assert http.get("/health").status_code == 200
        for response in (http.get("/ready"), http.post("/v1/images/generations", json={"prompt": "a"})):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
            assert response.headers["retry-after"]
        go.set()
        until(lambda: http.get("/health").status_code == 503)
        assert http.get("/ready").status_code == 503


def test_a_worker_outlives_a_store_that_fails(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.server.worker.time.sleep", lambda seconds: None)
    errors = [sqlite3.OperationalError("database or disk is full")] * 2
    complete = service.jobs.complete

    def fail_twice(*args: Any) -> bool:
        if errors:
            raise errors.pop()
        return complete(*args)

    monkeypatch.setattr(service.jobs, "complete", fail_twice)
    monkeypatch.setattr(service.jobs, "fail", lambda *args, **kwargs: fail_twice())
    queue_video(service)
    service.worker.start()
    until(lambda: status(service) == "completed")
