"""Many prompts over many devices: one process a device, on this machine or on a Ray cluster, each output made once."""
