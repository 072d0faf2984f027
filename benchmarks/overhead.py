"""fewstep's own cost for each denoiser call, with an empty recipe on: less than 1% of the call.

    python benchmarks/overhead.py [--model zoo:shapes] [--rounds 10]

Writes out/benchmarks/overhead.json; ends with status 1 where it is 1% or more.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import fewstep
from fewstep.bench import results
from fewstep.bench.overhead import overhead

LIMIT = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="zoo:shapes")
    parser.add_argument("--prompt", default="a large red ring left of a small blue square")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    pipe = fewstep.load(options.model)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": options.prompt, "num_inference_steps": options.steps, "output_type": "np"}
    found = overhead(pipe, call, options.rounds)
    path = results.save("overhead", [{"model": options.model, "steps": options.steps, **asdict(found)}])
    print(
        f"fewstep's own code takes {found.own * 1e6:.0f} µs of a call with {found.nfe:g} denoiser calls of "
        f"{found.denoiser_call * 1e3:.1f} ms: {found.part:.4%} of each. Whole calls, in turn: {found.ratio - 1:+.2%}."
    )
    print(path)
    return int(found.part >= LIMIT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fewstep.FewstepError as error:
        sys.exit(str(error))
