"""Token ids must be rows of the table that the model looks them up in: runtimes read past its end, stop, or take the last row for -1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.dataset import Dataset, pieces
from toolkit.errors import InputRejected
from toolkit.factory import CODE_ERRORS

_SAME_VALUES_ONNX = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"}
_SAME_VALUES_TFLITE = {"CAST", "RESHAPE", "EXPAND_DIMS", "SQUEEZE", "TRANSPOSE", "BROADCAST_TO"}
_STORED_ONNX = {"Cast", "Identity", "DequantizeLinear"}


def check_vocabulary(samples: Dataset, model: Path, format: str) -> None:
    """Makes sure that every token id has a row in its table; formats other than ONNX and TFLite are left alone.

    Raises:
        InputRejected: One has none; the message names column, sample, and the size of the vocabulary.
    """
    whole = [name for name, column in samples.columns.items() if column.dtype.kind in "iu"]
    sizes = vocabularies(model, format) if whole else {}
    for name in whole:
        if name in sizes:
            _check(samples, name, sizes[name])


def vocabularies(model: Path, format: str) -> dict[str, int]:
    """Returns how many rows the table has that an input is looked up in, by input; the smallest one where there are several.

    Only inputs that reach a stored table with their values unchanged are listed.
    """
    find: Callable[[Path], Iterator[tuple[str, int]]] | None = {"onnx": _of_onnx, "tflite": _of_tflite}.get(format)
    found: dict[str, int] = {}
    for name, rows in find(model) if find else ():
        found[name] = min(rows, found.get(name, rows))
    return found


def _check(samples: Dataset, name: str, size: int) -> None:
    for start, rows in pieces(samples.columns[name]):
        flat = rows.reshape(len(rows), -1)
        wrong = (flat < 0) | (flat >= size)
        if wrong.any():
            row = int(wrong.any(axis=1).argmax())
            raise InputRejected(
                f"column {name!r} has token id {int(flat[row][wrong[row]][0])} in sample {start + row}, "
                f"which is not in the model's vocabulary: the table that it is looked up in has rows 0..{size - 1}",
                where=samples.where,
                hint="prepare the texts with the model's own tokenizer",
            )


def _of_onnx(model: Path) -> Iterator[tuple[str, int]]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except (DecodeError, *CODE_ERRORS):
        return  # the quantizer says what is wrong with the file
    nodes = list(graph.node)
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in nodes:
        constant = next((attribute.t for attribute in node.attribute if node.op_type == "Constant" and attribute.name == "value"), None)
        if constant is not None:
            stored[node.output[0]] = tuple(constant.dims)
        elif node.op_type in _STORED_ONNX and node.input and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    inputs = [value.name for value in graph.input if value.name not in stored]
    readers = _readers((node, node.input) for node in nodes)
    unchanged = {id(node): node.output[0] for node in nodes if node.op_type in _SAME_VALUES_ONNX and node.output}
    for name, node in _lookups(inputs, readers, unchanged):
        reached = node.op_type == "Gather" and len(node.input) == 2 and node.input[0] in stored
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if reached and -len(stored[node.input[0]]) <= axis < len(stored[node.input[0]]):
            yield name, int(stored[node.input[0]][axis])


def _of_tflite(model: Path) -> Iterator[tuple[str, int]]:
    from ai_edge_litert import schema_py_generated as schema

    from toolkit.quantization import tflite_file

    content = tflite_file.read(model)
    words = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [words.get(max(code.builtinCode, code.deprecatedBuiltinCode), "") for code in content.operatorCodes]
    for entry in tflite_file.entries(content):
        graph = content.subgraphs[entry.graph]
        kinds = {id(operator): codes[operator.opcodeIndex] for operator in graph.operators}
        computed = set(map(int, graph.inputs))
        for operator in graph.operators:
            if kinds[id(operator)] != "DEQUANTIZE" or int(operator.inputs[0]) in computed:
                computed |= set(map(int, operator.outputs))
        readers = _readers((operator, map(int, operator.inputs)) for operator in graph.operators)
        unchanged = {id(one): int(one.outputs[0]) for one in graph.operators if kinds[id(one)] in _SAME_VALUES_TFLITE}
        names = {int(at): name for name, at in entry.inputs.items()}
        for at, operator in _lookups(list(names), readers, unchanged):
            kind = kinds[id(operator)]
            if kind not in ("GATHER", "EMBEDDING_LOOKUP"):
                continue
            table = int(operator.inputs[0 if kind == "GATHER" else 1])
            axis = operator.builtinOptions.axis if kind == "GATHER" and operator.builtinOptions else 0
            if table not in computed:
                yield names[at], int(graph.tensors[table].shape[axis])


def _readers(operators: Iterable[tuple[Any, Iterable[Any]]]) -> dict[Any, list[Any]]:
    """Operators by the tensors that they read."""
    found: dict[Any, list[Any]] = {}
    for operator, inputs in operators:
        for tensor in inputs:
            found.setdefault(tensor, []).append(operator)
    return found


def _lookups(inputs: Iterable[Any], readers: Mapping[Any, list[Any]], unchanged: Mapping[int, Any]) -> Iterator[tuple[Any, Any]]:
    """Yields every operator that reads an input, or what only another shape or type makes of it; ``unchanged`` has outputs by operator."""
    for start in inputs:
        waiting, seen = [start], {start}
        while waiting:
            for operator in readers.get(waiting.pop(), ()):
                yield start, operator
                output = unchanged.get(id(operator))
                if output is not None and output not in seen:
                    seen.add(output)
                    waiting.append(output)
