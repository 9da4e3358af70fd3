"""Limits that decide nothing are refused where they are read, with one error that says which and why."""

from __future__ import annotations

import pytest

from toolkit import intake, limits
from toolkit.config import Metrics, Project, check_metrics, make_budgets, parse
from toolkit.errors import ConfigError
from toolkit.limits import Budgets
from toolkit.metrics import METRICS, scale
from toolkit.stats.proportions import paired_difference_interval, proportion_interval

PROJECT = """
schema = 1
name = "digits"
task = "{task}"
targets = ["desktop-ort"]
{more}
[data]
factory = "digits:load"
[model]
factory = "digits:build"
[budgets]
{budget}
"""
NEVER_PASSES, NEVER_FAILS = "could never pass", "could never fail"


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"min_accuracy": 0}, NEVER_FAILS),
        ({"min_accuracy": "0%"}, NEVER_FAILS),
        ({"min_accuracy": 1}, NEVER_PASSES),
        ({"min_accuracy": "100%"}, NEVER_PASSES),
        ({"min_accuracy": 95}, "less than 1"),
        ({"max_drop": 0}, "no number of samples"),
        ({"max_drop": "0pp"}, "no number of samples"),
        ({"max_drop": 1}, "would allow any loss"),
        ({"max_drop": "100pp"}, "less than 1"),
        ({"max_drop": -0.01}, "greater than 0"),
        ({"max_size_bytes": 5}, NEVER_PASSES),
        ({"max_size_bytes": 0}, "greater than 0"),
        ({"max_size_bytes": 1 << 40}, NEVER_FAILS),
        ({"max_size_ratio": 0.01}, NEVER_PASSES),
        ({"max_size_ratio": 35}, NEVER_FAILS),
        ({"max_latency_p90_ms": 1e-7}, NEVER_PASSES),
        ({"max_latency_p90_ms": 1e7}, NEVER_FAILS),
        ({"max_latency_ratio": 0.001}, NEVER_PASSES),
        ({"max_latency_ratio": 105}, NEVER_FAILS),
        ({"min_speedup": 0.001}, NEVER_FAILS),
        ({"min_speedup": 120}, NEVER_PASSES),
        ({"max_peak_memory_mb": 0.001}, NEVER_PASSES),
        ({"max_peak_memory_mb": 50_000_000}, NEVER_FAILS),
        ({"metrics": {"roc_auc": {"min": 0}}}, NEVER_FAILS),
        ({"metrics": {"roc_auc": {"min": 1}}}, NEVER_PASSES),
        ({"metrics": {"roc_auc": {"min": 90}}}, NEVER_PASSES),
        ({"metrics": {"roc_auc": {"max_drop": 0}}}, NEVER_PASSES),
        ({"metrics": {"roc_auc": {"max_drop": 1}}}, NEVER_FAILS),
        ({"metrics": {"roc_auc": {"max": 0.9}}}, "write min"),
        ({"metrics": {"roc_auc": {"max_rise": 0.1}}}, "write max_drop"),
        ({"metrics": {"expected_calibration_error": {"max": 0}}}, NEVER_PASSES),
        ({"metrics": {"expected_calibration_error": {"max": 1}}}, NEVER_FAILS),
        ({"metrics": {"expected_calibration_error": {"min": 0.1}}}, "write max"),
        ({"metrics": {"perplexity": {"max": 1}}}, NEVER_PASSES),
        ({"metrics": {"perplexity": {"max_rise": "1pp"}}}, "is no rate"),
        ({"metrics": {"word_error_rate": {"max": 5}}}, "gives nothing at all"),
        ({"metrics": {"word_error_rate": {"max_rise": 1.0}}}, "gives nothing at all"),
        ({"metrics": {"roc_auc": {}}}, "at least one of"),
        ({"metrics": {"auc": {"min": 0.9}}}, "unknown metric"),
        ({"metrics": {"roc_auc": {"minimum": 0.9}}}, "unknown key 'metrics.roc_auc.minimum'"),
    ],
)
def test_a_limit_that_decides_nothing_is_refused_with_its_name(budget, says):
    with pytest.raises(ConfigError) as caught:
        make_budgets(budget)
    assert caught.value.exit_code == 2
    assert says in str(caught.value)
    assert next(iter(budget)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_metric_names_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        make_budgets({"metrics": {"roc_auc": {"max_dropp": 0.1}}})
    assert caught.value.hint == "did you mean 'max_drop'?"


def test_every_metric_takes_the_limits_of_its_direction():
    for name in METRICS:
        high, rate = scale(name).better == "higher", scale(name).rate
        budget = {("min" if high else "max"): 0.5 if rate else 20.0, ("max_drop" if high else "max_rise"): "1pp" if rate else 0.5}
        read = make_budgets({"metrics": {name: budget}}).metrics[name]
        assert (read.max_drop or read.max_rise) == (0.01 if rate else 0.5)


def test_what_is_refused_could_indeed_not_pass():
    """The refused ends, held against the intervals themselves: no count of samples passes them, and any neighbour has one that does."""
    many = 10**9
    assert proportion_interval(many, many)[0] < 1.0
    assert proportion_interval(many, many)[0] >= 0.9999
    assert paired_difference_interval(many, 0, 0, 0)[1] < 0
    assert paired_difference_interval(many, 0, 0, 0)[1] >= -0.0001


def test_the_largest_file_is_the_one_that_may_be_read():
    assert limits.LARGEST_FILE_BYTES == intake.MAX_BYTES
    assert Budgets(max_size_bytes=intake.MAX_BYTES).max_size_bytes == intake.MAX_BYTES


@pytest.mark.parametrize(("limit", "refused"), [(63.9, False), (64, True), (100, True)])
def test_a_memory_budget_beyond_the_targets_cap_is_refused(limit, refused):
    budgets = Budgets(max_peak_memory_mb=limit)
    limits.check_against(budgets)
    limits.check_against(budgets, memory_mb=None)
    if not refused:
        limits.check_against(budgets, memory_mb=64)
        return
    with pytest.raises(ConfigError, match="could never fail: the target's cap of 64 MB") as caught:
        limits.check_against(budgets, memory_mb=64, where="budgets on phone")
    assert caught.value.where == "budgets on phone"


def test_a_latency_budget_beyond_the_stages_time_limit_is_refused():
    budgets = Budgets(max_latency_p90_ms=60_000)
    limits.check_against(budgets, timeout_seconds=61)
    with pytest.raises(ConfigError, match="could never fail: a stage is ended after 60 s"):
        limits.check_against(budgets, timeout_seconds=60)


@pytest.mark.parametrize(
    ("task", "more", "budget", "says"),
    [
        ("image-classification", 'schemes = ["float32"]', "max_size_ratio = 0.3", "compares with the float twin"),
        ("image-classification", 'schemes = ["float32"]', "max_latency_ratio = 0.9", "compares with the float twin"),
        ("text-generation", "", "min_accuracy = 0.9", "which text-generation has not"),
        ("text-generation", "", 'max_drop = "1pp"', "max_rise"),
        ("text-generation", "", "metrics.roc_auc.min = 0.9", "is not measured for text-generation"),
        ("image-classification", "", "metrics.perplexity.max = 9.0", "is not measured for image-classification"),
    ],
)
def test_a_budget_that_nothing_is_held_against_is_refused(task, more, budget, says):
    text = PROJECT.format(task=task, more=more, budget=budget)
    with pytest.raises(ConfigError, match=says) as caught:
        parse(Project, text, "edgekit.toml")
    assert caught.value.exit_code == 2


def test_a_budget_of_a_measured_metric_is_taken():
    text = PROJECT.format(task="text-generation", more="", budget="metrics.perplexity = { max = 30.0, max_rise = 0.5 }")
    assert parse(Project, text, "edgekit.toml").budgets.metrics["perplexity"].max_rise == 0.5
    check_metrics("image-classification", Metrics(primary="macro_f1"), Budgets(max_drop="1pp"))
