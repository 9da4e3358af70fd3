"""A memory cap on this process, for targets that have less memory than the host."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.errors import StageOutOfMemory
from toolkit.plugins import Runtime


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
    elif not sys.platform.startswith("linux"):
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
    allowed = _data_bytes() + limit_bytes
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """Private writable memory of this process, as the kernel counts it for the limit."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))
    return int(kib) * 1024
