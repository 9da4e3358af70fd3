"""ONNX to TFLite without TensorFlow: Edgekit's own compiler, see :mod:`toolkit.convert.tfl`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import intake
from toolkit.artifact import Signature, TensorSpec
from toolkit.convert.tfl import affine, clean, integers, lower, operators, write
from toolkit.convert.tfl.graph import Graph
from toolkit.convert.tfl.layout import Layout
from toolkit.convert.tfl.program import FREE, Program, Type, read
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

_WHERE = "onnx_litert"
_DEFAULT = "serving_default"
_HINT = "write that layer with other operators, or keep it outside of the graph"


class OnnxLiteRT:
    """Writes a ``.tflite`` file with the signature ``serving_default``; 64-bit integers become 32-bit ones.

    With ``batch_sizes`` it takes one sample by that name, and has a signature for each other size, ``batch_4`` and so on; all share the
    weights.
    """

    name = "onnx_litert"
    version = 1
    source = "onnx"
    format = "tflite"
    modules: tuple[str, ...] = ("onnx", "ai_edge_litert")
    distributions: tuple[str, ...] = ("onnx", "ai-edge-litert")
    extra = "edgekit[onnx,litert]"
    options: tuple[str, ...] = ("layout", "batch_sizes")
    trust = 0.9

    def convert(self, program: Path, out: Path, signature: Signature, *, layout: str | None = None, batch_sizes: Sequence[int] = ()) -> None:
        """Converts an ONNX file.

        Args:
            program: The ``.onnx`` file.
            out: The ``.tflite`` file to write.
            signature: Inputs and outputs; the first axis may be free.
            layout: ``channels_last`` for four-dimensional inputs ``[n x h x w x c]``.
            batch_sizes: Batch sizes to write signatures for; 1 is always there.

        Raises:
            InputRejected: The file is damaged.
            StageFailed: An operator has no counterpart in TFLite, or the model works for one batch size alone.
        """
        sizes = dict.fromkeys([1, *batch_sizes]) if batch_sizes else [None]
        entries = [_entry(program, signature, layout, size) for size in sizes]
        out.write_bytes(write.to_bytes(entries))

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns every operator that cannot be lowered, with its node and the reason.

        Raises:
            InputRejected: The file is damaged.
        """
        _, found = _lowered(program, signature, None)
        return [Obstacle(node.kind, node.layer, f"{reason} ({node.place}, opset {node.version})", _HINT) for node, reason in found.problems]


ROUTE: Route = OnnxLiteRT()


def _entry(program: Path, signature: Signature, layout: str | None, size: int | None) -> write.Entry:
    """Compiles a file for a batch size; for the signature's own, which may be free, where none is given."""
    if size is not None:
        signature = Signature(inputs=_batched(signature.inputs, size), outputs=_batched(signature.outputs, size))
    graph, found = _lowered(program, signature, layout)
    if found.problems:
        raise StageFailed(f"cannot convert the graph: {_told(found)}", where=_WHERE, hint=_HINT)
    clean.clean(graph, found.quantized)
    integers.integrate(graph, found.quantized)
    found.constants.clear()  # what the graph has of them is its own
    clean.clean(graph, found.quantized)
    affine.widen(graph)
    if size is not None:
        _check_batch(graph, found, signature, size)
    names = dict(zip(found.inputs, graph.inputs, strict=True)), dict(zip(found.outputs, graph.outputs, strict=True))
    return write.Entry(_DEFAULT if size in (None, 1) else f"batch_{size}", graph, *names)


def _batched(specs: Sequence[TensorSpec], size: int) -> tuple[TensorSpec, ...]:
    """Gives tensors a batch size, those whose first axis is that of the samples: a free one, or one of 1."""
    return tuple(one.model_copy(update={"shape": (size, *one.shape[1:])}) if one.shape and one.shape[0] in (1, *_free(one)) else one for one in specs)


def _free(spec: TensorSpec) -> tuple[str, ...]:
    return tuple(size for size in spec.shape[:1] if isinstance(size, str))


def _check_batch(graph: Graph, found: Program, signature: Signature, size: int) -> None:
    wanted = {one.name: one.shape[0] for one in signature.outputs if one.shape}
    for name, tensor in zip(found.outputs, graph.outputs, strict=True):
        if tensor.shape and wanted.get(name, tensor.shape[0]) != tensor.shape[0]:
            told = f"output {name!r} has {tensor.shape[0]} rows for a batch of {size}: the batch size is written into the graph"
            raise StageFailed(told, where=_WHERE, hint="export the model with a free batch size")


def _told(found: Program) -> str:
    """Says what cannot be converted, each kind of problem with all that it was found at in the model."""
    return "; ".join(dict.fromkeys(f"{node.kind} ({node.place}, opset {node.version}) {reason}" for node, reason in found.problems))


def _lowered(program: Path, signature: Signature, layout: str | None) -> tuple[Graph, Program]:
    model = _load(program)
    for spec in signature.inputs:
        _check_free(spec)
    types = {spec.name: _type(spec) for spec in signature.inputs}
    constants = {tensor.name for tensor in model.graph.initializer}
    ordered = {value.name: types[value.name] for value in model.graph.input if value.name not in constants}
    found = read(model, ordered, lambda kind: kind in lower.REGISTRY)
    del model  # a large model is not held twice
    graph = Graph()
    last: Layout = "last" if layout == "channels_last" else "first"
    given = {name: _input(graph, name, type, last if len(type.shape) == 4 else "first") for name, type in ordered.items()}
    lower.lower(found, graph, given, {})
    return graph, found


def _check_free(spec: TensorSpec) -> None:
    """Refuses free sizes but that of the samples: what depends on them would have to be computed at run time, sizes of results included."""
    free = [(axis, size) for axis, size in enumerate(spec.shape) if axis and isinstance(size, str)]
    if free:
        axis, size = free[0]
        told = (
            f"input {spec.name!r} has a free size, {size!r}, on axis {axis}; of a TFLite file that this route writes only the first axis may be free"
        )
        raise StageFailed(told, where=_WHERE, hint="export the model with that size fixed, for example to the longest input, and pad shorter ones")


def _type(spec: TensorSpec) -> Type:
    return Type(np.dtype(spec.dtype), tuple(FREE if isinstance(size, str) else size for size in spec.shape))


def _input(graph: Graph, name: str, type: Type, layout: Layout) -> tuple[Any, Layout]:
    shape = tuple(type.shape[axis] for axis in (0, 2, 3, 1)) if layout == "last" else type.shape
    narrowed = np.dtype("int32") if type.dtype == np.int64 else type.dtype
    return graph.input(name, shape, narrowed), layout


def _load(program: Path) -> Any:
    import onnx

    intake.check_model(program, "onnx")
    try:
        return onnx.load_model(str(program))
    except (*CODE_ERRORS, EOFError) as error:
        raise InputRejected(f"is not a readable ONNX file: {first_line(error)}", where=program.name, hint="export the model again") from error


assert operators  # importing it registers the operators
