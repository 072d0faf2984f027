"""Event files, read back by TensorBoard's own reader: all that a run wrote, and every step once."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from fewstep.distill.watching import grid
from fewstep.distill.watching.record import Recorder, still_true, whole_lines
from fewstep.errors import InputError, MachineError

pytest.importorskip("tensorboard")


def add(folder, name, **line):
    with (folder / f"{name}.jsonl").open("a") as file:
        print(json.dumps(line), file=file)


def loss_of(step, part=0):
    return 10 * part + 1 / step


def work(folder, recorder, steps, part=0):
    """What a loop leaves behind: a line a step, and a grid and a verdict at every third."""
    for step in steps:
        seconds = {"rate": 1e-3, "seconds": 0.5}
        add(folder, "losses", step=step, loss={"student": loss_of(step, part)}, gradient={"student": 2.0}, **seconds)
        if step % 3 == 0:
            tiles = np.full((1, 1, 112, 112, 3), step, np.uint8)
            for file in (f"step-{step:08d}", "teacher"):
                grid.save(grid.grid_of("t", ["a"], tiles), folder / "samples" / f"{file}.png")
            add(folder, "metrics", step=step, prompt_accuracy=0.1 * step, distance=part)
            add(folder, "guard", step=step, action="keep", reason="sound", finite=True, saturation=0.0, score=None)
        recorder(step, {})


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


def scalars(events, tag):
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]


def test_all_that_a_run_writes_is_there(tmp_path):
    recorder = Recorder(tmp_path)
    work(tmp_path, recorder, range(1, 8))
    add(tmp_path, "guard", step=7, action="stop", reason="it broke", finite=False)  # after the last call
    recorder.close()
    events = read(tmp_path)
    assert scalars(events, "loss/student") == [(step, loss_of(step)) for step in range(1, 8)]
    assert scalars(events, "gradient/student") == [(step, 2.0) for step in range(1, 8)]
    assert scalars(events, "rate")[0] == (1, 1e-3)
    assert scalars(events, "seconds")[-1] == (7, 0.5)
    assert scalars(events, "metrics/prompt_accuracy") == [(3, 0.3), (6, 0.6)]
    assert scalars(events, "guard/finite") == [(3, 1), (6, 1), (7, 0)]
    assert [image.step for image in events.Images("samples/student")] == [3, 6]
    assert [image.step for image in events.Images("samples/teacher")] == [3]
    assert events.Images("samples/student")[0].width == grid.LABEL + 112 + grid.GAP
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("guard/verdict/text_summary")]
    assert texts[-1] == "**stop**: it broke"


def test_a_resumed_run_has_every_step_once(tmp_path):
    work(tmp_path, Recorder(tmp_path), range(1, 9))  # killed: never closed
    kept = (tmp_path / "losses.jsonl").read_text().splitlines(keepends=True)[:5]
    (tmp_path / "losses.jsonl").write_text("".join(kept))  # what the loop forgets from its last checkpoint on
    recorder = Recorder(tmp_path)
    work(tmp_path, recorder, range(6, 10), part=1)
    recorder.close()
    events = read(tmp_path)
    wanted = [(step, loss_of(step)) for step in range(1, 6)] + [(step, loss_of(step, 1)) for step in range(6, 10)]
    assert scalars(events, "loss/student") == wanted
    assert [step for step, _ in scalars(events, "metrics/distance")] == [3, 6, 9]
    assert [image.step for image in events.Images("samples/student")] == [3, 6, 9]
    assert [image.step for image in events.Images("samples/teacher")] == [3]


def test_a_run_that_goes_back_replaces_what_it_lost(tmp_path):
    recorder = Recorder(tmp_path)
    work(tmp_path, recorder, range(1, 7))
    work(tmp_path, recorder, range(4, 9), part=1)
    recorder.close()
    steps = scalars(read(tmp_path), "loss/student")
    assert steps == [(s, loss_of(s)) for s in range(1, 4)] + [(s, loss_of(s, 1)) for s in range(4, 9)]


def test_a_run_can_be_recorded_afterwards(tmp_path):
    work(tmp_path, lambda step, averages: None, range(1, 8))
    recorder = Recorder(tmp_path)
    recorder(7)
    recorder.close()
    assert len(scalars(read(tmp_path), "loss/student")) == 7


def test_without_the_package_it_is_said_in_one_sentence(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MachineError, match=r"^TensorBoard .* pip install 'fewstep\[train\]', or train without them\.$"):
        Recorder(tmp_path)


def test_lines_are_read_as_far_as_they_are_whole(tmp_path):
    path = tmp_path / "losses.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    lines, end = whole_lines(path)
    assert [line["step"] for line in lines] == [1, 2]
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1}\n')
    assert whole_lines(path, end)[0] == [{"step": 3, "loss": 1}]
    assert whole_lines(tmp_path / "absent.jsonl") == ([], 0)
    for damaged in ("{\n", "[1]\n", '{"loss": 1}\n'):
        path.write_text('{"step": 1}\n' + damaged)
        with pytest.raises(InputError, match="its line 2 is no JSON object with a 'step'"):
            whole_lines(path)


def test_lines_of_a_lost_part_are_replaced():
    steps = [1, 2, 3, 4, 3, 4, 5, 2, 3]
    lines = [{"step": step, "at": at} for at, step in enumerate(steps)]
    assert [line["at"] for line in still_true(lines)] == [0, 7, 8]
