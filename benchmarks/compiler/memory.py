"""What a piece of work costs: seconds, and memory beyond what its process held before. It needs nothing but Python and Linux."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Does some work and returns its ``seconds``, what the process held before (``start_mb``), and what it held at most beyond (``peak_mb``).

    The most that the process ever held says little, as it can lie in its imports or in making the model, so it is forgotten first. What
    processes hold that the work starts, as onnx2tf's simplifier is one, is not counted.
    """
    _FORGET.write_text("5", encoding="ascii")
    before = _kilobytes("VmRSS")
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    grown = _kilobytes("VmHWM") - before
    return {"seconds": seconds, "start_mb": before * 1024 / 1e6, "peak_mb": grown * 1024 / 1e6}


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1])
