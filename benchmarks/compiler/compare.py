"""Compares and times the files of one model: ``python -m benchmarks.compiler.compare FOLDER SIDE ...`` writes ``compared.json``."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import turns
from toolkit.errors import ToolkitError
from toolkit.factory import CODE_ERRORS

# Short blocks and many of them: what else the machine does then hits both sides alike.
ROUNDS, BLOCK_SECONDS = 96, 0.02
# A file that seems slower gets a longer look; models that take long get fewer rounds.
MORE_ROUNDS, LONG_MS, FEW_ROUNDS = 240, 50.0, 15
# Where a session happens to lie in memory makes a small model up to a third slower: each file is opened as often as this.
SESSIONS = 8
PEERS = ("litert_torch", "onnx2tf")
Run = Callable[[], Any]
Open = Callable[[], Run]


def main(folder: Path, sides: list[str]) -> None:
    with np.load(folder / "inputs.npz") as given, np.load(folder / "outputs.npz") as wanted:
        inputs, outputs = dict(given), dict(wanted)
    facts: dict[str, dict[str, Any]] = {}
    files: dict[str, Open] = {}
    for side in sides:
        file = folder / ("model.onnx" if side == "onnx" else f"{side}.tflite")
        try:
            facts[side], files[side] = _checked(file, inputs, outputs)
        except (ToolkitError, *CODE_ERRORS) as error:  # what a peer left behind can make its runtime complain: that is the result
            facts[side] = {"error": f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    for peer in PEERS:
        ours = "ours_last" if peer == "onnx2tf" and facts.get(peer, {}).get("reordered") and "ours_last" in files else "ours"
        if peer in files and ours in files:
            facts[peer] |= {**_paired(files[ours], files[peer]), "beside": facts[ours]["operators"]}
    if "ours" in files:  # what one file differs by from itself is what such figures cannot tell
        facts["ours"] |= _paired(files["ours"], files["ours"])
    (folder / "compared.json").write_text(json.dumps(facts), encoding="utf-8")


def _checked(file: Path, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> tuple[dict[str, Any], Open]:
    """Runs all samples through a file; returns what there is to know of it, and how to open it for one of them."""
    from toolkit import plugins

    format = file.suffix[1:]
    runtime = plugins.runtime_for(format)
    session = runtime.open(file, threads=1)
    fed = _fed(session.signature.inputs, inputs)
    samples = len(next(iter(inputs.values())))
    found = [session.run({name: rows[row] for name, (_, rows) in fed.items()}) for row in range(samples)]
    columns = {_plain(name): [row[name] for row in found] for name in found[0]}
    reader = plugins.find_reader(format)
    facts = {
        "sqnr_db": min(_closest_db(name, np.split(column, samples), columns) for name, column in outputs.items()),
        "size_mb": file.stat().st_size / 1e6,
        "operators": dict(reader.read(file).operators) if reader else {},
        "partitions": _partitions(file) if format == "tflite" else None,
        "reordered": any(reordered for reordered, _ in fed.values()),
    }
    first = {name: rows[0] for name, (_, rows) in fed.items()}

    def opened() -> Run:
        run = runtime.open(file, threads=1).run
        return lambda: run(first)

    return facts, opened


def _fed(specs: Any, inputs: dict[str, np.ndarray]) -> dict[str, tuple[bool, list[np.ndarray]]]:
    """Gives each input of a file its samples, in its own order of axes: by its name where that was kept, else by shape, in order."""
    left, given = dict(inputs), {}
    for spec in specs:
        fits = [name for name, column in left.items() if _as(column[:1], spec.shape) is not None]
        exact = [name for name in fits if left[name].shape[1:] == spec.shape[1:]]
        name = next((name for name in fits if name == _plain(spec.name)), (exact or fits or list(left))[0])
        column = left.pop(name)
        rows = [_as(column[row : row + 1], spec.shape) for row in range(len(column))]
        fed = [np.ascontiguousarray(column[:1] if row is None else row).astype(spec.dtype) for row in rows]
        given[spec.name] = (fed[0].shape != column[:1].shape, fed)
    return given


def _as(value: np.ndarray, shape: tuple[int | str, ...]) -> np.ndarray | None:
    """Returns a value with its channels where a file has them; nothing where it does not fit at all."""
    return next((one for one in _orders(value) if _fits(one.shape, shape)), None)


def _fits(got: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(got) == len(wanted) and all(isinstance(want, str) or want == size for size, want in zip(got, wanted, strict=True))


def _orders(value: np.ndarray) -> Iterator[np.ndarray]:
    """Yields what a value can be with its channels elsewhere: itself, and the channels moved to either side."""
    yield value
    if value.ndim >= 3:
        yield from (np.moveaxis(value, *ends) for ends in itertools.permutations((1, value.ndim - 1)))


def _closest_db(name: str, wanted: list[np.ndarray], columns: dict[str, list[np.ndarray]]) -> float:
    """How close an output comes: that of the same name; where names are lost, the closest of those that can be meant."""
    from toolkit.stats.signal import finite_db, power_ratio_db

    meant = [columns[name]] if name in columns else list(columns.values())
    orders = (order for rows in meant for order in zip(*map(_orders, rows), strict=True))
    least = min((_power(order, wanted) for order in orders if order[0].shape == wanted[0].shape), default=np.inf)
    return finite_db(power_ratio_db(_power(wanted), least)) if np.isfinite(least) else 0.0


def _power(values: Sequence[np.ndarray], less: Sequence[np.ndarray] | None = None) -> float:
    """The sum of the squares of all samples, or of their differences; infinite where some number is not one."""
    zeros = less or [np.zeros_like(one) for one in values]
    total = sum(float(np.sum((one.astype(np.float64) - zero) ** 2)) for one, zero in zip(values, zeros, strict=True))
    return total if np.isfinite(total) else np.inf


def _plain(name: str) -> str:
    return name.removeprefix("serving_default_").removesuffix(":0")


def _partitions(file: Path) -> int:
    """How many parts the XNNPACK delegate executes: one where it takes all of the graph."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    return sum(one["op_name"] == "DELEGATE" for one in interpreter._get_ops_details())


def _paired(ours: Open, peer: Open) -> dict[str, float]:
    """Times two files in turns and returns the peer's median and ours over it."""
    runs: dict[str, list[Run]] = {"ours": [], "peer": []}
    for _ in range(SESSIONS):
        runs["ours"].append(ours())
        runs["peer"].append(peer())
    seconds = {side: float(np.median([_seconds(run, 3) for run in same])) for side, same in runs.items()}
    if max(seconds.values()) * 1e3 > LONG_MS:
        return _rounds(runs, seconds, FEW_ROUNDS)
    found = _rounds(runs, seconds, ROUNDS)
    return _rounds(runs, seconds, MORE_ROUNDS) if found["ratio"] > 1.0 else found


def _rounds(runs: dict[str, list[Run]], seconds: dict[str, float], rounds: int) -> dict[str, float]:
    passes = {side: max(1, round(BLOCK_SECONDS / one)) for side, one in seconds.items()}
    blocks: dict[str, list[float]] = {side: [] for side in runs}
    for side in turns(list(runs), rounds):
        run = runs[side][len(blocks[side]) % SESSIONS]
        blocks[side].append(_seconds(run, passes[side]) * 1e3)
    medians = {side: float(np.median(times)) for side, times in blocks.items()}
    return {"latency_ms": medians["peer"], "ratio": medians["ours"] / medians["peer"]}


def _seconds(run: Run, passes: int) -> float:
    started = time.perf_counter()
    for _ in range(passes):
        run()
    return (time.perf_counter() - started) / passes


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
