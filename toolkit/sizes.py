"""Free sizes as people write them: a name, and where it is known between which numbers it lies, ``16<=sequence<=128``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

FREE_SIZE = re.compile(r"\s*(?:(\d+)\s*<=\s*)?([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:<=\s*(\d+)\s*)?")
NOTATION = "NAME, NAME<=MAX or MIN<=NAME<=MAX"


@dataclass(frozen=True)
class FreeSize:
    """A size that is free at run time.

    Attributes:
        name: What it is called; equal names are equal sizes.
        least: The smallest number that it may be.
        most: The largest; ``None`` where it has no bound.
    """

    name: str
    least: int = 1
    most: int | None = None

    def __str__(self) -> str:
        below = f"{self.least}<=" if self.least > 1 else ""
        return f"{below}{self.name}" + (f"<={self.most}" if self.most else "")

    def __contains__(self, size: int) -> bool:
        return self.least <= size and (self.most is None or size <= self.most)

    @property
    def is_bounded(self) -> bool:
        """Whether it says more than a name."""
        return self.least > 1 or self.most is not None


def read(text: str) -> FreeSize:
    """Reads ``batch``, ``batch<=8``, ``16<=sequence`` or ``16<=sequence<=128``.

    Raises:
        ValueError: It is written in another way, or leaves no choice of size.
    """
    found = FREE_SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"a free size is written {NOTATION}")
    least, name, most = found.groups()
    size = FreeSize(name, int(least or 1), int(most) if most else None)
    if size.least < 1:
        raise ValueError("the least size is 1")
    if size.most is not None and size.most <= size.least:
        reason = "is larger than its bound" if size.most < size.least else "leaves one size, which is then not free: leave it out"
        raise ValueError(f"{size.least}<={size.name}<={size.most} {reason}")
    return size


def check_together(dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Holds free sizes, by input and axis, against each other.

    Raises:
        ValueError: Equal names have other bounds, or a batch must be larger than one sample.
    """
    said: dict[str, FreeSize] = {}
    for axis, text in [pair for free in dynamic.values() for pair in free.items()]:
        size = read(text)
        if said.setdefault(size.name, size) != size:
            raise ValueError(f"equal names have equal bounds, found {said[size.name]} and {size}")
        if axis == 0 and size.least > 1:
            raise ValueError(f"axis 0 is the batch, which must take one sample alone, found {size}")
