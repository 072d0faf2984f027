"""The cache on a whole small pipeline: its gates, rules, branches, calibration, and what it says when it can't."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.accelerate import accelerate
from fewstep.calibrate.calibration import Calibration
from fewstep.calibrate.run import calibrate, telling
from fewstep.errors import InputError, RecipeError
from fewstep.models.model import Model
from fewstep.models.streams import SCOPES
from fewstep.techniques import Cache
from fewstep.techniques.cache.budget import Trial, fewest, may_miss, psnr_each, search, split
from fewstep.techniques.cache.engine import COMPUTED, REUSED
from fewstep.techniques.cache.gates import GATES
from fewstep.techniques.cache.presets import PRESETS
from fewstep.techniques.cache.tuner import CHECK_SEED, generators
from tests.techniques.tiny import ABLE, GUIDED, PROMPT, distance, pipeline, run, state

STEPS = 8
LOOSE = Cache("teacache", threshold=9.0)  # reuses all that the rules allow
MOST = COMPUTED + REUSED * (STEPS - 2) + COMPUTED


DRAWN = {**GUIDED, "prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "np"}


def computed_in(facts: dict[str, Any]) -> int:
    """Steps that the first branch of the last request computed."""
    return int(facts["last_request"]["transformer branch 0"].count(COMPUTED))


def pictures(fast: Any) -> list[str]:
    """A sign a step, for each branch of the last request."""
    return list(fast.engaged[0].facts["last_request"].values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_and_comes_off_to_the_bit(name: str) -> None:
    pipe = pipeline(num_single_layers=9)
    before, plain = state(pipe), run(pipe, steps=STEPS)
    fast = accelerate(pipe, Cache(name), ABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # on random weights some gates never open
        output = run(fast, steps=STEPS)
        assert torch.equal(run(fast, steps=STEPS), output)
    facts = fast.engaged[0].facts
    branches = len(facts["last_request"])
    assert branches == (1 if name == "cfg_cache" else 2)
    assert facts["steps_computed"] + facts["steps_reused"] == 2 * branches * STEPS
    assert all(signs[0] == signs[-1] == COMPUTED and len(signs) == STEPS for signs in pictures(fast))
    assert distance(output, plain) < 0.5
    fast.remove()
    assert state(pipe) == before
    assert torch.equal(run(pipe, steps=STEPS), plain)


@pytest.mark.parametrize("scope", SCOPES)
def test_never_changes_nothing_and_says_so(scope: str) -> None:
    pipe = pipeline()
    plain = run(pipe)
    fast = accelerate(pipe, Cache(gate="never", scope=scope), ABLE)
    with pytest.warns(RuntimeWarning, match="reused no step"):
        assert torch.equal(run(fast), plain)


@pytest.mark.parametrize("scope", ["output", "blocks", "attention"])
@pytest.mark.parametrize("predictor", ["last", "linear", "quadratic"])
def test_always_keeps_the_ends(scope: str, predictor: str) -> None:
    fast = accelerate(pipeline(), Cache(gate="always", scope=scope, predictor=predictor), ABLE)
    run(fast, steps=STEPS)
    assert pictures(fast) == [MOST, MOST]  # guided: two branches
    assert fast.engaged[0].facts["steps_reused"] == 2 * (STEPS - 2)


def test_the_longest_run_and_the_warm_up() -> None:
    fast = accelerate(pipeline(), Cache(gate="always", longest=2), ABLE)
    run(fast, steps=STEPS)
    assert pictures(fast)[0] == "#..#..##"
    fast.remove()
    fast = accelerate(pipeline(), Cache(gate="always", warmup=0.45), ABLE)
    run(fast, steps=STEPS)
    warm = pictures(fast)[0].index(REUSED)
    assert 1 < warm < STEPS - 1
    sigmas = fast.pipe.scheduler.sigmas
    assert sigmas[warm - 1] > 0.55 * sigmas[0] >= sigmas[warm]


def test_a_plan_computes_as_many_steps_as_it_was_told() -> None:
    fast = accelerate(pipeline(), Cache(target_speedup=2), ABLE)
    run(fast, steps=10)
    assert [signs.count(COMPUTED) for signs in pictures(fast)] == [5, 5]
    assert fast.engaged[0].facts["expected_error"] > 0


def test_fitted_weights_give_way_where_a_rule_computes_other_steps() -> None:
    pipe = pipeline()
    plain = run(pipe, steps=10)
    for warmup in (None, 0.5):
        fast = accelerate(pipe, Cache(target_speedup=2, predictor="fitted", warmup=warmup), ABLE)
        assert distance(run(fast, steps=10), plain) < 0.2
        assert pictures(fast)[0].count(REUSED) >= 2
        fast.remove()


def test_plans_are_better_than_reusing_evenly() -> None:
    """The point of a plan, on random weights too: as many steps, no larger error, and a forecast lessens it."""
    pipe = pipeline()
    plain = run(pipe, steps=12)
    errors = {}
    for name, cache in {
        "even": Cache(gate="always", longest=2, scope="output"),
        "planned": Cache(target_speedup=2.4, predictor="last"),
        "linear": Cache(target_speedup=2.4),
    }.items():
        fast = accelerate(pipe, cache, ABLE)
        errors[name] = distance(run(fast, steps=12), plain)
        assert pictures(fast)[0].count(COMPUTED) == 5
        fast.remove()
    assert errors["linear"] < errors["planned"] <= errors["even"]


@pytest.mark.parametrize("scope", ["output", "blocks"])
def test_reuse_of_what_does_not_change_is_exact(scope: str) -> None:
    """Where all that blocks add stays the same, reusing it changes nothing: the oracle for the plumbing. A whole
    denoiser that gives the same at every step is one whose head is silent."""
    pipe = pipeline()
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if ("blocks" in name and "norm" in name and "linear" in name) or (scope == "output" and "proj_out" in name):
                parameter.zero_()
    plain = run(pipe, steps=STEPS)
    fast = accelerate(pipe, Cache(gate="always", scope=scope, predictor="last"), ABLE)
    assert torch.allclose(run(fast, steps=STEPS), plain, atol=1e-6)
    assert fast.engaged[0].facts["steps_reused"] > 0


def test_what_a_branch_adds_to_the_first_is_exact_where_it_adds_nothing() -> None:
    """The same prompt as its own negative: the further branch is the first one again."""
    pipe = pipeline()
    plain = run(pipe, steps=STEPS, negative_prompt=PROMPT)
    fast = accelerate(pipe, Cache(gate="always", scope="guidance", predictor="last"), ABLE)
    assert torch.allclose(run(fast, steps=STEPS, negative_prompt=PROMPT), plain, atol=1e-6)
    assert fast.engaged[0].facts["last_request"] == {"transformer branch 1": MOST}


def test_without_guidance_there_is_no_branch_to_spare() -> None:
    fast = accelerate(pipeline(), Cache("cfg_cache"), ABLE)
    with pytest.warns(RuntimeWarning, match="saw one guidance branch alone"):
        run(fast, steps=STEPS, true_cfg_scale=1.0)


def test_reused_attention_does_not_run() -> None:
    pipe = pipeline()
    ran: list[str] = []
    for name, block in pipe.transformer.named_modules():
        if name.endswith("attn"):
            block.to_q.register_forward_hook(lambda *_, name=name: ran.append(name))
    fast = accelerate(pipe, Cache(gate="always", scope="attention", predictor="last"), ABLE)
    run(fast, steps=STEPS)
    assert len(ran) == 3 * 2 * 2  # three blocks, two branches, two computed steps


def test_a_part_of_the_stack() -> None:
    """Its first and last blocks run at every step."""
    pipe = pipeline(num_layers=2, num_single_layers=3)
    ran: dict[str, int] = {}
    for name, block in Model(pipe).denoisers["transformer"].named_modules():
        if name.endswith("attn"):
            block.register_forward_hook(lambda *_, name=name: ran.update({name: ran.get(name, 0) + 1}))
    fast = accelerate(pipe, Cache(gate="always", scope="blocks", front=1, back=1), ABLE)
    run(fast, steps=STEPS)
    every, twice = 2 * STEPS, 2 * 2
    assert list(ran.values()) == [every, twice, twice, twice, every]


def test_the_first_block_may_be_a_list_of_its_own() -> None:
    """As in the small Flux here: what it added is there when the second list begins."""
    fast = accelerate(pipeline(num_layers=1), Cache("first_block", threshold=9.0), ABLE)
    run(fast, steps=STEPS)
    assert pictures(fast) == [MOST, MOST]


def test_a_measured_error_past_the_limit_ends_the_reuse() -> None:
    tight = Cache(gate="always", longest=1, limit=1e-9)
    fast = accelerate(pipeline(), tight, ABLE)
    run(fast, steps=STEPS)
    assert pictures(fast)[0] == "#." + COMPUTED * (STEPS - 2)
    assert fast.engaged[0].facts["stopped"]
    ((step, error),) = fast.engaged[0].facts["measured"]["transformer branch 0"]
    assert step == 2
    assert error > 0
    loose = accelerate(pipeline(), Cache(gate="always", longest=1, limit=1e9), ABLE)
    run(loose, steps=STEPS)
    assert not loose.engaged[0].facts["stopped"]
    assert pictures(loose)[0] == "#.#.#.##"


class TestBranches:
    def test_guidance_off_is_one_branch_although_another_call_had_two(self) -> None:
        fast = accelerate(pipeline(), LOOSE, ABLE)
        run(fast, steps=STEPS)
        run(fast, steps=STEPS, negative_prompt=None, true_cfg_scale=1.0)
        assert pictures(fast) == [MOST]

    def test_a_negative_prompt_equal_to_the_prompt_stays_a_branch_of_its_own(self) -> None:
        fast = accelerate(pipeline(), LOOSE, ABLE)
        run(fast, steps=STEPS, negative_prompt=PROMPT)
        assert len(pictures(fast)) == 2

    @pytest.mark.parametrize("cache", [LOOSE, Cache(), Cache("easycache", threshold=9.0)])
    def test_nothing_is_carried_from_one_request_to_the_next(self, cache: Cache) -> None:
        fast = accelerate(pipeline(), cache, ABLE)
        first = run(fast, steps=STEPS)
        fast("a small blue square", **{**GUIDED, "num_inference_steps": 5})
        assert torch.equal(run(fast, steps=STEPS), first)

    def test_a_request_that_bypasses_the_accelerated_call_is_noticed(self) -> None:
        fast = accelerate(pipeline(), LOOSE, ABLE)
        first = run(fast, steps=STEPS)
        assert torch.equal(run(fast.pipe, steps=STEPS), first)
        assert torch.equal(run(fast.pipe, steps=STEPS), first)

    def test_two_pipelines_of_one_class_do_not_know_each_other(self) -> None:
        one, other = accelerate(pipeline(), LOOSE, ABLE), accelerate(pipeline(seed=1), LOOSE, ABLE)
        first = run(one, steps=STEPS)
        run(other, steps=STEPS)
        other.remove()
        assert torch.equal(run(one, steps=STEPS), first)


class TestCalibration:
    def test_the_first_call_writes_it_and_leaves_the_generator_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        fast = accelerate(pipeline(), Cache(calibration=str(path)), ABLE)
        first = run(fast, steps=STEPS)
        assert Calibration.load(path).trails
        assert Calibration.load(path).gains
        assert torch.equal(run(fast, steps=STEPS), first)

    @pytest.mark.parametrize("name", ["planned", "teacache", "magcache"])
    def test_one_serves_every_gate_and_another_number_of_steps(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "calibration.json"
        pipe = pipeline()
        calibrate(pipe, {"prompt": PROMPT, **GUIDED, "num_inference_steps": 5}, gains=2).save(path)
        written = path.read_text()
        threshold = None if name == "planned" else 9.0
        fast = accelerate(pipe, Cache(name, threshold=threshold, calibration=str(path)), ABLE)
        run(fast, steps=STEPS)
        assert fast.engaged[0].facts["calibration"] == "fits"
        assert fast.engaged[0].facts["steps_reused"] > 0
        assert path.read_text() == written

    @pytest.mark.parametrize(
        ("call", "named"),
        [({"true_cfg_scale": 4.0}, "true_cfg_scale=4.0"), ({"height": 32, "width": 32}, "height=32"), ({}, "weights")],
    )
    @pytest.mark.parametrize("name", ["planned", "teacache", "magcache"])
    def test_one_of_something_else_is_refused_loudly(
        self, tmp_path: Path, name: str, call: dict[str, float], named: str
    ) -> None:
        path = tmp_path / "calibration.json"
        calibrate(pipeline(), {"prompt": PROMPT, **GUIDED, "num_inference_steps": 4}).save(path)
        pipe = pipeline(seed=0 if call else 1)
        plain = run(pipe, **call)
        fast = accelerate(pipe, Cache(name, calibration=str(path)), ABLE)
        with pytest.warns(RuntimeWarning, match="made on something else") as caught:
            assert torch.equal(run(fast, **call), plain)
        assert named in str(caught[0].message)

    def test_a_damaged_one_is_a_problem(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        path.write_text('{"format": "something else"}')
        (problem,) = Cache(calibration=str(path)).problems(Model(pipeline()), ABLE)
        assert "calibration" in problem


class TestBadInput:
    @pytest.mark.parametrize("threshold", [-1, 0, math.nan, math.inf, "high", True])
    def test_thresholds(self, threshold: Any) -> None:
        with pytest.raises(InputError, match="'threshold' of Cache"):
            Cache("teacache", threshold=threshold)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"preset": "teacash"}, "'preset' of Cache must be one of planned, teacache"),
            ({"gate": "some"}, "'gate' of Cache"),
            ({"predictor": "best"}, "'predictor' of Cache"),
            ({"scope": "heads"}, "'scope' of Cache"),
            ({"warmup": 1.0}, "'warmup' of Cache"),
            ({"longest": 0}, "'longest' of Cache"),
            ({"target_speedup": 1}, "'target_speedup' of Cache"),
        ],
    )
    def test_fields(self, fields: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            Cache(**fields)

    @pytest.mark.parametrize(
        ("cache", "said"),
        [
            (Cache(gate="teacache", scope="output"), "goes with scope blocks. Got 'output'"),
            (Cache(gate="easycache", scope="blocks"), "goes with scope output. Got 'blocks'"),
            (Cache(gate="first_block", front=0, threshold=1.0), "'front' to be at least 1"),
            (Cache("teacache", target_speedup=2), "goes with gate 'schedule'"),
            (Cache(threshold=0.1), "has no threshold"),
            (Cache(predictor="cubic"), "plans for last, linear, fitted"),
            (Cache(gate="always", predictor="fitted"), "must be 'schedule'"),
            (Cache("teacache", front=3, back=3), "leave none of the 3 blocks"),
            (Cache(front=2), "its scope is 'output'"),
            (Cache(scope="guidance"), "goes with scope output, blocks. Got 'guidance'"),
            (Cache("pab", front=3, back=3), "leave none of the 3 blocks"),
        ],
    )
    def test_what_does_not_go_together(self, cache: Cache, said: str) -> None:
        pipe = pipeline()
        before = state(pipe)
        with pytest.raises(RecipeError, match=said):
            accelerate(pipe, cache, ABLE)
        assert state(pipe) == before

    def test_too_few_steps_to_skip_any(self) -> None:
        fast = accelerate(pipeline(), Cache(), ABLE)
        with pytest.warns(RuntimeWarning, match="too few steps"):
            run(fast, steps=2)


def test_a_gate_that_can_tell_nothing_says_so() -> None:
    """Flux packs its latents, and SeaCache's filter needs them on a grid."""
    fast = accelerate(pipeline(), Cache("seacache", threshold=9.0), ABLE)
    with pytest.warns(RuntimeWarning, match="could foretell nothing"):
        run(fast, steps=STEPS)


def test_a_plan_without_gains_says_so(tmp_path: Path) -> None:
    pipe = pipeline()
    calibrate(pipe, {"prompt": PROMPT, **GUIDED, "num_inference_steps": 5}).save(tmp_path / "c.json")
    fast = accelerate(pipe, Cache(calibration=str(tmp_path / "c.json")), ABLE)
    with pytest.warns(RuntimeWarning, match="has no gains"):
        run(fast, steps=STEPS)


def test_quiet_when_all_is_well() -> None:
    fast = accelerate(pipeline(), LOOSE, ABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(fast, steps=STEPS)


def test_a_preset_fills_what_is_not_given() -> None:
    assert Cache().whole.preset == "planned"
    assert Cache("magcache", longest=5).whole.longest == 5
    assert Cache("magcache").whole.gate == "magcache"
    assert all(preset.fields["gate"] in GATES for preset in PRESETS.values())


class TestBudget:
    """The pipeline's VAE is random too, so its pictures are noise; PSNR is well defined all the same."""

    def draw(self, fast: Any, seed: int = 0, **more: Any) -> Any:
        return fast(**{**DRAWN, "generator": torch.Generator().manual_seed(seed), **more}).images

    def test_it_keeps_the_promise_with_the_fewest_steps_and_settles(self) -> None:
        pipe = pipeline()
        cache = Cache(budget={"psnr": 45}, prompts=(PROMPT, "a small blue square", "a ring", "a green circle"))
        plain = self.draw(pipe)
        fast = accelerate(pipe, cache, ABLE)
        heard: list[str] = []
        with telling(heard.append):
            first = self.draw(fast)
        facts = fast.engaged[0].facts
        assert psnr_each(first, plain)[0] > 42
        assert heard[0] == "run 1 of 1"
        assert sum("steps computed" in line for line in heard) == len(facts["trials"])
        assert facts["trials"][-1] == [computed_in(facts), pytest.approx(self.worst_held_out(cache, facts), abs=0.01)]
        computed = computed_in(facts)
        assert facts["target_speedup"] == pytest.approx(STEPS / computed)
        assert min(k for k, worst in facts["trials"] if worst >= 45) == computed
        assert facts["steps_computed"] + facts["steps_reused"] == 2 * STEPS  # the search is not counted
        settled = cache.settled(fast.engaged[0])
        fast.remove()
        assert settled == Cache(target_speedup=STEPS / computed)
        fast = accelerate(pipe, settled, ABLE)
        self.draw(fast)
        assert computed_in(fast.engaged[0].facts) == computed

    def worst_held_out(self, cache: Cache, facts: dict[str, Any]) -> float:
        """What a search should find, made apart: its held-out prompts with and without a cache of that speed-up."""
        pipe, (learned, check) = pipeline(), split(cache.prompts)

        def held_out(of: Any) -> Any:
            return self.draw(of, prompt=check, generator=generators(len(check), CHECK_SEED))

        full = held_out(pipe)
        same = Cache(target_speedup=facts["target_speedup"], prompts=(learned[0], "-", learned[1]))
        return min(psnr_each(held_out(accelerate(pipe, same, ABLE)), full))

    def test_one_that_can_not_be_kept_names_the_nearest(self) -> None:
        fast = accelerate(pipeline(), Cache(budget={"psnr": 150}), ABLE)
        with pytest.raises(InputError, match=r"No cache keeps a psnr of 150 dB in 8 steps here: the nearest is \d+"):
            self.draw(fast)

    def test_settling_before_the_first_call(self) -> None:
        fast = accelerate(pipeline(), Cache(budget={"psnr": 30}), ABLE)
        with pytest.raises(InputError, match="settled on nothing yet"):
            Cache(budget={"psnr": 30}).settled(fast.engaged[0])

    @pytest.mark.parametrize("budget", [{"psnr": 0}, {"psnr": "high"}, {"ssim": 0.9}, 32])
    def test_bad_ones(self, budget: Any) -> None:
        with pytest.raises(InputError, match="'budget' of Cache must be"):
            Cache(budget=budget)

    @given(st.lists(st.floats(0, 60), min_size=48, max_size=48), st.floats(0, 60))
    def test_the_search_finds_about_the_fewest_of_a_rising_quality(self, levels: list[float], budget: float) -> None:
        rising = dict(enumerate(sorted(levels), 2))
        best, tried = fewest(50, budget, lambda computed: Trial(computed, (99.0, rising[computed]), 2))
        kept = [computed for computed in rising if rising[computed] >= budget]
        assert (best is None) == (not kept)
        if best is not None:
            assert kept[0] <= best.computed <= round(1.1 * kept[0])
        assert len({one.computed for one in tried}) == len(tried)

    @pytest.mark.parametrize("total", [2, 3, 4])
    def test_the_fewest_of_few(self, total: int) -> None:
        best, tried = fewest(total, 5.0, lambda computed: Trial(computed, (9.0,), 1))
        assert [one.computed for one in tried] == ([] if total == 2 else [2])
        assert (best is None) == (total == 2)

    @pytest.mark.parametrize(("samples", "miss"), [(1, 0), (8, 0), (38, 0), (39, 1), (40, 1), (59, 2), (100, 4)])
    def test_how_many_may_miss(self, samples: int, miss: int) -> None:
        assert may_miss(samples) == miss
        assert Trial(3, tuple(map(float, range(samples))), samples).kept == miss
        if samples >= 19:
            assert (samples - miss) / (samples + 1) >= 0.95 > (samples - miss - 1) / (samples + 1)

    def test_it_finds_the_fewest_where_quality_does_not_rise_evenly(self) -> None:
        uneven = {2: 0.0, 3: 0.0, 4: 9.0, 5: 0.0, 6: 9.0, 7: 9.0, 8: 9.0, 9: 9.0}
        best, _ = fewest(10, 5.0, lambda computed: Trial(computed, (uneven[computed],), 1))
        assert best is not None
        assert best.computed == 4

    def test_a_trial_ends_when_too_many_missed(self) -> None:
        drawn: list[int | None] = []

        def run(computed: int | None) -> Any:
            for _ in range(5):
                drawn.append(computed)
                yield np.zeros((8, 1)) if computed in (None, 7) else np.ones((8, 1))

        tried = search(run, 40, 30.0)
        assert [one.computed for one in tried] == [5, 6, 7]
        assert [drawn.count(computed) for computed in (None, 5, 6, 7)] == [5, 1, 1, 5]

    @pytest.mark.parametrize(("count", "learned"), [(1, 1), (2, 1), (5, 3), (16, 8), (17, 6), (48, 8)])
    def test_prompts_are_learned_from_or_check(self, count: int, learned: int) -> None:
        prompts = [f"a ring {number}" for number in range(count)]
        learn, check = split(prompts)
        assert len(learn) == learned
        assert sorted({*learn, *check}) == sorted(prompts)
        assert count == 1 or not {*learn} & {*check}

    def test_psnr_by_hand(self) -> None:
        assert psnr_each(np.full((1, 2, 2, 3), 0.6), np.full((1, 2, 2, 3), 0.5))[0] == pytest.approx(20)
        assert psnr_each(np.ones((2, 1)), np.ones((2, 1))) == (100.0, 100.0)
