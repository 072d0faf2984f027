"""How often the oracle of the shapes task errs on real pictures, and the floor under the Fréchet distance.

    python benchmarks/oracle.py [--scenes 1000] [--vae zoo:shapes]

Reads pictures as drawn, blurred with noise, and, with --vae, through the autoencoder of a pipeline: what it misreads
there is the most that a diffusion model on that autoencoder can get right. Writes out/benchmarks/oracle.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

import fewstep
from fewstep.bench import results
from fewstep.zoo.metrics import frechet
from fewstep.zoo.shapes.features import features
from fewstep.zoo.shapes.oracle import answers, matches, read
from fewstep.zoo.shapes.render import render
from fewstep.zoo.shapes.scenes import describe, sample_scene

Images = NDArray[np.float32]
SEED = 5_000_000  # drawn apart from every scene of the training
REAL = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--vae", help="a pipeline: zoo:NAME, a folder or a hub id")
    options = parser.parse_args()

    changes: dict[str, Callable[[Images], Images]] = {"as drawn": lambda images: images, "blur 0.5, noise 0.02": worn}
    if options.vae:
        changes["through the autoencoder"] = through(fewstep.load(options.vae).vae)
    rows = [errors(name, change, options.scenes) for name, change in changes.items()]
    for row in rows:
        print(
            f"{row['pictures']:26} misread {row['misread']:.4f}  answers wrong {row['answers_wrong']:.4f}  "
            f"texture wrong {row['texture_wrong']:.4f}  {row['ms']:.1f} ms a picture"
        )
    for row in floors():
        rows.append(row)
        print(f"{row['pictures']:26} Fréchet distance to {REAL} real ones {row['frechet']:.2f}")
    print(results.save("oracle", rows))


def errors(name: str, change: Callable[[Images], Images], count: int) -> dict[str, Any]:
    """Shares of pictures: any object or the tone misread; its own prompt held to be unanswered; the texture wrong."""
    seen: list[tuple[bool, bool, bool]] = []
    spent = 0.0
    for seed in range(SEED, SEED + count):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        _, ask = describe(scene, rng)
        image = change(render(scene)[None])[0]
        start = time.thread_time()
        reading = read(image)
        spent += time.thread_time() - start
        seen.append((not matches(scene, reading), not answers(ask, reading), reading.texture != scene.texture))
    misread, unanswered, texture = np.mean(seen, axis=0).tolist()
    times = {"ms": 1000 * spent / count, "scenes": count}
    return {"pictures": name, "misread": misread, "answers_wrong": unanswered, "texture_wrong": texture, **times}


def worn(images: Images) -> Images:
    noise = np.random.default_rng(0).normal(0, 0.02, images.shape)
    return np.asarray(ndimage.gaussian_filter(images, (0, 0.5, 0.5, 0)) + noise, dtype=np.float32)


def through(vae: Any) -> Callable[[Images], Images]:
    @torch.no_grad()
    def change(images: Images) -> Images:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
        drawn = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        return np.asarray((drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())

    return change


def floors() -> Iterator[dict[str, Any]]:
    drawn = [render(sample_scene(np.random.default_rng(seed))) for seed in range(SEED, SEED + REAL + 1000)]
    real = features(np.stack(drawn[:REAL]))
    others = features(np.stack(drawn[REAL:]))
    for count in (64, 256, 1000):
        yield {"pictures": f"{count} other real ones", "frechet": frechet(others[:count], real)}


if __name__ == "__main__":
    main()
