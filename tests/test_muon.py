"""Muon against what it approximates: the orthogonal factor of the gradient."""

from __future__ import annotations

import pytest
import torch

from fewstep.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)])
def test_singular_values_come_near_one_and_directions_stay(shape) -> None:
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    rank = min(shape)
    matrix = u @ torch.diag(torch.linspace(1.0, 0.05, rank)) @ vh
    others = [torch.randn(24, 48), torch.randn(8, 8)]  # one that is iterated with it, one of another size
    back = u.T @ orthogonal([others[0], matrix, others[1]])[1] @ vh.T
    assert torch.diag(back).min() > 0.6
    assert torch.diag(back).max() < 1.25
    assert (back - torch.diag(torch.diag(back))).abs().max() < 1e-4


def test_it_is_torchs_muon_in_float32() -> None:
    start, wanted = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(1))
    moved = []
    for build in (
        lambda p: Muon([p], lr=0.02, weight_decay=0.1, like_adamw=True),
        lambda p: torch.optim.Muon([p], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ):
        p = start.clone().requires_grad_(True)
        optimizer = build(p)
        for _ in range(3):
            optimizer.zero_grad()
            (p - wanted).square().sum().backward()
            optimizer.step()
        moved.append(p.detach() - start)
    assert torch.linalg.norm(moved[0] - moved[1]) < 0.03 * torch.linalg.norm(moved[1])  # theirs is in bfloat16


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.zeros(3, requires_grad=True)], lr=0.1)


def test_a_kernel_is_moved_as_the_matrix_of_its_channels() -> None:
    for rows in (4, 40):  # wide and tall
        kernel = torch.randn(rows, 3, 3, 1, generator=torch.Generator().manual_seed(2))
        moved = []
        for start in (kernel, kernel.flatten(1)):
            p = start.clone().requires_grad_(True)
            optimizer = Muon([p], lr=0.1)
            p.square().sum().backward()
            optimizer.step()
            moved.append((p.detach() - start).flatten(1))
        assert torch.equal(moved[0], moved[1])
        assert moved[0].abs().max() > 0.01
