"""Speed and what it cost: interleaved timing, quality, the waterfall of tricks, and the report drawn from it."""
