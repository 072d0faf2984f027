"""Text that a person wrote."""

from __future__ import annotations

import unicodedata


def readable(value: object) -> bool:
    """Whether it is text without bytes that are no UTF-8 and without control characters; it may be empty."""
    return isinstance(value, str) and all(unicodedata.category(c) not in ("Cc", "Cs") or c.isspace() for c in value)
