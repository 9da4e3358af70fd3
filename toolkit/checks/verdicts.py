"""What every check shares: which side of its limit an interval lies on, and the words for it."""

from __future__ import annotations

from toolkit.evidence import Verdict

Judgement = tuple[Verdict, str]


def by_interval(*, holds: bool, misses: bool) -> Verdict:
    """Returns *inconclusive* for an interval that is neither wholly on the good side of its limit nor wholly on the bad one."""
    if holds:
        return Verdict.PASS
    return Verdict.FAIL if misses else Verdict.INCONCLUSIVE


def exactly(holds: bool) -> Verdict:
    """Judges a figure without uncertainty, such as a size."""
    return Verdict.PASS if holds else Verdict.FAIL


def missing(what: str, asked: str) -> Judgement:
    """Judges a budget whose evidence is not there: no evidence is no pass."""
    return Verdict.INCONCLUSIVE, f"{what} was not measured; {asked}"


def conclude(verdict: Verdict, facts: str, undecided: str = "") -> Judgement:
    """Ends a reason.

    Args:
        verdict: What the facts say.
        facts: Measured value, interval, sample count and limit.
        undecided: What would decide; only said of an inconclusive verdict.
    """
    return verdict, facts + {Verdict.PASS: ": holds", Verdict.FAIL: ": missed", Verdict.INCONCLUSIVE: f": undecided, {undecided}"}[verdict]
