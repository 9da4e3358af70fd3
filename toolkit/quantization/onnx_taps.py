"""An ONNX graph that tells more than it was made to: reductions of its tensors beside it, each run right behind what it looks at.

ONNX Runtime walks a graph backwards from what nobody reads, the last of it first, so that the operators of the first tensor stand last. It would
still run what leaves the blocked layout in any order; the one by priority is the one in which its layout pass met the operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import onnx_wire
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.quantization import onnx_integer, onnx_prepared, onnx_static

_PASSING = {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad", "Resize"}
_ACTIVATIONS = {"Relu", "Clip"}
_FUSING = {"Conv", "Gemm", "MatMul", "Add", "Mul"}
_BLOCKED = {"Conv", "Relu", "Clip", "Add", "Mul", "Sum", "BatchNormalization", "HardSwish", "Sigmoid", "HardSigmoid", "Concat", "AveragePool"}
_NEVER_BELOW_ZERO = {"Relu", "Sigmoid", "HardSigmoid", "Softmax"}
_FLOAT = 1
_BLOCK = 16  # channels side by side in the blocked layout, at most: tensors of a multiple are joined without leaving it
_SMALL = 4096  # bytes of a weight
_WEIGHTS = "edgekit_weights"


class Graph:
    """An ONNX model that outputs are added to."""

    def __init__(self, model: Path) -> None:
        """Reads a model.

        Raises:
            InputRejected: It is damaged.
        """
        import onnx
        from google.protobuf.message import DecodeError

        try:
            self.onnx, self._weights = _opened(model)
            _take_one_sample(self.onnx.graph)
            onnx_prepared.name_nodes(self.onnx)
            self._inferred = onnx.shape_inference.infer_shapes(self.onnx)
            known = self._inferred.graph
        except (DecodeError, *CODE_ERRORS) as error:
            what = f"is not a readable ONNX model: {first_line(error)}"
            raise InputRejected(what, where=model.name, hint="convert the model again") from error
        graph = self.onnx.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {value.name: value.type.tensor_type for value in (*known.input, *known.value_info, *known.output)}
        self.writer = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self._convolves = any(node.op_type == "Conv" for node in graph.node)
        self._groups: list[list[Any]] = []
        self._joins: list[Any] = []

    def inputs(self) -> dict[str, np.dtype]:
        """The inputs that a caller gives, with their types."""
        import onnx

        given = [value for value in self.onnx.graph.input if value.name not in self.constants]
        return {value.name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)) for value in given}

    def outputs(self) -> tuple[str, ...]:
        """What the model was made to tell."""
        return tuple(value.name for value in self.onnx.graph.output)

    def check(self, name: str) -> None:
        """Refuses what is no float tensor of the graph."""
        if not self._is_activation(name):
            raise InputRejected(f"has no float32 activation {name!r}", where="model", hint="take a name from edgekit inspect")

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its sizes, 0 for those that are free; nothing where they are unknown."""
        type = self.types[name]
        return tuple(int(size.dim_value) for size in type.shape.dim) if type.HasField("shape") else None

    def scaled(self) -> tuple[str, ...]:
        """The activations that carry a scale of their own in static int8, and the inputs.

        These are what :func:`toolkit.quantization.onnx_static.carried` names of the same graph: what operators with an integer kernel read
        and write, but for matrix products, which give float, what only a fused activation sees, and what is passed on with its scale.
        """
        again = onnx_integer.rewritten(self._inferred)
        left = set(onnx_static.left_in_float(self._inferred, (), again))
        floats = onnx_static.float_out(self.onnx)
        joined = [node for node in self.onnx.graph.node if node.name not in left - again]
        found = [name for name in self.inputs() if self._is_activation(name)]
        computed = {name for node in joined for name in node.output if node.op_type not in floats}
        for node in joined:
            reads = set(node.input[:1]) if node.name in again else onnx_static.reads(node)
            found += [name for name in node.input if name in reads and name not in computed and not self._is_fused(name, left)]
            passing = node.op_type in _PASSING or node.op_type in floats
            found += [] if passing else [name for name in node.output if not self._is_fused(name, left)]
        # Simplified graphs have the name behind an identity, or the one before it.
        found += [node.output[0] for node in self.onnx.graph.node if node.op_type == "Identity" and node.input[0] in found]
        return tuple(dict.fromkeys(name for name in found if self._is_activation(name)))

    def is_positive(self, name: str) -> bool:
        """Whether an operator gives nothing below zero."""
        node = self.writer.get(name)
        if node is None or node.op_type != "Clip" or len(node.input) < 2 or node.input[1] not in self.constants:
            return node is not None and node.op_type in _NEVER_BELOW_ZERO
        import onnx

        return float(onnx.numpy_helper.to_array(self.constants[node.input[1]])) >= 0

    def is_blocked(self, name: str) -> bool:
        """Whether ONNX Runtime may have a tensor in its blocked layout: a picture that convolutions and their like write."""
        node, shape = self.writer.get(name), self.shape(name)
        return node is not None and node.op_type in _BLOCKED and shape is not None and len(shape) == 4 and self._convolves

    def joinable(self, name: str) -> int:
        """How many channels a tensor in the blocked layout has, if it is known and they may be joined with others in it; else 0."""
        shape = self.shape(name)
        return shape[1] if shape and self.is_blocked(name) and all(shape) and shape[1] % _BLOCK == 0 else 0

    def begin(self) -> None:
        """Begins with the operators that look at one tensor."""
        self._groups.append([])

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds an operator; returns its output's name."""
        import onnx

        self._groups[-1].append(onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def join(self, inputs: Sequence[str], output: str) -> str:
        """Adds one output that has others side by side, on axis 1."""
        import onnx

        self._joins.append(onnx.helper.make_node("Concat", list(inputs), [output], axis=1))
        return output

    def store(self, name: str, array: np.ndarray) -> str:
        """Stores a constant; returns its name."""
        import onnx

        self.onnx.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def turn(self, name: str, channels: int, output: str) -> str:
        """Adds a picture's negative in the blocked layout; returns its name."""
        return self.add("Conv", [name, self.store(f"{output}_turn", np.full((channels, 1, 1, 1), -1, np.float32))], output, group=channels)

    def reduce(self, operator: str, name: str, output: str, axes: Sequence[int] = ()) -> str:
        """A reduction over some axes, or all; from opset 18 on they are an input."""
        if not axes:
            return self.add(operator, [name], output, keepdims=0)
        opset = next(one.version for one in self.onnx.opset_import if one.domain in onnx_prepared.STANDARD)
        if opset < 18:
            return self.add(operator, [name], output, keepdims=0, axes=list(axes))
        return self.add(operator, [name, self.store(f"{output}_axes", np.array(axes, np.int64))], output, keepdims=0)

    def session(self, outputs: Sequence[str]) -> Any:
        """Opens the graph with more outputs, on one thread, as its own graph would be run.

        Raises:
            StageFailed: ONNX Runtime cannot run it.
        """
        import onnx
        import onnxruntime

        graph, known = self.onnx.graph, set(self.outputs())
        graph.node.extend(node for group in reversed(self._groups) for node in group)
        graph.node.extend(self._joins)
        graph.output.extend(onnx.helper.make_tensor_value_info(name, _FLOAT, None) for name in outputs if name not in known)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        try:
            values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._weights.items()}
            options.add_external_initializers(list(values), list(values.values()))
            return onnxruntime.InferenceSession(self.onnx.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except _errors() as error:
            raise StageFailed(f"the model cannot be run: {first_line(error)}", where="onnxruntime", hint="convert the model again") from error

    def _is_activation(self, name: str) -> bool:
        return name in self.types and self.types[name].elem_type == _FLOAT and name not in self.constants

    def _is_fused(self, name: str, left: set[str]) -> bool:
        """Whether only the activation behind an operator, which has an integer kernel, sees what it writes."""
        node, readers = self.writer.get(name), self.readers.get(name, [])
        if node is None or node.op_type not in _FUSING or len(readers) != 1 or name in self.outputs():
            return False
        return readers[0].op_type in _ACTIVATIONS and readers[0].name not in left


def run(session: Any, outputs: Sequence[str], sample: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Runs one sample.

    Raises:
        StageFailed: The sample does not fit the model, or ONNX Runtime fails.
    """
    try:
        return list(session.run(outputs, sample))
    except _errors() as error:
        raise StageFailed(f"the model cannot be run: {first_line(error)}", where="onnxruntime", hint="check the samples and the model") from error


def _errors() -> tuple[type[BaseException], ...]:
    """ONNX Runtime's own exceptions, which share no base class, and those of Python."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (*(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)), *CODE_ERRORS)


def _take_one_sample(graph: Any) -> None:
    """Makes a free first axis one of 1, as samples run one after the other: sizes are known then that depend on it."""
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        if len(sizes) and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = 1


def _opened(model: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Reads a model without the numbers of its large weights, and those by name.

    They are read once and handed to ONNX Runtime as they are: parsing them, and writing them for ONNX Runtime to read them again, takes
    longer than all else.
    """
    import onnx

    graph, spans = onnx_wire.lightened(model, _SMALL)
    found = onnx.load_model_from_string(graph)
    onnx.load_external_data_for_model(found, str(model.parent))
    weights = {}
    for tensor in found.graph.initializer:
        if tensor.name in spans:
            offset, length = spans[tensor.name]
            numbers = np.fromfile(model, "<f4", length // 4, offset=offset)
        elif tensor.data_type == _FLOAT and len(tensor.raw_data) > _SMALL:
            numbers = np.frombuffer(tensor.raw_data, "<f4")
        else:
            continue
        weights[tensor.name] = numbers.reshape(tuple(tensor.dims))
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value=_WEIGHTS)
    return found, weights
