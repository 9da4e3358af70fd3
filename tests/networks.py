"""Small convolutional networks in ONNX and TFLite whose every path between layers is of a kind that real ones have.

``build`` puts a network together node by node; ``mobile`` is one with separable convolutions, squeeze-and-excitation, residual sums, a concatenation
and hard-swish; its last layer is fitted to digits by least squares, so that it is accurate without a training loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit import plugins
from toolkit.artifact import Signature, TensorSpec

IMAGE = "image"


@dataclass
class Builder:
    """Nodes and stored numbers of an ONNX graph."""

    seed: int = 0
    nodes: list[Any] = field(default_factory=list)
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or those of its outputs."""
        from onnx import helper

        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"node/{name}", **attributes))
        return name if outputs == 1 else names

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """Stores numbers."""
        name = f"stored_{len(self.stored)}"
        self.stored[name] = np.asarray(value, dtype)
        return name

    def vector(self, channels: int, low: float = 0.5, high: float = 1.5, rank: int = 1) -> str:
        """Stores positive numbers, one for each channel of an image where ``rank`` is 3."""
        return self.constant(self.random.uniform(low, high, [channels] + [1] * (rank - 1)))

    def conv(self, data: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, bias: bool = True, **attributes: Any) -> str:
        """Adds a convolution of the same size with random weights."""
        fan = inputs // groups * kernel * kernel
        weight = self.constant(self.random.normal(size=(outputs, inputs // groups, kernel, kernel)) * np.sqrt(2 / fan))
        added = [self.constant(self.random.normal(size=outputs) * 0.1)] if bias else []
        given = {"pads": [kernel // 2] * 4, "group": groups} | attributes
        return str(self.node("Conv", data, weight, *added, **given))

    def dense(self, data: str, inputs: int, outputs: int) -> str:
        """Adds a fully connected layer with random weights."""
        weight = self.constant(self.random.normal(size=(outputs, inputs)) / np.sqrt(inputs))
        return str(self.node("Gemm", data, weight, self.constant(self.random.normal(size=outputs) * 0.1), transB=1))

    def model(self, output: str, shape: Sequence[int], outputs: Sequence[int]) -> Any:
        """The model ``image [1 x *shape]`` -> ``scores [1 x *outputs]``."""
        from onnx import TensorProto, helper, numpy_helper

        nodes = [*self.nodes, helper.make_node("Identity", [output], ["scores"], name="node/scores")]
        ends = (
            [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, [1, *shape])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, *outputs])],
        )
        graph = helper.make_graph(nodes, "network", *ends, [numpy_helper.from_array(one, name) for name, one in self.stored.items()])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write(model: Any, folder: Path, format: str) -> Path:
    """Writes an ONNX model, or the TFLite file that Edgekit's compiler makes of it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    if format == "onnx":
        return path
    pytest.importorskip("ai_edge_litert")
    from toolkit.convert.onnx_litert import ROUTE

    sizes = [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in (model.graph.input[0], model.graph.output[0])]
    specs = [TensorSpec(name=name, dtype="float32", shape=tuple(shape)) for name, shape in zip((IMAGE, "scores"), sizes, strict=True)]
    out = folder / "model.tflite"
    ROUTE.convert(path, out, Signature(inputs=(specs[0],), outputs=(specs[1],)))
    return out


def run(model: Path, images: np.ndarray) -> np.ndarray:
    """Scores ``[n x ...]`` of images, one by one."""
    session = plugins.runtime_for(model.suffix[1:]).open(model, threads=1)
    return np.concatenate([session.run({IMAGE: images[i : i + 1]})["scores"] for i in range(len(images))])


def tensors_of(model: Path, names: Collection[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """What a file computes at tensors inside of it, from its own runtime."""
    if model.suffix == ".onnx":
        onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        graph = onnx.load(str(model))
        known = {value.name for value in (*graph.graph.input, *graph.graph.output)}
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
        session = runtime.InferenceSession(graph.SerializeToString())
        found = dict(zip([one.name for one in session.get_outputs()], session.run(None, {"image": images}), strict=True))
        return found | {"image": images}
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    with pytest.warns(UserWarning, match="preserve_all_tensors"):
        session = interpreter.Interpreter(str(model), experimental_preserve_all_tensors=True, num_threads=1)
    session.allocate_tensors()
    session.set_tensor(session.get_input_details()[0]["index"], images)
    session.invoke()
    return {one["name"]: session.get_tensor(one["index"]) for one in session.get_tensor_details() if one["name"] in names}


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Power of a signal over that of its error."""
    error = (reference.astype(np.float64) - found) ** 2
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / max(error.sum(), 1e-30)))


def gate(net: Builder, data: str, channels: int) -> str:
    """Squeeze and excitation."""
    mean = net.node("ReduceMean", data, net.constant([2, 3], "int64"), keepdims=1)
    inner = net.node("Relu", net.conv(mean, channels, 8))
    return str(net.node("Mul", net.node("HardSigmoid", net.conv(inner, 8, channels), alpha=1 / 6, beta=0.5), data))


def block(net: Builder, data: str, channels: int, wide: int, activation: str = "Relu", excite: bool = False) -> str:
    """Expansion, depthwise convolution, projection, and the sum with what came in."""
    inner = net.node(activation, net.conv(data, channels, wide))
    inner = net.node(activation, net.conv(inner, wide, wide, 3, groups=wide))
    if excite:
        inner = gate(net, inner, wide)
    return str(net.node("Add", net.conv(inner, wide, channels), data))


def body(net: Builder) -> tuple[str, int]:
    """A network ``[1 x 1 x 8 x 8]`` -> features ``[1 x 192]``."""
    image = net.node("HardSwish", net.conv(IMAGE, 1, 12, 3))
    narrow = net.conv(image, 12, 16)
    image = block(net, block(net, narrow, 16, 32, excite=True), 16, 32)
    branches = [net.node("Relu", net.conv(image, 16, 16, 3)), net.node("Relu", net.conv(image, 16, 32))]
    image = net.node("MaxPool", net.node("Concat", *branches, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    image = block(net, image, 48, 64, "HardSwish", excite=True)
    image = net.node("Relu", net.conv(image, 48, 48))
    return str(net.node("Flatten", net.node("AveragePool", image, kernel_shape=[2, 2], strides=[2, 2]))), 192


def digits() -> Mapping[str, np.ndarray]:
    """Real digits ``[n x 1 x 8 x 8]`` in 0..1: ``fit``, ``held_out`` and their labels."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    images = (found.images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    rows, others = order[:1400], order[1400:]
    return {"fit": images[rows], "fit_label": found.target[rows], "held_out": images[others], "held_out_label": found.target[others]}


def mobile(folder: Path, format: str, seed: int = 0) -> Path:
    """A network that reads digits: random features, and a last layer fitted to them."""
    net, data = Builder(seed), digits()
    features, count = body(net)
    plain = write(net.model(features, (1, 8, 8), (count,)), folder / "features", "onnx")
    seen = run(plain, data["fit"]).astype(np.float64)
    center = seen.mean(axis=0)
    centered, wanted = seen - center, np.eye(10)[data["fit_label"]] * 2 - 1
    penalty = 1e-2 * np.trace(centered.T @ centered) / count * np.eye(count)
    weight = np.linalg.solve(centered.T @ centered + penalty, centered.T @ (wanted - wanted.mean(axis=0)))
    bias = wanted.mean(axis=0) - center @ weight
    scores = net.node("Gemm", features, net.constant(weight.T), net.constant(bias), transB=1)
    return write(net.model(scores, (1, 8, 8), (10,)), folder, format)
