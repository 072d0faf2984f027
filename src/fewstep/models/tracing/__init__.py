"""The parts of a trace: record a run, explain every number in it, and replay it from the explanation."""
