"""A TFLite graph that tells more than it was made to: reductions of its tensors beside it, and tensors as outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.quantization import tflite_file, tflite_pads

Fixed = tuple[float, float]

# Operators whose output has the scale of their input, as ai-edge-quantizer 0.10 constrains them (common_quantize.py, SAME_AS_INPUT_SCALE).
_SHARING = {
    "AVERAGE_POOL_2D", "BROADCAST_TO", "EXPAND_DIMS", "GATHER", "GATHER_ND", "MAX_POOL_2D", "MIRROR_PAD", "PAD", "REDUCE_MIN", "RESHAPE",
    "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE", "UNPACK",
}  # fmt: skip
# Operators whose output's scale is a constant of the format (TFLite 8-bit quantization specification).
_FIXED: dict[str, Fixed] = {"LOGISTIC": (0.0, 1.0), "SOFTMAX": (0.0, 1.0), "TANH": (-1.0, 1.0)}


def sources(content: Any, number: int = 0) -> dict[int, int | Fixed]:
    """Where every float tensor of a subgraph has its range from in static int8: a tensor of its own or before it, or the format.

    Args:
        content: A file as :func:`toolkit.quantization.tflite_file.read` gives it.
        number: Number of the subgraph.
    """
    graph, kinds = content.subgraphs[number], tflite_file.kinds(content)
    found: dict[int, int | Fixed] = {int(one): int(one) for one in graph.inputs if _is_float(graph.tensors[one])}
    for operator in graph.operators or ():
        kind = kinds[operator.opcodeIndex]
        shares = kind in _SHARING or tflite_pads.is_lowest(content, graph, operator, kind)
        before = next((found[int(one)] for one in operator.inputs if int(one) in found), None) if shares else _FIXED.get(kind)
        for output in operator.outputs:
            if _is_float(graph.tensors[output]):
                found[int(output)] = int(output) if before is None else before
    return found


class Tapped:
    """The part of a file that samples run through, in a copy to be changed.

    Attributes:
        inputs: Numbers of the input tensors by name.
        outputs: Numbers of the float32 tensors that leave it.
        computed: Numbers of the float32 tensors that are no constants, in the order of the graph.
        stateful: Whether a sample leaves something behind for the next one.
    """

    def __init__(self, model: Path, columns: Iterable[str]) -> None:
        """Reads a file.

        Args:
            model: The file.
            columns: Names of the samples' columns; see :func:`toolkit.quantization.tflite_file.entry_for`.

        Raises:
            InputRejected: It is damaged, or takes other columns.
        """
        self._model = model
        self._content, self._data = tflite_file.read_mapped(model)
        entry = tflite_file.entry_for(self._content, tuple(columns))
        tflite_file.put_first(self._content, entry.graph)
        self.inputs = entry.inputs
        self._graph = self._content.subgraphs[0]
        self._sources = sources(self._content)
        self.outputs = tuple(int(one) for one in self._graph.outputs if _is_float(self._graph.tensors[one]))
        self.stateful = any(one.isVariable for one in self._graph.tensors)
        self.computed = tuple(one for one in self._sources if 0 not in self.shape(one))
        self._at_least_zero = frozenset(tflite_pads.rectified(self._content, self._graph))
        self._beside: dict[int, list[Any]] = {}
        self._last: list[Any] = []
        self._axes: dict[tuple[int, ...], int] = {}
        self._codes: dict[str, int] = {}

    def name(self, number: int) -> str:
        """Name of a tensor."""
        return tflite_file.text(self._graph.tensors[number].name)

    def find(self, names: Iterable[str] | None) -> tuple[int, ...]:
        """Numbers of tensors; of all that share a name.

        Args:
            names: Their names; ``None`` for those that carry a scale in static int8.

        Raises:
            InputRejected: There is none of that name that is float32 and computed.
        """
        if names is None:
            return tuple(one for one in self.computed if self._sources[one] == one)
        numbers: dict[str, list[int]] = {}
        for one in self.computed:
            numbers.setdefault(self.name(one), []).append(one)
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            if name not in numbers:
                raise InputRejected(f"has no computed float32 tensor {name!r}", where=self._model.name, hint="edgekit inspect lists what it has")
        return tuple(one for name in wanted for one in numbers[name])

    def only(self, name: str) -> int:
        """Number of the one tensor of a name.

        Raises:
            InputRejected: There is none, or several.
        """
        numbers = self.find([name])
        if len(numbers) > 1:
            what = f"{len(numbers)} tensors share the name {name!r}, and cannot be told apart"
            raise InputRejected(what, where=self._model.name, hint="convert the model again with a converter that gives each its own name")
        return numbers[0]

    def at_least_zero(self, number: int) -> bool:
        """Whether a tensor is what a ReLU gives."""
        return number in self._at_least_zero

    def reduce(self, kind: str, number: int, *, channels: bool = False) -> int:
        """Adds a reduction of a tensor right behind the operator that computes it, where it is still in the cache.

        Args:
            kind: ``REDUCE_MAX``, ``REDUCE_MIN`` or ``MEAN``.
            number: The tensor.
            channels: Keep the last axis; else one number is left.

        Returns:
            The tensor with the result, ``[]`` or ``[c]``.
        """
        from ai_edge_litert import schema_py_generated as schema

        rank = len(self.shape(number))
        axes = tuple(range(rank - channels))
        if not axes:
            return number
        if axes not in self._axes:
            self._axes[axes] = self._constant(np.array(axes, np.int32))
        shape = self.shape(number)[-1:] if channels else ()
        out = self._tensor(shape)
        operator = self._operator(kind, [number, self._axes[axes]], out, schema.ReducerOptionsT(keepDims=False))
        self._beside.setdefault(number, []).append(operator)
        return out

    def join(self, numbers: Sequence[int], *, vectors: bool = False) -> int:
        """Joins single numbers, or vectors, to one vector, so that one copy brings all of them out."""
        from ai_edge_litert import schema_py_generated as schema

        out = self._tensor((len(numbers),))
        if vectors:
            kind, options = "CONCATENATION", schema.ConcatenationOptionsT(axis=0)
        else:
            kind, options = "PACK", schema.PackOptionsT(valuesCount=len(numbers), axis=0)
        self._last.append(self._operator(kind, list(numbers), out, options))
        return out

    def forget(self) -> None:
        """Takes back every reduction."""
        self._beside, self._last = {}, []

    def to_bytes(self, outputs: Sequence[int]) -> bytes:
        """A file of the graph with what was added, and with more outputs than its own."""
        own = self._graph.operators, self._graph.outputs, self._content.signatureDefs
        self._graph.operators = [added for one in self.inputs.values() for added in self._beside.get(one, ())]
        for operator in own[0]:
            self._graph.operators += [operator, *(added for one in operator.outputs for added in self._beside.get(int(one), ()))]
        self._graph.operators += self._last
        self._graph.outputs = list(dict.fromkeys([int(one) for one in own[1]] + [one for one in outputs if one not in self.inputs.values()]))
        self._content.signatureDefs = []  # they would not name the new outputs; tensors are reached by number
        packed = tflite_file.to_bytes(self._content, self._data)
        self._graph.operators, self._graph.outputs, self._content.signatureDefs = own
        return packed

    def shape(self, number: int) -> tuple[int, ...]:
        """Sizes of a tensor as the file has them: 1 where one is free, none where the rank is not known."""
        shape = self._graph.tensors[number].shape
        return () if shape is None else tuple(map(int, shape))

    def _tensor(self, shape: tuple[int, ...], type: int = 0, buffer: int = 0) -> int:
        from ai_edge_litert import schema_py_generated as schema

        number = len(self._graph.tensors)
        made = schema.TensorT(name=f"edgekit.tap.{number}".encode(), shape=np.array(shape, np.int32), type=type, buffer=buffer, hasRank=True)
        self._graph.tensors.append(made)
        return number

    def _constant(self, array: np.ndarray) -> int:
        from ai_edge_litert import schema_py_generated as schema

        self._content.buffers.append(schema.BufferT(data=array.view(np.uint8)))
        return self._tensor(array.shape, schema.TensorType.INT32, len(self._content.buffers) - 1)

    def _operator(self, kind: str, inputs: list[int], output: int, options: Any) -> Any:
        from ai_edge_litert import schema_py_generated as schema

        table = type(options).__name__.removesuffix("T")
        return schema.OperatorT(
            opcodeIndex=self._code(kind),
            inputs=inputs,
            outputs=[output],
            builtinOptionsType=getattr(schema.BuiltinOptions, table),
            builtinOptions=options,
        )

    def _code(self, kind: str) -> int:
        from ai_edge_litert import schema_py_generated as schema

        if kind not in self._codes:
            code = getattr(schema.BuiltinOperator, kind)
            self._codes[kind] = len(self._content.operatorCodes)
            self._content.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1))
        return self._codes[kind]


class Runner:
    """Runs a tapped graph on one sample after the other, with XNNPACK and one thread."""

    def __init__(self, tapped: Tapped, outputs: Sequence[int]) -> None:
        """Loads a copy of the graph.

        Args:
            tapped: The graph.
            outputs: Numbers of tensors to read.

        Raises:
            StageFailed: The interpreter refuses it.
        """
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._interpreter = Interpreter(model_content=tapped.to_bytes(outputs), num_threads=1)
            self._interpreter.allocate_tensors()
        except CODE_ERRORS as error:
            raise StageFailed(f"the model cannot be observed: {first_line(error)}", where="LiteRT", hint="convert the model again") from error
        details = {int(one["index"]): one for one in self._interpreter.get_input_details()}
        self._inputs = {name: (number, details[number]["dtype"], _free(details[number])) for name, number in tapped.inputs.items()}
        self._shapes = {number: tuple(map(int, details[number]["shape"])) for number in tapped.inputs.values()}
        self._stateful = tapped.stateful
        self._fed: dict[int, np.ndarray] = {}

    def run(self, sample: Mapping[str, np.ndarray]) -> None:
        """Runs one sample.

        Args:
            sample: ``[1 x ...]`` for each input.

        Raises:
            InputRejected: It does not fit the inputs.
            StageFailed: The interpreter fails, or computes NaN.
        """
        fed = {}
        for name, (number, dtype, free) in self._inputs.items():
            array = np.ascontiguousarray(sample[name], dtype)
            if len(array.shape) != len(free) or any(want not in (-1, size) for want, size in zip(free[1:], array.shape[1:], strict=True)):
                what = f"column {name!r} has samples of shape {list(array.shape[1:])}, the model takes {list(free[1:])}"
                raise InputRejected(what, where="calibration", hint="prepare calibration samples like the training samples")
            fed[number] = array
        self._fed = fed
        try:
            self._resize({number: array.shape for number, array in fed.items()})
            for number, array in fed.items():
                self._interpreter.set_tensor(number, array)
            if self._stateful:
                self._interpreter.reset_all_variables()
            self._interpreter.invoke()
        except CODE_ERRORS as error:
            raise StageFailed(
                f"the model cannot be run on a sample: {first_line(error)}", where="LiteRT", hint="check the model's batch size"
            ) from error

    def view(self, number: int) -> np.ndarray:
        """A tensor's values, which the next run overwrites; hold no view while it runs."""
        return self._fed[number] if number in self._fed else self._interpreter.tensor(number)()

    def copy(self, number: int) -> np.ndarray:
        """A tensor's values, to keep."""
        return np.array(self.view(number))

    def _resize(self, shapes: Mapping[int, tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        for number, shape in shapes.items():
            self._interpreter.resize_tensor_input(number, shape)
        self._interpreter.allocate_tensors()
        self._shapes = dict(shapes)


def _free(details: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes of an input; -1 where one is free."""
    signature = details["shape_signature"]
    return tuple(map(int, signature if len(signature) else details["shape"]))


def _is_float(tensor: Any) -> bool:
    return int(tensor.type) == 0
