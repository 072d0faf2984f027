"""One live model for sessions and for the API: loaded once, taken in turns, with the right techniques on."""

from __future__ import annotations

import gc
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.errors import InputError
from fewstep.realtime import Session
from fewstep.server.config import ModelEntry
from fewstep.server.engine import OWN, Engine, Shot, Work
from fewstep.server.shared import live_entry, techniques_of
from tests.server.live.student import save_student

pytestmark = pytest.mark.usefixtures("able_machine")

CALL = Work("tiny", OWN, size=(16, 16), frames=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("live") / "tiny")


def engine_of(folder: Path, **entry: Any) -> Engine:
    made = Engine((ModelEntry(name="tiny", model=str(folder), fps=20, **{"recipe": ["precision"], **entry}),))
    made.load()
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return engine_of(folder)


def call(engine: Engine, work: Work = CALL, on_step: Any = lambda done, steps: None, seed: int = 0) -> np.ndarray:
    return engine.run(work, [Shot("a red ring", seed)], on_step)[0]


def transformers() -> set[int]:
    return {id(one) for one in gc.get_objects() if type(one).__name__ == "WanTransformer3DModel"}


def test_it_is_in_memory_once(folder: Path) -> None:
    gc.collect()
    before = transformers()
    engine = engine_of(folder)
    gc.collect()
    assert len(transformers() - before) == 1
    pipe, live = engine._models["tiny"].pipe, engine.live.result(0).pipe
    assert live is not pipe
    assert live.scheduler is not pipe.scheduler
    for part in ("transformer", "vae", "text_encoder"):
        assert getattr(live, part) is getattr(pipe, part)
    held = {p.data_ptr() for p in pipe.transformer.parameters()}
    assert held == {p.data_ptr() for p in live.transformer.parameters()}


def test_both_at_once_give_what_each_gives_alone(engine: Engine) -> None:
    model = engine.live.result(0)
    alone = call(engine)
    with Session(model, "a blue square", seed=1, paced=False, off=("adapt",)) as session:
        first = np.concatenate([chunk.frames for chunk in islice(session, 8)])
    with Session(model, "a blue square", seed=1, paced=False, off=("adapt",)) as session:
        made: list[np.ndarray] = []
        api = threading.Thread(target=lambda: made.extend(call(engine) for _ in range(3)))
        api.start()
        chunks = [chunk.frames for chunk in islice(session, 8)]
        session.prompt("a red ring")  # which runs the pipeline for its first step
        while api.is_alive():
            next(iter(session))
        api.join()
    assert np.array_equal(np.concatenate(chunks), first)
    assert all(np.array_equal(one, alone) for one in made)


def test_a_chunk_waits_for_one_step_of_a_call_and_not_for_its_end(engine: Engine) -> None:
    model, order = engine.live.result(0), list[str]()
    waiting, entered = threading.Event(), threading.Event()

    def chunk() -> None:
        waiting.wait()
        with model.lock:
            order.append("chunk")
            entered.set()

    def on_step(done: int, steps: int) -> None:
        order.append(f"step {done}")
        waiting.set()
        end = time.monotonic() + 5
        while not (entered.is_set() or model.lock.waiting) and time.monotonic() < end:
            time.sleep(0.001)

    thread = threading.Thread(target=chunk)
    thread.start()
    call(engine, on_step=on_step)
    thread.join()
    assert order == ["step 1", "chunk", "step 2", "step 3", "step 4"]


def test_techniques_do_not_change_in_the_middle_of_a_call(engine: Engine) -> None:
    model, seen, threads = engine.live.result(0), list[frozenset[str]](), list[threading.Thread]()

    def on_step(done: int, steps: int) -> None:
        if not threads:
            threads.append(threading.Thread(target=model.put_on, args=(frozenset(),)))
            threads[0].start()
            time.sleep(0.05)
        seen.append(frozenset(model.engaged))

    call(engine, on_step=on_step)
    threads[0].join()
    assert set(seen) == {frozenset({"precision"})}
    assert not model.engaged
    model.put_on(frozenset({"precision"}))


def test_a_recipe_that_a_request_names_is_on_for_that_call_alone(folder: Path) -> None:
    engine = engine_of(folder, recipes={"plain": []})
    model, plain = engine.live.result(0), Work("tiny", "plain", size=(16, 16), frames=9)
    dtypes = set[torch.dtype]()
    weight = model.pipe.transformer.blocks[0].attn1.to_q.weight
    made = call(engine, plain, lambda done, steps: dtypes.add(weight.dtype))
    assert dtypes == {torch.float32}
    assert weight.dtype == torch.bfloat16
    assert set(model.engaged) == {"precision"}
    assert not np.array_equal(made, call(engine))


def test_nothing_is_compiled_for_a_call(engine: Engine) -> None:
    """A session compiles, before and after a call; the call does not."""
    model = engine.live.result(0)
    graphs: list[int] = []
    linear = torch.compile(nn.Linear(2, 2), backend=lambda graph, inputs: graphs.append(1) or graph.forward)
    with model.lent(engine._models["tiny"].pipe, None):
        linear(torch.ones(1, 2))
        assert not graphs
    linear(torch.ones(1, 2))
    assert graphs == [1]


def test_the_live_model_is_found_by_its_manifest(folder: Path) -> None:
    entries = (ModelEntry(name="shapes", model="zoo:shapes"), ModelEntry(name="tiny", model=str(folder)))
    assert live_entry(entries) is entries[1]
    assert live_entry(entries[:1]) is None
    assert live_entry((ModelEntry(name="far", model="owner/name"),)) is None


def test_an_entrys_recipe_is_that_of_its_live_video(folder: Path) -> None:
    def of(recipe: Any) -> list[str]:
        return [one.name for one in techniques_of(ModelEntry(name="tiny", model=str(folder), recipe=recipe))]

    assert of([]) == []
    assert of(["compile", "precision"]) == ["precision", "compile"]
    assert set(of(None)) <= {"precision", "compile"}
    with pytest.raises(InputError, match="no cache"):
        of(["precision", "cache"])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(vae: Any) -> None:
        raise InputError("This VAE can't decode a stream.")

    monkeypatch.setattr("fewstep.realtime.model.check_streams", refuse)


@pytest.mark.usefixtures("broken")
def test_a_model_that_can_not_be_live_still_answers_the_api(folder: Path) -> None:
    engine = engine_of(folder)
    assert isinstance(engine.live.exception(0), InputError)
    assert call(engine).shape == (9, 16, 16, 3)


def test_whoever_waits_for_a_server_that_can_not_load_is_told(folder: Path, tmp_path: Path) -> None:
    models = {"no": str(tmp_path), "tiny": str(folder)}
    engine = Engine([ModelEntry(name=name, model=place) for name, place in models.items()])
    with pytest.raises(InputError):
        engine.load()
    assert isinstance(engine.live.exception(0), InputError)
