"""What the demo may cost: under five minutes on two cores, as a table of its calls in units of one baseline call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Rows of one sort. `call`: a call's share of the baseline's 100 denoiser evaluations. `warm`: calls' worth before
    the rounds, in baseline calls. `seconds`: what does not grow with the model, such as compilation."""

    what: str
    rows: int
    call: float
    warm: float = 0.0
    seconds: float = 0.0


LIMIT_SECONDS = 300.0
ROUNDS = (2, 4)  # at least, at most; a third or fourth starts only while it would end in time
BATCH = 16
START_SECONDS = 8.0  # importing torch and diffusers, before the clock of the run starts
END_SECONDS = 32.0  # the repeat for the noise floor, quality (the oracle takes 15 ms a picture), drawing

DEMO = (
    Line("baseline, and once more for the noise floor", 1, 1.0, warm=0.08 + 1.0),
    Line("fewer steps: 10, 4, 1", 1, 0.3, warm=0.23),
    Line("three solvers at 4 steps", 3, 0.08, warm=0.16),
    Line("students alone and in the stack, three calls a round; does a trick help", 6, 0.09, warm=0.08 + 0.4),
    Line("precision, quantize alone", 2, 0.9, warm=0.08),
    Line("cache alone, calibrated on two prompts before its warm-up", 1, 0.6, warm=0.4),
    Line("compile alone and in the stack", 3, 0.3, warm=0.08, seconds=40.0),
)


def expected_seconds(baseline_seconds: float, rounds: int) -> float:
    """Seconds of the whole demo where one baseline call takes `baseline_seconds`."""
    once = sum(line.rows * (line.warm * baseline_seconds + line.seconds) for line in DEMO)
    each = sum(line.rows * line.call for line in DEMO) * baseline_seconds
    return START_SECONDS + once + rounds * each + END_SECONDS


def run_limit() -> float:
    """Seconds from the start of the run after which no new round starts that would end later."""
    return LIMIT_SECONDS - START_SECONDS - END_SECONDS
