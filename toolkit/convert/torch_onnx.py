"""PyTorch to ONNX through ``torch.onnx.export(dynamo=True)``, the exporter that takes an exported program as it is."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import pt2
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Route

if TYPE_CHECKING:
    import torch

# The exporter's note of the modules around a node, outermost first, and of the operator itself: a list, as Python writes it.
_SCOPES = "pkg.torch.onnx.name_scopes"


class TorchOnnx:
    """Writes one self-contained ``.onnx`` file whose bytes depend on the program and the versions alone."""

    name = "torch_onnx"
    version = 2
    source = "pt2"
    format = "onnx"
    modules: tuple[str, ...] = ("torch", "onnx", "onnxscript")
    distributions: tuple[str, ...] = ("torch", "onnx", "onnxscript")
    extra = "edgekit[torch,onnx]"
    preload = pt2.PRELOAD

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Converts a ``.pt2`` program.

        Args:
            program: The exported program; it takes the signature's inputs by keyword.
            out: The ``.onnx`` file to write.
            signature: Inputs and outputs, with static shapes.

        Raises:
            InputRejected: The program is damaged.
            StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX with the signature's names.
        """
        import onnx

        model = _export(pt2.load(program), signature)
        _name_after_layers(model.graph)
        _forget_origin(model)
        _check(model, signature)
        onnx.save_model(model, str(out))


ROUTE: Route = TorchOnnx()


def _export(program: torch.export.ExportedProgram, signature: Signature) -> Any:
    import torch

    inputs = pt2.blank_inputs(signature)
    try:
        exported = torch.onnx.export(
            program,
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[spec.name for spec in signature.outputs],
            dynamo=True,
            verbose=False,
        )
    except CODE_ERRORS as error:  # every exporter error is a RuntimeError
        raise StageFailed(
            f"torch.onnx cannot convert the program: {_essence(error)}", where="torch_onnx", hint="replace that operator in the model"
        ) from error
    return exported.model_proto


def _essence(error: BaseException) -> str:
    """The exporter wraps its reason in pages of advice; the innermost exception is the reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _name_after_layers(graph: Any) -> None:
    """Calls every node after its layer, as in ``features.0.0/Conv``: what later tools keep of a node is its name."""
    used: Counter[str] = Counter()
    for node in graph.node:
        scopes: list[str] = next((ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == _SCOPES), [])
        if len(scopes) > 1 and scopes[-2]:
            name = f"{scopes[-2]}/{node.op_type}"
            used[name] += 1
            node.name = name if used[name] == 1 else f"{name}_{used[name]}"


def _forget_origin(model: Any) -> None:
    """Drops stack traces, class names and the build tag of torch: they hold local paths and differ between machines."""
    model.producer_version = model.producer_version.partition("+")[0]
    for message in _messages(model):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")


def _messages(model: Any) -> Iterator[Any]:
    yield model
    for function in model.functions:
        yield function
        yield from _nodes(function.node)
        yield from function.value_info
    yield from _graph(model.graph)


def _graph(graph: Any) -> Iterator[Any]:
    yield graph
    for values in (graph.initializer, graph.value_info, graph.input, graph.output):
        yield from (value for value in values if "metadata_props" in value.DESCRIPTOR.fields_by_name)
    yield from _nodes(graph.node)


def _nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graph(graph)


def _check(model: Any, signature: Signature) -> None:
    import onnx

    for kind, values, specs in (("inputs", model.graph.input, signature.inputs), ("outputs", model.graph.output, signature.outputs)):
        found, wanted = [value.name for value in values], [spec.name for spec in specs]
        if found != wanted:
            raise StageFailed(
                f"the exporter wrote {kind} {found}, expected {wanted}",
                where="torch_onnx",
                hint="make every input count and every output a tensor of its own",
            )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise StageFailed(
            f"the exporter wrote invalid ONNX: {first_line(error)}", where="torch_onnx", hint="report it to the exporter's project"
        ) from error
