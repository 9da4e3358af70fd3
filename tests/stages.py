"""Stages that die in every way a framework can, for tests of the worker and the pipeline."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from toolkit.errors import InputRejected, UnsupportedOperators
from toolkit.job import Facts, Job


def echo(job: Job) -> Facts:
    """Copies its inputs' text and options, with noise on standard output."""
    print("noise that must not reach the caller's standard output")
    job.progress(1, 2, "half")
    text = "".join(path.read_text() for path in job.inputs.values())
    (job.out / "text.txt").write_text(text + str(job.options.get("append", "")))
    job.progress(2, 2, "done")
    return {"options": dict(job.options), "length": len(text)}


def count(job: Job) -> Facts:
    """Leaves one line per call in a file outside the store, so that tests can count calls."""
    with Path(job.options["counter"]).open("a") as stream:
        stream.write("called\n")
    return echo(job)


def imported(job: Job) -> Facts:
    """Says which of some modules its process has."""
    return {"imported": [name for name in job.options["modules"] if name in sys.modules]}


def unsupported(job: Job) -> Facts:
    raise UnsupportedOperators("operator aten.stft in layer 'front.spectrum' has no TFLite kernel", hint="compute the spectrum outside")


def reject(job: Job) -> Facts:
    raise InputRejected("found 3, expected 4", where="tensor x", hint="give 4")


def framework_error(job: Job) -> Facts:
    raise ValueError("unsupported operator Foo\nand a page of detail")


def segfault(job: Job) -> Facts:
    (job.out / "half.bin").write_bytes(b"half")
    ctypes.string_at(0)
    return {}


def abort(job: Job) -> Facts:
    os.abort()


def leave(job: Job) -> Facts:
    os._exit(7)


def system_exit(job: Job) -> Facts:
    sys.exit(3)


def killed(job: Job) -> Facts:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def killed_twice(job: Job) -> Facts:
    """Gets one step further with each call, and is killed at the first two."""
    assert job.kept
    with (job.kept / "steps").open("a") as stream:
        stream.write("x")
    found = (job.kept / "steps").read_text()
    if len(found) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    (job.out / "text.txt").write_text(found)
    return {"steps": len(found)}


def hang(job: Job) -> Facts:
    time.sleep(600)
    return {}


def child_outlives(job: Job) -> Facts:
    child = subprocess.Popen(["sleep", "600"])
    return {"pid": child.pid}


def eat_memory(job: Job) -> Facts:
    return {"size": len(bytearray(1 << 60))}


def tell_and_reject(job: Job) -> Facts:
    job.progress(1, 2, "half")
    return reject(job)


def tell_forever(job: Job) -> Facts:
    while True:
        job.progress(1, 2, "half")


def infinite_fact(job: Job) -> Facts:
    return {"value": float("inf")}


def slow(job: Job) -> Facts:
    """Writes something at once, and is done only when told."""
    (job.out / "early.txt").write_text("early")
    Path(job.options["started"]).write_text("started")
    while not Path(job.options["go"]).exists():
        time.sleep(0.01)
    return {}


def note_times(job: Job) -> Facts:
    start = time.monotonic()
    time.sleep(0.3)
    return {"start": start, "end": time.monotonic()}


def big(job: Job) -> Facts:
    """Writes a file in many pieces, so that a killed process is likely to die in the middle of one."""
    with (job.out / "big.bin").open("wb") as stream:
        for piece in range(40):
            stream.write(bytes([job.options["n"]]) * 100_000)
            stream.flush()
            time.sleep(0.002 if piece else 0.05)
    return {"n": job.options["n"]}
