"""The digits project, run once by Edgekit for all benchmarks that need its models or its cache."""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import DIGITS, Cost, edgekit, timed


def run(folder: Path) -> Cost:
    """Runs the whole job with the cache ``folder/cache`` and the output ``folder/out``."""
    folder.mkdir(parents=True, exist_ok=True)
    return timed(edgekit("run", DIGITS, "--output", folder / "out"), folder / "log.txt", {"EDGEKIT_CACHE": str(folder / "cache")})


@functools.cache
def finished() -> Path:
    """Returns a folder with the cache and the output of a finished run; it is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="edgekit-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run(folder)
    return folder


def held_out():
    """Returns the held-out digits ``[900 x 1 x 8 x 8] float32``, from the example's own code."""
    sys.path.insert(0, str(DIGITS))
    try:
        from digits import load
    finally:
        sys.path.remove(str(DIGITS))
    return load()["eval"]["image"]
