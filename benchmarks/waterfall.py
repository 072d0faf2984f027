"""The demo's waterfall with more rounds and no limit of time: the figures to quote.

    python benchmarks/waterfall.py [--rounds 8]

Writes out/benchmarks/waterfall.json, and the whole report with its pictures to out/benchmarks/waterfall/.
"""

from __future__ import annotations

import argparse
import sys

import fewstep
from fewstep.bench import demo, results
from fewstep.bench.publish import publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="batches of 16 prompts through every row")
    options = parser.parse_args()
    plan = demo.plan(rounds=(options.rounds, options.rounds), limit_seconds=float("inf"))
    report = publish(plan, results.FOLDER / "waterfall", show=True)
    print(results.save("waterfall", [row.model_dump(mode="json") for row in report.rows]))


if __name__ == "__main__":
    try:
        main()
    except fewstep.FewstepError as error:
        sys.exit(str(error))
