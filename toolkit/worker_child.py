"""The other side of :mod:`toolkit.worker`: runs one stage, writes its result, ends.

Started as a script, in one of two ways. ``worker_child.py FOLDER`` runs the request in a folder. ``worker_child.py --serve
MODULE,MODULE`` imports modules once and then forks a child for each request that it reads from standard input, so that
stages of one framework share its slow import and nothing else. It may be told of more modules, which it imports while no
request waits: what the next stage will need is there when the one before it has ended.

Standard output of a stage goes to its log, as frameworks print freely; the real standard output carries messages alone,
one JSON array a line: ``["progress", job, done, total, note]``, and from a server ``["ready", 0]`` after its imports,
``["started", job, pid]`` and ``["ended", job, status]``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.01
# Objects made between two looks for garbage: converters keep most of what they make, so that Python's 700 costs them a tenth of their time.
_GARBAGE_AFTER = 50_000


def run_once(folder: Path) -> None:
    """Runs the request in ``folder`` and leaves ``result.json`` there."""
    messages = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_when_stdin_closes, daemon=True).start()
    _run_request(folder, messages, 0)


def serve(modules: list[str]) -> None:
    """Imports ``modules``, then takes lines until input ends.

    ``{"job": ..., "folder": ..., "log": ...}`` forks a child, ``{"warm": [...]}`` names modules for idle moments.
    """
    messages = os.dup(1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    _import(modules)
    _send(messages, ["ready", 0])
    children: dict[int, int] = {}
    warm: list[str] = []
    pending = b""
    while True:
        wait_seconds = 0 if warm else _POLL_SECONDS if children else None
        if select.select([0], [], [], wait_seconds)[0]:
            received = os.read(0, 65536)
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            for request in map(json.loads, lines):
                if "warm" in request:
                    warm += request["warm"]
                    continue
                child = _fork(request, messages)
                children[child] = request["job"]
                _send(messages, ["started", request["job"], child])
        elif warm:
            with contextlib.suppress(Exception):  # the stage that needs it will say what is wrong with it
                _import([warm.pop(0)])
        _reap(children, messages)
    for child in children:
        os.killpg(child, signal.SIGKILL)
    os._exit(0)  # taking a framework down takes a second


def _import(modules: list[str]) -> None:
    """Imports modules without collecting garbage meanwhile, of which there is none, and spares children from looking through them."""
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        gc.set_threshold(_GARBAGE_AFTER)
        gc.enable()


def _fork(request: dict[str, Any], messages: int) -> int:
    child = os.fork()
    if child:
        # Done on both sides, as either may come first: the group must exist before anyone kills it.
        _make_group(child)
        return child
    _make_group(0)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable()
    threading.Thread(target=_end_when_orphaned, args=(os.getppid(),), daemon=True).start()
    _run_request(Path(request["folder"]), messages, request["job"])
    return 0


def _make_group(process: int) -> None:
    try:
        os.setpgid(process, 0)
    except OSError:
        return


def _reap(children: dict[int, int], messages: int) -> None:
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        if child in children:
            _send(messages, ["ended", children.pop(child), os.waitstatus_to_exitcode(status)])


def _run_request(folder: Path, messages: int, job: int) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    warnings.simplefilter("ignore")
    result = _call(request, messages, job)
    partial = folder / "result.tmp"
    partial.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    partial.replace(folder / "result.json")
    sys.stdout.flush()
    sys.stderr.flush()
    # Frameworks may crash while they shut down, after the work is done.
    os._exit(0)


def _call(request: dict[str, Any], messages: int, job: int) -> dict[str, Any]:
    from toolkit.errors import StageFailed, StageOutOfMemory, ToolkitError
    from toolkit.job import Job

    def progress(done: int, total: int, note: str) -> None:
        _send(messages, ["progress", job, done, total, note[:200]])

    stage = request["stage"]
    inputs = {role: Path(path) for role, path in request["inputs"].items()}
    try:
        module, function = stage.split(":")
        kept = Path(request["kept"]) if request.get("kept") else None
        facts = getattr(importlib.import_module(module), function)(Job(inputs, request["options"], Path(request["out"]), progress, kept))
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


def _send(messages: int, message: list[Any]) -> None:
    """Writes one line in one call: the system keeps lines this short whole, whoever else writes."""
    os.write(messages, json.dumps(message).encode() + b"\n")


def _essence(error: BaseException) -> str:
    """The first line that says something; frameworks put pages behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def _end_when_stdin_closes() -> None:
    """Ends this process when its parent, who holds the other end, is gone."""
    os.read(0, 1)
    os._exit(1)


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    if sys.argv[1] == "--serve":
        serve(sys.argv[2].split(","))
    else:
        run_once(Path(sys.argv[1]))
