"""The contract between the pipeline and a stage: files and plain options in, files and plain facts out.

A stage is a function ``run(job) -> facts`` that a worker process calls by its dotted name. It reads ``job.inputs``,
writes below ``job.out``, and returns facts that JSON can carry; the pipeline stores them as ``facts.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Stage = Callable[["Job"], Facts]
FACTS = "facts.json"


def _silent(done: int, total: int, note: str) -> None:
    """Swallows progress when nobody listens."""


@dataclass(frozen=True)
class Job:
    """One call of a stage.

    Attributes:
        inputs: Files and folders to read, by role. Never written to.
        options: Plain values that steer the stage.
        out: Empty folder to write into; it becomes visible to others only when the stage succeeds.
        progress: Callback ``(done, total, note)``.
        kept: Folder that outlives an interruption: the next call for the same output finds in it what this one left. ``None`` where
            nothing is kept.
    """

    inputs: Mapping[str, Path]
    options: Mapping[str, Any]
    out: Path
    progress: Callable[[int, int, str], None] = field(default=_silent)
    kept: Path | None = None


def read_facts(folder: Path) -> Facts:
    """Reads the facts that a finished stage left in its folder."""
    facts: Facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return facts
