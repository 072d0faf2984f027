"""Low-precision numbers as plain tensors: what a quantized value is, how it is made and what it stands for."""
