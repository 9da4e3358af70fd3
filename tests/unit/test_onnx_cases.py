"""The rule of which of ONNX's own cases TFLite can express, the report of them, and the processes that they run in."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.onnx_cases import ours, report
from benchmarks.onnx_cases.cases import Case, cases, difference
from benchmarks.onnx_cases.report import Row
from benchmarks.onnx_cases.rule import inexpressible

onnx = pytest.importorskip("onnx")
helper = onnx.helper
ROOT = Path(__file__).resolve().parents[2]


def case(nodes, given, made, constants=()):
    def infos(types):
        return [helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), [2]) for name, kind in types.items()]

    graph = helper.make_graph(nodes, "one", infos(given), infos(made), [onnx.numpy_helper.from_array(value, name) for name, value in constants])
    return Case("one", nodes[0].op_type, helper.make_model(graph), {}, {}, 1e-3, 1e-7)


@pytest.mark.parametrize(
    ("kind", "given", "made", "reason"),
    [
        ("Add", "FLOAT", "FLOAT", ""),
        ("Add", "UINT64", "UINT64", ""),
        ("Cast", "BFLOAT16", "INT4", ""),
        ("Cast", "FLOAT", "INT2", ""),
        ("Cast", "INT2", "FLOAT", "casts from: int2"),
        ("Cast", "FLOAT", "UINT2", "casts to: uint2"),
        ("Cast", "FLOAT8E4M3FN", "FLOAT", "casts from: float8e4m3fn"),
        ("NonZero", "FLOAT", "INT64", ""),
        ("Equal", "STRING", "BOOL", ""),
        ("Cast", "STRING", "FLOAT", "text"),
        ("StringConcat", "STRING", "STRING", "text"),
        ("ImageDecoder", "UINT8", "UINT8", "images"),
        ("Bernoulli", "FLOAT", "FLOAT", "random"),
    ],
)
def test_the_rule_looks_at_operators_and_element_types(kind, given, made, reason):
    told = inexpressible(case([helper.make_node(kind, ["x"], ["y"])], {"x": given}, {"y": made}))
    assert reason in told if reason else not told


def test_graphs_inside_of_operators_are_looked_at():
    inner = helper.make_graph([helper.make_node("SequenceEmpty", [], ["s"])], "inner", [], [])
    told = inexpressible(case([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)], {"x": "BOOL"}, {"y": "FLOAT"}))
    assert told == "has values that are no tensors"


@pytest.mark.parametrize(("share", "trains", "draws"), [(0.5, True, True), (0.0, True, False), (0.5, False, False)])
def test_dropout_draws_only_while_training(share, trains, draws):
    constants = [("share", np.float32(share)), ("trains", np.array(trains))]
    told = inexpressible(case([helper.make_node("Dropout", ["x", "share", "trains"], ["y"])], {"x": "FLOAT"}, {"y": "FLOAT"}, constants))
    assert bool(told) is draws


def test_results_are_compared_with_their_sizes():
    one = case([helper.make_node("Relu", ["x"], ["y"])], {"x": "FLOAT"}, {"y": "FLOAT"})
    assert difference(np.zeros((2, 1)), np.zeros(2), one) == "sizes [2, 1] instead of [2]"
    assert not difference(np.float32([1.0, 100.0]), np.float32([1.0, 100.0]), one)
    assert not difference(np.float32([1e-6, 100.0]), np.float32([0.0, 100.0]), one)
    assert difference(np.float32([1e-6, 1.0]), np.float32([0.0, 1.0]), one)
    assert difference(np.float32([1.01, np.nan]), np.float32([1.0, np.nan]), one)


FORKS = """
import json, os, time
from benchmarks.onnx_cases import pool

def outcome(what):
    if what == "dies":
        os.kill(os.getpid(), 9)
    if what == "sleeps":
        time.sleep(60)
    if what == "raises":
        raise ValueError("no")
    return what, "told"

found = dict(pool.forked(outcome, ["passed", "dies", "raises", "refused"], 2, 30.0))
print(json.dumps(found | dict(pool.forked(outcome, ["sleeps"], 1, 0.2))))
"""


def test_what_happens_in_a_process_stays_there():
    """In a process without threads: this one may have those of JAX, which must not be forked."""
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "passed": ["passed", "told"],
        "refused": ["refused", "told"],
        "dies": ["crashed", "ended with -9"],
        "raises": ["failed", "ValueError: no"],
        "sleeps": ["failed", "took more than 0.2 s"],
    }


def test_the_report_counts_what_can_be_expressed(tmp_path):
    rows = [Row("a", "Add", "", "passed"), Row("b", "Add", "", "refused", "cannot convert the graph: why"), Row("c", "Cast", "works on text")]
    assert report.share(rows) == 0.5
    report.write(rows, {"older": 3}, {"onnx": "1"}, tmp_path)
    text = (tmp_path / "onnx_cases.md").read_text()
    assert "1 that TFLite cannot express, 2 that it can" in text
    assert "| ours | 1 | 1 | 0 | 0 | 0 | 50.0% |" in text
    assert "- Add: refused: why (b)" in text
    assert "| works on text | 1 |" in text


def test_a_definition_with_a_graph_inside_is_spelled_out():
    """What the graph of its Scan sees of the values around it is renamed with them."""
    pytest.importorskip("ai_edge_litert")
    found = next(one for one in cases({"LinearAttention"}) if one.name == "test_linear_attention_gated_delta")
    assert not inexpressible(found)
    assert ours.run(found) == ("passed", "")
    assert ours.run(dataclasses.replace(found, expected={name: value + 1 for name, value in found.expected.items()}))[0] == "wrong"
