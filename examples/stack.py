"""Put a recipe on a pipeline, call it as before, see what engaged, and take it off again.

Run it with: python examples/stack.py
"""

import time
from pathlib import Path

import torch

import fewstep

PROMPT = "a large red ring left of a small blue square"

pipe = fewstep.load("zoo:shapes")
fast = fewstep.accelerate(pipe, [fewstep.FewStep(student="zoo:shapes-4step")])

start = time.perf_counter()
image = fast(PROMPT, generator=torch.Generator().manual_seed(0)).images[0]
print(f"{time.perf_counter() - start:.2f} s with {', '.join(part.name for part in fast.engaged)}")

for part in fast.engaged:
    print(part.name, part.facts)

fast.remove()  # `pipe` is what it was before, to the bit

out = Path("out/examples")
out.mkdir(parents=True, exist_ok=True)
image.save(out / "ring.png")
