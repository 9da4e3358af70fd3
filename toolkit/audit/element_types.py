"""Sizes of element types, by the names that every reader uses."""

from __future__ import annotations

import re


def element_bits(dtype: str) -> int:
    """Bits of one element; 0 when elements have no fixed size or are not packed by one rule."""
    digits = re.match(r"[a-z]+(\d+)", dtype)
    size = 8 if dtype == "bool" else int(digits[1]) if digits else 0
    return 0 if size == 6 else size
