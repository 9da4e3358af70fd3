"""Compares and times the files of one cell: ``python -m benchmarks.coverage.compare FORMAT OUT SIDE=FILE ...``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import turns
from toolkit.errors import ToolkitError
from toolkit.factory import CODE_ERRORS

ROUNDS, BLOCK_SECONDS = 7, 0.1
# A file that seems slower gets a longer look: seven rounds on a shared machine are off by some percent at times.
MORE_ROUNDS = 21
CLOSE = 1.05


def main(format: str, out: Path, files: dict[str, Path]) -> None:
    folder = next(iter(files.values())).parent.parent
    with np.load(folder / "inputs.npz") as given, np.load(folder / "outputs.npz") as expected:
        inputs, outputs = dict(given), list(expected.values())
    facts: dict[str, dict[str, Any]] = {}
    loops: dict[str, Callable[[], Any]] = {}
    for side, file in files.items():
        try:
            facts[side], loops[side] = _open(file, format, inputs, outputs)
        except (ToolkitError, *CODE_ERRORS) as error:  # whatever a bare call left behind makes its runtime complain is the result
            facts[side] = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"}
    latencies = _times(loops, ROUNDS)
    if _one_is_slower(latencies):
        latencies = _times(loops, MORE_ROUNDS)
    for side, latency_ms in latencies.items():
        facts[side]["latency_ms"] = latency_ms
        if _one_is_slower(latencies):
            facts[side]["operators"] = _operators(files[side], format)
    out.write_text(json.dumps(facts), encoding="utf-8")


def _one_is_slower(latencies: dict[str, float]) -> bool:
    return len(latencies) > 1 and max(latencies.values()) > CLOSE * min(latencies.values())


def _operators(file: Path, format: str) -> dict[str, int]:
    from toolkit import plugins

    reader = plugins.find_reader(format)
    try:
        return dict(reader.read(file).operators) if reader else {}
    except (ToolkitError, *CODE_ERRORS):
        return {}


def _open(file: Path, format: str, inputs: dict[str, np.ndarray], outputs: list[np.ndarray]) -> tuple[dict[str, Any], Callable[[], Any]]:
    from toolkit import modelfile, plugins
    from toolkit.stats.signal import finite_db, power_ratio_db

    session = plugins.runtime_for(format).open(file, threads=1)
    given = _in_order(session.signature.inputs, inputs)
    found = [session.run({name: column[row : row + 1] for name, column in given.items()}) for row in range(len(outputs[0]))]
    columns = [np.concatenate([row[spec.name] for row in found]) for spec in session.signature.outputs]
    figures = []
    for expected in outputs:
        # Names and order are lost on the way in most bare calls: the closest output of the same shape is taken for the one that is meant.
        signal = float(np.sum(expected.astype(np.float64) ** 2))
        noise = [float(np.sum((one.astype(np.float64) - expected) ** 2)) for one in columns if one.shape == expected.shape]
        figures.append(finite_db(power_ratio_db(signal, min(noise))) if noise else 0.0)
    first = {name: column[:1] for name, column in given.items()}
    return {"sqnr_db": min(figures), "size_mb": modelfile.size_bytes(file) / 1e6}, lambda: session.run(first)


def _in_order(specs: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives each input of a file the column that fits: by its name where that was kept, else by shape, in order."""
    left, given = dict(inputs), {}
    for spec in specs:
        fits = [name for name, column in left.items() if _fits(spec.shape, column)]
        name = next((name for name in fits if name in spec.name), (fits or list(left))[0])
        given[spec.name] = np.ascontiguousarray(left.pop(name).astype(spec.dtype))
    return given


def _fits(shape: tuple[int | str, ...], column: np.ndarray) -> bool:
    return len(shape) == column.ndim and all(isinstance(want, str) or want == size for want, size in zip(shape[1:], column.shape[1:], strict=True))


def _times(loops: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the median time of one inference, from blocks in turns."""
    passes = {side: max(1, round(BLOCK_SECONDS / _seconds(run, 3))) for side, run in loops.items()}
    blocks: dict[str, list[float]] = {side: [] for side in loops}
    for side in turns(list(loops), rounds):
        blocks[side].append(_seconds(loops[side], passes[side]) * 1e3)
    return {side: float(np.median(times)) for side, times in blocks.items()}


def _seconds(run: Callable[[], Any], passes: int) -> float:
    started = time.perf_counter()
    for _ in range(passes):
        run()
    return (time.perf_counter() - started) / passes


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), {side: Path(file) for side, file in (word.split("=", 1) for word in sys.argv[3:])})
