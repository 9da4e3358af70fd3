"""Budgets held against evidence: verdicts, reasons, and the sample counts that reasons promise."""

import re
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from toolkit.checks import budgets as check
from toolkit.checks import latency as latency_checks
from toolkit.checks import samples
from toolkit.checks.budgets import Evidence
from toolkit.evidence import Finding, Verdict
from toolkit.figures import Change, Latency, Memory, Metric
from toolkit.limits import Budgets
from toolkit.metrics import METRICS
from toolkit.stats.paired_rounds import replicated_ratio_interval
from toolkit.stats.proportions import paired_difference_interval, proportion_interval

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
RANK = {FAIL: 0, INCONCLUSIVE: 1, PASS: 2}
# Every budget, with a tight and a loose limit in the same order.
SCALES = {
    "min_accuracy": (0.9999, 0.0001),
    "max_drop": (0.0001, 0.999),
    "max_size_bytes": (100, 10_000_000),
    "max_size_ratio": (0.05, 2.0),
    "max_latency_p90_ms": (0.01, 100.0),
    "max_latency_ratio": (0.01, 100.0),
    "min_speedup": (100.0, 0.01),
    "max_peak_memory_mb": (0.01, 1000.0),
}


def wilson(value: float, n: int) -> tuple[float, float]:
    """The textbook form of the score interval; n need not make value * n whole."""
    z = NormalDist().inv_cdf(0.975)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5
    return centre - half, centre + half


def metric(value: float, n: int) -> Metric:
    low, high = wilson(value, n)
    return Metric(name="top1_accuracy", value=value, low=low, high=high, n=n)


def change(value: float, low: float, high: float, n: int = 900) -> Change:
    return Change(value=value, low=low, high=high, n=n, lost=0, gained=0)


def timed(p90: float, low: float, high: float, **more: object) -> Latency:
    return Latency(p50=p90, p90=p90, p50_low=low, p50_high=high, p90_low=low, p90_high=high, n=500, **more)


def turns(ratio: float, low: float | None, high: float | None, **more: object) -> dict:
    return {"latency": timed(1.0, 0.9, 1.1, ratio_to_float=ratio, ratio_low=low, ratio_high=high, **more)}


def memory(peak_bytes: int) -> Memory:
    return Memory(peak_bytes=peak_bytes, resident_bytes=peak_bytes, weight_bytes=1000, n=3)


def judge(evidence: dict | None = None, **limits: object) -> tuple[Finding, ...]:
    return check.judge(Budgets(**limits), Evidence(**(evidence or {})))


def rate(value: float, low: float, high: float) -> dict:
    return {"metrics": [Metric(name="top1_accuracy", value=value, low=low, high=high, n=900)]}


CASES = [
    ("min_accuracy", 0.95, rate(0.97, 0.95, 0.98), PASS),
    ("min_accuracy", 0.95, rate(0.97, 0.9499, 0.98), INCONCLUSIVE),
    ("min_accuracy", 0.95, rate(0.94, 0.92, 0.95), INCONCLUSIVE),
    ("min_accuracy", 0.95, rate(0.93, 0.91, 0.9499), FAIL),
    ("max_drop", 0.01, {"changes": [change(-0.002, -0.01, 0.004)]}, PASS),
    ("max_drop", 0.01, {"changes": [change(-0.002, -0.0101, 0.004)]}, INCONCLUSIVE),
    ("max_drop", 0.01, {"changes": [change(-0.02, -0.03, -0.01)]}, INCONCLUSIVE),
    ("max_drop", 0.01, {"changes": [change(-0.02, -0.03, -0.0101)]}, FAIL),
    ("max_drop", 0.001, {"changes": [change(0.02, 0.001, 0.04)]}, PASS),
    ("max_size_bytes", 1000, {"size_bytes": 1000}, PASS),
    ("max_size_bytes", 1000, {"size_bytes": 1001}, FAIL),
    ("max_size_ratio", 0.25, {"size_bytes": 250, "float_size_bytes": 1000}, PASS),
    ("max_size_ratio", 0.25, {"size_bytes": 251, "float_size_bytes": 1000}, FAIL),
    ("max_size_ratio", 0.25, {"size_bytes": 251}, INCONCLUSIVE),
    ("max_latency_p90_ms", 5.0, {"latency": timed(4.0, 3.0, 5.0)}, PASS),
    ("max_latency_p90_ms", 5.0, {"latency": timed(4.0, 3.0, 5.01)}, INCONCLUSIVE),
    ("max_latency_p90_ms", 5.0, {"latency": timed(6.0, 5.0, 7.0)}, INCONCLUSIVE),
    ("max_latency_p90_ms", 5.0, {"latency": timed(6.0, 5.01, 7.0)}, FAIL),
    ("max_latency_ratio", 1.05, turns(1.0, 0.96, 1.05), PASS),
    ("max_latency_ratio", 1.05, turns(1.0, 0.96, 1.051), INCONCLUSIVE),
    ("max_latency_ratio", 1.05, turns(1.1, 1.05, 1.2), INCONCLUSIVE),
    ("max_latency_ratio", 1.05, turns(1.1, 1.051, 1.2), FAIL),
    ("max_latency_ratio", 1.05, turns(2.0, None, None), INCONCLUSIVE),
    ("max_peak_memory_mb", 2.0, {"memory": memory(2_000_000)}, PASS),
    ("max_peak_memory_mb", 2.0, {"memory": memory(2_000_001)}, FAIL),
]


@pytest.mark.parametrize(("budget", "limit", "evidence", "verdict"), CASES)
def test_verdict_follows_from_which_side_of_the_limit_the_interval_lies(budget, limit, evidence, verdict):
    (finding,) = judge(evidence=evidence, **{budget: limit})
    assert (finding.budget, finding.verdict) == (budget, verdict)


@pytest.mark.parametrize("p90", [4.0, 6.0])
def test_too_few_inferences_decide_nothing_about_the_p90_and_the_reason_says_how_many_would(p90):
    """The chance that no time lies above the 90th percentile, 0.9^n, must fall to 2.5 %: brute force finds the smallest n."""
    least = next(n for n in range(1, 100) if 0.9**n <= 0.025)
    latency = timed(p90, p90 - 0.1, p90 + 0.1)
    few, enough = (judge(evidence={"latency": latency.model_copy(update={"n": n})}, max_latency_p90_ms=5.0)[0] for n in (least - 1, least))
    assert few.verdict is INCONCLUSIVE
    assert few.reason.endswith(
        f"over {least - 1} runs on host cpu; allowed 5.000 ms: undecided, a 95 % interval of the p90 needs at least {least} inferences"
    )
    assert enough.verdict is (PASS if p90 < 5 else FAIL)


@pytest.mark.parametrize("budget", SCALES)
def test_a_budget_without_evidence_is_inconclusive_and_says_so(budget):
    (finding,) = judge(**{budget: SCALES[budget][1]})
    assert finding.verdict is INCONCLUSIVE
    assert "was not measured" in finding.reason


def test_only_budgets_that_are_set_are_judged_in_their_order():
    assert judge() == ()
    limits = {budget: loose for budget, (_, loose) in reversed(SCALES.items())}
    several = {"roc_auc": {"max_drop": "1pp", "min": 0.5}, "expected_calibration_error": {"max": 0.1}}
    fields = list(Budgets.model_fields)
    assert [*SCALES, "metrics"] == fields
    single = ["metrics.roc_auc.min", "metrics.roc_auc.max_drop", "metrics.expected_calibration_error.max"]
    assert [finding.budget for finding in judge(**limits, metrics=several)] == [*fields[:-1], *single]


def test_the_float_twin_itself_has_no_ratios():
    evidence = {"size_bytes": 1000, "float_size_bytes": 1000, **turns(1.0, 0.99, 1.01)}
    assert judge({**evidence, "own_twin": True}, max_size_ratio=0.5, max_latency_ratio=0.5) == ()
    assert [finding.verdict for finding in judge(evidence, max_size_ratio=0.5, max_latency_ratio=0.5)] == [FAIL, FAIL]


def test_reasons_carry_value_interval_limit_count_and_stand_in():
    evidence = {"changes": [change(-0.0044, -0.0102, 0.0011)], "latency": timed(4.0, 3.0, 6.0), "metrics": [metric(0.96, 900)]}
    accuracy, drop, latency = judge(evidence=evidence, min_accuracy=0.9, max_drop=0.01, max_latency_p90_ms=5.0)
    assert accuracy.reason == "top-1 accuracy 96.00% [94.51%, 97.10%] on 900 samples; at least 90.00% asked: holds"
    # 900 * (0.58 / 0.56)^2 = 965.4
    expected = "top-1 accuracy fell by 0.44 pp [-1.02, +0.11] on 900 samples; allowed 1.00 pp: undecided, about 966 samples would decide at this rate"
    assert drop.reason == expected
    assert latency.reason.startswith("p90 latency 4.000 ms [3.000, 6.000] over 500 runs on host cpu; allowed 5.000 ms: undecided")


def test_a_value_beyond_the_margin_is_decided_towards_fail():
    (finding,) = judge(evidence={"changes": [change(-0.012, -0.02, -0.004, n=1000)]}, max_drop=0.01)
    # 1000 * (0.008 / 0.002)^2 = 16,000, and one more to be strictly beyond
    assert finding.reason.endswith("undecided, about 16,100 samples would decide towards fail at this rate")


@pytest.mark.parametrize(
    ("limits", "evidence"),
    [({"max_drop": 0.01}, {"changes": [change(-0.01, -0.02, 0.0)]}), ({"min_accuracy": 0.95}, {"metrics": [metric(0.95, 400)]})],
)
def test_a_value_on_the_limit_is_never_decided(limits, evidence):
    (finding,) = judge(evidence=evidence, **limits)
    assert finding.verdict is INCONCLUSIVE
    assert finding.reason.endswith("never decided at this rate")


def test_a_gap_too_small_to_be_squared_is_never_decided():
    assert samples.samples_for_rate(0.5, 0.5 + 2**-52) is None
    assert samples.samples_for_rate(1e-200, 2e-200) is None
    assert samples.samples_for_value(1e-310, -0.01, 0.01, 900, 0.0) is None


@given(limit=st.floats(0.02, 0.98), n=st.integers(5, 5000), side=st.sampled_from([-1, 1]), share=st.floats(0.05, 0.95))
def test_the_count_that_decides_a_rate_decides_and_one_tenth_less_does_not(limit, n, side, share):
    value = limit + side * share * 1.96 * (limit * (1 - limit) / n) ** 0.5
    assume(0 < value < 1)
    assume(judge(evidence={"metrics": [metric(value, n)]}, min_accuracy=limit)[0].verdict is INCONCLUSIVE)
    count = samples.samples_for_rate(value, limit)
    assert count is not None
    assert count > n
    expected = PASS if value > limit else FAIL
    for enough in (count, int(samples.about(count).replace(",", ""))):
        assert judge(evidence={"metrics": [metric(value, enough)]}, min_accuracy=limit)[0].verdict is expected
    assert judge(evidence={"metrics": [metric(value, max(1, int(count * 0.9) - 1))]}, min_accuracy=limit)[0].verdict is INCONCLUSIVE


@given(
    gap=st.floats(-0.9, 0.9).filter(lambda gap: abs(gap) > 0.01),
    below=st.floats(0.001, 0.05),
    above=st.floats(0.001, 0.05),
    limit=st.floats(1e-3, 0.1),
    n=st.integers(10, 5000),
)
def test_the_count_that_decides_a_drop_decides_when_the_interval_shrinks_with_its_root(gap, below, above, limit, n):
    value = -limit + gap * (below if gap > 0 else above)

    def at(count: int) -> Verdict:
        shrunk = (n / count) ** 0.5
        return judge(evidence={"changes": [change(value, value - below * shrunk, value + above * shrunk, count)]}, max_drop=limit)[0].verdict

    assume(at(n) is INCONCLUSIVE)
    count = samples.samples_for_value(value, value - below, value + above, n, -limit)
    assert count is not None
    assert count >= n
    assert at(count) is (PASS if value > -limit else FAIL)
    assert at(int(samples.about(count).replace(",", ""))) is not INCONCLUSIVE
    assert at(max(1, int(count * 0.9) - 1)) is INCONCLUSIVE


shares = st.tuples(*[st.floats(0, 1)] * 3).map(sorted)


@given(
    rates=shares,
    changes=shares,
    latencies=shares,
    size=st.integers(1, 5_000_000),
    first=st.floats(0, 1),
    second=st.floats(0, 1),
    noise=st.none() | st.floats(0, 0.2),
)
def test_tightening_a_budget_never_improves_a_verdict(rates, changes, latencies, size, first, second, noise):
    low, value, high = rates
    lost, moved, gained = (2 * share - 1 for share in changes)
    fast, p90, slow = (100 * share for share in latencies)
    evidence = {
        "metrics": [Metric(name="top1_accuracy", value=value, low=low, high=high, n=100)],
        "changes": [change(moved, lost, gained)],
        "latency": timed(p90, fast, slow, ratio_to_float=p90, ratio_low=fast, ratio_high=slow, noise=noise, max_noise=0.1),
        "memory": memory(size),
        "size_bytes": size,
        "float_size_bytes": 2_000_000,
    }
    tighter, looser = sorted((first, second))

    def verdicts(share: float) -> list[Verdict]:
        limits = {budget: type(tight)(tight + share * (loose - tight)) for budget, (tight, loose) in SCALES.items()}
        return [finding.verdict for finding in judge(evidence, **limits)]

    for tight, loose in zip(verdicts(tighter), verdicts(looser), strict=True):
        assert RANK[tight] <= RANK[loose]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), (PASS, "no budget is set, so nothing was asked")),
        ((PASS,), (PASS, "1 budget holds")),
        ((PASS, PASS, PASS), (PASS, "3 budgets hold")),
        ((PASS, INCONCLUSIVE, INCONCLUSIVE), (INCONCLUSIVE, "reason 1")),
        ((INCONCLUSIVE, PASS, FAIL), (FAIL, "reason 2")),
    ],
)
def test_a_row_is_as_good_as_its_worst_finding(verdicts, expected):
    findings = tuple(Finding(budget="max_drop", verdict=verdict, reason=f"reason {index}") for index, verdict in enumerate(verdicts))
    assert check.row_verdict(findings) == expected


def test_reasons_are_one_line():
    for budget, limit, evidence, _ in CASES:
        (finding,) = judge(evidence=evidence, **{budget: limit})
        assert not re.search(r"\n|\.$|  ", finding.reason)


# One metric of each direction and scale: value, interval, and limits that hold, straddle and are missed.
METRIC_CASES = [
    ("roc_auc", "min", {0.90: PASS, 0.93: INCONCLUSIVE, 0.96: FAIL}),
    ("expected_calibration_error", "max", {0.96: PASS, 0.93: INCONCLUSIVE, 0.90: FAIL}),
    ("perplexity", "max", {1.96: PASS, 1.93: INCONCLUSIVE, 1.90: FAIL}),
]


@pytest.mark.parametrize(("name", "key", "expected"), METRIC_CASES)
def test_a_metric_is_held_against_the_end_of_its_interval_that_is_worse(name, key, expected):
    offset = METRICS[name].low if name == "perplexity" else 0.0
    found = Metric(name=name, value=offset + 0.93, low=offset + 0.91, high=offset + 0.95, n=400, method="BCa bootstrap")
    for limit, verdict in expected.items():
        (finding,) = judge({"metrics": [metric(0.5, 100), found]}, metrics={name: {key: limit}})
        assert (finding.budget, finding.verdict) == (f"metrics.{name}.{key}", verdict)


@pytest.mark.parametrize(
    ("name", "key", "margin", "interval", "verdict"),
    [
        ("roc_auc", "max_drop", 0.02, (-0.01, -0.02, 0.0), PASS),
        ("roc_auc", "max_drop", 0.02, (-0.01, -0.021, 0.0), INCONCLUSIVE),
        ("roc_auc", "max_drop", 0.02, (-0.03, -0.05, -0.021), FAIL),
        ("perplexity", "max_rise", 0.5, (0.2, -0.1, 0.5), PASS),
        ("perplexity", "max_rise", 0.5, (0.2, -0.1, 0.51), INCONCLUSIVE),
        ("perplexity", "max_rise", 0.5, (0.9, 0.51, 1.2), FAIL),
        ("perplexity", "max_rise", 0.5, (-0.9, -1.2, -0.3), PASS),
        ("expected_calibration_error", "max_rise", 0.01, (0.02, 0.011, 0.03), FAIL),
    ],
)
def test_a_loss_is_a_fall_of_what_should_be_high_and_a_rise_of_what_should_be_low(name, key, margin, interval, verdict):
    value, low, high = interval
    moved = Change(metric=name, value=value, low=low, high=high, n=400, method="BCa bootstrap")
    (finding,) = judge({"changes": [change(0.0, -0.5, 0.5), moved]}, metrics={name: {key: margin}})
    assert (finding.budget, finding.verdict) == (f"metrics.{name}.{key}", verdict)
    assert ("rose by" if value > 0 else "fell by") in finding.reason


def test_reasons_speak_the_metrics_unit():
    found = Metric(name="perplexity", value=12.34567, low=11.5, high=13.5, n=400, method="BCa bootstrap")
    moved = Change(metric="perplexity", value=0.25, low=0.1, high=0.4, n=400, method="BCa bootstrap")
    limit, rise = judge({"metrics": [found], "changes": [moved]}, metrics={"perplexity": {"max": 14.0, "max_rise": 0.5}})
    assert limit.reason == "perplexity 12.35 [11.5, 13.5] on 400 samples; at most 14 asked: holds"
    assert rise.reason == "perplexity rose by 0.25 [+0.1, +0.4] on 400 samples; allowed 0.5: holds"


def test_max_drop_follows_the_primary_metric_and_min_accuracy_the_top1():
    evidence = {
        "metrics": [Metric(name="macro_f1", value=0.8, low=0.7, high=0.9, n=100, method="BCa bootstrap"), metric(0.99, 1000)],
        "changes": [Change(metric="macro_f1", value=-0.05, low=-0.06, high=-0.04, n=100, method="BCa bootstrap"), change(0.0, -0.001, 0.001)],
    }
    accuracy, drop = judge(evidence, min_accuracy=0.95, max_drop=0.02)
    assert (accuracy.verdict, drop.verdict) == (PASS, FAIL)
    assert drop.reason.startswith("macro f1 fell by 5.00 pp")


@given(value=st.floats(-0.1, 0.1), below=st.floats(0.001, 0.05), above=st.floats(0.001, 0.05), margin=st.floats(0.001, 0.05))
def test_a_metric_and_its_mirror_image_have_the_same_verdict(value, below, above, margin):
    """An error is judged like the negative of a gain."""
    gain = Change(metric="roc_auc", value=value, low=value - below, high=value + above, n=100, method="DeLong")
    error = Change(metric="expected_calibration_error", value=-value, low=-(value + above), high=-(value - below), n=100, method="BCa bootstrap")
    (one,) = judge({"changes": [gain]}, metrics={"roc_auc": {"max_drop": margin}})
    (other,) = judge({"changes": [error]}, metrics={"expected_calibration_error": {"max_rise": margin}})
    assert one.verdict is other.verdict
    assert one.reason.partition("allowed")[2] == other.reason.partition("allowed")[2]


# Too few samples for any result.


@pytest.mark.parametrize("limit", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_from_the_count_that_is_told_on_a_perfect_model_reaches_a_rate_and_with_one_less_it_does_not(limit):
    least = samples.samples_for_perfect_rate(limit)
    assert proportion_interval(least, least)[0] >= limit
    assert least == 1 or proportion_interval(least - 1, least - 1)[0] < limit


@pytest.mark.parametrize("margin", [0.1, 0.01, 0.005, 0.001])
@pytest.mark.parametrize("rate_of_both", [1.0, 0.95, 0.7])
def test_from_the_count_that_is_told_on_two_models_that_always_agree_hold_a_margin(margin, rate_of_both):
    least = samples.samples_for_agreement(margin, rate_of_both)

    def holds(n: int) -> bool:
        right = round(rate_of_both * n)
        return paired_difference_interval(right, 0, 0, n - right)[1] >= -margin

    assert holds(least)
    # Whole counts of right answers make the ends of the interval wobble a little.
    assert not any(holds(n) for n in range(max(1, least - 50), int(least * 0.97)))


def test_too_few_samples_for_any_model_are_told_as_such():
    evidence = {"metrics": [metric(0.98, 50)], "changes": [change(0.0, -0.071, 0.071, n=50)]}
    accuracy, drop = judge(evidence, min_accuracy=0.97, max_drop=0.01)
    # All right: n / (n + 3.8415) >= 0.97 from 124.2 on; always agreeing at 98 %: nothing below 384 holds one point.
    assert accuracy.reason.endswith("samples would decide at this rate; not even a perfect model passes on 50 samples, on about 125 it can")
    told = re.search(r"; not even a model that agrees on every one passes on 50 samples, on about ([\d,]+) it can$", drop.reason)[1]
    assert told == samples.about(samples.samples_for_agreement(0.01, 0.98))
    assert 380 <= int(told) <= 460


def test_enough_samples_are_not_told_to_be_too_few():
    (finding,) = judge({"metrics": [metric(0.96, 900)]}, min_accuracy=0.955)
    assert finding.verdict is INCONCLUSIVE
    assert "not even" not in finding.reason


# Noise of the machine.


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize(("ratio", "low", "high"), [(0.5, 0.49, 0.51), (2.0, 1.9, 2.1)])
def test_a_machine_out_of_its_noise_floor_gives_no_latency_verdict(ratio, low, high, steady):
    evidence = turns(ratio, low, high, noise=0.14, max_noise=0.1, steady=steady)
    for finding in judge(evidence, max_latency_p90_ms=0.5, max_latency_ratio=1.0):
        assert finding.verdict is INCONCLUSIVE
        assert finding.reason.endswith(
            "undecided, the machine differs from itself by 14% (A/A), more than the 10% allowed: measure on a quieter machine"
        )


def test_a_warm_up_that_never_got_steady_gives_no_latency_verdict():
    for finding in judge(turns(0.5, 0.49, 0.51, noise=0.01, max_noise=0.1, steady=False), max_latency_p90_ms=5.0, max_latency_ratio=1.0):
        assert finding.verdict is INCONCLUSIVE
        assert "warming up never reached a steady state" in finding.reason


@pytest.mark.parametrize(
    ("figure", "noise", "verdict"),
    [
        ((0.92, 0.90, 0.94), 0.05, PASS),
        ((0.96, 0.95, 0.97), 0.05, INCONCLUSIVE),
        ((0.96, 0.95, 0.97), 0.04, PASS),
        ((0.96, 0.95, 0.97), None, PASS),
        ((1.04, 1.03, 1.05), 0.05, INCONCLUSIVE),
        ((1.06, 1.05, 1.07), 0.05, FAIL),
        ((1.04, 1.03, 1.05), None, FAIL),
        # Noise that the interval has already.
        ((1.04, 1.001, 1.08), 0.035, FAIL),
    ],
)
def test_a_gap_within_the_machines_noise_is_no_verdict(figure, noise, verdict):
    (finding,) = judge(turns(*figure, noise=noise, max_noise=0.1), max_latency_ratio=1.0)
    assert finding.verdict is verdict
    assert ("within the machine's own noise" in finding.reason) is (verdict is INCONCLUSIVE)


@given(low=st.floats(0.1, 10), below=st.floats(0, 1), above=st.floats(0, 1), noise=st.none() | st.floats(0, 0.5))
def test_noise_only_ever_widens(low, below, above, noise):
    figure = (low + below, low, low + below + above)
    least, most = latency_checks.widen(figure, noise)
    assert 0 < least <= figure[1] <= figure[2] <= most
    if noise:
        assert least <= figure[0] / (1 + noise) and most >= figure[0] * (1 + noise)
    else:
        assert (least, most) == figure[1:]


def simulated(slower: float, spread: float, rng: np.random.Generator, replicates: int = 6) -> Latency:
    """A candidate, its baseline and the baseline once more, each a log-normal figure per replicate."""
    candidate, baseline, twin = (np.exp(rng.normal(shift, spread, replicates)) for shift in (np.log(slower), 0.0, 0.0))
    value, low, high = replicated_ratio_interval(candidate, baseline, [twin])
    _, twin_low, twin_high = replicated_ratio_interval(twin, baseline, [candidate])
    return turns(value, low, high, noise=max(1 - twin_low, twin_high - 1), max_noise=0.1)["latency"]


@pytest.mark.parametrize("spread", [0.005, 0.02])
def test_equal_models_seldom_fail_and_a_tenth_more_time_is_found(spread):
    """1,000 simulated measurements: A/A pairs fail in at most 5 %, also at the upper end of the rate's interval; 10 % are found in 90 %."""
    rng = np.random.default_rng(7)
    limits = (1.0, 1.03)
    trials = 1000
    failed = {(slower, limit): 0 for slower in (1.0, 1.1) for limit in limits}
    for _ in range(trials):
        for slower in (1.0, 1.1):
            latency = simulated(slower, spread, rng)
            for limit in limits:
                failed[slower, limit] += latency_checks.max_ratio(limit, latency)[0] is FAIL
    for limit in limits:
        assert binomtest(failed[1.0, limit], trials).proportion_ci().high < 0.05
        assert binomtest(failed[1.1, limit], trials).proportion_ci().low > 0.9


def test_the_reason_says_how_noisy_the_machine_is():
    ratio, p90 = reversed(judge(turns(0.8, 0.79, 0.81, noise=0.031, max_noise=0.1), max_latency_p90_ms=5.0, max_latency_ratio=1.0))
    assert ratio.reason == "median latency 0.800 [0.790, 0.810] of the float twin's over 500 runs on host cpu, noise 3.1% (A/A); allowed 1.000: holds"
    assert "on host cpu, noise 3.1% (A/A); allowed 5.000 ms" in p90.reason


UNDECIDED = [
    ((190, 0, 0, 10), 0.005),
    ((190, 0, 0, 10), 0.01),
    ((180, 1, 1, 18), 0.02),
    ((470, 3, 1, 26), 0.01),
    ((1800, 20, 10, 170), 0.01),
    ((850, 60, 30, 60), 0.02),
    ((950, 12, 3, 35), 0.005),
]


@pytest.mark.parametrize(("table", "margin"), UNDECIDED)
def test_the_count_that_decides_a_change_of_a_rate_decides_when_all_four_counts_grow(table, margin):
    """Where few samples differ the interval shrinks faster than with the root of the count, which told up to 7 times too many."""
    n = sum(table)
    found = Change(**dict(zip(("value", "low", "high"), paired_difference_interval(*table), strict=True)), n=n, lost=table[1], gained=table[2])
    accuracy = (table[0] + table[2]) / n
    (finding,) = judge({"changes": [found], "metrics": [metric(accuracy, n)]}, max_drop=margin)
    count = int(re.search(r"about ([\d,]+) samples would decide", finding.reason)[1].replace(",", ""))

    def decided(size):
        _, low, high = paired_difference_interval(*(one * size / n for one in table))
        return low >= -margin or high < -margin

    assert decided(count) and not decided(count * 0.98)


def test_the_count_that_decides_where_no_sample_differs_is_that_of_no_change():
    reach = proportion_interval(0, 120)[1]
    found = Change(metric="mean_iou", value=0.0, low=-reach, high=reach, n=120, method="BCa bootstrap")
    (finding,) = judge(
        {"changes": [found], "metrics": [Metric(name="mean_iou", value=0.5, low=0.4, high=0.6, n=120, method="BCa bootstrap")]}, max_drop=0.02
    )
    assert "about 189 samples would decide" in finding.reason
    assert proportion_interval(0, 189)[1] <= 0.02 < proportion_interval(0, 188)[1]


def test_agreement_with_a_reference_that_guesses_is_no_pass():
    """Equal models, but their labels are wrong: nothing could be lost."""
    same = Change(value=0.0, low=-0.001, high=0.001, n=3000, lost=0, gained=0)
    (held,) = judge({"changes": [same]}, max_drop=0.01)
    (guessed,) = judge({"changes": [same.model_copy(update={"informative": False})]}, max_drop=0.01)
    assert (held.verdict, guessed.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)
    assert "no better than guessing" in guessed.reason
    lost = Change(value=-0.2, low=-0.25, high=-0.15, n=3000, lost=700, gained=100, informative=False)
    assert judge({"changes": [lost]}, max_drop=0.01)[0].verdict is Verdict.FAIL


def test_a_slow_tail_beside_busy_neighbours_is_no_failure_and_a_fast_one_still_a_pass():
    alone, beside = ({"latency": timed(2.0, 1.9, 2.1, neighbours=busy)} for busy in (0.2, 1.4))
    assert [judge(one, max_latency_p90_ms=1.0)[0].verdict for one in (alone, beside)] == [Verdict.FAIL, Verdict.INCONCLUSIVE]
    assert "1.4 CPUs busy" in judge(beside, max_latency_p90_ms=1.0)[0].reason
    assert judge(beside, max_latency_p90_ms=3.0)[0].verdict is Verdict.PASS
