"""Several ways to one output: they are tried in turn, the first that delivers is taken, and every other one is told with its reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from toolkit.errors import Interrupted, MissingExtra, NoRoute, SetupError, StageError, ToolkitError, UnsupportedOperators
from toolkit.evidence import Attempt
from toolkit.pipeline.steps import Step

if TYPE_CHECKING:
    from toolkit.pipeline.execute import Result

TAKEN: Literal["taken"] = "taken"
FAILED: Literal["failed"] = "failed"
PASSED_OVER: Literal["passed over"] = "passed over"
OPTION = "option"
NOT_NEEDED = "not-needed"
_MOST_CHARACTERS = 600  # frameworks print pages where a sentence is asked for

Attempting = Callable[[Step], "Result"]


def run(step: Step, attempt: Attempting) -> Result:
    """Tries a step and what stands in for it when it falls.

    A way whose preflight finds unsupported operators is passed over. So nothing long has run when all of them are.

    Args:
        step: The first way; the others follow by :attr:`Step.otherwise`.
        attempt: Runs one step, from its inputs to a result.

    Returns:
        The result of the way that was taken, or one error that says what was in the way of each. Its record has the attempts.
    """
    started = time.monotonic()
    attempts, fallen = list(step.passed_over), dict[str, ToolkitError]()
    for way in _ways(step):
        result, tried = _try(way, attempt)
        attempts.append(tried)
        if result.error and tried.outcome == FAILED:
            fallen[way.route] = result.error
        if result.ok or (result.error and not _leads_on(result.error)):
            break
    if result.ok:
        attempts += [_not_needed(later.route, way.route) for later in _ways(way.otherwise)]
        return replace(result, record=result.record.model_copy(update={"seconds": _since(started), "attempts": tuple(attempts)}))
    last = fallen.get(way.route)
    error = last if last and not _leads_on(last) else all_fallen(step.id.partition(":")[2], attempts, fallen)
    update = {"status": "failed", "seconds": _since(started), "error": error.to_dict(), "attempts": tuple(attempts)}
    return replace(result, record=result.record.model_copy(update=update), facts={}, folder=None, error=error)


def all_fallen(format: str, attempts: Sequence[Attempt], errors: Mapping[str, ToolkitError]) -> ToolkitError:
    """Makes one error of all that was in the way.

    Args:
        format: The format that nothing could be converted to.
        attempts: Every route and what became of it.
        errors: The errors of those that were tried, by route.

    Returns:
        The error itself where there is but one route. Otherwise one with a line for each, and the hint of the most trusted one that was
        tried: of their common type, else a :class:`StageError`; a :class:`NoRoute` where none was tried.
    """
    if len(attempts) == len(errors) == 1:
        return next(iter(errors.values()))
    kinds = {type(error) for error in errors.values()} or {NoRoute}
    kind = kinds.pop() if len(kinds) == 1 else StageError
    tried_first = sorted(attempts, key=lambda one: one.outcome != FAILED)
    hint = next((one.hint for one in tried_first if one.hint), "") or "run: edgekit doctor"
    lines = [f"{one.route} {'failed' if one.outcome == FAILED else 'was passed over'}: {one.reason}" for one in attempts]
    if len(lines) == 1:
        return kind(f"no route to {format}: {lines[0]}", hint=hint)
    return kind("\n".join([f"no route to {format}: {len(errors)} of {len(attempts)} were tried", *(f"  {line}" for line in lines)]), hint=hint)


def _try(way: Step, attempt: Attempting) -> tuple[Result, Attempt]:
    started = time.monotonic()
    result = attempt(way)
    if result.error:
        return result, _fallen(way, result.error, started)
    return result, Attempt(route=way.route, outcome=TAKEN, seconds=None if result.cached else _since(started))


def _leads_on(error: ToolkitError) -> bool:
    """Whether another way may still deliver: not when the user stops, or when this machine could not run any of them."""
    return not isinstance(error, Interrupted) and (isinstance(error, MissingExtra) or not isinstance(error, SetupError))


def _fallen(way: Step, error: ToolkitError, started: float) -> Attempt:
    """What became of a way that fell: unsupported operators are found before anything is converted, so it was not tried."""
    if isinstance(error, UnsupportedOperators):
        return Attempt(route=way.route, outcome=PASSED_OVER, code=error.code, reason=_short(error.message), hint=error.hint)
    told = error.message if error.where in ("", way.id, way.stage) else str(error)
    return Attempt(route=way.route, outcome=FAILED, code=error.code, reason=_short(told), hint=error.hint, seconds=_since(started))


def _not_needed(route: str, taken: str) -> Attempt:
    return Attempt(route=route, outcome=PASSED_OVER, code=NOT_NEEDED, reason=f"{taken} was taken before")


def _ways(step: Step | None) -> Iterable[Step]:
    while step:
        yield step
        step = step.otherwise


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _MOST_CHARACTERS else f"{flat[:_MOST_CHARACTERS]} ..."


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
