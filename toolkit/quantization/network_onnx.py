"""Float ONNX files as a :class:`toolkit.quantization.network.Network`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import intake, modelfile, onnx_external
from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.quantization.network import Geometry, Norm, Reader, Weighted, activation_of

_STANDARD = ("", "ai.onnx")
_LARGE_BYTES = 1024
_ACTIVATIONS = {"Relu": "relu"} | dict.fromkeys(
    ("HardSwish", "Sigmoid", "HardSigmoid", "Tanh", "Gelu", "Elu", "Selu", "Celu", "LeakyRelu", "PRelu", "Softplus", "Mish", "Swish"), "other"
)
# They turn channels of twice the size into outputs of twice the size.
_SAME = {"Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Abs", "Neg"}
_WINDOWS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "Upsample"}
_ROLES = {
    **dict.fromkeys(_SAME, "same"),
    **dict.fromkeys(_WINDOWS, "window"),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min"), "add"),
    "Mul": "mul",
    "Div": "divide",
    "Concat": "concat",
    "Transpose": "transpose",
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), "reshape"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), "reduce"),
    "Split": "split",
    "Slice": "slice",
    "BatchNormalization": "batch_norm",
    "Pad": "pad",
}
_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}


class OnnxFile:
    """A parsed model; see :class:`toolkit.quantization.network.Stored`.

    Raises:
        InputRejected: The file is damaged.
    """

    format = "onnx"

    def __init__(self, model: Path) -> None:
        self._model = _load(model)
        graph = self._model.graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._tensors |= {node.output[0]: found for node in graph.node if node.op_type == "Constant" and (found := _value(node)) is not None}
        self._edited: dict[str, np.ndarray] = {}
        self._tell_apart()
        self.shapes = _shapes(self._model)
        self.constants = frozenset(self._tensors)
        stored = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in stored)
        self.outputs = tuple(value.name for value in graph.output)
        self.nodes = tuple(self._reader(node) for node in graph.node if node.op_type != "Constant")
        self._readers: dict[str, list[Reader]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        own = [(node, reader) for node, reader in zip((one for one in graph.node if one.op_type != "Constant"), self.nodes, strict=True)]
        self.layers = tuple(found for node, reader in own if (found := self._layer(node, reader)))
        self.norms = tuple(found for node, reader in own if (found := self._norm(node, reader)))

    def array(self, name: str) -> np.ndarray:
        """Numbers that are stored under a name."""
        import onnx

        if name in self._edited:
            return self._edited[name]
        found: np.ndarray = onnx.numpy_helper.to_array(self._tensors[name])
        return found

    def store(self, name: str, array: np.ndarray) -> None:
        """Replaces them."""
        self._edited[name] = array

    def save(self, out: Path) -> None:
        """Writes the file; a large one as a pair of graph and weights."""
        import onnx

        for name, array in self._edited.items():
            tensor = onnx.numpy_helper.from_array(array, self._tensors[name].name)
            self._tensors[name].CopyFrom(tensor)
        self._edited.clear()
        if sum(len(tensor.raw_data) for tensor in self._model.graph.initializer) > modelfile.BUFFER_BYTES - (64 << 20):
            onnx.save_model(self._model, str(out), save_as_external_data=True, location=onnx_external.data_path(out).name)
        else:
            out.write_bytes(self._model.SerializeToString(deterministic=True))

    def _tell_apart(self) -> None:
        """Gives operators that share a vector of factors, summands or biases each its own."""
        uses = Counter(name for node in self._model.graph.node for name in node.input)
        for node in list(self._model.graph.node):
            for position, name in enumerate(node.input):
                if uses[name] > 1 and node.op_type != "Constant" and self._is_vector(node, position, name):
                    node.input[position] = self._copied(name, uses)
                    uses[name] -= 1

    def _is_vector(self, node: Any, position: int, name: str) -> bool:
        if name not in self._tensors or self._tensors[name].data_type != 1:
            return False
        bias = node.op_type in ("Conv", "Gemm") and position == 2
        norm = node.op_type in (*_NORMS, "BatchNormalization") and position > 0
        size = int(np.prod(self._tensors[name].dims))
        return bias or norm or (node.op_type in ("Add", "Sub", "Mul", "Div") and size > 1 and size == max(self._tensors[name].dims))

    def _copied(self, name: str, uses: Mapping[str, int]) -> str:
        number = 1
        while (fresh := f"{name}.{number}") in uses or fresh in self._tensors:
            number += 1
        tensor = self._model.graph.initializer.add()
        tensor.CopyFrom(self._tensors[name])
        tensor.name = fresh
        self._tensors[fresh] = tensor
        return fresh

    def _reader(self, node: Any) -> Reader:
        seen = tuple(node.input) + tuple(dict.fromkeys(_captured(node)))
        known = node.domain in _STANDARD and not _graphs(node)
        role = _ROLES.get(node.op_type, "other") if known else "other"
        attributes = self._attributes(node, role) if known else {}
        if attributes.get("activation") == "relu":
            role = "same"
        if role == "pad":
            role = "window" if self._pads_zeros(node) else "other"
        if role == "window":
            attributes["channels"] = 1
        return Reader(node.name or (node.output[0] if node.output else ""), node.op_type, seen, tuple(node.output), role, attributes)

    def _attributes(self, node: Any, role: str) -> dict[str, Any]:
        given = _attributes(node)
        if node.op_type == "Clip":
            return {"activation": self._clip(node, given)}
        if node.op_type in _ACTIVATIONS:
            return {"activation": _ACTIVATIONS[node.op_type]}
        if role == "reduce":
            axes = given.get("axes") or (self._integers(node, 1))
            return {"axes": axes, "keepdims": bool(given.get("keepdims", 1))}
        if role in ("concat", "split"):
            return {"axis": given.get("axis", 0)}
        if role == "pad" and given.get("mode", b"constant") == b"constant" and len(node.input) < 4 and (pads := self._integers(node, 1)) is not None:
            return {"zeros": tuple(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True))}
        if role == "slice":
            return {"cuts": self._cuts(node)}
        return {"perm": given.get("perm")} if role == "transpose" else {}

    def _cuts(self, node: Any) -> dict[int, tuple[int, ...]] | None:
        """First, end and step by axis; ``None`` where they are computed."""
        starts, ends, axes, steps = (self._integers(node, position) for position in range(1, 5))
        if starts is None or ends is None or any(position < len(node.input) and self._integers(node, position) is None for position in (3, 4)):
            return None
        return dict(zip(axes or range(len(starts)), zip(starts, ends, steps or [1] * len(starts), strict=True), strict=True))

    def _pads_zeros(self, node: Any) -> bool:
        given = _attributes(node)
        if given.get("mode", b"constant") != b"constant":
            return True
        name = node.input[2] if len(node.input) > 2 else ""
        return (name in self._tensors and not self.array(name).any()) if name else given.get("value", 0.0) == 0.0

    def _integers(self, node: Any, position: int) -> list[int] | None:
        if position >= len(node.input) or node.input[position] not in self._tensors:
            return None
        return [int(one) for one in self.array(node.input[position]).reshape(-1)]

    def _clip(self, node: Any, given: Mapping[str, Any]) -> str:
        ends = [given.get("min", -np.inf), given.get("max", np.inf)]
        for position, name in enumerate(node.input[1:3]):
            if name:
                ends[position] = float(self.array(name).reshape(-1)[0]) if name in self._tensors else np.nan
        low, high = ends
        return {(0.0, 6.0): "relu6"}.get((low, high), "relu" if low == 0 and high >= np.finfo(np.float32).max else "other")

    def _own_weight(self, name: str, rank: int | None = None) -> bool:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_type != 1 or (rank is not None and len(tensor.dims) != rank):
            return False
        return len(self._readers.get(name, [])) == 1 and name not in self.outputs

    def _layer(self, node: Any, reader: Reader) -> Weighted | None:
        if node.domain not in _STANDARD or len(node.input) < 2 or not self._own_weight(node.input[1]):
            return None
        given = _attributes(node)
        if node.op_type == "Conv":
            return self._convolution(node, reader, given)
        if node.op_type == "Gemm" and not given.get("transA", 0) and given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0:
            return self._gemm(node, reader, given)
        return self._matmul(reader) if node.op_type == "MatMul" else None

    def _bias(self, node: Any, outputs: int) -> tuple[bool, str | None]:
        """Whether the third input is one that can be scaled, and its name."""
        name = node.input[2] if len(node.input) > 2 else ""
        if not name:
            return True, None
        return self._own_weight(name) and list(self._tensors[name].dims) == [outputs], name

    def _convolution(self, node: Any, reader: Reader, given: Mapping[str, Any]) -> Weighted | None:
        outputs, inputs, *kernel = self._tensors[node.input[1]].dims
        usable, bias = self._bias(node, outputs)
        if not usable:
            return None
        groups = given.get("group", 1)
        depthwise = inputs == 1 and groups > 1
        ones = (1,) * len(kernel)
        strides, dilations = tuple(given.get("strides", ones)), tuple(given.get("dilations", ones))
        geometry = Geometry(strides, dilations, self._pads(node, given, kernel, strides, dilations))
        activation, activated = self._activation(node.output[0])
        return Weighted(
            name=reader.name, kind="depthwise" if depthwise else "conv", weight=node.input[1], bias=bias, output_axis=0,
            input_axis=None if depthwise else 1, groups=groups, input=node.input[0], output=node.output[0], activation=activation,
            activated=activated, channel_axis=1, geometry=geometry,
        )  # fmt: skip

    def _pads(
        self, node: Any, given: Mapping[str, Any], kernel: list[int], strides: tuple[int, ...], dilations: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...] | None:
        automatic = given.get("auto_pad", b"NOTSET").decode()
        if automatic in ("NOTSET", "VALID"):
            flat = given.get("pads", [0] * 2 * len(kernel)) if automatic == "NOTSET" else [0] * 2 * len(kernel)
            return tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))
        sizes = self.shapes.get(node.input[0], ())[2:]
        return same_pads(sizes, kernel, strides, dilations, lower=automatic == "SAME_LOWER")

    def _gemm(self, node: Any, reader: Reader, given: Mapping[str, Any]) -> Weighted | None:
        turned = bool(given.get("transB", 0))
        usable, bias = self._bias(node, self._tensors[node.input[1]].dims[0 if turned else 1])
        if not usable:
            return None
        return self._dense(reader, bias, node.output[0], output_axis=0 if turned else 1)

    def _matmul(self, reader: Reader) -> Weighted | None:
        weight, output = reader.inputs[1], reader.outputs[0]
        if len(self._tensors[weight].dims) != 2:
            return None
        added = self._shift(output, self._tensors[weight].dims[1])
        bias, output = added if added else (None, output)
        return self._dense(reader, bias, output, output_axis=1)

    def _dense(self, reader: Reader, bias: str | None, output: str, output_axis: int) -> Weighted:
        activation, activated = self._activation(output)
        return Weighted(
            name=reader.name, kind="dense", weight=reader.inputs[1], bias=bias, output_axis=output_axis, input_axis=1 - output_axis, groups=1,
            input=reader.inputs[0], output=output, activation=activation, activated=activated,
        )  # fmt: skip

    def _shift(self, tensor: str, channels: int) -> tuple[str, str] | None:
        """The stored vector that alone is added to a tensor, and the sum's name."""
        readers = self._readers.get(tensor, [])
        if len(readers) != 1 or readers[0].operator != "Add" or tensor in self.outputs:
            return None
        other = next((name for name in readers[0].inputs if name != tensor), "")
        vector = self._own_weight(other) and int(np.prod(self._tensors[other].dims)) == channels == (list(self._tensors[other].dims) or [0])[-1]
        return (other, readers[0].outputs[0]) if vector else None

    def _activation(self, output: str) -> tuple[Any, str]:
        found = activation_of(self._readers.get(output, [])) if output not in self.outputs else None
        return found or ("none", output)

    def _norm(self, node: Any, reader: Reader) -> Norm | None:
        if node.op_type in _NORMS and node.domain in (*_STANDARD, "com.microsoft") and _attributes(node).get("axis", -1) in (-1, self._last(node)):
            shift = node.input[2] if len(node.input) > 2 and node.input[2] else None
            own = all(self._own_weight(name, 1) for name in (node.input[1], shift) if name)
            return Norm(reader.name, node.input[0], node.output[0], node.input[1], shift) if own else None
        if node.op_type != "Mul" or node.domain not in _STANDARD:
            return None
        scale = next((name for name in node.input if self._own_weight(name)), "")
        data = next((name for name in node.input if name not in self._tensors), "")
        if not scale or not data or not self._along_last(scale, data):
            return None
        added = self._shift(node.output[0], self._tensors[scale].dims[-1])
        shift, output = added if added else (None, node.output[0])
        return Norm(reader.name, data, output, scale, shift)

    def _last(self, node: Any) -> int:
        return len(self.shapes.get(node.input[0], ())) - 1

    def _along_last(self, scale: str, data: str) -> bool:
        dims, shape = list(self._tensors[scale].dims), self.shapes.get(data, ())
        return bool(dims and shape) and len(dims) <= len(shape) and dims[-1] == int(np.prod(dims)) == shape[-1] and dims[-1] > 1


def same_pads(
    sizes: tuple[int | None, ...], kernel: list[int], strides: tuple[int, ...], dilations: tuple[int, ...], *, lower: bool = False
) -> tuple[tuple[int, int], ...] | None:
    """Zeros around an input whose output has ``ceil(size / stride)`` elements; ``None`` where a size is free."""
    if len(sizes) != len(kernel) or None in sizes:
        return None
    found = []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        assert size is not None
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        found.append((large, small) if lower else (small, large))
    return tuple(found)


def _load(model: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    intake.check_model(model, "onnx")
    try:
        return onnx.load(str(model))
    except (DecodeError, *CODE_ERRORS) as error:
        raise InputRejected(f"is not a readable ONNX model: {first_line(error)}", where=model.name, hint="convert the model again") from error


def _value(node: Any) -> Any | None:
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _graphs(node: Any) -> list[Any]:
    return [graph for attribute in node.attribute for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))]


def _captured(node: Any) -> Iterator[str]:
    """Names that graphs inside an operator read; those that they compute themselves are in nobody's way."""
    for graph in _graphs(node):
        for inner in graph.node:
            yield from inner.input
            yield from _captured(inner)
        yield from (value.name for value in graph.output)


def _shapes(model: Any) -> dict[str, tuple[int | None, ...]]:
    """Sizes of all tensors, inferred from a copy without the large weights."""
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(_without_weights(model))
    try:
        graph = onnx.shape_inference.infer_shapes(light).graph
    except CODE_ERRORS:
        graph = light.graph
    found = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = tuple(size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim)
    return found


def _without_weights(model: Any) -> Any:
    """A model whose large weights are inputs, as shapes do not depend on them."""
    import onnx

    graph = model.graph
    small = [tensor for tensor in graph.initializer if len(tensor.raw_data) <= _LARGE_BYTES and not tensor.external_data]
    known = {value.name for value in graph.input}
    large = [tensor for tensor in graph.initializer if tensor.name not in known and tensor not in small]
    inputs = [*graph.input, *(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large)]
    light = onnx.helper.make_graph(graph.node, graph.name or "graph", inputs, graph.output, small)
    return onnx.helper.make_model(light, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version)
