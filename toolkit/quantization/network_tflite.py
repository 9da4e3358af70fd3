"""Float TFLite files as a :class:`toolkit.quantization.network.Network`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import intake, modelfile
from toolkit.errors import InputRejected
from toolkit.quantization.network import Geometry, Norm, Reader, Weighted, activation_of
from toolkit.quantization.network_onnx import same_pads

_ALIGNMENT = 16  # kernels read weights where they lie in the file, sixteen bytes at a time
_MARGIN_BYTES = 1 << 20
_LOWEST = -1e30
_FUSED = {0: "none", 1: "relu", 3: "relu6"}
_ACTIVATIONS = {"RELU": "relu", "RELU6": "relu6"} | dict.fromkeys(("HARD_SWISH", "LOGISTIC", "TANH", "GELU", "ELU", "LEAKY_RELU", "PRELU"), "other")
_SAME = {"RELU", "LEAKY_RELU", "PRELU", "ABS", "NEG"}
_WINDOWS = {"MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "PAD", "MIRROR_PAD", "PADV2"}
_ROLES = {
    **dict.fromkeys(_SAME, "same"),
    **dict.fromkeys(_WINDOWS, "window"),
    **dict.fromkeys(("ADD", "SUB", "ADD_N", "MAXIMUM", "MINIMUM"), "add"),
    "MUL": "mul",
    "DIV": "divide",
    "CONCATENATION": "concat",
    "TRANSPOSE": "transpose",
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), "reshape"),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), "reduce"),
    **dict.fromkeys(("SPLIT", "SPLIT_V"), "split"),
    "SLICE": "slice",
}
_VECTORS = ("ADD", "SUB", "MUL", "DIV")
_BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class TfliteFile:
    """A parsed model; see :class:`toolkit.quantization.network.Stored`.

    Raises:
        InputRejected: The file is damaged.
    """

    format = "tflite"

    def __init__(self, model: Path) -> None:
        self._model = _load(model)
        self._graph = self._model.subgraphs[0]
        self._operators = [_operator_name(self._model.operatorCodes[one.opcodeIndex]) for one in self._graph.operators]
        self._tell_apart()
        self._names = _names(self._graph.tensors)
        self._indices = {name: index for index, name in enumerate(self._names)}
        self.shapes = {name: _shape(tensor) for name, tensor in zip(self._names, self._graph.tensors, strict=True)}
        self.constants = frozenset(name for name, tensor in zip(self._names, self._graph.tensors, strict=True) if self._is_stored(tensor))
        for name, tensor in zip(self._names, self._graph.tensors, strict=True):
            if name in self.constants and tensor.type == _float32():
                self.array(name)  # a damaged file has other sizes than numbers
        self.inputs, self.outputs = (tuple(self._names[index] for index in found) for found in (self._graph.inputs, self._graph.outputs))
        self.nodes = tuple(self._reader(operator, name) for operator, name in zip(self._graph.operators, self._operators, strict=True))
        self._readers: dict[str, list[Reader]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._buffers = Counter(tensor.buffer for graph in self._model.subgraphs for tensor in graph.tensors)
        own = list(zip(self._graph.operators, self.nodes, strict=True))
        self.layers = tuple(layer for operator, node in own if (layer := self._layer(operator, node)))
        self.norms = tuple(norm for node in self.nodes if (norm := self._norm(node)))

    def array(self, name: str) -> np.ndarray:
        """Numbers that are stored under a name."""
        tensor = self._graph.tensors[self._indices[name]]
        if not self._is_stored(tensor):
            raise KeyError(name)
        return _bytes(self._model.buffers[tensor.buffer]).view(_dtype(tensor)).reshape([size or 0 for size in _shape(tensor)])

    def store(self, name: str, array: np.ndarray) -> None:
        """Replaces them."""
        tensor = self._graph.tensors[self._indices[name]]
        if self._buffers[tensor.buffer] > 1:
            self._copy_buffer(tensor)
        self._model.buffers[tensor.buffer].data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def save(self, out: Path) -> None:
        """Writes the file, its weights on boundaries of sixteen bytes."""
        import flatbuffers

        size_bytes = sum(_bytes(buffer).nbytes for buffer in self._model.buffers)
        if size_bytes > modelfile.BUFFER_BYTES - _MARGIN_BYTES:
            what = f"has {size_bytes / 1e9:.2f} GB of weights, and a TFLite file holds {modelfile.BUFFER_BYTES / 1e9:.2f} GB"
            raise InputRejected(what, where=out.name, hint="make the model smaller")
        plain = self._model.buffers
        self._model.buffers = [_aligned(buffer) for buffer in plain]
        try:
            builder = flatbuffers.Builder(size_bytes + _MARGIN_BYTES)
            builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
            out.write_bytes(memoryview(builder.Bytes)[builder.Head() :])
        finally:
            self._model.buffers = plain

    def _tell_apart(self) -> None:
        """Gives operators that share a vector of factors, summands or biases each a tensor and a buffer of its own."""
        uses = Counter(index for operator in self._graph.operators for index in operator.inputs)
        buffers = Counter(tensor.buffer for graph in self._model.subgraphs for tensor in graph.tensors)
        for operator, name in zip(self._graph.operators, self._operators, strict=True):
            for position, index in enumerate(operator.inputs):
                if index < 0 or not self._is_vector(name, position, self._graph.tensors[index]):
                    continue
                if uses[index] > 1:
                    uses[index] -= 1
                    operator.inputs = np.array(operator.inputs)  # what was read from the file cannot be written
                    operator.inputs[position] = self._copied(self._graph.tensors[index])
                elif buffers[self._graph.tensors[index].buffer] > 1:
                    buffers[self._graph.tensors[index].buffer] -= 1
                    self._copy_buffer(self._graph.tensors[index])

    def _is_vector(self, operator: str, position: int, tensor: Any) -> bool:
        if not self._is_stored(tensor) or tensor.type != _float32():
            return False
        length = _vector_length(_shape(tensor)) or 1
        return (operator in _BIASED and position == 2) or (operator in _VECTORS and length > 1)

    def _copied(self, tensor: Any) -> int:
        from ai_edge_litert import schema_py_generated as schema

        given = {key: value for key, value in vars(tensor).items() if key != "name"}
        copy = schema.TensorT(**given, name=_free_name(tensor.name, {one.name for one in self._graph.tensors}))
        self._copy_buffer(copy)
        self._graph.tensors.append(copy)
        return len(self._graph.tensors) - 1

    def _copy_buffer(self, tensor: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._model.buffers.append(schema.BufferT(data=_bytes(self._model.buffers[tensor.buffer]).copy()))
        tensor.buffer = len(self._model.buffers) - 1

    def _is_stored(self, tensor: Any) -> bool:
        return bool(_bytes(self._model.buffers[tensor.buffer]).nbytes)

    def _reader(self, operator: Any, name: str) -> Reader:
        inputs, outputs = (tuple(self._names[index] if index >= 0 else "" for index in found) for found in (operator.inputs, operator.outputs))
        attributes = self._attributes(operator, name, inputs)
        role = _ROLES.get(name, "other")
        if name == "PADV2" and not self._pads_nothing(inputs[2]):
            role = "other"
        if attributes.get("fused") not in (None, "none", "relu"):
            role = "other"
        return Reader(outputs[0] if outputs else "", name, inputs, outputs, role, attributes)

    def _pads_nothing(self, name: str) -> bool:
        """Whether what is put around a tensor means the same beside channels of any size: zero, or less than every number."""
        value = float(self.array(name).reshape(-1)[0]) if name in self.constants else np.nan
        return value == 0 or value <= _LOWEST

    def _attributes(self, operator: Any, name: str, inputs: tuple[str, ...]) -> dict[str, Any]:
        options = operator.builtinOptions
        found: dict[str, Any] = {}
        fused = getattr(options, "fusedActivationFunction", None)
        if fused is not None:
            found["fused"] = _FUSED.get(fused, "other")
        if name in _ACTIVATIONS:
            found["activation"] = _ACTIVATIONS[name]
        if name == "CONCATENATION":
            found["axis"] = int(options.axis)
        if name in ("SPLIT", "SPLIT_V"):
            data, axis = (1, 0) if name == "SPLIT" else (0, 2)
            found |= {"data": data, "axis": (self._integers(inputs[axis]) or [None])[0]}
        if name == "TRANSPOSE":
            found["perm"] = self._integers(inputs[1])
        if name == "SLICE":
            found["cuts"] = _cuts(*(self._integers(one) for one in inputs[1:3]))
        if name in _WINDOWS:
            found["channels"] = -1
        if name == "PAD" and (pads := self._integers(inputs[1])) is not None:
            found["zeros"] = tuple(zip(pads[::2], pads[1::2], strict=True))
        if _ROLES.get(name) == "reduce":
            found |= {"axes": self._integers(inputs[1]), "keepdims": bool(options.keepDims)}
        return found

    def _integers(self, name: str) -> Any:
        tensor = self._graph.tensors[self._indices[name]]
        return [int(one) for one in self.array(name).reshape(-1)] if self._is_stored(tensor) else None

    def _own_weight(self, name: str) -> bool:
        if name not in self.constants or self._graph.tensors[self._indices[name]].type != _float32():
            return False
        one_reader = len(self._readers.get(name, [])) == 1 and name not in self.outputs
        return one_reader and self._buffers[self._graph.tensors[self._indices[name]].buffer] == 1

    def _layer(self, operator: Any, node: Reader) -> Weighted | None:
        if node.operator in ("CONV_2D", "DEPTHWISE_CONV_2D") and self._own_weight(node.inputs[1]):
            return self._convolution(operator, node)
        if node.operator == "FULLY_CONNECTED" and self._own_weight(node.inputs[1]) and len(self.shapes[node.inputs[1]]) == 2:
            return self._dense(node, output_axis=0)
        if node.operator == "BATCH_MATMUL" and not operator.builtinOptions.adjX and self._own_weight(node.inputs[1]):
            turned = bool(operator.builtinOptions.adjY)
            return self._dense(node, output_axis=0 if turned else 1) if len(self.shapes[node.inputs[1]]) == 2 else None
        return None

    def _bias(self, node: Reader) -> str | None:
        return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None

    def _convolution(self, operator: Any, node: Reader) -> Weighted | None:
        options, weight, bias = operator.builtinOptions, node.inputs[1], self._bias(node)
        channels = (self.shapes[node.inputs[0]] or (None,))[-1]
        depthwise = node.operator == "DEPTHWISE_CONV_2D"
        if channels is None or (bias and not self._own_weight(bias)):
            return None
        dims = [size or 1 for size in self.shapes[weight]]
        strides, dilations = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
        padded = same_pads(self.shapes[node.inputs[0]][1:3], dims[1:3], strides, dilations) if options.padding == 0 else ((0, 0), (0, 0))
        activation, activated = self._activation(node)
        return Weighted(
            name=node.name, kind="depthwise" if depthwise else "conv", weight=weight, bias=bias, output_axis=3 if depthwise else 0,
            input_axis=None if depthwise else 3, groups=channels if depthwise else channels // dims[3], input=node.inputs[0],
            output=node.outputs[0], activation=activation, activated=activated, geometry=Geometry(strides, dilations, padded),
        )  # fmt: skip

    def _dense(self, node: Reader, output_axis: int) -> Weighted | None:
        bias, end = self._bias(node) if node.operator == "FULLY_CONNECTED" else None, node
        if bias and not self._own_weight(bias):
            return None
        if bias is None and node.attributes.get("fused", "none") == "none":
            added = self._shift(node.outputs[0], self.shapes[node.inputs[1]][output_axis])
            bias, end = added if added else (None, node)
        activation, activated = self._activation(end)
        return Weighted(
            name=node.name, kind="dense", weight=node.inputs[1], bias=bias, output_axis=output_axis, input_axis=1 - output_axis, groups=1,
            input=node.inputs[0], output=end.outputs[0], activation=activation, activated=activated,
        )  # fmt: skip

    def _shift(self, tensor: str, channels: int | None) -> tuple[str, Reader] | None:
        """The stored vector that alone is added to a tensor, and the operator that adds it."""
        readers = self._readers.get(tensor, [])
        if len(readers) != 1 or readers[0].operator != "ADD" or tensor in self.outputs:
            return None
        other = next((name for name in readers[0].inputs if name != tensor), "")
        vector = self._own_weight(other) and _vector_length(self.shapes[other]) == channels
        return (other, readers[0]) if vector else None

    def _activation(self, node: Reader) -> tuple[Any, str]:
        output = node.outputs[0]
        if node.attributes.get("fused", "none") != "none":
            return node.attributes["fused"], output
        found = activation_of(self._readers.get(output, [])) if output not in self.outputs else None
        return found or ("none", output)

    def _norm(self, node: Reader) -> Norm | None:
        if node.operator != "MUL" or node.attributes.get("fused", "none") != "none":
            return None
        scale = next((name for name in node.inputs if self._own_weight(name)), "")
        data = next((name for name in node.inputs if name not in self.constants), "")
        channels = _vector_length(self.shapes[scale]) if scale else None
        if not data or channels is None or channels < 2 or (self.shapes[data] or (None,))[-1] != channels:
            return None
        added = self._shift(node.outputs[0], channels)
        if added and added[1].attributes.get("fused", "none") == "none":
            return Norm(node.name, data, added[1].outputs[0], scale, added[0])
        return Norm(node.name, data, node.outputs[0], scale, None)


def _load(model: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    intake.check_model(model, "tflite")
    data = model.read_bytes()
    found = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    if not found.subgraphs:
        raise ValueError("it has no graph")
    for buffer in found.buffers:
        if buffer.data is None and buffer.offset > 1:  # data behind the flatbuffer
            buffer.data, buffer.offset, buffer.size = np.frombuffer(data, np.uint8, buffer.size, buffer.offset), 0, 0
    return found


def _aligned(buffer: Any) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(schema.BufferT):  # type: ignore[misc]  # the schema has no types
        """A buffer on a boundary of sixteen bytes, which the generated code forgets."""

        def Pack(self, builder: Any) -> Any:
            data = _bytes(buffer)
            if data.nbytes:
                builder.StartVector(1, data.nbytes, _ALIGNMENT)
                builder.head -= data.nbytes
                np.ndarray(data.shape, data.dtype, builder.Bytes, builder.head)[...] = data
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if data.nbytes:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return Aligned()


def _bytes(buffer: Any) -> np.ndarray:
    return np.zeros(0, np.uint8) if buffer.data is None else np.asarray(buffer.data, np.uint8)


def _operator_name(code: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return next((name for name, value in vars(schema.BuiltinOperator).items() if value == number), "CUSTOM")


def _float32() -> int:
    from ai_edge_litert import schema_py_generated as schema

    return int(schema.TensorType.FLOAT32)


def _dtype(tensor: Any) -> np.dtype[Any]:
    from ai_edge_litert import schema_py_generated as schema

    name = next(name for name, value in vars(schema.TensorType).items() if value == tensor.type)
    return np.dtype(name.lower())


def _shape(tensor: Any) -> tuple[int | None, ...]:
    signature = [] if tensor.shapeSignature is None else list(tensor.shapeSignature)
    sizes = signature or ([] if tensor.shape is None else list(tensor.shape))
    return tuple(None if size < 0 else int(size) for size in sizes)


def _names(tensors: list[Any]) -> list[str]:
    """The tensors' names, in their order; one that is empty or taken gets its number."""
    found: dict[str, None] = {}
    for index, tensor in enumerate(tensors):
        name = (tensor.name or b"").decode("utf-8")
        found[f"{name}#{index}" if name in found or not name else name] = None
    return list(found)


def _free_name(name: bytes, taken: Mapping[bytes, Any] | set[bytes]) -> bytes:
    number = 1
    while (fresh := name + f".{number}".encode()) in taken:
        number += 1
    return fresh


def _cuts(starts: list[int] | None, sizes: list[int] | None) -> dict[int, tuple[int, int | None]] | None:
    """First and end by axis; ``None`` where they are computed."""
    if starts is None or sizes is None:
        return None
    return {axis: (start, None if size < 0 else start + size) for axis, (start, size) in enumerate(zip(starts, sizes, strict=True))}


def _vector_length(shape: tuple[int | None, ...]) -> int | None:
    """Elements of a tensor whose only axis longer than 1 is the last; ``None`` for any other."""
    return shape[-1] if shape and all(size == 1 for size in shape[:-1]) else None
