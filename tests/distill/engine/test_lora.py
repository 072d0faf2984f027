"""One backbone in many roles: each role is its own function, and only its factors train."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.distill.engine.lora import Backbone, merged, peft_state
from fewstep.errors import InputError
from tests.distill import pipes

BATCH, RANK = 2, 4


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(BATCH, 4, 48),
        "encoder_hidden_states": torch.randn(BATCH, 3, 128),
        "pooled_projections": torch.randn(BATCH, 64),
        "timestep": torch.tensor([0.3, 0.8]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
    }


def out(module: nn.Module) -> Tensor:
    return module(**inputs(), return_dict=False)[0]


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(pipes.transformer(), RANK, scale=0.5)


def trained(backbone: Backbone, seed: int):
    """An adapter that does something."""
    adapter = backbone.adapter()
    torch.manual_seed(seed)
    for factor in adapter.up.values():
        nn.init.normal_(factor, std=0.05)
    return adapter


def test_a_new_role_is_the_teacher_to_the_bit(backbone) -> None:
    assert torch.equal(out(backbone.adapter()), out(backbone.module))


def test_roles_do_not_touch_each_other_or_the_teacher(backbone) -> None:
    teacher = out(backbone.module)
    student, critic = trained(backbone, 1), trained(backbone, 2)
    alone = out(student), out(critic)
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)
    assert not torch.allclose(alone[0], teacher, atol=1e-4)
    assert torch.equal(out(student), alone[0])
    assert torch.equal(out(backbone.module), teacher)


def test_only_the_factors_get_gradients(backbone) -> None:
    student = trained(backbone, 1)
    out(student).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    assert all(p.grad is None for p in backbone.module.parameters())
    assert {name.split(".")[0] for name in student.state_dict()} == {"down", "up"}


def test_a_gradient_may_pass_through_two_roles(backbone) -> None:
    """As in distribution matching, where the critic looks at what the student drew."""
    student, critic = trained(backbone, 1), trained(backbone, 2).requires_grad_(False)
    given = inputs()
    drawn = student(**given, return_dict=False)[0]
    critic(**{**given, "hidden_states": drawn}, return_dict=False)[0].sum().backward()
    through = [p.grad.clone() for p in student.parameters()]

    apart = merged(student).requires_grad_(True), merged(critic)
    drawn = apart[0](**given, return_dict=False)[0]
    apart[1](**{**given, "hidden_states": drawn}, return_dict=False)[0].sum().backward()
    # dL/dB = scale · dL/dW · Aᵀ, with dL/dW from the plain modules.
    for path in backbone.linears:
        whole = apart[0].get_submodule(path).weight.grad
        key = path.replace(".", "/")
        expected = 0.5 * whole @ student.down[key].detach().T
        assert torch.allclose(student.up[key].grad, expected, atol=1e-4, rtol=1e-3)
    assert all(torch.isfinite(grad).all() for grad in through)


def test_a_copy_is_of_the_factors_alone(backbone) -> None:
    student = trained(backbone, 1)
    average = copy.deepcopy(student)
    assert average.backbone is student.backbone
    assert torch.equal(out(average), out(student))
    with torch.no_grad():
        next(iter(average.up.values())).add_(1.0)
    assert not torch.allclose(out(average), out(student), atol=1e-4)


def test_merged_it_is_a_plain_module(backbone) -> None:
    student = trained(backbone, 1)
    plain = merged(student)
    assert type(plain) is type(backbone.module)
    assert torch.allclose(out(plain), out(student), atol=1e-5)
    assert torch.allclose(out(student), out(plain), atol=1e-5)  # and the role still works


def test_diffusers_reads_it_as_a_lora_file(tmp_path) -> None:
    pipe = pipes.pipeline()
    student = trained(Backbone(copy.deepcopy(pipe.transformer), RANK, scale=0.5), 1)
    save_file(peft_state(student), tmp_path / "student.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="student.safetensors")
    assert torch.allclose(out(pipe.transformer), out(student), atol=1e-5)


def test_checkpointing_recomputes_in_the_same_role() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        module = pipes.transformer().train()
        if checkpointing:
            module.enable_gradient_checkpointing()
        student = trained(Backbone(module, RANK), 1)
        out(student).square().mean().backward()
        return [p.grad for p in student.parameters()]

    for kept, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(kept, recomputed, atol=1e-6)


def test_the_three_roles_take_little_more_memory_than_one(backbone) -> None:
    """Weights and AdamW states (two a trained weight) of DMD2: one backbone against three copies."""
    size = sum(p.numel() for p in backbone.module.parameters())
    factors = sum(p.numel() for p in backbone.adapter().parameters())
    copies = size + 2 * (size + 2 * size)  # a frozen teacher; student and critic with their states
    shared = size + 2 * (factors + 2 * factors)
    assert shared < 0.45 * copies


@pytest.mark.parametrize(("rank", "targets", "named"), [(0, None, "rank"), (4, ["proj_out", "norm_out"], "targets")])
def test_what_can_not_be_adapted_is_named(rank, targets, named) -> None:
    with pytest.raises(InputError, match=named):
        Backbone(pipes.transformer(), rank, targets=targets)


def test_a_module_without_blocks_needs_targets() -> None:
    with pytest.raises(InputError, match="name targets"):
        Backbone(nn.ModuleDict({"only": nn.Linear(2, 2)}))
