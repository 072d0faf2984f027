"""Pre-quantized checkpoints: one canonical form inside, one reader and writer a format, and a check that tells faults.

`read`, `write`, `convert` and `detect` stand in `formats.py`, `inspect` in `inspect.py`, `verify` in `verify.py`.
"""
