"""Int8 ONNX files of pretrained models become int8 TFLite files that give the same labels on 1,000 real samples.

Minutes long; run with: pytest -m slow tests/e2e/test_quantized_files.py. The data and weights are no part of the project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
NEEDED = ("tensorflow", "onnx", "onnxruntime", "ai_edge_litert", "PIL")
SAMPLES, CALIBRATION = 1000, 100
CROPS = ((0, 0), (32, 0), (0, 32), (32, 32), (16, 16))
# What computes is one of these, and all of them with integers.
COMPUTING = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN", "AVERAGE_POOL_2D", "SOFTMAX"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"real data are not at {DATA.name}"),
    *(pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed") for name in NEEDED),
]


def edgekit(*command: object) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-m", "toolkit", *map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def objects() -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 pictures ``[n x 32 x 32 x 3] float32, 0..255``: to judge by, and others to calibrate with."""
    with np.load(DATA / "cifar10" / "cifar10_train4000_lossless.npz") as given:
        found = next(given[name] for name in given if given[name].ndim == 4).astype(np.float32)
    return found[:SAMPLES], found[-CALIBRATION:]


def crops() -> tuple[np.ndarray, np.ndarray]:
    """Four corners of 250 pictures ``[n x 224 x 224 x 3] float32, -1..1`` to judge by; the middles of some to calibrate with."""
    from PIL import Image

    rows = []
    for file in sorted((DATA / "imagenet_samples_250").glob("*.jpg")):
        image = Image.open(file).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
        rows.append([np.asarray(image.crop((x, y, x + 224, y + 224)), np.float32) for x, y in CROPS])
    found = np.asarray(rows, np.float32) / 127.5 - 1
    return found[:, :4].reshape(-1, 224, 224, 3), found[:CALIBRATION, 4]


MODELS = {
    "resnet8": (DATA / "mlperf_tiny" / "ic" / "pretrainedResnet.h5", objects),
    "backbone": (DATA / "backbones" / "mobilenet_v1_0.25_224_imagenet.h5", crops),
}
CASES = [
    ("resnet8", "edgekit"),
    ("resnet8", "onnxruntime by channel"),
    ("resnet8", "onnxruntime's default"),
    ("resnet8", "onnxruntime operators"),
    ("backbone", "edgekit"),
    ("backbone", "onnxruntime by channel"),
]
"""With one scale for a whole tensor the backbone has no label left that its float model gives, so nothing can be said of it."""


@pytest.fixture(scope="module")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, np.ndarray]:
    """A model as a float ONNX file, samples to calibrate with, and real ones to judge by."""
    folder = tmp_path_factory.mktemp(request.param)
    source, make = MODELS[request.param]
    judged, calibration = make()
    name = json.loads(edgekit("inspect", source, "--format", "json"))["signature"]["inputs"][0]["name"]
    np.savez(folder / "calibration.npz", **{name: calibration})
    np.savez(folder / "few.npz", **{name: calibration[:8]})
    edgekit("export", source, "--format", "onnx", "--samples", folder / "few.npz", "--output", folder / "float.onnx")
    return request.param, folder, judged


@pytest.mark.parametrize(("prepared", "quantizer"), CASES, indirect=["prepared"])
def test_labels_stay(prepared: tuple[str, Path, np.ndarray], quantizer: str) -> None:
    model, folder, judged = prepared
    file = folder / f"{quantizer}.onnx"
    quantize(quantizer, folder, file)
    edgekit("export", file, "--format", "tflite", "--samples", folder / "few.npz", "--output", file.with_suffix(".tflite"))
    wanted, (found, details) = onnx_labels(file, judged), tflite_labels(file.with_suffix(".tflite"), judged)
    assert len(set(wanted.tolist())) >= 10, "the inputs must be told apart"
    agreement = float((wanted == found).mean())
    print(f"{model}, {quantizer}: {agreement:.4f} of {len(wanted)} labels agree")
    assert agreement >= 0.995
    assert details, "nothing computes"
    floats = {name.split()[0] for name, dtype in details.items() if dtype not in ("int8", "uint8")}
    assert floats == float_softmax(file), details


def float_softmax(file: Path) -> set[str]:
    """The softmax, where the ONNX file gives its result no scale: it is to arrive as it was, and all else in integers."""
    import onnx

    nodes = onnx.load(file).graph.node
    rounded = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    return {"SOFTMAX" for node in nodes if node.op_type == "Softmax" and node.output[0] not in rounded}


def quantize(quantizer: str, folder: Path, out: Path) -> None:
    if quantizer == "edgekit":
        edgekit("quantize", folder / "float.onnx", "--calibration", folder / "calibration.npz", "--output", out)
        return
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain = folder / "plain.onnx"
    quant_pre_process(str(folder / "float.onnx"), str(plain))
    signed, unsigned = quantization.QuantType.QInt8, quantization.QuantType.QUInt8
    options = {
        "onnxruntime by channel": {"per_channel": True, "activation_type": signed, "weight_type": signed},
        "onnxruntime's default": {},
        "onnxruntime operators": {"quant_format": quantization.QuantFormat.QOperator, "activation_type": unsigned, "weight_type": unsigned},
    }[quantizer]
    with np.load(folder / "calibration.npz") as given:
        columns = dict(given)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[dict[str, np.ndarray]] = iter(
                [{name: column[row : row + 1] for name, column in columns.items()} for row in range(CALIBRATION)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    quantization.quantize_static(str(plain), str(out), Reader(), **options)


def onnx_labels(file: Path, judged: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.array([session.run(None, {name: row[None]})[0].argmax() for row in judged])


def tflite_labels(file: Path, judged: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """Returns the labels, and of every operator that computes the type of what it reads."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    given, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    labels = []
    for row in judged:
        interpreter.set_tensor(given, row[None])
        interpreter.invoke()
        labels.append(interpreter.get_tensor(result).argmax())
    tensors = {one["index"]: np.dtype(one["dtype"]).name for one in interpreter.get_tensor_details()}
    read = {f"{one['op_name']} {one['index']}": tensors[one["inputs"][0]] for one in interpreter._get_ops_details() if one["op_name"] in COMPUTING}
    return np.array(labels), read
