import tempfile

import numpy as np
import pytest

from toolkit import plugins
from toolkit.artifact import Signature, TensorSpec
from toolkit.columns import check_columns, one_sample
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.job import Job
from toolkit.quantization import onnx_prepared, stage
from toolkit.quantization.litert import QUANTIZER as LITERT
from toolkit.quantization.onnxruntime import QUANTIZER as ONNX

RNG = np.random.default_rng(5)
CONVOLUTION = RNG.normal(size=(8, 1, 3, 3)).astype(np.float32)
HEAD = RNG.normal(size=(8 * 4 * 4, 32)).astype(np.float32)
IMAGES = RNG.uniform(-1, 2, size=(40, 1, 4, 4)).astype(np.float32)
IMAGES[17, 0, 1, 2], IMAGES[3, 0, 0, 0] = 6.0, -2.5  # the extremes sit in the middle: an average would not reach them
SIGNATURE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=(1, 1, 4, 4)),), outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 32)),)
)


def onnx_model(path, gain=1.0):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    nodes = [
        make("Mul", ["image", "gain"], ["scaled"]),
        make("Mul", ["scaled", "gain"], ["louder"]),
        make("Conv", ["louder", "kernel"], ["seen"], pads=[1, 1, 1, 1], name="conv"),
        make("Relu", ["seen"], ["positive"]),
        make("Reshape", ["positive", "flat"], ["row"]),
        make("MatMul", ["row", "head"], ["logits"], name="head_matmul"),
    ]
    stored = [tensor(np.float32(gain), "gain"), tensor(CONVOLUTION, "kernel"), tensor(HEAD, "head"), tensor(np.array([1, -1], np.int64), "flat")]
    ends = [onnx.helper.make_tensor_value_info("image", 1, [1, 1, 4, 4])], [onnx.helper.make_tensor_value_info("logits", 1, [1, 32])]
    graph = onnx.helper.make_graph(nodes if gain != 1 else [make("Identity", ["image"], ["louder"]), *nodes[2:]], "g", *ends, stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


@pytest.fixture(scope="module")
def tflite_model(tmp_path_factory):
    return make_tflite(tmp_path_factory.mktemp("tflite"))


def make_tflite(folder, gain=1.0):
    torch = pytest.importorskip("torch")
    for name in ("litert_torch", *LITERT.modules):
        pytest.importorskip(name)
    from toolkit.convert.torch_litert import ROUTE

    class Net(torch.nn.Module):
        def forward(self, image):
            for _ in range(2 if gain != 1 else 0):
                image = image * gain + image
            seen = torch.nn.functional.conv2d(image, torch.from_numpy(CONVOLUTION), padding=1).relu()
            return seen.flatten(1) @ torch.from_numpy(HEAD)

    plugins.get("sources", "torch").capture(Net().eval(), {"image": IMAGES[:1]}, folder / "model.pt2", outputs=("logits",))
    ROUTE.convert(folder / "model.pt2", folder / "model.tflite", SIGNATURE)
    return folder / "model.tflite"


def reference(images):
    """The same network by hand in float64."""
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[:, 0], (3, 3), axis=(1, 2))
    seen = np.maximum(np.einsum("nijkl,ckl->ncij", windows, CONVOLUTION[:, 0]), 0)
    return seen.reshape(len(images), -1) @ HEAD


def sqnr_db(reference, found):
    return 10 * np.log10((reference**2).sum() / ((reference - found) ** 2).sum())


def run_all(path, images):
    session = plugins.runtime_for(path.suffix[1:]).open(path, threads=1)
    return np.concatenate([session.run({"image": images[row : row + 1]})["logits"] for row in range(len(images))])


def scales(path):
    """Every stored array of an ONNX file by name, read past Edgekit's readers."""
    import onnx

    model = onnx.load(str(path))
    return model, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_onnx_static_uses_the_true_extremes_of_the_samples(tmp_path):
    ONNX.quantize(onnx_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options={})
    model, stored = scales(tmp_path / "q.onnx")
    first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image")
    np.testing.assert_allclose(stored[first.input[1]], (6.0 + 2.5) / 255, rtol=1e-6)
    assert stored[first.input[2]].dtype == np.uint8 and stored[first.input[2]] == round(2.5 / (8.5 / 255))
    assert sqnr_db(reference(IMAGES), run_all(tmp_path / "q.onnx", IMAGES)) > 25


@pytest.mark.parametrize(("per_channel", "count"), [(True, 8), (False, 1)])
def test_onnx_static_weights_are_symmetric_int8(tmp_path, per_channel, count):
    options = {"per_channel": per_channel}
    ONNX.quantize(
        onnx_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options=options
    )
    model, stored = scales(tmp_path / "q.onnx")
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    source = next(node for node in model.graph.node if node.output[0] == convolution.input[1])
    weight, scale, zero = (stored[name] for name in source.input)
    assert weight.dtype == np.int8 and not np.any(zero)
    largest = np.abs(CONVOLUTION).reshape(8, -1).max(axis=1) if per_channel else np.abs(CONVOLUTION).max()
    assert np.size(scale) == count
    restored = weight * np.reshape(scale, (-1, 1, 1, 1))
    assert np.all(np.abs(restored - CONVOLUTION) <= np.reshape(largest, (-1, 1, 1, 1)) / 127 * 0.51)


def test_onnx_dynamic_leaves_convolutions_in_float(tmp_path):
    ONNX.quantize(onnx_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", scheme="dynamic_wi8", calibration=None, options={})
    operators = [node.op_type for node in scales(tmp_path / "q.onnx")[0].graph.node]
    assert "Conv" in operators and "MatMulInteger" in operators and "ConvInteger" not in operators
    assert (tmp_path / "q.onnx").stat().st_size < (tmp_path / "m.onnx").stat().st_size
    assert sqnr_db(reference(IMAGES), run_all(tmp_path / "q.onnx", IMAGES)) > 25


def test_onnx_stale_shapes_do_not_stop_the_quantizer_even_without_preprocessing(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(onnx_model(tmp_path / "m.onnx")))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("seen", 1, [1, 9, 4, 5]))
    onnx.save(model, str(tmp_path / "stale.onnx"))
    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", fail)
    ONNX.quantize(tmp_path / "stale.onnx", tmp_path / "q.onnx", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options={})
    assert sqnr_db(reference(IMAGES), run_all(tmp_path / "q.onnx", IMAGES)) > 25


def fail(*args, **kwargs):
    raise RuntimeError("cannot infer\nmore text")


def test_temporary_files_stay_in_a_folder_that_is_removed(tmp_path):
    before = tempfile.gettempdir()
    with onnx_prepared.private_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and tempfile.gettempdir() == str(folder)
    assert tempfile.gettempdir() == before and not list(tmp_path.iterdir())


def test_onnx_says_in_the_file_when_preprocessing_was_skipped(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("onnxruntime.quantization.shape_inference.quant_pre_process", fail)
    ONNX.quantize(onnx_model(tmp_path / "m.onnx"), tmp_path / "q.onnx", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options={})
    notes = {entry.key: entry.value for entry in scales(tmp_path / "q.onnx")[0].metadata_props}
    assert notes["edgekit.preprocessing_skipped"] == "RuntimeError: cannot infer"
    assert sqnr_db(reference(IMAGES), run_all(tmp_path / "q.onnx", IMAGES)) > 25


@pytest.mark.parametrize(("gain", "first"), [(1e30, 0.5), (1.0, np.inf), (1.0, -np.inf)])
def test_onnx_overflowing_activations_are_an_error(tmp_path, gain, first):
    images = IMAGES.copy()
    images[0, 0, 0, 0] = first
    with pytest.raises(StageFailed, match=r"overflows on the calibration samples|computes NaN"):
        ONNX.quantize(
            onnx_model(tmp_path / "m.onnx", gain), tmp_path / "q.onnx", scheme="static_wi8_ai8", calibration=Dataset({"image": images}), options={}
        )
    assert not (tmp_path / "q.onnx").exists()


def test_litert_static_uses_the_true_extremes_of_the_samples(tflite_model, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    LITERT.quantize(tflite_model, tmp_path / "q.tflite", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options={})
    interpreter = Interpreter(str(tmp_path / "q.tflite"))
    images = [t for t in interpreter.get_tensor_details() if t["dtype"] is np.int8 and tuple(t["shape"]) in ((1, 1, 4, 4), (1, 4, 4, 1))]
    np.testing.assert_allclose(images[0]["quantization"][0], (6.0 + 2.5) / 255, rtol=1e-6)
    assert sqnr_db(reference(IMAGES), run_all(tmp_path / "q.tflite", IMAGES)) > 25


@pytest.mark.parametrize(("per_channel", "count"), [(True, 8), (False, 1)])
def test_litert_static_weights_are_symmetric_int8(tflite_model, tmp_path, per_channel, count):
    from ai_edge_litert.interpreter import Interpreter

    LITERT.quantize(
        tflite_model, tmp_path / "q.tflite", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options={"per_channel": per_channel}
    )
    kernels = [t for t in Interpreter(str(tmp_path / "q.tflite")).get_tensor_details() if tuple(t["shape"]) in ((8, 3, 3, 1), (1, 3, 3, 8))]
    assert kernels and all(kernel["dtype"] is np.int8 for kernel in kernels)
    quantization = kernels[0]["quantization_parameters"]
    assert len(quantization["scales"]) == count and not quantization["zero_points"].any()
    largest = np.abs(CONVOLUTION).reshape(8, -1).max(axis=1) if per_channel else np.abs(CONVOLUTION).max()
    np.testing.assert_allclose(quantization["scales"], largest / 127, rtol=1e-5)


def test_litert_overflowing_activations_are_an_error(tmp_path):
    model = make_tflite(tmp_path, gain=1e30)
    with pytest.raises(StageFailed, match=r"overflows on the calibration samples|computes NaN"):
        LITERT.quantize(model, tmp_path / "q.tflite", scheme="static_wi8_ai8", calibration=Dataset({"image": IMAGES}), options={})
    assert not (tmp_path / "q.tflite").exists()


def test_litert_refuses_per_tensor_dynamic(tflite_model, tmp_path):
    with pytest.raises(ConfigError, match="per channel"):
        LITERT.quantize(tflite_model, tmp_path / "q.tflite", scheme="dynamic_wi8", calibration=None, options={"per_channel": False})


@pytest.mark.parametrize("quantizer", [ONNX, LITERT], ids=lambda quantizer: quantizer.name)
@pytest.mark.parametrize("content", [b"not a model", b"\x08\x07\x12"])
def test_a_damaged_model_is_refused_and_nothing_is_left(tmp_path, quantizer, content):
    if plugins.missing_modules(quantizer):
        pytest.skip("not installed")
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(InputRejected, match="not a readable"):
        quantizer.quantize(tmp_path / "model", tmp_path / "q", scheme="dynamic_wi8", calibration=None, options={})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def make_job(folder, model, columns=None, **options):
    (folder / "out").mkdir()
    inputs = {"model": model}
    if columns is not None:
        inputs["calibration"] = folder / "calibration"
        Dataset({"image": IMAGES, **columns} if "image" not in columns else columns).write(folder / "calibration")
    defaults = {"quantizer": "onnxruntime", "scheme": "static_wi8_ai8", "method": "min_max", "per_channel": True}
    return Job(inputs, {**defaults, **options}, folder / "out")


@pytest.fixture
def model(tmp_path):
    return onnx_model(tmp_path / "m.onnx")


def test_stage_reports_what_it_did(model, tmp_path):
    facts = stage.run(make_job(tmp_path, model, {}))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["label.json", "model.onnx"]
    assert facts["calibration"] == {"n": 40, "method": "min_max"} and facts["scheme"] == "static_wi8_ai8"
    assert facts["ratio"] == (tmp_path / "out" / "model.onnx").stat().st_size / model.stat().st_size
    assert facts["made_by"] == "onnxruntime" and set(facts["versions"]) == {"onnx", "onnxruntime"}


def test_stage_takes_no_samples_where_none_are_needed(model, tmp_path):
    facts = stage.run(make_job(tmp_path, model, scheme="dynamic_wi8"))
    assert facts["calibration"] is None and facts["ratio"] < 1


def spoiled(value):
    images = IMAGES.copy()
    images[23, 0, 2, 1] = value
    return images


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"extra": IMAGES}, r"columns are \['extra', 'image'\], the model's inputs are \['image'\]"),
        ({"image": IMAGES[:, 0]}, r"samples of shape \[4, 4\], the model's input takes \[1, 4, 4\]"),
        ({"image": IMAGES[:, :, :3]}, r"samples of shape \[1, 3, 4\], the model's input takes \[1, 4, 4\]"),
        ({"image": IMAGES.astype(np.float64)}, "is float64, the model's input is float32"),
        ({"image": IMAGES.astype(np.uint8)}, "is uint8, the model's input is float32"),
        ({"image": spoiled(np.nan)}, "NaN or Inf in sample 23"),
        ({"image": spoiled(np.inf)}, "NaN or Inf in sample 23"),
        ({"image": spoiled(-np.inf)}, "NaN or Inf in sample 23"),
    ],
)
def test_stage_refuses_samples_that_do_not_fit(model, tmp_path, columns, message):
    with pytest.raises(InputRejected, match=message):
        stage.run(make_job(tmp_path, model, columns))


def test_stage_refuses_an_empty_data_set(model, tmp_path):
    job = make_job(tmp_path, model, {})
    np.save(tmp_path / "calibration" / "image.npy", IMAGES[:0])
    with pytest.raises(InputRejected, match="no samples"):
        stage.run(job)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "unknown method 'median'; onnxruntime knows min_max"),
        ({"scheme": "int3"}, "unknown scheme 'int3'"),
        ({"quantizer": "nobody"}, "unknown quantizer 'nobody'"),
    ],
)
def test_stage_refuses_unknown_options(model, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        stage.run(make_job(tmp_path, model, {}, **options))


def test_stage_refuses_static_without_samples(model, tmp_path):
    with pytest.raises(ConfigError, match="needs calibration samples"):
        stage.run(make_job(tmp_path, model))


def tokens(dtype):
    return Signature(inputs=(TensorSpec(name="ids", dtype=dtype, shape=(1, 3)),), outputs=())


def test_wider_integers_are_accepted_when_they_fit():
    data = Dataset({"ids": np.array([[0, 5, 2**31 - 1]], np.int64)})
    check_columns(data, tokens("int32"))
    sample = one_sample(data, 0, tokens("int32"))["ids"]
    assert sample.dtype == np.int32 and sample.tolist() == [[0, 5, 2**31 - 1]]


@pytest.mark.parametrize(("value", "dtype"), [(2**31, "int32"), (-1, "uint8"), (256, "uint8")])
def test_integers_that_would_wrap_are_refused(value, dtype):
    with pytest.raises(InputRejected, match=f"values from {min(value, 0)} to {max(value, 0)}, the model's input is {dtype}"):
        check_columns(Dataset({"ids": np.array([[0, value, 0]], np.int64)}), tokens(dtype))


def test_free_axes_take_any_size():
    free = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "rows", 2)),), outputs=())
    check_columns(Dataset({"x": np.zeros((3, 9, 2), np.float32)}), free)
    with pytest.raises(InputRejected, match=r"\[9, 3\]"):
        check_columns(Dataset({"x": np.zeros((3, 9, 3), np.float32)}), free)
