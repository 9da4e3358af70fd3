"""The repair ladder: climbs from the default file to dearer ones until the search split says that the accuracy budget holds.

Each rung starts from the best file so far, and is kept only where it is better on the search split. The verdict comes from another split:
what the search finds is a choice, not evidence.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import InputRejected, StageFailed, ToolkitError, UnsupportedOperators
from toolkit.quantization.rungs import RUNGS, Proposal
from toolkit.quantization.search import Judged, Search
from toolkit.quantization.workshop import State, Workshop
from toolkit.stats.signal import SQNR_LIMIT_DB

DEFAULT = "default"


@dataclass(frozen=True)
class Tried:
    """One file that was made and judged.

    Attributes:
        rung: The rung that proposed it.
        done: What it changed, a sentence each.
        judged: How it did; ``None`` where it could not be made.
        adopted: Whether the climb went on from it.
        reason: Why it could not be made.
        seconds: Time that it took.
    """

    rung: str
    done: tuple[str, ...]
    judged: Judged | None
    adopted: bool
    reason: str
    seconds: float


@dataclass
class Climb:
    """What a climb found.

    Attributes:
        state: What the best file is made of.
        model: The best file.
        judged: How it did on the search split.
        held: Whether that holds the budget.
        max_drop: The budget.
        asked: Whether it is the user's, or what ``auto`` aims at on its own.
        error: Why there is no file yet.
        tried: Every file, in order.
        skipped: Rungs that had nothing to change.
    """

    state: State
    model: Path
    judged: Judged
    held: bool
    max_drop: float
    asked: bool = True
    error: ToolkitError | None = None
    tried: list[Tried] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def taken(self) -> list[str]:
        """The rungs that the best file has climbed."""
        return list(dict.fromkeys(one.rung for one in self.tried if one.adopted))

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "max_drop": self.max_drop,
            "asked": self.asked,
            **self.judged.facts(),
            "held": self.held,
            "taken": self.taken(),
            "skipped": self.skipped,
            "rungs": [_facts(one) for one in self.tried],
        }


def climb(
    workshop: Workshop, search: Search, start: State, *, max_drop: float, rungs: Sequence[str] = tuple(RUNGS), twin: Path | None = None
) -> Climb:
    """Looks for the first file that holds a budget.

    Args:
        workshop: Makes the files.
        search: Judges them.
        start: What the default file is made of.
        max_drop: Largest loss of right answers against the float model, as a fraction.
        rungs: Names of the rungs that may be climbed, in the order of :data:`toolkit.quantization.rungs.RUNGS`.
        twin: The float file that losses are counted against; the one that ``start`` is made of by default.

    Returns:
        The best file: the one that holds, else the one that loses least.

    Raises:
        ToolkitError: Neither the default file nor any other can be made and run.
    """
    started = time.monotonic()
    twin = twin or start.model
    found = _begin(workshop, search, start, twin, max_drop, started)
    for number, name in enumerate(one for one in RUNGS if one in rungs):
        if found.held:
            break
        workshop.progress(number, len(rungs), f"{name}: {found.judged.drop[0] * 100:.1f} points lost so far, {max_drop * 100:g} allowed")
        if not _try_all(workshop, search, twin, found, name):
            found.skipped.append(name)
    if found.error:
        raise found.error
    return found


def _begin(workshop: Workshop, search: Search, start: State, twin: Path, max_drop: float, started: float) -> Climb:
    """The default file; one that cannot be made or run, as badly conditioned weights may bring about, is the first that is to be repaired."""
    try:
        made = workshop.make(start)
        judged = search.judge(made, twin)
    except (InputRejected, StageFailed) as error:
        found = Climb(start, twin, Judged(0, (1.0, 1.0, 1.0), -SQNR_LIMIT_DB), False, max_drop, error=error)
        found.tried.append(Tried(DEFAULT, (), None, False, error.message, _since(started)))
        return found
    found = Climb(start, made, judged, judged.holds(max_drop), max_drop)
    found.tried.append(Tried(DEFAULT, (), judged, True, "", _since(started)))
    return found


def _try_all(workshop: Workshop, search: Search, twin: Path, found: Climb, name: str) -> bool:
    """Tries what one rung proposes; returns whether it proposed anything."""
    anything = False
    proposals = iter(_proposals(workshop, search, found, name))
    while not found.held:
        started = time.monotonic()
        try:
            proposal = next(proposals, None)
        except (InputRejected, StageFailed, UnsupportedOperators) as error:
            found.tried.append(Tried(name, (), None, False, error.message, _since(started)))
            return True
        if proposal is None:
            break
        anything = True
        found.tried.append(_try(workshop, search, twin, found, name, proposal, started))
    return anything


def _proposals(workshop: Workshop, search: Search, found: Climb, name: str) -> Iterable[Proposal]:
    return RUNGS[name](workshop, search, found.state)


def _try(workshop: Workshop, search: Search, twin: Path, found: Climb, name: str, proposal: Proposal, started: float) -> Tried:
    try:
        made = workshop.make(proposal.state)
        judged = search.judge(made, twin)
    except (InputRejected, StageFailed, UnsupportedOperators) as error:
        return Tried(name, proposal.done, None, False, error.message, _since(started))
    better = judged.holds(found.max_drop) or judged.better_than(found.judged)
    if better:
        found.state, found.model, found.judged, found.error = proposal.state, made, judged, None
        found.held = judged.holds(found.max_drop)
    return Tried(name, proposal.done, judged, better, "", _since(started))


def _facts(tried: Tried) -> dict[str, Any]:
    judged = tried.judged.facts() if tried.judged else {"reason": tried.reason}
    return {"rung": tried.rung, "done": list(tried.done), "adopted": tried.adopted, "seconds": tried.seconds, **judged}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
