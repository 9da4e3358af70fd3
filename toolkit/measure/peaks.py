"""What this CPU reaches at best: multiply-accumulates and bytes read per second, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from toolkit import plugins

_SIZES = (256, 384, 512, 768)
_SECONDS = 0.1
_ROUNDS = 8
_READ_BYTES = 8 << 20
_NEAR_BYTES = (256 << 10, 1 << 20)


def peak_gmacs(threads: int) -> dict[str, float]:
    """Measures arithmetic peaks by element type, in 10^9 multiply-accumulates a second.

    ``float32`` is the best of NumPy's matrix product and of what the runtimes here measure of themselves; other types are the
    runtimes' alone. A runtime takes part by a method ``peak_gmacs(threads)`` that returns such a dictionary.

    Args:
        threads: Threads of one product.
    """
    best = {"float32": _sgemm(threads)}
    for runtime in plugins.discover("runtimes").values():
        measure = getattr(runtime, "peak_gmacs", None)
        if measure and not plugins.missing_modules(runtime):
            for dtype, found in measure(threads).items():
                best[dtype] = max(found, best.get(dtype, 0.0))
    return best


def _sgemm(threads: int) -> float:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        return max(_sgemm_of(size) for size in _SIZES)


def _sgemm_of(size: int) -> float:
    left, right, out = (np.ones((size, size), np.float32) for _ in range(3))

    def multiply() -> None:
        np.matmul(left, right, out=out)

    return size**3 / _best_ns(multiply)


def near_bandwidth_gbs(threads: int) -> float:
    """Measures the read bandwidth of the nearest caches, in 10^9 bytes a second."""
    return max(bandwidth_gbs(size * threads, threads) for size in _NEAR_BYTES)


def bandwidth_gbs(working_set_bytes: int, threads: int) -> float:
    """Measures how fast memory is read again and again, in 10^9 bytes a second.

    Args:
        working_set_bytes: Bytes that are read in turn, by all threads together: they come from the smallest cache that holds them.
        threads: Threads that read, each its own part.
    """
    elements = max(1024, working_set_bytes // 4 // threads)
    repeats = max(1, _READ_BYTES // (elements * 4))
    parts = [np.ones(elements, np.float32) for _ in range(threads)]
    # One call that reads a small part several times: the call itself would cost as much as the reading.
    views = [np.lib.stride_tricks.as_strided(part, (repeats, elements), (0, 4)) for part in parts]
    read_bytes = repeats * elements * 4 * threads
    if threads == 1:
        return read_bytes / _best_ns(views[0].max)
    with ThreadPoolExecutor(threads) as pool:
        return read_bytes / _best_ns(lambda: list(pool.map(np.ndarray.max, views)))


def _best_ns(work: Callable[[], object]) -> float:
    """The shortest of several runs: whatever else the machine does can only make one longer."""
    work()
    best, rounds, end = float("inf"), 0, time.perf_counter() + _SECONDS
    while rounds < _ROUNDS or time.perf_counter() < end:
        start = time.perf_counter_ns()
        work()
        best = min(best, time.perf_counter_ns() - start)
        rounds += 1
    return best
