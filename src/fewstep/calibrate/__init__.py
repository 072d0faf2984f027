"""One calibration run of a model: what changes from step to step, fitted, signed and saved for the caches to use."""
