"""Traces of tiny pipelines of many families: exact weights, replay, refusals, and no mark left on the pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from fewstep.errors import InputError, TraceError
from fewstep.models.trace import trace
from fewstep.zoo.shapes.pipeline import build_pipeline
from tests.models import tiny
from tests.models.tiny import PIPELINES

OFF = {"cond": 1.0}
WEIGHTS = {
    "flux": OFF,
    "flux_true_cfg": {"cond": 2.5, "uncond": -1.5},
    "flux_off": OFF,
    "flux2": OFF,
    "sd3": {"cond": 4.0, "uncond": -3.0},
    "wan": {"cond": 4.0, "uncond": -3.0},
    "wan_two": {"cond": 4.0, "uncond": -3.0},
    "wan_expanded": {"cond": 4.0, "uncond": -3.0},
    "ltx": {"cond": 3.0, "uncond": -2.0},
    "ltx_rescaled": {"cond": 3.0, "uncond": -2.0},
    "pixart": {"cond": 4.5, "uncond": -3.5},
    "sana": {"cond": 4.5, "uncond": -3.5},
    "qwen_image": OFF,
    "qwen_image_true_cfg": {"cond": 4.0, "uncond": -3.0},
    "cogvideox": {"cond": 6.0, "uncond": -5.0},
    "hunyuan_video": OFF,
    "sd15": {"cond": 7.5, "uncond": -6.5},
    "sd15_pndm": {"cond": 7.5, "uncond": -6.5},
    "sdxl": {"cond": 5.0, "uncond": -4.0},
    "sdxl_rescaled": {"cond": 5.0, "uncond": -4.0},
    "dit": {"cond": 4.0, "uncond": -3.0},
    "mochi": {"cond": 4.5, "uncond": -3.5},
    "lumina2": {"cond": 4.0, "uncond": -3.0},
    "z_image": {"cond": 6.0, "uncond": -5.0},
    "kontext": OFF,
    "img2img": OFF,
    "inpaint": {"cond": 5.0, "uncond": -4.0},
    "pix2pix": {"cond": 7.5, "extra_1": -6.0, "extra_2": -0.5},
}


def marks(pipe: Any) -> dict[str, Any]:
    """What a trace might have changed."""
    modules = {f"{n}.{m}": dict(vars(module)) for n, part in parts(pipe) for m, module in part.named_modules()}
    return {
        "pipe": dict(vars(pipe)),
        "scheduler": dict(vars(pipe.scheduler)),
        "values": copy.deepcopy({k: v for k, v in vars(pipe.scheduler).items() if not k.startswith("_internal")}),
        "forwards": {name: attributes.get("forward") for name, attributes in modules.items()},
        "hooks": {name: len(a["_forward_hooks"]) + len(a["_forward_pre_hooks"]) for name, a in modules.items()},
        "random": torch.get_rng_state(),
    }


def parts(pipe: Any) -> list[tuple[str, torch.nn.Module]]:
    return [(name, part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]


def assert_same_marks(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["pipe"].keys() == after["pipe"].keys()
    assert all(before["pipe"][k] is after["pipe"][k] for k in before["pipe"])
    assert before["scheduler"].keys() == after["scheduler"].keys()
    assert all(before["scheduler"][k] is after["scheduler"][k] for k in before["scheduler"])
    for name, value in before["values"].items():
        now = after["values"][name]
        assert torch.equal(value, now) if isinstance(value, torch.Tensor) else str(value) == str(now), name
    assert before["forwards"] == after["forwards"]
    assert before["hooks"] == after["hooks"]
    assert torch.equal(before["random"], after["random"])


@pytest.mark.parametrize("name", PIPELINES)
def test_it_explains_every_family_and_leaves_no_mark(name: str) -> None:
    pipe, call = PIPELINES[name]()
    before = marks(pipe)
    denoiser = trace(pipe, **call)
    assert_same_marks(before, marks(pipe))
    assert denoiser.weights == WEIGHTS[name]
    assert denoiser.replay_error < 1e-4
    assert all(a > b for a, b in zip(denoiser.times, denoiser.times[1:], strict=False))


def test_half_precision_is_held_to_what_it_rounds_to() -> None:
    pipe, call = flux_in_half()
    assert 1e-4 < trace(pipe, **call).replay_error < 0.05
    with pytest.raises(TraceError, match=r"runs in bfloat16, whose rounding is above the replay tolerance of 0\.001"):
        trace(pipe, **call, replay_tolerance=1e-3)


def test_a_denoiser_of_half_precision_takes_float32_states_and_float32_weights() -> None:
    """As distillation does: states and students are float32, whatever the teacher is."""
    pipe, call = flux_in_half()
    denoiser = trace(pipe, **call)
    x = denoiser.noise.float()
    told = denoiser(x, denoiser.times[1])
    student = denoiser.with_module(copy.deepcopy(pipe.transformer).float())
    assert told.dtype == student(x, denoiser.times[1]).dtype == torch.float32
    torch.testing.assert_close(student(x, denoiser.times[1]), told, rtol=0.05, atol=0.05)


def test_calls_in_guided_stages_are_told_apart_by_time() -> None:
    pipe, call = tiny.lumina2()
    denoiser = trace(pipe, **call, cfg_trunc_ratio=0.5)
    assert [dict(stage.guidance.weights) for stage in denoiser.stages] == [{"cond": 4.0, "uncond": -3.0}, {"cond": 1.0}]


def test_it_gives_the_predictions_the_scheduler_was_given() -> None:
    pipe, call = tiny.flux_true_cfg()
    seen = []
    plain_step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, t, x, **rest: (seen.append((output, x)), plain_step(output, t, x, **rest))[1]
    pipe(**call, num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(7))
    del pipe.scheduler.step
    denoiser = trace(pipe, **call)
    assert len(seen) == 4
    for t, (output, x) in zip(denoiser.times, seen, strict=False):
        torch.testing.assert_close(denoiser(x, t), output, rtol=0, atol=1e-6)


def test_noise_is_that_of_the_call() -> None:
    pipe, call = tiny.flux_off()
    latents = tiny.noise(1, 4, 16, seed=5)
    assert torch.equal(trace(pipe, **call, latents=latents).noise, latents)


def test_the_callers_generator_is_wound_back() -> None:
    pipe, call = tiny.flux_off()
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    trace(pipe, **call, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_a_failure_leaves_no_mark() -> None:
    pipe, call = tiny.flux_off()
    before = marks(pipe)

    def fails(*_: Any) -> Any:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        trace(pipe, **call, callback_on_step_end=fails)
    assert_same_marks(before, marks(pipe))


def test_two_transformers_switch_at_the_configs_boundary() -> None:
    pipe, call = tiny.wan_two()
    denoiser = trace(pipe, **call)
    assert denoiser.switch == 0.875
    assert [stage.calls[0].name for stage in denoiser.stages] == ["transformer", "transformer_2"]
    assert denoiser.stages[1].guidance.weights == {"cond": 3.0, "uncond": -2.0}
    pipe_2, call_2 = tiny.wan(transformer=pipe.transformer_2)
    alone = trace(pipe_2, **{**call_2, "guidance_scale": 3.0})
    x = denoiser.noise
    assert torch.equal(denoiser(x, 0.874), alone(x, 0.874))
    assert not torch.equal(denoiser(x, 0.875), alone(x, 0.875))


def test_it_refuses_times_between_stages_that_nothing_tells_apart() -> None:
    pipe, call = tiny.wan_two()
    denoiser = replace(trace(pipe, **call), switch=None)
    with pytest.raises(TraceError, match="does not tell which"):
        denoiser(denoiser.noise, 0.875)
    with pytest.raises(TraceError, match="One batch"):
        trace(pipe, **call)(denoiser.noise.repeat(2, 1, 1, 1, 1), torch.tensor([0.9, 0.5]))


def test_branches_add_up() -> None:
    pipe, call = tiny.sd3()
    denoiser = trace(pipe, **call)
    x = denoiser.noise
    cond, uncond = denoiser.branch("cond", x, 0.6), denoiser.branch("uncond", x, 0.6)
    torch.testing.assert_close(uncond + 4 * (cond - uncond), denoiser(x, 0.6), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="has no branch 'other': it has uncond, cond"):
        denoiser.branch("other", x, 0.6)


def test_a_students_denoiser_runs_its_module_on_the_prompt_alone() -> None:
    pipe, call = tiny.flux_true_cfg()
    denoiser = trace(pipe, **call)
    student = denoiser.with_module(copy.deepcopy(pipe.transformer))
    assert torch.equal(student(denoiser.noise, 0.5), denoiser.branch("cond", denoiser.noise, 0.5))
    with torch.no_grad():
        student.module.proj_out.weight.zero_()
    assert not torch.equal(student(denoiser.noise, 0.5), denoiser.branch("cond", denoiser.noise, 0.5))
    assert torch.equal(
        denoiser.with_module(pipe.transformer, guided=True)(denoiser.noise, 0.5), denoiser(denoiser.noise, 0.5)
    )


def test_a_batch_of_times_is_each_sample_at_its_own() -> None:
    for name in ("sd3", "sdxl", "wan"):
        pipe, call = PIPELINES[name]()
        denoiser = trace(pipe, **call)
        times = torch.tensor(denoiser.times[:2], dtype=torch.float64)
        x = denoiser.noise.repeat(2, *[1] * (denoiser.noise.dim() - 1))
        apart = torch.cat([denoiser(denoiser.noise, t) for t in denoiser.times[:2]])
        torch.testing.assert_close(denoiser(x, times), apart, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_students_weights() -> None:
    pipe, call = tiny.flux_off()
    student = trace(pipe, **call).with_module(copy.deepcopy(pipe.transformer).requires_grad_(True))
    student(student.noise, 0.5).sum().backward()
    assert float(student.module.proj_out.weight.grad.abs().sum()) > 0


def test_conditions_of_another_call_are_those_a_trace_of_it_finds() -> None:
    pipe, call = tiny.sd3()
    other = {"prompt_embeds": tiny.noise(1, 7, 32, seed=8), "pooled_prompt_embeds": tiny.noise(1, 64, seed=8)}
    denoiser = trace(pipe, **call)
    before = marks(pipe)
    cond = denoiser.condition(**other)
    assert_same_marks(before, marks(pipe))
    expected = trace(pipe, **{**call, **other})
    assert torch.equal(denoiser(denoiser.noise, 0.7, cond), expected(denoiser.noise, 0.7))
    assert not torch.equal(denoiser(denoiser.noise, 0.7), expected(denoiser.noise, 0.7))


def test_conditions_of_many_prompts_in_one_call() -> None:
    pipe = build_pipeline()
    sizes = {"height": 32, "width": 32, "max_sequence_length": 6, "negative_prompt": "", "true_cfg_scale": 2.5}
    denoiser = trace(pipe, prompt="a red ring", **sizes)
    # as many prompts as text tokens: position ids of that length must not be taken for one a prompt
    prompts = ["a red ring", "a blue square"] * 3
    cond = denoiser.condition(prompt=prompts)
    assert cond.batch == 6
    assert cond.slice([1]).branches["cond"]["txt_ids"].shape == (6, 3)
    one = denoiser.condition(prompt="a blue square")
    torch.testing.assert_close(
        denoiser(denoiser.noise, 0.7, cond.slice([1])), denoiser(denoiser.noise, 0.7, one), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "dit"])  # which asks for an output object
def test_conditions_cost_no_pass_of_the_denoiser(name: str) -> None:
    pipe, call = PIPELINES[name]()
    denoiser, passes = trace(pipe, **call), []
    first = [next(child for child in module.children()) for module in denoiser.modules.values()]
    hooks = [child.register_forward_hook(lambda *_: passes.append(1)) for child in first]
    cond = denoiser.condition()
    assert not passes
    for hook in hooks:
        hook.remove()
    t = denoiser.times[0]
    assert torch.equal(denoiser(denoiser.noise, t, cond), denoiser(denoiser.noise, t))


def test_conditions_for_other_sizes_run_the_denoiser() -> None:
    pipe = build_pipeline()
    call = {"prompt": "a red ring", "max_sequence_length": 6, "negative_prompt": "", "true_cfg_scale": 2.5}
    denoiser = trace(pipe, height=32, width=32, **call)
    wide = denoiser.condition(height=32, width=64)
    assert torch.equal(
        wide.branches["cond"]["img_ids"], trace(pipe, height=32, width=64, **call).cond.branches["cond"]["img_ids"]
    )


def test_conditions_refuse_another_guidance() -> None:
    pipe, call = tiny.sd3()
    with pytest.raises(TraceError, match="the guidance is not the traced one"):
        trace(pipe, **call).condition(guidance_scale=7.0)
    with pytest.raises(TraceError, match="is not given x_t in hidden_states as in the trace"):
        trace(pipe, **call).condition(guidance_scale=1.0)


def changes(name: str, value: Any) -> dict[str, Any]:
    """A callback that changes what the pipeline works on after each step."""

    def callback(_pipe: Any, _i: int, _t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        return {name: value(kept[name])}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": [name]}


def sd15_with(scheduler_class: Any, **config: Any) -> tiny.Tiny:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return tiny.sd15(scheduler_class(**betas, **config))


class Squaring(diffusers.FlowMatchEulerDiscreteScheduler):
    """A scheduler of its own kind."""

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True, **_: Any) -> Any:
        return super().step(model_output * model_output.abs(), timestep, sample, return_dict=return_dict)


def flux_squaring() -> tiny.Tiny:
    pipe, call = tiny.flux_off()
    pipe.scheduler = Squaring()
    return pipe, call


def flux_with_dropout() -> tiny.Tiny:
    pipe, call = tiny.flux_off()
    pipe.transformer.proj_out = torch.nn.Sequential(pipe.transformer.proj_out, torch.nn.Dropout(0.5).train())
    return pipe, call


def flux_same_prompts() -> tiny.Tiny:
    pipe, call = tiny.flux_true_cfg()
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        call[f"negative_{name}"] = call[name]
    return pipe, call


def flux_in_half() -> tiny.Tiny:
    pipe, call = tiny.flux_off()
    pipe.transformer.to(torch.bfloat16)
    halves = {name: value.bfloat16() for name, value in call.items() if isinstance(value, torch.Tensor)}
    return pipe, {**call, **halves}


def test_a_scheduler_that_noises_anew_is_traced_along_its_flow() -> None:
    pipe, call = tiny.flux()
    wanted = trace(pipe, **call)
    renoising = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    pipe.scheduler = renoising
    traced = trace(pipe, **call)
    assert pipe.scheduler is renoising
    assert traced.times == wanted.times
    assert torch.equal(traced(traced.noise, 0.5), wanted(traced.noise, 0.5))


REFUSED = {
    "adds noise at each step": lambda: sd15_with(diffusers.EulerAncestralDiscreteScheduler),
    "LCMScheduler adds noise": lambda: sd15_with(diffusers.LCMScheduler),
    "its first step is off by .* timestep_spacing='linspace'": lambda: tiny.sd15(
        tiny.ddim(timestep_spacing="linspace")
    ),
    "clip_sample=True": lambda: tiny.pixart(scheduler=diffusers.DDIMScheduler(clip_sample_range=0.1)),
    "guidance weights change over the steps": lambda: tiny.cogvideox(use_dynamic_cfg=True),
    "argument encoder_hidden_states of transformer changes": lambda: tiny.flux(
        **changes("prompt_embeds", lambda embeds: embeds * 1.01)
    ),
    "changed the latents between steps 1 and 2": lambda: tiny.flux(**changes("latents", lambda x: x + 1)),
    "branches gave the same output": flux_same_prompts,
    "changed the latents between steps 1 and 2, outside its scheduler": lambda: tiny.inpaint(in_channels=4),
    "DDIMScheduler adds noise": lambda: tiny.sd15(eta=1.0),
    "steps of EDMEulerScheduler .*: its first step is off by .*prediction_type='epsilon'": lambda: tiny.sd15(
        diffusers.EDMEulerScheduler()
    ),
    "needs at least 3 steps": lambda: tiny.flux(num_inference_steps=2),
    "Squaring are not those of a known schedule": flux_squaring,
    "after 1 steps: its latents are off": flux_with_dropout,
}


@pytest.mark.parametrize("message", REFUSED)
def test_it_refuses_what_it_can_not_explain(message: str) -> None:
    pipe, call = REFUSED[message]()
    before = marks(pipe)
    with pytest.raises(TraceError, match=message):
        trace(pipe, **call)
    assert_same_marks(before, marks(pipe))


SCHEDULERS = {
    "euler, trailing": lambda: sd15_with(diffusers.EulerDiscreteScheduler, timestep_spacing="trailing"),
    "euler, karras": lambda: sd15_with(diffusers.EulerDiscreteScheduler, use_karras_sigmas=True),
    "euler, linspace": lambda: sd15_with(diffusers.EulerDiscreteScheduler, timestep_spacing="linspace"),
    "heun": lambda: sd15_with(diffusers.HeunDiscreteScheduler),
    "dpm": lambda: sd15_with(diffusers.DPMSolverMultistepScheduler),
    "dpm, karras": lambda: sd15_with(diffusers.DPMSolverMultistepScheduler, use_karras_sigmas=True),
    "unipc": lambda: sd15_with(diffusers.UniPCMultistepScheduler),
    "deis": lambda: sd15_with(diffusers.DEISMultistepScheduler),
    "lms": lambda: sd15_with(diffusers.LMSDiscreteScheduler),
    "ddim, v, zero snr": lambda: tiny.sd15(
        tiny.ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_follows_every_deterministic_scheduler(name: str) -> None:
    pipe, call = SCHEDULERS[name]()
    denoiser = trace(pipe, **call, num_inference_steps=5)
    assert denoiser.replay_error < 1e-4
    assert denoiser.weights == WEIGHTS["sd15"]
