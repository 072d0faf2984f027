"""Keeps known, harmless chatter of third-party packages off the terminal, and nothing else.

Every other message of these packages still comes through, and our own warnings do, as one plain line each.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Chatter(logging.Filter):
    """One message that is dropped: which logger says it, and how it begins."""

    logger: str
    beginning: str
    only_without_cuda: bool = False

    def filter(self, record: logging.LogRecord) -> bool:
        chatter = str(record.msg).startswith(self.beginning)
        return not chatter or (self.only_without_cuda and _torch_has_cuda())


CHATTER = (
    # torchao's wheel holds CUDA libraries, which can't load beside a torch without CUDA.
    Chatter("torchao", "Failed to load ", only_without_cuda=True),
    Chatter("torchao.kernel.intmm", "Warning: Detected no triton", only_without_cuda=True),
    # torchao marks enums in a way that torch now does by itself.
    Chatter("torch.utils._pytree", "%s is an Enum subclass and is now natively supported"),
    # diffusers lists classes that torchao has dropped; they only matter for pickled checkpoints, which fewstep refuses.
    Chatter("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao` Tensor objects"),
    # transformers offers image processors by way of torchvision; pipelines here don't need it.
    Chatter("transformers.utils.import_utils", "`CLIPImageProcessor` requires torchvision"),
    Chatter("transformers.utils.import_utils", "`SiglipImageProcessor` requires torchvision"),
)

# The beginnings of warnings that are dropped.
WARNINGS = (
    # Compiling a VAE, whose code asks once for the version of torch, in a cached function.
    "Dynamo detected a call to a `functools.lru_cache`-wrapped function",
    # Under autocast the inputs of RMSNorm are bfloat16 and its weights float32: torch takes its other implementation.
    "Mismatch dtype between input and weight: input dtype = c10::BFloat16, weight dtype = float",
)


def quiet() -> None:
    """Drop the chatter from now on, in this process, and say our warnings without the line of code they come from."""
    for chatter in CHATTER:
        logging.getLogger(chatter.logger).addFilter(chatter)  # adding it twice is adding it once
    for beginning in WARNINGS:
        warnings.filterwarnings("ignore", re.escape(beginning), UserWarning)
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    ours = Path(filename).is_relative_to(PACKAGE)
    text = f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _torch_has_cuda() -> bool:
    version = getattr(sys.modules.get("torch"), "version", None)
    return getattr(version, "cuda", None) is not None
