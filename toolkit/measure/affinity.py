"""Which CPUs this process may use while something is timed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from toolkit.errors import ConfigError

NOT_PINNED = "not pinned"


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[str]:
    """Keeps this thread, and every thread that is started inside, on the given CPUs; see sched_setaffinity(2).

    Enter it before a model is loaded, as runtimes start their threads then.

    Args:
        cpus: Numbers of CPUs, as the operating system counts them; none leaves everything as it is.

    Yields:
        Empty when it is as asked, ``not pinned`` on a system that cannot pin.

    Raises:
        ConfigError: This machine has no such CPU, or this process may not use it.
    """
    if not cpus:
        yield ""
    elif not hasattr(os, "sched_setaffinity"):
        yield NOT_PINNED
    else:
        before = os.sched_getaffinity(0)
        _check(set(cpus), before)
        os.sched_setaffinity(0, cpus)
        try:
            yield ""
        finally:
            os.sched_setaffinity(0, before)


def _check(wanted: set[int], allowed: set[int]) -> None:
    missing = sorted(wanted - allowed)
    if missing:
        these = f"CPU {missing[0]}" if len(missing) == 1 else f"CPUs {_listed(missing)}"
        raise ConfigError(f"cannot pin to {these}; this process may use {_listed(sorted(allowed))}", hint="change cpus, or leave it out")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
