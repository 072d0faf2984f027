"""Whose turn it is: first come, first served; and an opening lets others in between."""

from __future__ import annotations

import threading
import time
from itertools import islice

import pytest
import torch

from fewstep.realtime import Session
from fewstep.realtime.opening import CANDIDATES, NOISES, TIMES
from fewstep.realtime.rolling import Rolling
from fewstep.realtime.turns import FairLock, HalfTheTime
from fewstep.techniques import Precision
from tests.realtime.live import live_model


def test_whoever_waits_longest_is_next() -> None:
    lock, order = FairLock(), list[int]()

    def take(number: int) -> None:
        with lock, lock:  # twice, as an RLock
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with lock:
        for count, thread in enumerate(threads):
            thread.start()
            while lock.waiting <= count:
                time.sleep(0.001)
        with lock:
            lock.give_way()
            assert order == [0, 1, 2, 3, 4]
        assert lock._owner == threading.get_ident()
    for thread in threads:
        thread.join()
    assert lock._owner is None
    lock.acquire()
    lock.give_way()  # to nobody
    lock.release()


def test_one_of_those_who_wait_is_let_in() -> None:
    lock, order = FairLock(), list[int]()

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    with lock:
        for count, thread in enumerate(threads, start=1):
            thread.start()
            while lock.waiting < count:
                time.sleep(0.001)
        lock.give_way(most=1)
        assert order == [0]
        lock.give_way(most=1)
        assert order == [0, 1]
        assert lock.waiting == 1
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2]


def test_others_get_half_of_the_time_however_long_their_turns_are() -> None:
    lock, ended, own, theirs = FairLock(), threading.Event(), list[float](), list[float]()

    def rest(seconds: float, spent: list[float]) -> None:
        began = time.monotonic()
        time.sleep(seconds)
        spent.append(time.monotonic() - began)

    def work() -> None:
        while not ended.is_set():
            with lock:
                rest(0.02, theirs)

    threads = [threading.Thread(target=work) for _ in range(3)]
    with lock:
        for thread in threads:
            thread.start()
        between = HalfTheTime(lock)
        for _ in range(200):
            between()
            rest(0.002, own)
        share = sum(theirs) / (sum(own) + sum(theirs))
    ended.set()
    for thread in threads:
        thread.join()
    assert 0.35 < share < 0.6


def test_a_thread_without_a_pause_does_not_starve_the_others() -> None:
    lock, ended, turns, both = FairLock(), threading.Event(), [0, 0], threading.Barrier(2)

    def work(who: int) -> None:
        both.wait()
        while not ended.is_set():
            with lock:
                turns[who] += 1
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(who,)) for who in (0, 1)]
    for thread in threads:
        thread.start()
    while sum(turns) < 100:
        time.sleep(0.001)
    ended.set()
    for thread in threads:
        thread.join()
    assert min(turns) > 0.4 * sum(turns)


CALLS = 8 + 2 * NOISES * len(TIMES)  # of an opening: its steps, and what it takes to choose


def rolling_of(model, prompt, seed):
    rolling = Rolling(model, prompt, seed)
    rolling.candidates = CANDIDATES
    return rolling


def test_an_opening_gives_way_before_each_of_its_calls_and_other_chunks_do_not() -> None:
    asked: list[int] = []
    rolling = rolling_of(live_model(), "a red ring", 3)
    rolling.between = lambda: asked.append(1)
    rolling.chunk(3)
    assert len(asked) == CALLS
    rolling.chunk(3)
    assert len(asked) == CALLS


def test_chunks_in_between_change_nothing() -> None:
    model = live_model()
    alone = [rolling_of(model, "a red ring", 3).chunk(3)]
    other = rolling_of(model, "a blue square", 4)
    videos = [other.chunk(3) for _ in range(CALLS + 1)]

    again = rolling_of(model, "a blue square", 4)
    made = [again.chunk(3)]
    rolling = rolling_of(model, "a red ring", 3)
    rolling.between = lambda: made.append(again.chunk(3))
    assert torch.equal(rolling.chunk(3), alone[0])
    assert len(made) == len(videos)
    assert all(torch.equal(one, two) for one, two in zip(made, videos, strict=True))


def begun(model):
    """A session whose opening has begun and goes on once somebody waits for the model; and how many calls it made."""
    inside, calls = threading.Event(), list[int]()
    denoiser = model.denoiser

    class Slow:
        schedule, noise, condition = denoiser.schedule, denoiser.noise, denoiser.condition

        def __call__(self, *given):
            calls.append(1)
            inside.set()
            end = time.monotonic() + 5
            while len(calls) == 1 and not (model.lock.waiting or model.openings.waiting) and time.monotonic() < end:
                time.sleep(0.001)
            return denoiser(*given)

    model.put_on(frozenset(model.techniques))  # here, as the session would call the denoiser for it before its opening
    model.condition("a red ring"), model.condition("a")
    model.denoiser = Slow()
    session = Session(model, "a red ring", seed=3, paced=False, off=("adapt",))
    inside.wait()
    return session, calls


def test_another_sessions_chunk_waits_for_one_call_of_an_opening() -> None:
    model = live_model()
    session, calls = begun(model)
    with session:
        with model.lock:
            assert len(calls) == 1
        next(iter(session))
    assert len(calls) >= CALLS


@pytest.mark.usefixtures("able_machine")
def test_another_opening_and_other_techniques_wait_for_its_end() -> None:
    model = live_model(Precision())
    session, calls = begun(model)
    with session:
        model.put_on(frozenset({"precision"} ^ set(model.engaged)))
        assert len(calls) >= CALLS
        list(islice(session, 2))
    model = live_model()
    session, calls = begun(model)
    with session, model.openings:
        assert len(calls) >= CALLS


def test_an_opening_is_not_chosen_among_several_while_others_wait_and_says_so() -> None:
    def first(**options):
        """What the first chunks of a session cost, beside another one that waits to open."""
        model = live_model()
        other = threading.Thread(target=lambda: model.openings.acquire() or model.openings.release())
        with model.openings:
            session = Session(model, "a red ring", seed=4, paced=False, **options)
            for waiting, start in enumerate((lambda: None, other.start)):
                start()
                while model.openings.waiting <= waiting:
                    time.sleep(0.001)
        with session:
            costs = [chunk.work["candidates"] for chunk in islice(session, 2)]
        other.join()
        return costs

    assert first() == [1, 1]
    assert first(off=("adapt",)) == [CANDIDATES, 1]
    model = live_model()
    with Session(model, "a red ring", seed=4, paced=False) as alone:
        assert [chunk.work["candidates"] for chunk in islice(alone, 2)] == [CANDIDATES, 1]
