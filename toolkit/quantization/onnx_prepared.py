"""An ONNX model made ready for ONNX Runtime's quantizer: constants folded, norms folded, shapes inferred, every node named."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit import onnx_files
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line

SKIPPED = "edgekit.preprocessing_skipped"
STANDARD = ("", "ai.onnx")
WEIGHTED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, 0), "MatMul": (1, 0), "LSTM": (1,), "GRU": (1,), "RNN": (1,)}
"""Operators whose weights make a layer, and the positions where those may be."""
_SHAPING = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Keeps the library's temporary copies of the model inside the stage's own folder, which a crash leaves to be swept."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=parent) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def load(model: Path) -> Any:
    """Reads a model, without the shapes that its exporter noted, and names its nodes as the reader of ONNX files names layers.

    Stale shapes contradict what the optimizer makes of the graph; it infers them again.

    Raises:
        InputRejected: It is damaged.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        plain = onnx.load(str(model))
    except (DecodeError, *CODE_ERRORS) as error:
        raise InputRejected(f"is not a readable ONNX model: {first_line(error)}", where=model.name, hint="convert the model again") from error
    plain.graph.ClearField("value_info")
    constants = set(stored(plain))
    inputs = [value for value in plain.graph.input if value.name not in constants]  # before IR version 4, weights were inputs too
    del plain.graph.input[:]
    plain.graph.input.extend(inputs)
    name_nodes(plain)
    return plain


def at_least(model: Any, wanted: int) -> Any:
    """Returns a model in an operator set of at least this version.

    Raises:
        StageFailed: Its operators cannot be converted.
    """
    import onnx
    import onnx.version_converter

    if onnx_files.opset(model) >= wanted:
        return model
    try:
        changed = onnx.version_converter.convert_version(model, wanted)
    except (onnx.version_converter.ConvertError, *CODE_ERRORS) as error:
        what = f"cannot be brought from opset {onnx_files.opset(model)} to {wanted}: {first_line(error)}"
        raise StageFailed(what, where="onnx", hint=f"export the model for opset {wanted}") from error
    name_nodes(changed)
    return changed


def name_nodes(model: Any) -> None:
    """Names every node of the main graph; exclusion by name needs it."""
    for node in model.graph.node:
        if not node.name and node.output:
            node.name = node.output[0]


def prepare(plain: Any, folder: Path, kept: Collection[str] = ()) -> tuple[Path, str]:
    """Fuses and infers shapes; layers keep their names.

    Args:
        plain: The loaded model.
        folder: Where files may be written.
        kept: Names of layers that must be found again.

    Returns:
        The prepared file; and the reason when the model had to be taken as it is, else nothing.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    cleared, prepared = folder / "cleared.onnx", folder / "prepared.onnx"
    onnx.save_model(plain, str(cleared))
    try:
        quant_pre_process(str(cleared), str(prepared), skip_symbolic_shape=True)
    except CODE_ERRORS as error:
        return cleared, first_line(error)
    model = onnx.load(str(prepared))
    name_nodes(model)
    _restore_names(plain, model)
    lost = set(kept) - {node.name for node in model.graph.node}
    if lost:
        return cleared, f"fusion would take {min(lost)}, which stays float"
    onnx.save_model(model, str(prepared))
    return prepared, ""


def _restore_names(plain: Any, prepared: Any) -> None:
    """Gives layers that a fusion renamed their names back; they are known by their weights."""
    there = {node.name for node in prepared.graph.node}
    names = {weight: node.name for node, weight in layers(plain) if node.name not in there}
    for node, weight in layers(prepared):
        node.name = names.get(weight, node.name)


def stored(model: Any) -> dict[str, Any]:
    """The tensors that the main graph carries, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def writers(model: Any) -> dict[str, Any]:
    """The node that makes each tensor of the main graph."""
    return {name: node for node in model.graph.node for name in node.output}


def same_values(model: Any) -> dict[str, tuple[str, ...]]:
    """For each tensor that only has another shape the ones that it comes from, the nearest first."""
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        if node.op_type in _SHAPING:
            found[node.output[0]] = (node.input[0], *found.get(node.input[0], ()))
    return found


def attribute(node: Any, name: str, default: Any) -> Any:
    """Value of a node's attribute."""
    import onnx

    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def layers(model: Any) -> Iterator[tuple[Any, str]]:
    """Every node of the main graph whose float weights are stored, with the weights' name."""
    import onnx

    known = {name for name, tensor in stored(model).items() if tensor.data_type == onnx.TensorProto.FLOAT}
    for node in model.graph.node:
        for position in WEIGHTED.get(node.op_type, ()) if node.domain in STANDARD else ():
            if position < len(node.input) and node.input[position] in known:
                yield node, node.input[position]
                break
