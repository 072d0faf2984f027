"""The report of a training run: what was trained, how it went, and what it looks like, as one page."""
