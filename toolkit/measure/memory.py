"""What a process has in memory, and a cap on it for targets that have less memory than the host."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.errors import StageOutOfMemory
from toolkit.plugins import Runtime

OBSERVABLE = sys.platform.startswith("linux")
"""Whether this system tells what a process has in memory, and can cap it."""

MEASURABLE = OBSERVABLE or importlib.util.find_spec("resource") is not None
"""Whether this system tells at least the peak of the resident set; Windows does not, where nothing is better than zero bytes."""


def preload(runtime: Runtime) -> None:
    """Imports a runtime's modules, so that their own size does not count against a model's memory."""
    for module in runtime.modules:
        importlib.import_module(module)


@contextmanager
def memory_cap(limit_bytes: int | None) -> Iterator[str]:
    """Lets this process allocate ``limit_bytes`` more than it has now; on Linux only.

    The limit is ``RLIMIT_DATA``, which counts private writable memory and not mapped files, see setrlimit(2).

    Yields:
        ``enforced``, ``not enforced here`` (another system), or ``none`` (no limit was asked for).

    Raises:
        StageOutOfMemory: What ran inside needed more.
    """
    if limit_bytes is None:
        yield "none"
    elif not OBSERVABLE:
        yield "not enforced here"
    else:
        with _data_limit(limit_bytes):
            try:
                yield "enforced"
            except (MemoryError, StageOutOfMemory) as error:
                hint = "use a smaller model, or raise the target's memory cap"
                raise StageOutOfMemory(f"needs more than the memory cap of {limit_bytes:,} bytes: {error}", hint=hint) from error


@contextmanager
def _data_limit(limit_bytes: int) -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = private_bytes() + limit_bytes
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def private_bytes(process: int | str = "self") -> int:
    """Returns the private writable memory of a process, as the kernel counts it for the limit; 0 when it is gone. Linux only."""
    return _status(process).get("VmData", 0)


def forget_peak() -> None:
    """Starts the peak of the resident set anew, see proc(5), clear_refs; where that is not allowed, it counts from the start."""
    if OBSERVABLE:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def usage() -> dict[str, int]:
    """Returns ``private_bytes``, ``resident_bytes`` and ``peak_resident_bytes`` of this process.

    Elsewhere than on Linux all three are the peak of the resident set (getrusage(2)); 0 where there is not even that.
    """
    if OBSERVABLE:
        status = _status("self")
        fields = {"private_bytes": "VmData", "resident_bytes": "VmRSS", "peak_resident_bytes": "VmHWM"}
        return {name: status.get(field, 0) for name, field in fields.items()}
    peak = _largest_resident_set()
    return {"private_bytes": peak, "resident_bytes": peak, "peak_resident_bytes": peak}


def _largest_resident_set() -> int:
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(process: int | str) -> dict[str, int]:
    """The sizes of ``/proc/PID/status``, in bytes."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.endswith(" kB")}
