"""A small decoder for live video: a network that takes a fifth of the time learns what the video VAE decodes.

python examples/small_decoder.py                                  to see that it runs
python examples/small_decoder.py --clips 2560 --steps 5800        half an hour on two CPU cores
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

import fewstep
from fewstep.distill.data.encode import encode
from fewstep.distill.decoder import distill_decoder, load_decoder
from fewstep.realtime import LiveModel, Session
from fewstep.zoo.drawn import Drawn

PROMPT = "a red ring moving left"


def main(out: Path, clips: int, steps: int) -> None:
    pipe = fewstep.load("zoo:moving-shapes")
    latents = encode(pipe, fewstep.trace(pipe, prompt=PROMPT), Drawn("moving-shapes", clips), out / "latents")
    precision = "fp32" if fewstep.Machine.detect().missing("bf16") else "bf16"
    folder = distill_decoder(pipe, latents, out, width=32, steps=steps, batch=4, rate=2e-3, precision=precision)

    model = LiveModel.of(fewstep.load("zoo:moving-shapes-live"), small=load_decoder(folder))
    rows = []
    for off in (("small_decoder",), ()):
        with Session(model, PROMPT, seed=0, off=off, paced=False) as session:
            chunks = list(islice(session, 5))
        print(f"{'the VAE' if off else 'the small decoder'}: {chunks[-1].work['decode_ms']} ms a chunk")
        rows.append(np.concatenate([chunk.frames[-1] for chunk in chunks], axis=1))
    Image.fromarray(np.concatenate(rows)).save(out / "both.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/small_decoder"))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    main(options.out, options.clips, options.steps)
