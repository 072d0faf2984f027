"""Ranks that compute one denoiser together go the same way, whatever each of them sees."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from fewstep.accelerate import accelerate
from fewstep.techniques import Cache
from tests.techniques.tiny import ABLE, pipeline, run

WORLD, STEPS = 2, 12


def decisions(pipe: Any, rank: int) -> dict[str, str]:
    """What a cache does on noise that is each rank's own, and the larger the further the rank."""
    fast = accelerate(pipe, Cache("easycache", threshold=0.02 * 20**rank, warmup=0), ABLE)
    run(fast, steps=STEPS, generator=torch.Generator().manual_seed(rank))
    facts: dict[str, str] = fast.engaged[0].facts["last_request"]
    fast.remove()
    return facts


def rank_of(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", WORLD), rank=rank, world_size=WORLD)
    pipe = pipeline()
    alone = decisions(pipe, rank)
    mesh = init_device_mesh("cpu", (WORLD,))
    context = SimpleNamespace(_flattened_mesh=mesh)
    pipe.transformer._parallel_config = SimpleNamespace(context_parallel_config=context, tensor_parallel_config=None)
    together = decisions(pipe, rank)
    Path(f"{folder}/{rank}.json").write_text(json.dumps([alone, together]))
    dist.destroy_process_group()


def test_all_ranks_do_what_the_first_decides(tmp_path: Path) -> None:
    mp.spawn(rank_of, (str(tmp_path),), nprocs=WORLD)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD))
    assert first[0] != second[0]  # left alone they part ways
    assert first[0] == first[1] == second[1]
