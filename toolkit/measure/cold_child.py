"""The fresh process of :mod:`toolkit.measure.cold`: imports a runtime, opens one model, runs it twice, ends.

Started as a script with one argument, the request as JSON. Messages go to what was its standard output, one JSON object a line:
``{"ready": ...}`` with the memory in use after the imports, then ``{"done": ...}`` or ``{"error": ...}``. Everything that a
library prints goes to standard error. It ends when its standard input closes, that is, with whoever started it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

_MS = 1e-6


def measure(request: dict[str, Any], say: Any) -> dict[str, Any]:
    """Measures one start on the CPUs that are asked for; see :func:`toolkit.measure.cold.run`."""
    from toolkit.measure.affinity import pinned

    with pinned(request.get("cpus") or ()):  # before the imports, as libraries start threads then
        return _start(request, say)


def _start(request: dict[str, Any], say: Any) -> dict[str, Any]:
    from toolkit import dataset, plugins
    from toolkit.measure import memory

    runtime = plugins.get("runtimes", request["runtime"])
    plugins.require(runtime)
    memory.preload(runtime)
    data = dataset.load(Path(request["data"])).laid_out(request.get("layout"))
    gc.collect()
    memory.forget_peak()
    before = memory.usage()
    say({"ready": before})
    with memory.memory_cap(request["memory_bytes"]) as cap:
        start = time.perf_counter_ns()
        session = runtime.open(Path(request["model"]), threads=request["threads"])
        loaded = time.perf_counter_ns()
        opened = memory.usage()
        inputs = _inputs(data, session.signature)
        begun = time.perf_counter_ns()
        session.run(inputs)
        answered = time.perf_counter_ns()
        session.run(inputs)
        after = memory.usage()
    return {
        "load_ms": (loaded - start) * _MS,
        "first_ms": (answered - begun) * _MS,
        "private_bytes": max(opened["private_bytes"], after["private_bytes"]) - before["private_bytes"],
        "resident_bytes": after["peak_resident_bytes"] - before["resident_bytes"],
        "cap": cap,
    }


def _inputs(data: Any, signature: Any) -> dict[str, Any]:
    """One sample, or as many as the model's batch size asks for, of the columns that the model takes."""
    import numpy as np

    from toolkit.measure.feed import batch_size, fit

    rows = np.arange(batch_size(signature, free=1)) % len(data)
    dtypes = fit(data.take(rows), signature).dtypes
    return {name: np.ascontiguousarray(data.columns[name][rows], dtype=dtype) for name, dtype in dtypes.items()}


def _main(request: dict[str, Any]) -> None:
    messages = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_when_stdin_closes, daemon=True).start()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from toolkit.errors import StageFailed, StageOutOfMemory, ToolkitError
    from toolkit.factory import CODE_ERRORS, first_line

    def say(message: dict[str, Any]) -> None:
        os.write(messages, json.dumps(message).encode() + b"\n")

    try:
        say({"done": measure(request, say)})
    except ToolkitError as error:
        say({"error": error.to_dict()})
    except MemoryError as error:
        say({"error": StageOutOfMemory(f"ran out of memory: {first_line(error)}").to_dict()})
    except CODE_ERRORS as error:
        say({"error": StageFailed(first_line(error), where=request["model"]).to_dict()})
    sys.stderr.flush()
    # Frameworks may crash while they shut down, after the work is done.
    os._exit(0)


def _end_when_stdin_closes() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
