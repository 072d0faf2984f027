"""What the numbers of a quantized matrix tell about themselves, and what they tell beside the original.

Pure functions of tensors. docs/checkpoints/verify.md says which faults they can't see.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewstep.checkpoints.layouts import is_whole, other_nibble_first
from fewstep.numerics.quantized import Quantized, dequantize, quantize
from fewstep.numerics.swizzle import TILE, swizzle, unswizzle

UNUSED = 0.05  # share of blocks that may leave the top of their range unused; a right layer has next to none
TOP = {"e8m0": 0.5, "e4m3": 0.7, "float32": 0.9}  # where the top begins: powers of two leave up to half of it free
CLEARER = 0.1  # by how much another order must explain the scales better


def unused_range(q: Quantized) -> float:
    """Share of the blocks whose largest code stays below the top of what codes can say.

    An encoder takes each block's largest value to the largest code. Where codes and blocks don't belong together
    (transposed, wrong block size), many blocks have no large code.
    """
    values = q.layout.format.decode(q.codes).abs()
    down, across = q.layout.grid(q.shape)
    blocks = values.reshape(down, q.shape[0] // down, across, q.shape[1] // across).amax((1, 3))
    used = blocks[blocks > 0]
    return float((used < q.layout.format.largest * TOP[q.layout.scale]).float().mean()) if used.numel() else 0.0


def structure(scale: Tensor) -> float:
    """How much of the variance of log(scale), (rows, columns), its rows and columns explain; about 0 for noise."""
    logs = scale.float().clamp(min=1e-30).log()
    rows, columns = logs.shape
    total = (logs - logs.mean()).square().sum()
    if min(rows, columns) < 2 or float(total) == 0:
        return 0.0
    rest = (logs - logs.mean(0) - logs.mean(1, keepdim=True) + logs.mean()).square().sum()
    return float(1 - rest / total * (rows * columns - 1) / ((rows - 1) * (columns - 1)))


def misordered(scale: Tensor) -> str | None:
    """What order the scales are in, where another than the one they were read in is clearly right.

    Only whole tiles of 128×4 can be mistaken; else the sizes already differ.
    """
    rows, columns = scale.shape
    if rows % TILE[0] or columns % TILE[1]:
        return None
    own = structure(scale)
    others = {
        "its scales are swizzled once too often": structure(unswizzle(scale, rows, columns)),
        "its scales are in rows where they must be swizzled": structure(swizzle(scale)),
    }
    best = max(others, key=others.__getitem__)
    return best if others[best] > own + CLEARER else None


def own_faults(q: Quantized) -> list[str]:
    """What is wrong with a layer as far as it tells by itself, a clause each."""
    found = q.faults()
    if found:
        return found
    # One scale for all may be shared with the other parts of a fused matrix, whose values are larger.
    if not is_whole(q) and (share := unused_range(q)) > UNUSED:
        found.append(f"{share:.0%} of its blocks have no large code, so its codes and blocks don't belong together")
    if q.layout.scale != "float32" and (order := misordered(q.scale)):
        found.append(order)
    return found


def relative(error: Tensor, x: Tensor) -> float:
    """|error| / |x| in the Euclidean norm."""
    return float(error.norm() / x.norm().clamp(min=1e-30))


def faults_beside(q: Quantized, original: Tensor, fair: Quantized | None = None) -> list[str]:
    """What is wrong with a layer beside the weight it stands for, a clause each.

    The same weight is quantized anew, and the stored one may be no more than twice as far off in all, three times in
    any row, nor differ by a factor. Rounding at random, as some writers do, is off by √2.

    Args:
        fair: what a right quantization is, where it is not that of `original` alone.
    """
    x = original.float()
    mine, right = dequantize(q), dequantize(fair or quantize(x, q.layout))
    error, least = relative(mine - x, x), relative(right - x, x)
    if error > 2 * least + 2e-3:
        far = f"it differs from the original by {error:.3g}, where right quantization differs by {least:.3g}"
        return [f"{far}{_cause(q, x, 2 * least + 2e-3)}"]
    size = x.norm(dim=1).clamp(min=1e-6 * float(x.norm()) + 1e-30)
    rows, best = ((value - x).norm(dim=1) / size for value in (mine, right))
    if bool((bad := rows > 3 * best.clamp(min=least) + 2e-2).any()):
        row = int(bad.float().argmax())
        return [
            f"its row {row} differs from the original by {float(rows[row]):.3g}, right would be {float(best[row]):.3g}"
        ]
    gain, usual = (float((x * value).sum() / value.square().sum().clamp(min=1e-30)) for value in (mine, right))
    if abs(gain - usual) > least**2 + 4 * least / x.numel() ** 0.5 + 1e-3:
        return [f"its scale is wrong by a factor of {1 / gain:.4f}"]
    return []


def _cause(q: Quantized, x: Tensor, allowed: float) -> str:
    """Which common mistake it is, where undoing that makes it right."""
    grid = tuple(q.scale.shape)
    ways: dict[str, Quantized] = {}
    if q.layout.element == "e2m1":
        ways["the other nibble is the first"] = replace(q, codes=other_nibble_first(q.codes))
    if q.layout.scale != "float32" and not (grid[0] % TILE[0] or grid[1] % TILE[1]):
        ways["its scales are swizzled once too often"] = replace(q, scale=unswizzle(q.scale, *grid))
        ways["its scales must be swizzled"] = replace(q, scale=swizzle(q.scale))
    found = [clause for clause, other in ways.items() if relative(dequantize(other) - x, x) <= allowed]
    return f": {found[0]}" if found else ""


def largest_block_scale(q: Quantized) -> float:
    return float(q.scale.float().max()) if q.scale.numel() else 0.0


def is_one(scale: Tensor) -> bool:
    return bool(torch.equal(scale.float().reshape(()), torch.ones(())))
