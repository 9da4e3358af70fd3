"""The other side of :mod:`toolkit.worker`: runs one stage, writes its result, ends.

Started as a script. Standard output of the stage goes to the log, as frameworks print freely; the real standard output
carries progress alone, one JSON array a line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import IO, Any


def main(folder: Path) -> None:
    """Runs the request in ``folder`` and leaves ``result.json`` there."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    if request["memory_bytes"]:
        _cap_memory(request["memory_bytes"])
    result = _call(request, events)
    partial = folder / "result.tmp"
    partial.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    partial.replace(folder / "result.json")
    sys.stdout.flush()
    sys.stderr.flush()
    # Frameworks may crash while they shut down, after the work is done.
    os._exit(0)


def _call(request: dict[str, Any], events: IO[str]) -> dict[str, Any]:
    from toolkit.errors import StageFailed, StageOutOfMemory, ToolkitError
    from toolkit.job import Job

    def progress(done: int, total: int, note: str) -> None:
        print(json.dumps([done, total, note]), file=events, flush=True)

    stage = request["stage"]
    inputs = {role: Path(path) for role, path in request["inputs"].items()}
    try:
        module, function = stage.split(":")
        facts = getattr(importlib.import_module(module), function)(Job(inputs, request["options"], Path(request["out"]), progress))
        json.dumps(facts, allow_nan=False)
        return {"facts": facts}
    except ToolkitError as error:
        traceback.print_exc()
        return {"error": error.to_dict()}
    except MemoryError as error:
        traceback.print_exc()
        return {"error": StageOutOfMemory(f"ran out of memory: {error}" if str(error) else "ran out of memory", where=stage).to_dict()}
    except BaseException as error:  # noqa: BLE001  the border of the process: nothing may pass untyped
        traceback.print_exc()
        return {"error": StageFailed(f"{type(error).__name__}: {_essence(error)}", where=stage).to_dict()}


def _essence(error: BaseException) -> str:
    """The first line that says something; frameworks put pages behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def _end_with_parent() -> None:
    """Ends this process when standard input closes: the parent is gone."""
    os.read(0, 1)
    os._exit(1)


def _cap_memory(memory_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
