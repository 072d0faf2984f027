"""Conditions: what runs over samples is sliced, joined and repeated; what does not is left alone."""

from __future__ import annotations

import pytest
import torch

from fewstep.errors import InputError
from fewstep.models.tracing.cond import LIST, Cond, axes_of, split, spread


def cond(batch: int = 2, offset: float = 0.0) -> Cond:
    def args(sign: float) -> dict[str, object]:
        rows = sign * (torch.arange(batch * 3.0).view(batch, 3) + offset)
        return {"embeds": rows, "added": {"ids": rows[:, :1].long()}, "lists": list(rows), "rope": torch.ones(7, 4)}

    axes = {("embeds",): 0, ("added", "ids"): 0, ("lists",): LIST}
    return Cond({"cond": args(1.0), "uncond": args(-1.0)}, axes, batch)


def test_slices() -> None:
    part = cond(3).slice([2, 0])
    assert part.batch == 2
    assert part.branches["cond"]["embeds"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert part.branches["uncond"]["added"]["ids"].tolist() == [[-6], [0]]
    assert [row.tolist() for row in part.branches["cond"]["lists"]] == [[6, 7, 8], [0, 1, 2]]
    assert part.branches["cond"]["rope"].shape == (7, 4)


def test_joining_slices_gives_the_whole() -> None:
    whole = cond(3)
    again = Cond.cat([whole.slice([0]), whole.slice([1, 2])])
    assert again.batch == 3
    assert torch.equal(again.branches["uncond"]["embeds"], whole.branches["uncond"]["embeds"])
    assert len(again.branches["cond"]["lists"]) == 3


def test_joining_refuses_texts_of_other_lengths_and_other_calls() -> None:
    longer = Cond(
        {name: {**args, "embeds": torch.ones(2, 4)} for name, args in cond().branches.items()}, cond().axes, 2
    )
    with pytest.raises(InputError, match=r"embeds have shapes .* make them in one call"):
        Cond.cat([cond(), longer])
    with pytest.raises(InputError, match="the same branches"):
        Cond.cat([cond(), Cond({"cond": cond().branches["cond"]}, cond().axes, 2)])


def test_branches_of_one_call_are_merged_along_the_batch_and_kept() -> None:
    whole = cond(2)
    args = whole.merged(("uncond", "cond"), 2)
    assert args["embeds"].shape == (4, 3)
    assert torch.equal(args["embeds"][2:], whole.branches["cond"]["embeds"])
    assert len(args["lists"]) == 4
    assert args["rope"].shape == (7, 4)
    assert whole.merged(("uncond", "cond"), 2) is args


def test_one_sample_serves_a_batch_and_two_do_not() -> None:
    assert cond(1).merged(("cond",), 5)["embeds"].shape == (5, 3)
    with pytest.raises(InputError, match="A condition of 2 samples does not fit 5 samples"):
        cond(2).merged(("cond",), 5)


def test_casting_leaves_whole_numbers() -> None:
    half = cond().to(torch.float16)
    assert half.branches["cond"]["embeds"].dtype == torch.float16
    assert half.branches["cond"]["added"]["ids"].dtype == torch.int64


def test_axes_of_a_recorded_call() -> None:
    args = {
        "embeds": torch.ones(2, 7, 3),
        "stack": torch.ones(5, 2, 7, 3),
        "txt_ids": torch.ones(2, 3),  # as many tokens as samples
        "rope": (torch.ones(9, 4), torch.ones(9, 4)),
        "added": {"ids": torch.ones(2, 6)},
        "shapes": [[(1, 2, 2)], [(1, 2, 2)]],
        "skip": [1, 2],
        "scalar": torch.tensor(2.0),
        "flag": None,
    }
    assert axes_of(args, 2) == {("embeds",): 0, ("stack",): 1, ("added", "ids"): 0, ("shapes",): LIST}


def test_splitting_undoes_merging() -> None:
    whole = cond(2)
    uncond, prompt = split(whole.merged(("uncond", "cond"), 2), whole.axes, 2)
    assert torch.equal(prompt["embeds"], whole.branches["cond"]["embeds"])
    assert torch.equal(uncond["added"]["ids"], whole.branches["uncond"]["added"]["ids"])


def test_what_is_given_once_is_spread_over_samples() -> None:
    args = spread({"embeds": torch.ones(1, 3), "lists": [torch.ones(3)]}, {("embeds",): 0, ("lists",): LIST}, 4)
    assert args["embeds"].shape == (4, 3)
    assert len(args["lists"]) == 4
