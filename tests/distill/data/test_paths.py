"""Teacher paths and prompts on disk: paths are the teacher's, neither is made twice, and others are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from fewstep.diffusion.samplers import dpmpp_2m, flow_times
from fewstep.diffusion.schedule import Schedule
from fewstep.distill.data.paths import PathSettings, PathTask, make_paths, make_prompts, start_from
from fewstep.distill.data.samples import INDEX, PathSet
from fewstep.distill.data.seeds import generator
from fewstep.distill.data.store import Sizes
from fewstep.distill.methods.backward import Rollout
from fewstep.distill.methods.scores import Critic
from fewstep.distill.methods.sid import SiD
from fewstep.errors import InputError
from fewstep.models.tracing.cond import LIST, Cond
from fewstep.models.tracing.leaves import same
from tests.distill.toys import net, path_task, teacher

SETTINGS = PathSettings(batch=4, shard=6)


def make(folder, samples=14, steps=4, settings=SETTINGS):
    return make_paths(teacher(), path_task(samples, steps, 8), folder, settings, show=False)


def test_states_are_those_of_the_teachers_path(tmp_path):
    paths = make(tmp_path)
    batch = paths.read(range(14))
    assert batch.states.shape == (14, 5, 2)
    assert batch.times == tuple(flow_times(4))
    assert batch.cond.tolist() == [i % 3 for i in range(14)]
    whole = flow_times(8)
    for k in range(5):  # the solver itself, from the same noise, cut short at each kept time
        times = whole[: 2 * k + 1]
        x = dpmpp_2m(teacher(), batch.states[:, 0], times, batch.cond) if k else batch.states[:, 0]
        torch.testing.assert_close(batch.states[:, k], x)


def test_a_path_holds_those_of_fewer_steps(tmp_path):
    whole = make(tmp_path)
    template = torch.zeros(1, dtype=torch.long)
    half, one = (PathSet(tmp_path, template, steps).read(range(14)) for steps in (2, 1))
    assert half.times == tuple(flow_times(2))
    assert one.times == (1.0, 0.0)
    assert torch.equal(half.states, whole.read(range(14)).states[:, ::2])
    assert torch.equal(one.states, whole.read(range(14)).states[:, ::4])
    with pytest.raises(InputError, match="'steps' of the student must be a divisor of the paths' 4"):
        PathSet(tmp_path, template, 3)


def test_paths_do_not_depend_on_batch_shard_or_interruption(tmp_path, monkeypatch):
    one = make(tmp_path / "one", settings=PathSettings(batch=14, shard=14)).read(range(14))
    make(tmp_path / "parts", settings=SETTINGS)
    index = json.loads((tmp_path / "parts" / INDEX).read_text())
    for shard in index["shards"][1:]:  # as if it had been killed after the first
        (tmp_path / "parts" / shard["file"]).unlink()
    index["shards"] = index["shards"][:1]
    (tmp_path / "parts" / INDEX).write_text(json.dumps(index))
    parts = make(tmp_path / "parts", settings=replace(SETTINGS, batch=3, shard=5)).read(range(14))
    torch.testing.assert_close(parts.states, one.states)
    assert torch.equal(parts.cond, one.cond)


def test_shards_that_are_there_are_not_made_again(tmp_path):
    make(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    make(tmp_path)
    assert len(times) == 3
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}


@pytest.mark.parametrize("change", [{"seed": 1}, {"solver": "euler"}, {"stored": "float16"}])
def test_paths_made_otherwise_are_refused(tmp_path, change):
    make(tmp_path)
    with pytest.raises(InputError, match=f"made with {next(iter(change))} = "):
        make(tmp_path, settings=replace(SETTINGS, **change))


def test_another_teacher_is_refused(tmp_path):
    def other(seed):
        return replace(teacher(), module=net(seed))

    make_paths(other(0), path_task(6, 4, 8), tmp_path, SETTINGS, show=False)
    make_paths(other(0), path_task(6, 4, 8), tmp_path, SETTINGS, show=False)
    with pytest.raises(InputError, match="made with teacher = "):
        make_paths(other(1), path_task(6, 4, 8), tmp_path, SETTINGS, show=False)
    with pytest.raises(InputError, match="made with guidance = None, and these have 2"):
        make_paths(other(0), path_task(6, 4, 8), tmp_path, SETTINGS, facts={"guidance": 2}, show=False)


def test_other_steps_or_prompts_are_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match="made with times = "):
        make(tmp_path, steps=2)
    with pytest.raises(InputError, match="made with prompts = 14"):
        make(tmp_path, samples=15)


def test_half_precision_storage_is_close_and_comes_back_as_float32(tmp_path):
    whole = make(tmp_path / "whole").read(range(14))
    half = make(tmp_path / "half", settings=replace(SETTINGS, stored="float16")).read(range(14))
    assert half.states.dtype == torch.float32
    torch.testing.assert_close(half.states, whole.states, rtol=1e-3, atol=1e-3)
    assert not torch.equal(half.states, whole.states)


def test_traced_conditions_are_stored_by_argument(tmp_path):
    axes = {("text",): 0, ("layers",): 1, ("each",): LIST}

    def condition(prompts):
        lengths = torch.tensor([float(len(p)) for p in prompts])
        text, ids = lengths[:, None].expand(-1, 3), torch.arange(2)
        cond = {"text": text, "ids": ids, "layers": text.expand(2, -1, 3), "each": list(text)}
        uncond = {"text": text * 0, "ids": ids, "layers": (text * 0).expand(2, -1, 3), "each": list(text * 0)}
        return Cond({"cond": cond, "uncond": uncond}, axes, len(prompts))

    class Model(torch.nn.Module):
        def forward(self, x, t, cond):
            return x * cond.branches["cond"]["text"][:, :2] + cond.branches["uncond"]["text"][:, :2] + 1

    prompts = ["a", "bb", "ccc", "dd", "e"]
    task = PathTask(prompts, condition, (2,), tuple(flow_times(2)), 1)
    network = replace(teacher(), module=Model())
    paths = make_paths(network, task, tmp_path, replace(SETTINGS, batch=2, shard=4), show=False)
    chosen = [4, 1, 2]
    batch, wanted = paths.read(chosen), condition([prompts[i] for i in chosen])
    assert same(batch.cond.branches, wanted.branches)
    assert (batch.cond.axes, batch.cond.batch) == (axes, 3)
    with safe_open(tmp_path / "shard-00000.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if "text" in name}  # noqa: SIM118
    assert shapes == {"cond.cond.text": [4, 3], "cond.uncond.text": [1, 3]}  # rows that are all equal are kept once


def test_the_first_state_has_the_spread_of_x_t():
    noise = torch.ones(3)
    assert torch.equal(start_from(Schedule.flow(), noise, 1.0), noise)
    assert start_from(Schedule.edm(), noise, 80.0)[0] == pytest.approx((80**2 + 1) ** 0.5)


def test_prompts_are_conditions_and_zeros(tmp_path):
    task = path_task(14, 4, 8)
    prompts = make_prompts(task, tmp_path / "prompts", Sizes(batch=4, shard=6), show=False)
    paths = make(tmp_path / "paths")
    ours, theirs = (one.batches(5, seed=1)(2) for one in (prompts, paths))
    assert torch.equal(ours.cond, theirs.cond)
    assert torch.equal(ours.states, torch.zeros(5, 1, 2))
    assert ours.times == (0.0,)
    stored = sum(path.stat().st_size for path in (tmp_path / "prompts").glob("shard-*"))
    assert stored < sum(path.stat().st_size for path in (tmp_path / "paths").glob("shard-*"))


def test_prompts_without_a_condition_are_a_number(tmp_path):
    task = PathTask([0] * 5, lambda some: None, (2, 3), (1.0, 0.0), 1)
    batch = make_prompts(task, tmp_path, Sizes(shard=2), show=False).batches(4)(0)
    assert batch.cond is None
    assert batch.states.shape == (4, 1, 2, 3)


def test_a_method_that_needs_no_data_trains_from_prompts_as_from_paths(tmp_path):
    prompts = make_prompts(path_task(14, 4, 8), tmp_path / "prompts", show=False)
    losses = [_sid_loss(one.batches(6)(0)) for one in (prompts, make(tmp_path / "paths"))]
    assert losses[0] == losses[1] > 0


def _sid_loss(batch):
    student, critic = (replace(teacher(), module=net(seed)) for seed in (0, 1))
    method = SiD(student, teacher(), Critic(critic), Rollout((1.0, 0.5, 0.0)))
    return float(sum(update.loss.detach().abs() for update in method.updates(batch, generator("sid"))))


def test_paths_and_prompts_keep_apart_folders(tmp_path):
    make(tmp_path)
    with pytest.raises(InputError, match="holds teacher paths, and these are prompts only: take another folder"):
        make_prompts(path_task(14, 4, 8), tmp_path, show=False)


def test_prompts_of_other_lengths_are_refused(tmp_path):
    def condition(prompts):
        return torch.zeros(len(prompts), max(map(len, prompts)))

    for sizes in (Sizes(batch=2), Sizes(batch=2, shard=2)):  # in one shard, or in another
        task = PathTask(["a", "b", "long"], condition, (2,), (1.0, 0.0), 1)
        with pytest.raises(InputError, match=r"other shapes in other batches \(\(1,\) and \(4,\)\)"):
            make_prompts(task, tmp_path / str(sizes.shard), sizes, show=False)


def test_bad_tasks_and_settings_are_one_sentence():
    with pytest.raises(InputError, match="'steps' of the student must be at least 1 and a divisor of the teacher's 8"):
        path_task(4, 3, 8)
    with pytest.raises(InputError, match="'prompts' of the teacher's paths"):
        path_task(0, 4, 8)
    for field, value in {"solver": "renoise", "batch": 0, "shard": 0, "stored": "int8", "precision": "fp8"}.items():
        with pytest.raises(InputError, match=f"^The '{field}' of"):
            replace(SETTINGS, **{field: value})
