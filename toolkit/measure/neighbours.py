"""How many CPUs other processes keep busy while something is timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # idle and iowait, see proc(5)
_GUEST = 8  # guest times are counted in user and nice already


def watch() -> Callable[[], float | None]:
    """Begins to watch; calling the result says how many CPUs others kept busy since then, on average.

    What this process used is left out. On systems without ``/proc/stat`` the answer is ``None``.
    """
    begun = _busy_seconds()
    own, start = time.process_time(), time.perf_counter()

    def others() -> float | None:
        now = _busy_seconds()
        elapsed = time.perf_counter() - start
        if begun is None or now is None or elapsed <= 0:
            return None
        return max(0.0, (now - begun - (time.process_time() - own)) / elapsed)

    return others


def _busy_seconds() -> float | None:
    """Seconds that all CPUs together have been busy, whoever used them."""
    try:
        fields = [int(one) for one in _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    return float(sum(ticks for place, ticks in enumerate(fields[:_GUEST]) if place not in _IDLE)) / os.sysconf("SC_CLK_TCK")
