"""How often a task's oracle errs on real samples, and the floor under the Fréchet distance.

    python benchmarks/oracle.py [--task shapes] [--scenes 1000] [--vae zoo:shapes]

Reads samples as drawn, blurred with noise, and, with --vae, through the autoencoder of a pipeline (or of a folder that
holds nothing else): what it misreads there is the most that a diffusion model on that autoencoder can get right. Writes
out/benchmarks/oracle.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from scipy import ndimage

import fewstep
from fewstep.bench import results
from fewstep.zoo.metrics import frechet

Samples = NDArray[np.float32]
PACKAGES = {"shapes": "fewstep.zoo.shapes", "moving-shapes": "fewstep.zoo.moving"}
SEED = 5_000_000  # drawn apart from every scene of the training
REAL = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=PACKAGES, default="shapes")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--vae", help="a pipeline: zoo:NAME, a folder or a hub id; or a folder of an AutoencoderKLWan")
    options = parser.parse_args()

    task = parts(PACKAGES[options.task])
    changes: dict[str, Callable[[Samples], Samples]] = {"as drawn": lambda sample: sample, "blur 0.5, noise 0.02": worn}
    if options.vae:
        changes["through the autoencoder"] = through(autoencoder(options.vae))
    rows = [errors(task, name, change, options.scenes) for name, change in changes.items()]
    for row in rows:
        texture = f"texture wrong {row['texture_wrong']:.4f}  " if "texture_wrong" in row else ""
        print(
            f"{row['samples']:26} misread {row['misread']:.4f}  answers wrong {row['answers_wrong']:.4f}  {texture}"
            f"{row['psnr']:.1f} dB  {row['ms']:.1f} ms each"
        )
    for row in floors(task):
        rows.append(row)
        print(f"{row['samples']:26} Fréchet distance to {REAL} real ones {row['frechet']:.2f}")
    print(results.save("oracle", rows))


def parts(package: str) -> SimpleNamespace:
    """The task's functions by name."""
    modules = [import_module(f"{package}.{part}") for part in ("scenes", "render", "oracle", "features")]
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


def autoencoder(source: str) -> Any:
    alone = Path(source, "config.json").exists()
    return AutoencoderKLWan.from_pretrained(source) if alone else fewstep.load(source).vae


def errors(task: SimpleNamespace, name: str, change: Callable[[Samples], Samples], count: int) -> dict[str, Any]:
    """Shares of samples: any object (or the tone) misread; its own prompt held to be unanswered; the texture wrong,
    where the task reads one. And the mean signal-to-noise ratio of what the change left, in dB."""
    seen: list[tuple[bool, ...]] = []
    spent, noise = 0.0, []
    for seed in range(SEED, SEED + count):
        rng = np.random.default_rng(seed)
        scene = task.sample_scene(rng)
        _, ask = task.describe(scene, rng)
        drawn = task.render(scene)
        sample = change(drawn)
        noise.append(float(((sample - drawn) ** 2).mean()) + 1e-10)
        start = time.thread_time()
        reading = task.read(sample)
        spent += time.thread_time() - start
        texture = (reading.texture != scene.texture,) if hasattr(reading, "texture") else ()
        seen.append((not task.matches(scene, reading), not task.answers(ask, reading), *texture))
    names = ("misread", "answers_wrong", "texture_wrong")
    shares = dict(zip(names, np.mean(seen, axis=0).tolist(), strict=False))
    psnr = float(np.mean(-10 * np.log10(noise)))
    return {"samples": name, **shares, "psnr": psnr, "ms": 1000 * spent / count, "scenes": count}


def worn(sample: Samples) -> Samples:
    noise = np.random.default_rng(0).normal(0, 0.02, sample.shape)
    blur = (*(0,) * (sample.ndim - 3), 0.5, 0.5, 0)
    return np.asarray(ndimage.gaussian_filter(sample, blur) + noise, dtype=np.float32)


def through(vae: Any) -> Callable[[Samples], Samples]:
    @torch.no_grad()
    def change(sample: Samples) -> Samples:
        pixels = torch.from_numpy(sample)[None].movedim(-1, 1) * 2 - 1
        drawn = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        return np.asarray((drawn / 2 + 0.5).clamp(0, 1).movedim(1, -1)[0].numpy())

    return change


def floors(task: SimpleNamespace) -> Iterator[dict[str, Any]]:
    scenes = (task.sample_scene(np.random.default_rng(seed)) for seed in range(SEED, SEED + REAL + 1000))
    values = np.concatenate([task.features(task.render(scene)[None]) for scene in scenes])
    for count in (64, 256, 1000):
        yield {"samples": f"{count} other real ones", "frechet": frechet(values[REAL:][:count], values[:REAL])}


if __name__ == "__main__":
    main()
