"""Latency against its limits, as far as the machine's own noise lets anybody judge.

Two numbers say what a timing is worth: its interval, and how far the same model, loaded twice and timed in turns, differed from
itself (A/A). A verdict needs both around the measured value to be on one side of the limit. A machine that differs from itself by
more than is allowed gives no verdict at all, so that noise is never a pass, and never a failure either.
"""

from __future__ import annotations

import math

from toolkit.checks.samples import TAIL
from toolkit.checks.verdicts import Judgement, by_interval, conclude, missing
from toolkit.evidence import Verdict
from toolkit.figures import Latency
from toolkit.stats.proportions import Interval
from toolkit.suspects import RESPONSIBLE, Slower, show_suspects

# The largest of n times is above the 90th percentile with probability 1 - 0.9**n; with fewer, no time bounds it from above.
P90_RUNS = math.ceil(math.log(TAIL) / math.log(0.9))
# Neighbours lengthen times and never shorten them: beside them a time that holds its limit still does, one that misses it may not.
MOST_NEIGHBOURS = 0.5
_LONGER = "a longer measurement or a quieter machine would narrow it"


def max_p90(limit_ms: float, latency: Latency | None) -> Judgement:
    """Holds the 90th percentile against a limit in milliseconds."""
    if latency is None:
        return missing("latency", f"allowed {limit_ms:.3f} ms")
    where = f" on {latency.stand_in}" if latency.stand_in else ""
    interval = f"[{latency.p90_low:.3f}, {latency.p90_high:.3f}]"
    facts = f"p90 latency {latency.p90:.3f} ms {interval} over {latency.n:,} runs{where}{_noise(latency)}; allowed {limit_ms:.3f} ms"
    if latency.n < P90_RUNS:
        return conclude(Verdict.INCONCLUSIVE, facts, f"a 95 % interval of the p90 needs at least {P90_RUNS} inferences")
    verdict, reason = decide(latency, (latency.p90, latency.p90_low, latency.p90_high), limit_ms, facts)
    if verdict is Verdict.FAIL and (latency.neighbours or 0.0) > MOST_NEIGHBOURS:
        busy = f"other processes kept {latency.neighbours:.1f} CPUs busy meanwhile, which makes every time longer: measure on a quieter machine"
        return conclude(Verdict.INCONCLUSIVE, facts, busy)
    return verdict, reason


def max_ratio(limit: float, latency: Latency | None, slower: Slower | None = None) -> Judgement:
    """Holds the median over the float twin's against a limit.

    Args:
        limit: Largest allowed ratio.
        latency: What was measured.
        slower: Which operators make the file slower than its twin, where it is; a failure names them.
    """
    if latency is None or latency.ratio_to_float is None:
        return missing("latency beside the float twin", f"allowed {limit:.3f} of its median")
    if latency.ratio_low is None or latency.ratio_high is None:
        facts = f"median latency {latency.ratio_to_float:.3f} of the float twin's over {latency.n:,} runs; allowed {limit:.3f}"
        return conclude(Verdict.INCONCLUSIVE, facts, "a single round tells nothing about the spread of rounds: measure longer")
    figure = (latency.ratio_to_float, latency.ratio_low, latency.ratio_high)
    return _because(decide(latency, figure, limit, f"{ratio_facts(latency)}; allowed {limit:.3f}"), slower)


def min_speedup(limit: float, latency: Latency | None, slower: Slower | None = None) -> Judgement:
    """Holds the float twin's median over this file's against a smallest speed-up.

    It decides as :func:`max_ratio` does at the limit's inverse, so that both say the same of one measurement.

    Args:
        limit: Smallest allowed speed-up.
        latency: What was measured.
        slower: Which operators make the file slower than its twin, where it is; a failure names them.
    """
    asked = f"at least {limit:.3f} times asked"
    if latency is None or latency.ratio_to_float is None:
        return missing("latency beside the float twin", asked)
    if latency.ratio_low is None or latency.ratio_high is None:
        facts = f"{_speedup(latency.ratio_to_float):.3f} times as fast as the float twin over {latency.n:,} runs; {asked}"
        return conclude(Verdict.INCONCLUSIVE, facts, "a single round tells nothing about the spread of rounds: measure longer")
    figure = (latency.ratio_to_float, latency.ratio_low, latency.ratio_high)
    return _because(decide(latency, figure, 1 / limit, f"{speedup_facts(latency)}; {asked}"), slower)


def is_slower(latency: Latency | None) -> bool:
    """Whether a file was slower than its float twin: the ratio's interval, widened to the machine's noise, lies above 1.

    That much is worth saying on a noisy machine too, where no limit is judged.
    """
    if latency is None or latency.ratio_to_float is None or latency.ratio_low is None or latency.ratio_high is None:
        return False
    least, _ = widen((latency.ratio_to_float, latency.ratio_low, latency.ratio_high), latency.noise)
    return least > 1


def speedup_facts(latency: Latency) -> str:
    """Spells out the float twin's median over this file's with interval, number of inferences and noise."""
    if latency.ratio_to_float is None or latency.ratio_low is None or latency.ratio_high is None:
        raise ValueError("there is no ratio to a float twin")
    where = f" on {latency.stand_in}" if latency.stand_in else ""
    interval = f"[{_speedup(latency.ratio_high):.3f}, {_speedup(latency.ratio_low):.3f}]"
    return f"{_speedup(latency.ratio_to_float):.3f} {interval} times as fast as the float twin over {latency.n:,} runs{where}{_noise(latency)}"


def _speedup(ratio: float) -> float:
    return 1 / ratio if ratio else math.inf


def _because(judgement: Judgement, slower: Slower | None) -> Judgement:
    verdict, reason = judgement
    if verdict is not Verdict.FAIL or slower is None or not slower.suspects:
        return judgement
    return verdict, f"{reason}; {RESPONSIBLE}: {show_suspects(slower.suspects)}"


def ratio_facts(latency: Latency) -> str:
    """Spells out the ratio to the float twin with interval, number of inferences and noise."""
    where = f" on {latency.stand_in}" if latency.stand_in else ""
    interval = f"[{latency.ratio_low:.3f}, {latency.ratio_high:.3f}]"
    return f"median latency {latency.ratio_to_float:.3f} {interval} of the float twin's over {latency.n:,} runs{where}{_noise(latency)}"


def decide(latency: Latency, figure: Interval, limit: float, facts: str) -> Judgement:
    """Judges a time or a ratio of times against its upper limit.

    Args:
        latency: The measurement it comes from, for what is known about its noise.
        figure: Value, low end, high end.
        limit: Largest allowed value.
        facts: The figure in words.
    """
    doubt = _doubt(latency)
    if doubt:
        return conclude(Verdict.INCONCLUSIVE, facts, doubt)
    least, most = widen(figure, latency.noise)
    verdict = by_interval(holds=most <= limit, misses=least > limit)
    decided_alone = figure[2] <= limit or figure[1] > limit
    return conclude(verdict, facts, f"the gap is within the machine's own noise; {_LONGER}" if decided_alone else _LONGER)


def widen(figure: Interval, noise: float | None) -> tuple[float, float]:
    """Returns an interval that is nowhere closer to its value than the same model was to itself; ``None`` is noise nobody measured.

    The wider of the two counts, and not their sum: both contain the spread of this measurement. In a simulation of 6 replicates
    that spread by 2 %, a model 10 % slower is found against a limit of 1.03 in 98 % of the runs, and in 69 % with the sum, while
    equal models fail a limit of 1 in less than 1 % either way.
    """
    value, low, high = figure
    share = noise or 0.0
    return min(low, value / (1 + share)), max(high, value * (1 + share))


def _doubt(latency: Latency) -> str:
    """Says why this measurement decides nothing at all; empty when it may."""
    noise, allowed = latency.noise, latency.max_noise
    if noise is not None and allowed is not None and noise > allowed:
        return f"the machine differs from itself by {noise:.0%} (A/A), more than the {allowed:.0%} allowed: measure on a quieter machine"
    if not latency.steady:
        return "warming up never reached a steady state: measure on a quieter machine"
    return ""


def _noise(latency: Latency) -> str:
    return "" if latency.noise is None else f", noise {latency.noise:.1%} (A/A)"
