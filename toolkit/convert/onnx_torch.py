"""ONNX to a captured PyTorch program: the way from ONNX files, and from whatever becomes one, to ExecuTorch.

The graph is first reduced to what depends on the inputs: with static shapes, everything that computes sizes is a constant, which
ONNX's own reference evaluator folds. What is left is interpreted operator by operator while ``torch.export`` watches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import intake, modelfile, pt2
from toolkit.artifact import Signature
from toolkit.convert import onnx_recurrent, onnx_shapes, onnx_spatial  # noqa: F401  they register their operators
from toolkit.convert.onnx_operators import OPERATORS, Call, Unsupported
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Obstacle, Route

if TYPE_CHECKING:
    import torch

_WHERE = "onnx_torch"
_HINT = "write that layer with elementary operators, or keep it outside of the graph"
_DOMAINS = ("", "ai.onnx")


class OnnxTorch:
    """Writes a ``.pt2`` program with the names, shapes and element types of the ONNX file."""

    name = "onnx_torch"
    version = 1
    source = "onnx"
    format = "pt2"
    modules: tuple[str, ...] = ("torch", "onnx")
    distributions: tuple[str, ...] = ("torch", "onnx")
    extra = "edgekit[torch,onnx]"
    preload = pt2.PRELOAD
    trust = 0.6

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts an ONNX file with the static shapes of ``signature``.

        Args:
            program: The ``.onnx`` file.
            out: The ``.pt2`` file to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The file is damaged, or has other inputs or outputs.
            StageFailed: An operator has no counterpart here, or a size depends on the data.
        """
        import torch

        graph = _reduced(_load(program, signature), signature)
        found = _obstacles(graph)
        if found:
            first, more = found[0], f"; and {len(found) - 1} more" if len(found) > 1 else ""
            raise StageFailed(f"{first.operator} ({first.layer}) {first.reason}{more}", where=_WHERE, hint=first.hint)
        inputs = pt2.blank_inputs(signature)
        with torch.no_grad():
            try:
                exported = torch.export.export(_Module.make(graph, signature), (), kwargs=inputs, strict=False)
            except Unsupported as error:
                raise StageFailed(f"cannot convert the graph: {error}", where=_WHERE, hint=_HINT) from error
            except CODE_ERRORS as error:
                raise StageFailed(f"cannot convert the graph: {first_line(error)}", where=_WHERE, hint=_HINT) from error
        torch.export.save(exported, out)

    def preflight(self, program: Path, signature: Signature) -> list[Obstacle]:
        """Returns the operators that have no counterpart here.

        Raises:
            InputRejected: The file is damaged, or has other inputs or outputs.
        """
        return _obstacles(_reduced(_load(program, signature), signature))


ROUTE: Route = OnnxTorch()


def _load(program: Path, signature: Signature) -> Any:
    import onnx

    intake.check_model(program, "onnx")
    size_bytes = modelfile.size_bytes(program)
    if size_bytes > modelfile.BUFFER_BYTES:  # the shapes are inferred of a whole model in one buffer
        what = f"has {size_bytes / 1e9:.2f} GB, and this route reads at most {modelfile.BUFFER_BYTES / 1e9:.2f} GB"
        raise InputRejected(what, where=program.name, hint="convert it to openvino, or start from the PyTorch model")
    try:
        model = onnx.load_model(str(program))
        inlined = onnx.inliner.inline_local_functions(model) if model.functions else model
    except (*CODE_ERRORS, EOFError) as error:
        raise InputRejected(f"is not a readable ONNX file: {first_line(error)}", where=program.name, hint="export the model again") from error
    constant = {tensor.name for tensor in inlined.graph.initializer}
    for side, found, specs in (("inputs", inlined.graph.input, signature.inputs), ("outputs", inlined.graph.output, signature.outputs)):
        names = {value.name for value in found} - (constant if side == "inputs" else set())
        if names != {spec.name for spec in specs}:
            expected = ", ".join(spec.name for spec in specs)
            raise InputRejected(f"has the {side} {', '.join(sorted(names))}, expected {expected}", where=program.name, hint="convert the file anew")
    return inlined


class _Graph:
    """What is left of a graph after everything constant was computed.

    Attributes:
        nodes: The operators that depend on an input, in order.
        constants: All constant values by name.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        opset: Version of the operator set.
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.opset = next((one.version for one in model.opset_import if one.domain in _DOMAINS), 1)
        self.constants: dict[str, np.ndarray] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in model.graph.output]
        self.nodes: list[Any] = list(model.graph.node)


def _reduced(model: Any, signature: Signature) -> _Graph:
    """Folds constants, and the sizes of tensors whose shapes are known."""
    import onnx

    fixed = copy.deepcopy(model)
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    for value in fixed.graph.input:
        if value.name in shapes:
            for size, axis in zip(shapes[value.name], value.type.tensor_type.shape.dim, strict=True):
                axis.dim_value = int(size)
    del fixed.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except CODE_ERRORS:
        inferred = fixed  # sizes are then found while the graph is traced
    known = {value.name: _static(value) for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
    graph = _Graph(fixed)
    left = []
    for node in graph.nodes:
        folded = _folded(node, graph, known)
        if folded is None:
            left.append(node)
        else:
            graph.constants.update(zip(node.output, folded, strict=False))
    graph.nodes = left
    return graph


def _static(value: Any) -> tuple[int, ...] | None:
    axes = value.type.tensor_type.shape.dim if value.type.tensor_type.HasField("shape") else None
    if axes is None or not all(axis.HasField("dim_value") for axis in axes):
        return None
    return tuple(axis.dim_value for axis in axes)


def _folded(node: Any, graph: _Graph, known: dict[str, tuple[int, ...] | None]) -> list[np.ndarray] | None:
    """Computes a node's outputs when they do not depend on the data; ``None`` when they do."""
    given = [name for name in node.input if name]
    if node.op_type in ("Shape", "Size") and known.get(node.input[0]) is not None and node.input[0] not in graph.constants:
        shape = known[node.input[0]] or ()
        if node.op_type == "Size":
            return [np.array(int(np.prod(shape)), np.int64)]
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        return [np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)]
    if any(name not in graph.constants for name in given) or _random(node) or any(_subgraphs(node)):
        return None
    return _evaluated(node, graph)


def _evaluated(node: Any, graph: _Graph) -> list[np.ndarray] | None:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    given = {name: graph.constants[name] for name in node.input if name}
    try:
        values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for name, value in given.items()]
        results = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        small = helper.make_graph([node], "one", values, results)
        found = ReferenceEvaluator(helper.make_model(small, opset_imports=[helper.make_opsetid("", graph.opset)])).run(None, given)
    except CODE_ERRORS:
        return None  # the tracing may know it
    return [np.asarray(value) for value in found]


def _random(node: Any) -> bool:
    return node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))


def _subgraphs(node: Any) -> Iterator[Any]:
    yield from (attribute.g for attribute in node.attribute if attribute.HasField("g"))


def _obstacles(graph: _Graph) -> list[Obstacle]:
    found = []
    for node in graph.nodes:
        if node.domain not in _DOMAINS or node.op_type not in OPERATORS:
            kind = f"{node.domain}.{node.op_type}" if node.domain not in _DOMAINS else node.op_type
            found.append(Obstacle(kind, node.name.rpartition("/")[0] or node.name, "has no counterpart in PyTorch that is known here", _HINT))
    return found


class _Module:
    """Makes the module that ``torch.export`` watches. A class of torch's cannot be written where torch is not imported."""

    @staticmethod
    def make(graph: _Graph, signature: Signature) -> torch.nn.Module:
        import torch

        outputs = [spec.name for spec in signature.outputs]

        class Interpreted(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
            def __init__(self) -> None:
                super().__init__()
                self.places = {}
                for number, (name, value) in enumerate(_needed(graph).items()):
                    self.places[name] = f"constant_{number}"
                    self.register_buffer(f"constant_{number}", torch.from_numpy(np.array(value)))  # a copy: arrays of ONNX are read-only

            def forward(self, **named: torch.Tensor) -> dict[str, torch.Tensor]:
                values: dict[str, Any] = {name: getattr(self, place) for name, place in self.places.items()} | named
                for node in graph.nodes:
                    try:
                        found = OPERATORS[node.op_type](Call(torch, node, values, graph.constants, graph.opset))
                    except Unsupported as error:
                        raise Unsupported(f"{node.op_type} ({node.name or node.output[0]}): {error}") from None
                    values.update(zip(node.output, found if isinstance(found, tuple) else (found,), strict=False))
                # A clone, as an output that is an input or a constant as it is cannot be exported.
                return {name: values[name].clone() if name in named or name in self.places else values[name] for name in outputs}

        return Interpreted().eval()


def _needed(graph: _Graph) -> dict[str, np.ndarray]:
    """The constants that some operator, or an output, takes."""
    used = {name for node in graph.nodes for name in node.input} | set(graph.outputs)
    return {name: value for name, value in graph.constants.items() if name in used and value.dtype.kind in "fiub"}
