"""ONNX Runtime's own format: what the route writes is what the runtime runs and what the reader reads."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from tests import models  # noqa: E402
from toolkit import intake  # noqa: E402
from toolkit.artifact import Signature, TensorSpec  # noqa: E402
from toolkit.audit.onnx import READER as ONNX_READER  # noqa: E402
from toolkit.audit.ort import READER  # noqa: E402
from toolkit.convert import onnx_ort  # noqa: E402
from toolkit.convert.onnx_ort import ROUTE  # noqa: E402
from toolkit.errors import InputRejected, StageFailed  # noqa: E402
from toolkit.runtimes.onnxruntime import RUNTIME  # noqa: E402


def signature(batch=1):
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(batch, 4)),), outputs=(TensorSpec(name="logits", dtype="float32", shape=(batch, 3)),)
    )


@pytest.fixture
def made(tmp_path):
    ROUTE.convert(models.tiny_onnx(tmp_path / "tiny.onnx", batch="n"), tmp_path / "tiny.ort", signature("n"))
    return tmp_path / "tiny.ort"


def test_it_computes_what_numpy_computes_for_any_batch(made):
    session = RUNTIME.open(made, threads=1)
    assert session.signature == signature("n")
    for n in (1, 5):
        np.testing.assert_allclose(session.run({"x": models.samples(n)})["logits"], models.reference(models.samples(n)), atol=1e-6)


def test_bytes_depend_on_the_model_alone(made, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    ROUTE.convert(tmp_path / "tiny.onnx", tmp_path / "elsewhere" / "model.ort", signature("n"))
    assert (tmp_path / "elsewhere" / "model.ort").read_bytes() == made.read_bytes()
    assert str(tmp_path).encode() not in made.read_bytes()


def test_the_reader_agrees_with_the_runtime_and_with_the_onnx_file(made, tmp_path):
    contents = READER.read(made)
    assert contents.signature == RUNTIME.open(made, threads=1).signature
    assert contents.weight_bytes == ONNX_READER.read(tmp_path / "tiny.onnx").weight_bytes
    (layer,) = contents.layers
    assert (layer.weight_dtype, layer.activation_dtype, layer.weight_bytes) == ("float32", "float32", models.WEIGHTS.nbytes)
    assert contents.details["opset"] == "ai.onnx 17"


def test_damaged_files_are_refused_by_intake_reader_and_runtime(made, tmp_path):
    data = made.read_bytes()
    assert intake.check_model(made) == "ort"
    for number, content in enumerate((data[:7], b"\0" * len(data), data[:4] + b"TFL3" + data[8:], b"\xff" * 4 + data[4:])):
        path = tmp_path / f"{number}.ort"
        path.write_bytes(content)
        with pytest.raises(InputRejected):
            intake.check_model(path)
    for cut in (len(data) // 3, len(data) // 2):
        (tmp_path / "cut.ort").write_bytes(data[:cut])
        for act in (READER.read, lambda path: RUNTIME.open(path, threads=1)):
            with pytest.raises(InputRejected):
                act(tmp_path / "cut.ort")


def test_flipped_bytes_never_escape_the_reader(made, tmp_path):
    data, random = made.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(random.integers(8, len(data)))] ^= int(random.integers(1, 256))
        (tmp_path / "flipped.ort").write_bytes(bytes(damaged))
        try:
            READER.read(tmp_path / "flipped.ort")
        except InputRejected as error:
            assert error.hint


def test_an_operator_without_kernel_and_names_that_do_not_fit_are_one_line(tmp_path):
    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("x", "logits")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("NoSuchThing", ["x"], ["logits"])], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "odd.onnx"))
    with pytest.raises(StageFailed, match="NoSuchThing") as caught:
        ROUTE.convert(tmp_path / "odd.onnx", tmp_path / "odd.ort", signature())
    assert "\n" not in caught.value.message and caught.value.hint
    other = Signature(inputs=signature().inputs, outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 3)),))
    with pytest.raises(StageFailed, match="expected"):
        ROUTE.convert(models.tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.ort", other)


def test_the_blocked_layout_is_for_x86_64_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    kernel = onnx.numpy_helper.from_array(rng.normal(size=(32, 32, 3, 3)).astype(np.float32), "kernel")
    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 32, 8, 8]) for name in ("x", "logits")]
    node = onnx.helper.make_node("Conv", ["x", "kernel"], ["logits"], pads=[1, 1, 1, 1])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [kernel])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "conv.onnx"))
    spec = [TensorSpec(name=name, dtype="float32", shape=(1, 32, 8, 8)) for name in ("x", "logits")]
    monkeypatch.setattr(onnx_ort.platform, "machine", lambda: "aarch64")
    ROUTE.convert(tmp_path / "conv.onnx", tmp_path / "arm.ort", Signature(inputs=(spec[0],), outputs=(spec[1],)))
    assert "ReorderInput" not in READER.read(tmp_path / "arm.ort").operators
    assert [onnx_ort.blocked_layout(machine) for machine in ("x86_64", "AMD64", "arm64", "aarch64")] == [True, True, False, False]
