"""Linear layers in few bits: real kernels by scheme and device, and an emulation of every scheme."""

from fewstep.techniques.linears.ao import torchao_linear
from fewstep.techniques.linears.emulated import EmulatedLinear
from fewstep.techniques.linears.int8 import Int8Linear, int8_scales
from fewstep.techniques.linears.kernels import KERNELS, Kernel, stored_bytes

__all__ = ["KERNELS", "EmulatedLinear", "Int8Linear", "Kernel", "int8_scales", "stored_bytes", "torchao_linear"]
