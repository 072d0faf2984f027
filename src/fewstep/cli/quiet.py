"""Keeps known, harmless chatter of third-party packages off the terminal, and nothing else.

Our own warnings and every other message of these packages still come through.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass


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
    # torchao marks enums in a way that torch now does by itself.
    Chatter("torch.utils._pytree", "%s is an Enum subclass and is now natively supported"),
    # diffusers lists classes that torchao has dropped; they only matter for pickled checkpoints, which fewstep refuses.
    Chatter("diffusers.quantizers.torchao.torchao_quantizer", "Unable to import `torchao` Tensor objects"),
    # transformers offers image processors by way of torchvision; pipelines here don't need it.
    Chatter("transformers.utils.import_utils", "`CLIPImageProcessor` requires torchvision"),
    Chatter("transformers.utils.import_utils", "`SiglipImageProcessor` requires torchvision"),
)


def quiet() -> None:
    """Drop the chatter from now on, in this process."""
    for chatter in CHATTER:
        logging.getLogger(chatter.logger).addFilter(chatter)  # adding it twice is adding it once


def _torch_has_cuda() -> bool:
    version = getattr(sys.modules.get("torch"), "version", None)
    return getattr(version, "cuda", None) is not None
