import re
from statistics import NormalDist

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from toolkit.checks import budgets as check
from toolkit.config import Budgets
from toolkit.evidence import Change, Finding, Latency, Metric, Verdict

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
RANK = {FAIL: 0, INCONCLUSIVE: 1, PASS: 2}
# Every budget, with a tight and a loose limit in the same order.
SCALES = {
    "min_accuracy": (1.0, 0.0),
    "max_drop": (0.0, 0.999),
    "max_size_bytes": (1, 10_000_000),
    "max_size_ratio": (0.01, 5.0),
    "max_latency_p90_ms": (0.01, 100.0),
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


def timed(p90: float, low: float, high: float) -> Latency:
    return Latency(p50=p90, p90=p90, p50_low=low, p50_high=high, p90_low=low, p90_high=high, n=500)


def judge(scheme: str = "static_wi8_ai8", evidence: dict | None = None, **limits: object) -> tuple[Finding, ...]:
    nothing = {"size_bytes": None, "float_size_bytes": None, "metric": None, "change": None, "latency": None}
    return check.judge(Budgets(**limits), scheme=scheme, **(nothing | (evidence or {})))


def rate(value: float, low: float, high: float) -> dict:
    return {"metric": Metric(name="top1_accuracy", value=value, low=low, high=high, n=900)}


CASES = [
    ("min_accuracy", 0.95, rate(0.97, 0.95, 0.98), PASS),
    ("min_accuracy", 0.95, rate(0.97, 0.9499, 0.98), INCONCLUSIVE),
    ("min_accuracy", 0.95, rate(0.94, 0.92, 0.95), INCONCLUSIVE),
    ("min_accuracy", 0.95, rate(0.93, 0.91, 0.9499), FAIL),
    ("max_drop", 0.01, {"change": change(-0.002, -0.01, 0.004)}, PASS),
    ("max_drop", 0.01, {"change": change(-0.002, -0.0101, 0.004)}, INCONCLUSIVE),
    ("max_drop", 0.01, {"change": change(-0.02, -0.03, -0.01)}, INCONCLUSIVE),
    ("max_drop", 0.01, {"change": change(-0.02, -0.03, -0.0101)}, FAIL),
    ("max_drop", 0.0, {"change": change(0.02, 0.001, 0.04)}, PASS),
    ("max_size_bytes", 1000, {"size_bytes": 1000}, PASS),
    ("max_size_bytes", 1000, {"size_bytes": 1001}, FAIL),
    ("max_size_ratio", 0.25, {"size_bytes": 250, "float_size_bytes": 1000}, PASS),
    ("max_size_ratio", 0.25, {"size_bytes": 251, "float_size_bytes": 1000}, FAIL),
    ("max_size_ratio", 0.25, {"size_bytes": 251}, INCONCLUSIVE),
    ("max_latency_p90_ms", 5.0, {"latency": timed(4.0, 3.0, 5.0)}, PASS),
    ("max_latency_p90_ms", 5.0, {"latency": timed(4.0, 3.0, 5.01)}, INCONCLUSIVE),
    ("max_latency_p90_ms", 5.0, {"latency": timed(6.0, 5.0, 7.0)}, INCONCLUSIVE),
    ("max_latency_p90_ms", 5.0, {"latency": timed(6.0, 5.01, 7.0)}, FAIL),
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
    assert [finding.budget for finding in judge(**limits)] == list(Budgets.model_fields) == list(SCALES)


def test_the_float_model_has_no_size_ratio():
    evidence = {"size_bytes": 1000, "float_size_bytes": 1000}
    assert judge("float32", evidence, max_size_ratio=0.5) == ()
    assert judge("float16", evidence, max_size_ratio=0.5)[0].verdict is FAIL


def test_reasons_carry_value_interval_limit_count_and_stand_in():
    evidence = {"change": change(-0.0044, -0.0102, 0.0011), "latency": timed(4.0, 3.0, 6.0), "metric": metric(0.96, 900)}
    accuracy, drop, latency = judge(evidence=evidence, min_accuracy=0.9, max_drop=0.01, max_latency_p90_ms=5.0)
    assert accuracy.reason == "top-1 accuracy 96.00% [94.51%, 97.10%] on 900 samples; at least 90.00% asked: holds"
    # 900 * (0.58 / 0.56)^2 = 965.4
    expected = "accuracy fell by 0.44 pp [-1.02, +0.11] on 900 samples; allowed 1.00 pp: undecided, about 966 samples would decide at this rate"
    assert drop.reason == expected
    assert latency.reason.startswith("p90 latency 4.000 ms [3.000, 6.000] over 500 runs on host cpu; allowed 5.000 ms: undecided")


def test_a_value_beyond_the_margin_is_decided_towards_fail():
    (finding,) = judge(evidence={"change": change(-0.012, -0.02, -0.004, n=100)}, max_drop=0.01)
    # 100 * (0.008 / 0.002)^2 = 1600, and one more to be strictly beyond
    assert finding.reason.endswith("undecided, about 1,610 samples would decide towards fail at this rate")


@pytest.mark.parametrize(
    ("limits", "evidence"),
    [({"max_drop": 0.01}, {"change": change(-0.01, -0.02, 0.0)}), ({"min_accuracy": 0.95}, {"metric": metric(0.95, 400)})],
)
def test_a_value_on_the_limit_is_never_decided(limits, evidence):
    (finding,) = judge(evidence=evidence, **limits)
    assert finding.verdict is INCONCLUSIVE
    assert finding.reason.endswith("never decided at this rate")


def test_a_gap_too_small_to_be_squared_is_never_decided():
    assert check.samples_for_rate(0.5, 0.5 + 2**-52) is None
    assert check.samples_for_rate(1e-200, 2e-200) is None
    assert check.samples_for_drop(change(1e-310, -0.01, 0.01), 0.0) is None


@given(limit=st.floats(0.02, 0.98), n=st.integers(5, 5000), side=st.sampled_from([-1, 1]), share=st.floats(0.05, 0.95))
def test_the_count_that_decides_a_rate_decides_and_one_tenth_less_does_not(limit, n, side, share):
    value = limit + side * share * 1.96 * (limit * (1 - limit) / n) ** 0.5
    assume(0 < value < 1)
    assume(judge(evidence={"metric": metric(value, n)}, min_accuracy=limit)[0].verdict is INCONCLUSIVE)
    count = check.samples_for_rate(value, limit)
    assert count is not None
    assert count > n
    expected = PASS if value > limit else FAIL
    for enough in (count, int(check.about(count).replace(",", ""))):
        assert judge(evidence={"metric": metric(value, enough)}, min_accuracy=limit)[0].verdict is expected
    assert judge(evidence={"metric": metric(value, max(1, int(count * 0.9) - 1))}, min_accuracy=limit)[0].verdict is INCONCLUSIVE


@given(value=st.floats(-0.1, 0.05), below=st.floats(0.001, 0.05), above=st.floats(0.001, 0.05), limit=st.floats(0, 0.1), n=st.integers(10, 5000))
def test_the_count_that_decides_a_drop_decides_when_the_interval_shrinks_with_its_root(value, below, above, limit, n):
    def at(count: int) -> Verdict:
        shrunk = (n / count) ** 0.5
        return judge(evidence={"change": change(value, value - below * shrunk, value + above * shrunk, count)}, max_drop=limit)[0].verdict

    assume(abs(value + limit) > 1e-4)
    assume(at(n) is INCONCLUSIVE)
    count = check.samples_for_drop(change(value, value - below, value + above, n), limit)
    assert count is not None
    assert count >= n
    assert at(count) is (PASS if value > -limit else FAIL)
    assert at(int(check.about(count).replace(",", ""))) is not INCONCLUSIVE
    assert at(max(1, int(count * 0.9) - 1)) is INCONCLUSIVE


shares = st.tuples(*[st.floats(0, 1)] * 3).map(sorted)


@given(
    rates=shares,
    changes=shares,
    latencies=shares,
    size=st.integers(1, 5_000_000),
    first=st.floats(0, 1),
    second=st.floats(0, 1),
    scheme=st.sampled_from(["float32", "static_wi8_ai8"]),
)
def test_tightening_a_budget_never_improves_a_verdict(rates, changes, latencies, size, first, second, scheme):
    low, value, high = rates
    lost, moved, gained = (2 * share - 1 for share in changes)
    fast, p90, slow = (100 * share for share in latencies)
    evidence = {
        "metric": Metric(name="top1_accuracy", value=value, low=low, high=high, n=100),
        "change": change(moved, lost, gained),
        "latency": timed(p90, fast, slow),
        "size_bytes": size,
        "float_size_bytes": 2_000_000,
    }
    tighter, looser = sorted((first, second))

    def verdicts(share: float) -> list[Verdict]:
        limits = {budget: type(tight)(tight + share * (loose - tight)) for budget, (tight, loose) in SCALES.items()}
        return [finding.verdict for finding in judge(scheme, evidence, **limits)]

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
