"""The floor is worked out by hand from roofs that are given; what measures the roofs is checked for its units."""

import pytest

from tests.models import tiny_onnx
from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.contents import Contents, Layer, Node
from toolkit.figures import Roofline
from toolkit.job import Job
from toolkit.measure import peaks, roofline


def contents(*nodes, weight_bytes=0, arena_bytes=1000):
    made = tuple(
        Node(name=str(place), operator="Conv", macs=macs, moved_bytes=moved, dtype=dtype) for place, (macs, moved, dtype) in enumerate(nodes)
    )
    layer = Layer(name="0", operator="Conv", weight_dtype="float32", activation_dtype="float32", weight_bytes=weight_bytes)
    empty = Signature(inputs=(), outputs=())
    return Contents(
        format="onnx", size_bytes=1, sha256="", signature=empty, operators={}, weight_bytes={}, layers=(layer,), nodes=made, arena_bytes=arena_bytes
    )


def test_arithmetic_floor():
    found = roofline.floor(contents((4_000_000_000, 100, "float32"), (0, 10**9, "float32")), {"float32": 80.0, "int8": 900.0}, 50.0, 10.0)
    assert found["floor_ms"] == pytest.approx(50.0)  # 4 G at 80 G/s; what multiplies nothing is free
    assert (found["bound"], found["macs"], found["moved_bytes"], found["peak_gmacs"]) == ("arithmetic", 4_000_000_000, 100, {"float32": 80.0})


def test_each_type_has_its_own_peak():
    found = roofline.floor(contents((10**9, 0, "float32"), (10**9, 8, "int8")), {"float32": 50.0, "int8": 500.0}, 50.0, 10.0)
    assert found["floor_ms"] == pytest.approx(1000 / 50 + 1000 / 500)


def test_memory_floor_takes_weights_from_afar_and_the_rest_from_near_by():
    found = roofline.floor(contents((1000, 300_000_000, "float32"), weight_bytes=100_000_000), {"float32": 80.0}, 40.0, 10.0)
    assert found["floor_ms"] == pytest.approx(100 / 10 + 200 / 40)
    assert found["bound"] == "memory"
    assert found["moved_bytes"] / found["bandwidth_gbs"] / 1e6 == pytest.approx(found["floor_ms"])


def test_a_model_in_the_nearest_cache_is_held_against_that():
    found = roofline.floor(contents((1000, 300, "float32"), weight_bytes=100), {"float32": 80.0}, 40.0, 60.0)
    assert found["bandwidth_gbs"] == pytest.approx(60.0)


@pytest.mark.parametrize("nodes", [[(10, 10, "int16")], [(10, 10, "float32"), (10, 10, "int8")], [(0, 10, "float32")], []])
def test_no_floor_rather_than_a_wrong_one(nodes):
    assert roofline.floor(contents(*nodes), {"float32": 80.0}, 40.0, 10.0) is None


def test_the_working_set_is_weights_and_arena():
    assert roofline.working_set_bytes(contents((1, 700, "float32"), weight_bytes=300)) == 1300
    assert roofline.working_set_bytes(contents((1, 700, "float32"), weight_bytes=300, arena_bytes=None)) == 1000


def test_units(monkeypatch):
    monkeypatch.setattr(peaks, "_best_ns", lambda work: work() is None or 1000.0)
    monkeypatch.setattr(plugins, "discover", lambda group: {})
    assert peaks.bandwidth_gbs(1 << 20, 1) == pytest.approx((8 << 20) / 1000)
    assert peaks.bandwidth_gbs(32 << 20, 1) == pytest.approx((32 << 20) / 1000)
    assert peaks.bandwidth_gbs(32 << 20, 2) == pytest.approx((32 << 20) / 1000)
    monkeypatch.setattr(peaks, "_best_ns", lambda work: 1000.0)
    assert peaks.peak_gmacs(1) == {"float32": pytest.approx(768**3 / 1000)}


def test_the_best_of_all_runtimes_counts(monkeypatch):
    class Fast:
        modules = ()

        def peak_gmacs(self, threads):
            return {"float32": 1e9, "int8": 100.0 * threads}

    class Slow(Fast):
        def peak_gmacs(self, threads):
            return {"float32": 1e-9, "int8": 1.0}

    class Absent(Fast):
        modules = ("no_such_module",)

    monkeypatch.setattr(plugins, "discover", lambda group: {"a": Slow(), "b": Fast(), "c": Slow(), "d": object(), "e": Absent()})
    assert peaks.peak_gmacs(2) == {"float32": 1e9, "int8": 200.0}


def test_the_peak_of_onnx_runtime_is_of_the_order_of_numpys():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    found = plugins.get("runtimes", "onnxruntime").peak_gmacs(1)
    assert found.keys() == {"float32", "int8"}
    assert 0.02 < found["float32"] / peaks._sgemm(1) < 50  # a unit that is wrong by a thousand, and nothing finer


def test_facts_of_a_real_model(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = tiny_onnx(tmp_path / "tiny.onnx")
    found = roofline.run(Job({"tiny": model}, {"format": "onnx", "threads": 1, "cpus": []}, tmp_path))["tiny"]
    record = Roofline.model_validate({**found, "reached": 0.5})
    assert (record.macs, record.moved_bytes) == (12, 4 * (4 + 12 + 3 + 3))
    expected = max(record.macs / record.peak_gmacs["float32"], record.moved_bytes / record.bandwidth_gbs) / 1e6
    assert record.floor_ms == pytest.approx(expected)


def test_a_format_that_nobody_looks_into_has_no_floor(tmp_path):
    assert roofline.run(Job({"a": tmp_path}, {"format": "npz", "threads": 1}, tmp_path)) == {"a": None}
