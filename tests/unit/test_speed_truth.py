"""Slower than float: that it is said, which operators are named, and what ``min_speedup`` makes of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import toolkit
from tests.networks import IMAGE, Builder
from tests.reports import sample_report
from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.audit.structure import structure
from toolkit.audit.suspects import suspects
from toolkit.checks.budgets import Evidence, judge
from toolkit.checks.latency import is_slower
from toolkit.contents import Contents, Layer, Node
from toolkit.evidence import Verdict
from toolkit.figures import Latency, OperatorTime
from toolkit.limits import Budgets
from toolkit.report import html, json, markdown, text
from toolkit.store import Store
from toolkit.suspects import Slower, Suspect, show_slower

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
WHY = Suspect(operator="ConvInteger", count=4, reason="there is no fast kernel", share_ms=0.5, share=0.8, names=("conv0",))


def turns(ratio, low, high, **more):
    given = {"p50": 1.0, "p90": 1.1, "p50_low": 0.9, "p50_high": 1.1, "p90_low": 1.0, "p90_high": 1.2, "n": 500, **more}
    return Latency(ratio_to_float=ratio, ratio_low=low, ratio_high=high, **given)


# --- the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((0.5, 0.49, 0.51), PASS),
        ((0.8, 0.79, 0.81), PASS),
        ((0.83, 0.82, 0.86), INCONCLUSIVE),
        ((0.9, 0.88, 0.92), FAIL),
        ((2.0, 1.9, 2.1), FAIL),
        ((2.0, None, None), INCONCLUSIVE),
        ((None, None, None), INCONCLUSIVE),
    ],
)
def test_a_speedup_is_judged_by_its_interval(ratio, verdict):
    (finding,) = judge(Budgets(min_speedup=1.2), Evidence(latency=turns(*ratio)))
    assert (finding.budget, finding.verdict) == ("min_speedup", verdict)


def test_a_noisy_machine_gives_no_verdict():
    (finding,) = judge(Budgets(min_speedup=1.2), Evidence(latency=turns(3.0, 2.9, 3.1, noise=0.3, max_noise=0.1)))
    assert finding.verdict is INCONCLUSIVE
    (finding,) = judge(Budgets(min_speedup=1.2), Evidence())
    assert finding.reason == "latency beside the float twin was not measured; at least 1.200 times asked"


@given(st.floats(0.05, 20), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.05, 20), st.floats(0, 0.3))
def test_it_says_the_same_as_the_ratio_at_the_limits_inverse(ratio, below, above, limit, noise):
    latency = turns(ratio, ratio * (1 - below), ratio * (1 + above), noise=noise, max_noise=0.1)
    ratio_budget, speed_budget = judge(Budgets(max_latency_ratio=1 / limit, min_speedup=limit), Evidence(latency=latency))
    assert ratio_budget.verdict is speed_budget.verdict


def test_the_reason_has_the_inverse_of_the_interval():
    (finding,) = judge(Budgets(min_speedup=1.2), Evidence(latency=turns(0.5, 0.4, 0.625, noise=0.01, max_noise=0.1)))
    expected = "2.000 [1.600, 2.500] times as fast as the float twin over 500 runs on host cpu, noise 1.0% (A/A); at least 1.200 times asked: holds"
    assert finding.reason == expected


def test_a_file_that_is_its_own_twin_is_not_asked():
    assert judge(Budgets(min_speedup=1.2), Evidence(latency=turns(1.0, 0.9, 1.1), own_twin=True)) == ()


@pytest.mark.parametrize("budget", [{"min_speedup": 1.2}, {"max_latency_ratio": 1.0}])
def test_a_failure_names_the_operators_responsible(budget):
    slower = Slower(ratio=2.0, low=1.9, high=2.1, suspects=(WHY,))
    (finding,) = judge(Budgets(**budget), Evidence(latency=turns(2.0, 1.9, 2.1), slower=slower))
    assert finding.reason.endswith(": missed; responsible: 4 ConvInteger (0.500 ms, 80%): there is no fast kernel")
    (finding,) = judge(Budgets(**budget), Evidence(latency=turns(0.5, 0.49, 0.51), slower=slower))
    assert finding.reason.endswith(": holds")


# --- what counts as slower --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency", "slower"),
    [
        (turns(1.2, 1.1, 1.3), True),
        (turns(1.2, 1.0, 1.3), False),
        (turns(0.8, 0.7, 0.9), False),
        (turns(1.2, 1.1, 1.3, noise=0.1, max_noise=0.1), True),
        (turns(1.2, 1.19, 1.21, noise=0.25, max_noise=0.3), False),
        (turns(8.0, 7.0, 9.0, noise=0.3, max_noise=0.1), True),
        (turns(1.2, None, None), False),
        (None, False),
    ],
)
def test_slower_is_above_one_with_interval_and_noise(latency, slower):
    assert is_slower(latency) is slower


# --- the operators ----------------------------------------------------------------------------------------------------


def contents(format, nodes=(), layers=()):
    none = Signature(inputs=(), outputs=())
    how = structure(format, nodes)
    given = {"size_bytes": 1, "sha256": "", "signature": none, "operators": {}, "weight_bytes": {}}
    return Contents(format=format, layers=tuple(layers), nodes=tuple(nodes), structure=how, **given)


def timed(name, operator, ms):
    return OperatorTime(name=name, operator=operator, kernel="", layer="", p50_ms=ms, p90_ms=ms, share=0.0, n=5)


@pytest.mark.parametrize("measured", [False, True])
def test_operators_come_with_their_times_and_the_costliest_first(measured):
    nodes = [
        Node(name="range", operator="DynamicQuantizeLinear", inputs=("x",), outputs=("q", "s", "z"), dtype="uint8"),
        Node(name="c0", operator="ConvInteger", inputs=("q",), outputs=("a",), dtype="int8", macs=9),
        Node(name="c1", operator="ConvInteger", inputs=("q",), outputs=("b",), dtype="int8", macs=9),
    ]
    profile = [
        timed("range", "DynamicQuantizeLinear", 1.0),
        timed("c0", "ConvInteger", 4.0),
        timed("c1", "ConvInteger", 3.0),
        timed("r", "Relu", 2.0),
    ]
    found = suspects(contents("onnx", nodes), profile if measured else None)
    assert {one.operator: one.count for one in found} == {"ConvInteger": 2, "DynamicQuantizeLinear": 1}
    if measured:
        assert [(one.operator, one.share_ms, one.share) for one in found] == [("ConvInteger", 7.0, 0.7), ("DynamicQuantizeLinear", 1.0, 0.1)]
    else:
        assert {one.share_ms for one in found} == {None}


def test_an_operator_outside_the_delegate_is_named_and_found_by_its_kind():
    node = Node(name="act", operator="HARD_SWISH", inputs=("x",), outputs=("act",), dtype="int8")
    (one,) = suspects(contents("tflite", [node]), [timed("elsewhere", "HARD_SWISH", 2.0), timed("y", "ADD", 2.0)])
    assert (one.operator, one.share_ms, one.share, one.reason) == (
        "HARD_SWISH",
        2.0,
        0.5,
        "XNNPACK has no int8 kernel: it runs outside of the delegate",
    )


def test_converters_around_float_islands_are_named():
    nodes = [
        Node(name="c", operator="CONV_2D", inputs=("x",), outputs=("c",), dtype="int8", macs=5),
        Node(name="d", operator="DEQUANTIZE", inputs=("c",), outputs=("d",)),
        Node(name="h", operator="GELU", inputs=("d",), outputs=("h",)),
        Node(name="q", operator="QUANTIZE", inputs=("h",), outputs=("q",), dtype="int8"),
        Node(name="end", operator="DEQUANTIZE", inputs=("q",), outputs=("end",)),
    ]
    (one,) = suspects(contents("tflite", nodes), [timed("d", "DEQUANTIZE", 1.0), timed("q", "QUANTIZE", 1.0), timed("end", "DEQUANTIZE", 6.0)])
    assert (one.operator, one.count, one.share_ms, one.names) == ("QUANTIZE and DEQUANTIZE", 2, 2.0, ("d", "q"))


@pytest.mark.parametrize(
    ("format", "layer", "says"),
    [
        ("tflite", ("CONV_2D", "int8", "dynamic int8"), "quantizes its input while it runs"),
        ("tflite", ("FULLY_CONNECTED", "int8", "dynamic int8"), ""),
        ("tflite", ("FULLY_CONNECTED", "int4", "float32"), "unpacked while it runs"),
        ("onnx", ("Conv", "int8", "float32"), "unpacked while it runs"),
        ("onnx", ("Conv", "int8", "int8"), "signed activations"),
        ("onnx", ("Conv", "int8", "uint8"), ""),
        ("onnx", ("Conv", "float32", "float32"), ""),
    ],
)
def test_layers_whose_numbers_are_slow(format, layer, says):
    operator, weight, activation = layer
    made = Layer(name="l", operator=operator, weight_dtype=weight, activation_dtype=activation, weight_bytes=1)
    found = suspects(contents(format, layers=[made]))
    assert [one.operator for one in found] == [operator] * bool(says)
    assert all(says in one.reason for one in found)


# --- the report -------------------------------------------------------------------------------------------------------


def test_every_form_of_the_report_says_it():
    slower = Slower(ratio=2.0, low=1.9, high=2.1, suspects=(WHY,))
    report = sample_report()
    report = report.model_copy(update={"rows": (report.rows[0].model_copy(update={"slower": slower}), *report.rows[1:])})
    console = Console(record=True, width=300)
    text.render(report, console)
    said = "slower than its float twin: 2.00 [1.90, 2.10] of its time; responsible: 4 ConvInteger (0.500 ms, 80%): there is no fast kernel"
    assert show_slower(slower) == said
    assert said in console.export_text()
    assert said in html.render(report)
    assert "**slower**" in markdown.render(report)
    assert "4 ConvInteger" in markdown.render(report)
    assert json.parse(json.render(report)).rows[0].slower == slower
    assert show_slower(slower, why=False) == said.partition(";")[0]
    for plain in (markdown.render(sample_report()), html.render(sample_report())):
        assert "slower than its float twin" not in plain


# --- measured ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def depthwise(tmp_path_factory):
    """A network of depthwise convolutions and what ONNX Runtime's dynamic quantization makes of it: 8 times slower when this was written."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime.quantization")
    folder, net, hidden = tmp_path_factory.mktemp("depthwise"), Builder(), IMAGE
    for _ in range(4):
        hidden = net.node("Relu", net.conv(hidden, 32, 32, 3, groups=32))
    model = net.model(net.dense(net.node("Flatten", net.node("GlobalAveragePool", hidden)), 32, 10), (32, 24, 24), (10,))
    onnx.save(model, folder / "float.onnx")
    ort.quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=ort.QuantType.QUInt8, op_types_to_quantize=["Conv"])
    return folder


def test_a_dynamically_quantized_network_of_convolutions_is_flagged(depthwise, tmp_path):
    random = np.random.default_rng(0)
    data = {IMAGE: random.normal(size=(40, 32, 24, 24)).astype(np.float32), "label": random.integers(0, 10, 40)}
    report = toolkit.check(
        depthwise / "int8.onnx",
        data,
        target="desktop-ort",
        reference=depthwise / "float.onnx",
        budgets={"min_speedup": 1.2},
        seconds=0.1,
        store=Store(tmp_path),
    )
    (row,) = report.rows
    assert row.verdict is not PASS
    assert row.slower.ratio > 1
    named = {one.operator: one for one in row.slower.suspects}
    assert named["ConvInteger"].count == 4
    assert named["ConvInteger"].share_ms > 0
    assert row.slower.suspects[0].operator == "ConvInteger"
    assert "4 ConvInteger (" in markdown.render(report)


def test_the_float_twin_has_nobody_to_blame(depthwise, tmp_path):
    store = Store(tmp_path)
    assert suspects(plugins.reader("onnx").read(depthwise / "float.onnx")) == []
    found = toolkit.benchmark(depthwise / "float.onnx", target="desktop-ort", baseline=depthwise / "int8.onnx", seconds=0.1, store=store)
    assert found.slower is None
