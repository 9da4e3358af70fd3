"""How many samples would decide: for a value that stays as it is, and for a perfect one."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from toolkit.stats.proportions import paired_difference_interval

TAIL = 0.025  # beyond either end of a 95 % interval
Z95 = NormalDist().inv_cdf(1 - TAIL)
# Nobody could collect as many.
_TOO_MANY = 1e12


def samples_for_rate(value: float, limit: float) -> int | None:
    """Counts the samples at which the Wilson interval of an unchanged rate leaves its limit.

    The Wilson interval inverts the score test (Wilson 1927, doi:10.1080/01621459.1927.10502953): its end meets ``limit`` where
    ``|value - limit| = z sqrt(limit (1 - limit) / n)``, which solves for ``n``.

    Returns:
        The smallest such count, or ``None`` when the rate sits on the limit and no count decides.
    """
    gap = value - limit
    return None if gap == 0 else _smallest(Z95**2 * limit * (1 - limit) / gap / gap, strict=gap < 0)


def samples_for_value(value: float, low: float, high: float, n: int, limit: float) -> int | None:
    """Counts the samples at which the interval of an unchanged value leaves its limit, of which more is better.

    The width of an interval shrinks with the root of the count; the half that points at the limit counts.

    Returns:
        The smallest such count, or ``None`` when the value sits on the limit and no count decides.
    """
    gap = value - limit
    half = value - low if gap > 0 else high - value
    return None if gap == 0 else _smallest(n * (half / gap) * (half / gap), strict=gap < 0)


def samples_for_change(both: float, lost: float, gained: float, neither: float, margin: float) -> int | None:
    """Counts the samples at which Newcombe's interval of two models that keep agreeing as they do leaves a margin.

    Found by scaling the four counts: where few samples differ, that interval shrinks faster than the root of the count.

    Args:
        both: Samples that both got right.
        lost: Samples that only the reference got right.
        gained: Samples that only the candidate got right.
        neither: Samples that both got wrong.
        margin: Allowed loss.

    Returns:
        The smallest such count, or ``None`` when the change sits on the margin and no count decides.
    """
    shares = [count / (both + lost + gained + neither) for count in (both, lost, gained, neither)]
    passing = shares[1] - shares[2] < margin

    def shown(count: int) -> bool:
        _, low, high = paired_difference_interval(*(share * count for share in shares))
        return low >= -margin if passing else high < -margin

    return None if math.isclose(shares[1] - shares[2], margin, rel_tol=1e-9) else _first(shown)


def samples_for_perfect_rate(limit: float) -> int:
    """Counts the samples from which on a rate can be shown to reach a limit: with all of them right, Wilson's low end is ``n / (n + z^2)``."""
    return _smallest(Z95**2 * limit / (1 - limit), strict=False) or 1


def samples_for_agreement(margin: float, rate: float = 1.0) -> int:
    """Counts the samples from which on two models that agree on every sample can be shown to differ by no more than a margin.

    Args:
        margin: Allowed loss of accuracy.
        rate: Accuracy of both.
    """

    def shown(count: int) -> bool:
        right = min(count, round(rate * count))
        return paired_difference_interval(right, 0, 0, count - right)[1] >= -margin

    return _first(shown) or math.ceil(_TOO_MANY)


def about(count: int) -> str:
    """Rounds a count up to three digits, so that the rounded count still decides."""
    step = 10 ** max(0, len(str(count)) - 3)
    return f"{-(-count // step) * step:,}"


def forecast(samples: int | None, *, towards_pass: bool, n: int, least: int = 0, best: str = "a perfect model") -> str:
    """Says how many samples would decide, and where even the best result would need more than there are.

    Args:
        samples: The count that would decide at an unchanged value; ``None`` when none does.
        towards_pass: Which way it would.
        n: Samples that there are.
        least: Samples from which on the best result could pass.
        best: The best result, in words.
    """
    hopeless = f"; not even {best} passes on {n:,} samples, on about {about(least)} it can" if n < least else ""
    if samples is None:
        return f"and never decided at this rate{hopeless}"
    return f"about {about(samples)} samples would decide {'' if towards_pass else 'towards fail '}at this rate{hopeless}"


def _smallest(bound: float, *, strict: bool) -> int | None:
    """Returns the first whole number at (or, if strict, beyond) a bound; ``None`` when nobody could collect as many."""
    if bound > _TOO_MANY:
        return None
    # The nudge keeps rounding errors of the bound from landing one sample short.
    bound *= 1 + 1e-9
    return math.floor(bound) + 1 if strict else max(1, math.ceil(bound))


def _first(shown: Callable[[int], bool]) -> int | None:
    """Returns the count from which on something is shown; ``None`` when nobody could collect as many."""
    enough = 1
    while not shown(enough):
        enough *= 2
        if enough > _TOO_MANY:
            return None
    few = enough // 2
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if shown(middle) else (middle, enough)
    return enough
