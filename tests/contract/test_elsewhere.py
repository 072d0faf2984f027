"""Nothing forgets where its tensors are: what runs on the CPU runs on another device.

No GPU is needed: `tests.elsewhere` is a device that refuses what CUDA refuses. It can't be taken away again, so all of
this happens in one process beside the tests.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from fewstep.accelerate import accelerate
from fewstep.distill.catalog import CATALOG
from fewstep.distill.run import distill
from fewstep.realtime.rolling import Rolling
from fewstep.techniques import Cache, Host, Regions, Technique
from tests.contract.test_methods import job, losses, rung
from tests.distill.pipes import pipeline as teacher_of_pictures
from tests.distill.pipes import video_pipeline
from tests.elsewhere import NAME, elsewhere
from tests.realtime.live import live_model
from tests.techniques.tiny import ABLE, pipeline, run

# The others change weights where they are, generate code or start kernels, which needs a device that is there.
TECHNIQUES: dict[str, Technique] = {
    "regions": Regions(warmup=0),
    "cache": Cache(target_speedup=1.25),
    "host": Host(),
}

LOOKED_AT = ("dmd2", "causal_kd")  # by the guard, which does the same after every method


@pytest.fixture(scope="module")
def there() -> Iterator[Callable[..., None]]:
    """Runs a function of this file where the device is."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda check, *given: pool.submit(check, *given).result()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made there by the first method that needs them."""
    return tmp_path_factory.mktemp("paths")


def test_the_device_refuses_what_a_gpu_refuses(there: Callable[..., None]) -> None:
    there(_refuses)


@pytest.mark.parametrize("method", CATALOG)
def test_every_method_trains(method: str, there: Callable[..., None], tmp_path: Path, paths: Path) -> None:
    there(_trains, method, tmp_path, paths)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_gives_what_it_gives_on_the_cpu(name: str, there: Callable[..., None]) -> None:
    there(_accelerates, name)


def test_live_video_is_what_it_is_on_the_cpu(there: Callable[..., None]) -> None:
    there(_lives)


def _refuses() -> None:
    with elsewhere() as device:
        far, near = torch.arange(4.0).to(device), torch.arange(4.0)
        for mixed in (
            lambda: far + near,
            lambda: near[torch.tensor([1]).to(device)],
            lambda: torch.randn(3, generator=torch.Generator(), device=device),
            lambda: torch.cat([far, near]),
            lambda: far.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        assert (far * torch.tensor(2.0) + 1)[torch.tensor([3])].tolist() == [7.0]
        assert far.to("cpu").numpy().tolist() == near.tolist()
        assert torch.tensor([1, 2], device=device).device.type == NAME


def _trains(method: str, folder: Path, paths: Path) -> None:
    make = video_pipeline if CATALOG[method].video else teacher_of_pictures
    with elsewhere() as device, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that device has no forward mode
        look = {"check_every": int(method in LOOKED_AT)}
        once = job(method, folder, paths / make.__name__, ladder=[rung(method, iterations=1)], **look)
        distill(make().to(device), once, show=False)
    assert all(math.isfinite(loss) for line in losses(folder) for loss in line.values())


def _accelerates(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        near = run(accelerate(pipeline(num_single_layers=1), TECHNIQUES[name], ABLE), steps=5)
        with elsewhere() as device:
            pipe = pipeline(num_single_layers=1).to(device)
            far = run(accelerate(pipe, TECHNIQUES[name], ABLE), steps=5)
            assert far.device.type == NAME
            assert torch.allclose(far.cpu(), near, atol=1e-2)


def _lives() -> None:
    def made(device: str | torch.device) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = live_model(small=True, device=device)
        rolling, decoders = Rolling(model, "a red ring", 3), model.decoders()
        chunks = [rolling.chunk(2) for _ in range(2)]
        rolling.turn("a blue cross", "recache")
        chunks.append(rolling.chunk(1))
        return [decoder(chunk).cpu() for chunk in chunks for decoder in decoders.values()]

    near = made("cpu")
    with elsewhere() as device:
        far = made(device)
    for here, there in zip(near, far, strict=True):
        assert torch.allclose(here, there, atol=1e-3)
