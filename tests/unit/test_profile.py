"""The profile of operators: what is read from each runtime's profiler, and how it is told in the user's layers."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests import models
from toolkit import plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.cli import profile as verb
from toolkit.contents import Node
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, SetupError, StageFailed
from toolkit.evidence import Profile
from toolkit.figures import OperatorTime
from toolkit.job import Job
from toolkit.measure import profile as stage
from toolkit.pipeline.profile import profile
from toolkit.plugins import Event
from toolkit.runtimes import litert_profile
from toolkit.runtimes.litert_kernels import Operator, execution_order, match
from toolkit.runtimes.litert_profile import Recorded
from toolkit.runtimes.onnxruntime_profile import RecorderCost, Run, own_times, read_runs


def chain(*kinds):
    """Operators of which each reads what the one before computes."""
    return [Operator(kind, (place,), (place + 1,), (f"{kind.lower()}_{place}",)) for place, kind in enumerate(kinds)]


def names(found):
    return [operator.outputs[0] if operator else None for operator in found]


# ONNX Runtime


def node_event(name, ts, dur, operator="Conv"):
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": operator, "node_index": "0"}}


def span(name, ts, dur):
    return {"cat": "Session", "name": name, "ts": ts, "dur": dur}


def test_a_trace_is_split_into_its_inferences_and_the_rest_of_the_session_is_left_out(tmp_path):
    trace = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 90},
        node_event("a", 101, 10),
        node_event("b", 115, 20),
        span("SequentialExecutor::Execute", 100, 50),
        span("model_run", 99, 60),
        {"cat": "Node", "name": "a_fence_before", "ts": 200, "dur": 3, "args": {}},
        node_event("a", 201, 11),
        node_event("b", 214, 21),
        span("SequentialExecutor::Execute", 200, 40),
        span("model_run", 199, 60),
    ]
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    runs = read_runs(tmp_path / "trace.json")
    assert [[(one["name"], one["dur"]) for one in run.nodes] for run in runs] == [
        [("a_kernel_time", 10), ("b_kernel_time", 20)],
        [("a_kernel_time", 11), ("b_kernel_time", 21)],
    ]
    assert [run.gap_us for run in runs] == [20, 8]


def test_a_loop_keeps_only_the_time_that_its_nodes_did_not_take(tmp_path):
    inner = [node_event("body", 110 + 10 * turn, 8, "MatMul") for turn in range(3)]
    trace = [*inner, node_event("loop", 105, 40, "Loop"), node_event("after", 145, 5), span("model_run", 99, 60)]
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    nodes = read_runs(tmp_path / "trace.json")[0].nodes
    times = {(one["name"], one["ts"]): one["dur"] for one in nodes}
    assert times[("loop_kernel_time", 105)] == 40 - 3 * 8
    assert sum(times.values()) == 40 + 5


def test_what_recording_costs_is_taken_off_and_scaled_by_what_it_costs_between_the_nodes():
    run = Run([{"dur": 10}, {"dur": 1}, {"dur": 100}, {"dur": 5}], gap_us=12.0)
    kept = 108 / 109  # the node of 1 us is 1 us below zero, which the others give up
    assert own_times(run, RecorderCost(2.0, 3.0)) == pytest.approx([8e-3 * kept, 0.0, 98e-3 * kept, 3e-3 * kept])
    slow = Run(run.nodes, gap_us=24.0)
    kept = 100 / 103
    assert own_times(slow, RecorderCost(2.0, 3.0)) == pytest.approx([6e-3 * kept, 0.0, 96e-3 * kept, 1e-3 * kept])
    assert own_times(Run([{"dur": 1}, {"dur": 3}], 0.0), RecorderCost(2.5, 3.0)) == [0.0, 0.0], "nothing is left"
    assert own_times(Run([], 0.0), RecorderCost(2.0, 3.0)) == []


def onnx_model(path, named=True):
    """Two convolutions with an activation each, a sum, and a matrix product: what ONNX Runtime fuses and lays out anew."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "stem.weight": random.normal(size=(16, 3, 3, 3)),
        "block.weight": random.normal(size=(16, 16, 3, 3)),
        "head.weight": random.normal(size=(16 * 8 * 8, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["stem"], pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["stem_relu"]),
        helper.make_node("Conv", ["stem_relu", "block.weight"], ["block"], pads=[1] * 4),
        helper.make_node("Add", ["block", "stem_relu"], ["joined"]),
        helper.make_node("Relu", ["joined"], ["block_relu"]),
        helper.make_node("Flatten", ["block_relu"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.weight"], ["logits"]),
    ]
    if named:
        for node in nodes:
            node.name = f"node_{node.output[0]}"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


@pytest.mark.parametrize("named", [True, False])
def test_fused_and_laid_out_nodes_are_told_in_the_nodes_of_the_file(tmp_path, named):
    pytest.importorskip("onnxruntime")
    session = plugins.get("runtimes", "onnxruntime").open_profiled(onnx_model(tmp_path / "net.onnx", named), threads=1)
    for _ in range(2):
        session.run({"x": np.ones((1, 3, 8, 8), np.float32)})
    events = session.events()[0]
    prefix = "node_" if named else ""
    told = {name for event in events for name in event.nodes}
    assert told <= {prefix + name for name in ("stem", "stem_relu", "block", "joined", "block_relu", "flat", "logits")}
    by_weight = {name: [event for event in events if prefix + name in event.nodes] for name in ("stem", "block", "logits")}
    assert all(by_weight.values()), "every node with weights belongs to an executed one"
    assert any(event.operator in ("Conv", "FusedConv") for event in by_weight["stem"])
    assert all(event.nodes for event in events if event.operator in ("Conv", "FusedConv", "MatMul", "Gemm"))
    assert not any({prefix + "stem", prefix + "logits"} <= set(event.nodes) for event in events)


def test_a_recording_that_misses_inferences_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    session = plugins.get("runtimes", "onnxruntime").open_profiled(models.tiny_onnx(tmp_path / "tiny.onnx"), threads=1)
    session.run({"x": models.samples(1)})
    session._runs += 1
    with pytest.raises(StageFailed, match="1 of 2"):
        session.events()


# LiteRT


def test_fused_activations_and_free_reshapes_leave_the_other_kernels_with_their_operators():
    operators = chain("TRANSPOSE", "PAD", "CONV_2D", "RELU6", "DEPTHWISE_CONV_2D", "RELU6", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED")
    kernels = [
        "Transpose (ND, X32) Transpose",
        "Convolution (NHWC, F32) IGEMM",
        "Convolution (NHWC, F32) DWConv",
        "Fully Connected (NC, F32) GEMM",
        "Add (ND)",
        "Mean (ND) Reduce2",
        "Fully Connected (NC, F32) GEMM",
    ]
    assert names(match(kernels, operators, set())) == [
        "transpose_0",
        "conv_2d_2",
        "depthwise_conv_2d_4",
        "conv_2d_6",
        "add_7",
        "mean_8",
        "fully_connected_10",
    ]


def test_conversions_belong_to_the_kernel_they_prepare_and_the_unknown_stays_unknown():
    operators = chain("FULLY_CONNECTED", "SOFTMAX", "CONCATENATION")
    kernels = [
        "Convert (NC, F32, QD8)",
        "Fully Connected (NC, QD8, F32, QC8W) GEMM",
        "Count Leading Zeros (NC)",
        "Softmax (NC, F32)",
        "Copy (NC, X32)",
        "Copy (NC, X32)",
    ]
    assert names(match(kernels, operators, set())) == [
        "fully_connected_0",
        "fully_connected_0",
        None,
        "softmax_1",
        "concatenation_2",
        "concatenation_2",
    ]
    assert match([], operators, set()) == []
    assert names(match(["Softmax (NC, F32)"], [], set())) == [None]


def test_operators_run_part_by_part_where_a_delegate_takes_some():
    """Two branches: 0 -> 1 (not delegated) -> 2 and 0 -> 3 -> 4, joined in 5. The delegate's first part is 0, 3, 4."""
    reads = [(100,), (0,), (1,), (0,), (3,), (2, 4)]
    operators = [Operator("ADD", inputs, (place,), (f"t{place}",)) for place, inputs in enumerate(reads)]
    assert execution_order(operators, set()) == [0, 1, 2, 3, 4, 5]
    assert execution_order(operators, {1}) == [0, 3, 4, 1, 2, 5]
    assert execution_order(operators, {0, 1}) == [0, 1, 2, 3, 4, 5]
    assert names(match(["Add (ND)"] * 5, operators, {1})) == ["t0", "t3", "t4", "t2", "t5"]


def test_recorded_events_are_told_with_their_kernels_and_nothing_is_counted_twice():
    operators = chain("EMBEDDING_LOOKUP", "FULLY_CONNECTED", "CUMSUM")
    recorded = [
        Recorded("Invoke", 1, 40, 0, 0),
        Recorded("EMBEDDING_LOOKUP", 2, 5, 0, 0),
        Recorded("Fully Connected (NC, F32) GEMM", 8, 20, 0, 0),
        Recorded("CUMSUM", 2, 7, 2, 0),
        Recorded("Invoke", 32, 4294967296, 0, 0),
    ]
    told = litert_profile.told(recorded, operators)
    assert told == [
        Event("EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP", "built-in", 0.005, ("embedding_lookup_0",)),
        Event("Fully Connected", "FULLY_CONNECTED", "XNNPACK Fully Connected (NC, F32) GEMM", 0.020, ("fully_connected_1",)),
        Event("CUMSUM", "CUMSUM", "built-in", 0.007, ("cumsum_2",)),
    ]


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(StageFailed, match="inside operators"):
        litert_profile.told([Recorded("WHILE", 2, 9, 0, 0), Recorded("ADD", 2, 4, 0, 1)], chain("WHILE"))
    with pytest.raises(StageFailed, match="2048"):
        litert_profile.told([Recorded("ADD", 2, 1, 0, 0)] * 2048, chain("ADD"))


def test_a_litert_without_the_known_functions_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setattr(plugins, "distribution_version", lambda name: "2.1.4")
    with pytest.raises(SetupError, match=r"2\.3 or later, found 2\.1\.4"):
        litert_profile.open_profiled(models.tiny_tflite(tmp_path / "tiny.tflite"), threads=1)


@pytest.mark.parametrize(("batch", "signature"), [(1, True), (1, False), (-1, True)])
def test_files_without_a_signature_and_with_a_free_size_are_profiled(tmp_path, batch, signature):
    pytest.importorskip("ai_edge_litert")
    path = models.tiny_tflite(tmp_path / "tiny.tflite", batch, signature)
    runtime = plugins.get("runtimes", "litert")
    plain, recorded = runtime.open(path, threads=1), runtime.open_profiled(path, threads=1)
    entry = plain.signature.inputs[0].name
    for rows in (1, 1) if batch == 1 else (1, 3, 2):
        given = {entry: models.samples(rows, seed=rows)}
        for name, array in plain.run(given).items():
            np.testing.assert_array_equal(recorded.run(given)[name], array)
    told = [(event.operator, event.nodes) for event in recorded.events()[0]]
    assert set(told) == {("FULLY_CONNECTED", ("sums",)), ("TANH", ("y_0",))}


# The stage


def test_a_row_has_the_quantiles_of_one_operator_over_all_inferences():
    random = np.random.default_rng(3)
    times = random.gamma(2.0, size=(50, 3))
    runs = [[Event("a", "Conv", "", row[0]), Event("b", "Add", "", row[1]), Event("a", "Conv", "", row[2])] for row in times.tolist()]
    found = stage.operator_times(runs, stage.Layers([]))
    assert [(one.name, one.n) for one in found] == [("a", 50), ("b", 50), ("a", 50)]
    np.testing.assert_allclose([one.p50_ms for one in found], np.quantile(times, 0.5, axis=0))
    np.testing.assert_allclose([one.p90_ms for one in found], np.quantile(times, 0.9, axis=0))
    np.testing.assert_allclose([one.share for one in found], np.median(times, axis=0) / np.median(times, axis=0).sum())


def test_an_operator_that_some_inferences_do_not_reach_took_no_time_there():
    runs = [[Event("a", "If", "", 1.0), Event("b", "Add", "", 4.0)], [Event("a", "If", "", 3.0)], [Event("a", "If", "", 2.0)]]
    found = {one.name: one for one in stage.operator_times(runs, stage.Layers([]))}
    assert (found["a"].p50_ms, found["b"].p50_ms, found["b"].n) == (2.0, 0.0, 3)


def test_the_node_that_multiplies_most_names_the_layer():
    layers = stage.Layers(
        [
            Node(name="relu", operator="Relu", layer="act", outputs=("r",)),
            Node(name="conv", operator="Conv", layer="features.0", outputs=("c",), macs=900),
            Node(name="scale", operator="Mul", layer="scale", outputs=("s",), macs=10),
            Node(name="plain", operator="Reshape", outputs=("p",)),
        ]
    )
    assert layers.of(("r", "c", "s")) == "features.0"
    assert layers.of(("relu",)) == "act"
    assert layers.of(("plain", "s")) == "scale"
    assert layers.of(("p",)) == layers.of(("nobody",)) == layers.of(()) == ""


class Counting:
    """A runtime whose recorded inferences take a known time on paper."""

    name, version, modules, distributions, extra, formats = "counting", 1, (), (), "", ("none",)

    def __init__(self):
        self.order = []

    def open(self, model, *, threads):
        return self._session("plain")

    def open_profiled(self, model, *, threads):
        session = self._session("recorded")
        session.events = lambda: [[Event("a", "Conv", "", 2.0), Event("b", "Add", "", float(number % 2))] for number in range(session.count)]
        return session

    def _session(self, kind):
        session = SimpleNamespace(signature=Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 2)),), outputs=()), count=0)

        def run(inputs):
            self.order.append(kind)
            session.count += 1
            return {}

        session.run = run
        return session


def run_stage(tmp_path, monkeypatch, runtime, **options):
    monkeypatch.setattr(plugins, "get", lambda group, name: runtime)
    Dataset({"x": np.ones((3, 2), np.float32)}).write(tmp_path / "data")
    defaults = {"runtime": "counting", "threads": 1, "format": "none", "seconds": 0.01, "warmup_seconds": 0.01}
    return stage.run(Job({"model": tmp_path / "model", "data": tmp_path / "data"}, {**defaults, **options}, tmp_path))


def test_the_total_is_the_median_of_the_sums_and_both_sessions_take_turns(tmp_path, monkeypatch):
    runtime = Counting()
    facts = run_stage(tmp_path, monkeypatch, runtime)
    assert facts["n"] == stage.ROUNDS * stage.MAX_BLOCK
    assert facts["total_ms"] in (2.0, 2.5, 3.0)
    assert [one["name"] for one in facts["operators"]] == ["a", "b"]
    assert facts["latency_ms"] > 0
    blocks = [kind for place, kind in enumerate(runtime.order) if place == 0 or runtime.order[place - 1] != kind]
    warming, rounds = 2, stage.ROUNDS
    assert len(blocks) == warming + 2 * rounds - rounds // 2, "in every second pair of rounds the side that ends the one begins the other: A B, B A"
    json.dumps(facts, allow_nan=False)


def test_a_runtime_without_a_profiler_is_refused(tmp_path, monkeypatch):
    class Mute(Counting):
        open_profiled = property()

    with pytest.raises(ConfigError, match="has no profiler") as caught:
        run_stage(tmp_path, monkeypatch, Mute())
    assert "onnxruntime" in caught.value.hint


def test_whole_microseconds_and_the_recorder_do_not_bias_the_sum():
    random = np.random.default_rng(0)
    real_us = random.uniform(0.2, 1.5, 80)
    runs = [
        Run([{"dur": int(one)} for one in real_us + random.uniform(0.9, 2.9, 80) + random.uniform(0, 1, 80)], gap_us=80 * 2.5) for _ in range(200)
    ]
    cost = RecorderCost(1.9, 2.5)  # a recorder that adds 1.9 us on average, and begins anywhere within a microsecond
    found = np.median([sum(own_times(run, cost)) for run in runs]) * 1e3
    assert found == pytest.approx(real_us.sum(), rel=0.03)


@pytest.mark.parametrize(
    ("total_ms", "latency_ms", "operators", "said"),
    [
        (1.0, 1.0, 10, ""),
        (1.099, 1.0, 10, ""),
        (0.901, 1.0, 10, ""),
        (1.2, 1.0, 10, "120% of the latency; the machine was not quiet"),
        (0.006, 0.019, 124, "32% of the latency; at 0.15 us each on average they are too short"),
        (0.0, 0.001, 0, "0% of the latency; at 1 us each"),
    ],
)
def test_a_sum_that_is_more_than_a_tenth_away_from_the_latency_is_told(total_ms, latency_ms, operators, said):
    told = stage.disagreement(total_ms, latency_ms, operators)
    assert (said in told) if said else told == ""


# The verb


def record(**changes):
    operators = (
        OperatorTime(name="conv1", operator="Conv", kernel="CPU", layer="features.0", p50_ms=3.0, p90_ms=4.0, share=0.6, n=9),
        OperatorTime(name="relu [1]", operator="Relu", layer="features.0", p50_ms=0.5, p90_ms=0.5, share=0.1, n=9),
        OperatorTime(name="conv2", operator="Conv", kernel="CPU", p50_ms=1.5, p90_ms=1.6, share=0.3, n=9),
    )
    return Profile(
        **{
            "artifact": "m.onnx",
            "runtime": "onnxruntime",
            "target": "desk",
            "operators": operators,
            "total_ms": 5.0,
            "latency_ms": 5.5,
            "n": 9,
            **changes,
        }
    )


def printed(by, top):
    from rich.console import Console

    out = Console(width=160, record=True, file=io.StringIO())
    verb.text(record(), top, by)(out)
    return out.export_text()


def test_the_slowest_come_first_and_add_up():
    lines = printed(verb.By.operator, 2).splitlines()
    rows = [line.split() for line in lines if "Conv" in line]
    assert [row[2] for row in rows] == ["conv1", "conv2"]
    assert [row[-1] for row in rows] == ["60.0%", "90.0%"]
    assert "1 more" in "\n".join(lines)
    assert "91% of the latency" in "\n".join(lines)
    assert "70% of the time" in "\n".join(lines)


def test_a_note_is_shown():
    assert "note" not in verb.summary(record())
    assert verb.summary(record(note="too short"))["note"] == "too short"


def test_all_rows_stay_in_the_order_they_run_and_brackets_are_printed():
    text = printed(verb.By.operator, 0)
    assert text.index("conv1") < text.index("relu [1]") < text.index("conv2")


def test_times_are_summed_by_layer_and_by_kind():
    by_layer = printed(verb.By.layer, 0)
    assert "3.5000" in by_layer and "70.0%" in by_layer
    by_kind = printed(verb.By.kind, 0)
    assert "4.5000" in by_kind and "90.0%" in by_kind


# From the outside


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_model_file_is_profiled(tmp_path, monkeypatch, format):
    pytest.importorskip({"onnx": "onnxruntime", "tflite": "ai_edge_litert"}[format])
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    path = {"onnx": models.tiny_onnx, "tflite": models.tiny_tflite}[format](tmp_path / f"tiny.{format}")
    found = profile(path, target={"onnx": "desktop-ort", "tflite": "desktop-litert"}[format], seconds=0.05)
    assert found.artifact == path.name
    assert found.n >= stage.ROUNDS
    assert {one.operator for one in found.operators} <= {"Gemm", "FusedGemm", "Tanh", "FULLY_CONNECTED", "TANH"}
    assert found.total_ms >= 0 and found.latency_ms > 0
    assert sum(one.share for one in found.operators) == pytest.approx(1.0) or not any(one.share for one in found.operators)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), True, "1"])
def test_a_time_that_is_no_positive_number_is_refused(tmp_path, seconds):
    with pytest.raises(ConfigError, match="positive number"):
        profile(models.tiny_onnx(tmp_path / "tiny.onnx"), seconds=seconds)


def test_data_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputRejected):
        profile(models.tiny_onnx(tmp_path / "tiny.onnx"), data={"y": np.ones((2, 4), np.float32)}, seconds=0.05)
