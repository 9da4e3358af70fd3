"""ONNX files as every route writes them: of known origin, of the operator set that was asked for, checked and cleaned up.

What a step may change is held against what the graph computed before: both run in ONNX Runtime on the same random inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import onnx_external
from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageFailed
from toolkit.factory import CODE_ERRORS, first_line
from toolkit.plugins import Arrays

MAX_BYTES = (1 << 31) - (64 << 20)
"""Largest weights of a single file: Protocol Buffers, of which it is one, end at 2 GiB, and the graph needs some of that."""
CLEAN_UP = "edgekit.clean_up"
"""Key of the model's metadata that says what became of the clean-up."""
UNTOUCHED = "not asked for"
TOLERANCE = 1e-4
"""Largest difference, relative to an output's largest value, that counts as rounding: folding the batch norms of a ResNet-50 with
random weights into its convolutions moves its scores by 2.6e-5."""
_LARGE_BYTES = 4096
# MatMul and Add become a Gemm between two Reshapes: more operators, and names that are no layer's.
_SKIPPED_FUSIONS = ["FusionGemm"]


def random_inputs(signature: Signature, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Returns inputs that nearly every model takes: normal numbers, and zeros and ones for integers, as they may be indices.

    Args:
        signature: Inputs; those with free sizes need ``sizes``.
        sizes: What the free sizes shall be; 2 by default.
    """
    random = np.random.default_rng(0)
    known = sizes or {}
    shapes = {spec.name: [size if isinstance(size, int) else known.get(size, 2) for size in spec.shape] for spec in signature.inputs}
    return {spec.name: _random(spec, shapes[spec.name], random) for spec in signature.inputs}


def _random(spec: TensorSpec, shape: list[int], random: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    return (random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)).astype(dtype)


def run(model: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    """Runs a model as its graph stands, without any of ONNX Runtime's own optimisations.

    Args:
        model: A ``ModelProto``, its bytes, or the path of a file.
        inputs: Arrays by input name.

    Raises:
        StageFailed: ONNX Runtime cannot load or run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if isinstance(model, Path) and onnx_external.data_path(model).exists():
        options.add_session_config_entry("session.disable_prepacking", "1")  # large weights stay mapped, and are not in memory once more
    try:
        given = model if isinstance(model, bytes) else str(model) if isinstance(model, Path) else model.SerializeToString()
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        return dict(zip([one.name for one in session.get_outputs()], session.run(None, dict(inputs)), strict=True))
    except _runtime_errors() as error:
        hint = "take another opset or another route"
        raise StageFailed(f"ONNX Runtime cannot run the graph: {first_line(error)}", where="onnx", hint=hint) from error


def _runtime_errors() -> tuple[type[BaseException], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (*(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)), *CODE_ERRORS)


def distance(expected: Arrays, found: Arrays) -> float:
    """Returns the largest difference of any output, relative to that output's largest value; infinite where they cannot be compared."""
    if set(expected) != set(found) or any(expected[name].shape != found[name].shape for name in expected):
        return float("inf")
    return max((_distance(expected[name], found[name]) for name in expected), default=0.0)


def _distance(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    if same.all():
        return 0.0
    if not (np.isfinite(expected[~same]).all() and np.isfinite(found[~same]).all()):
        return float("inf")
    scale = float(np.abs(expected[np.isfinite(expected)]).max())
    gap = float(np.abs(expected[~same].astype(np.float64) - found[~same]).max())
    return gap / scale if scale else float("inf")


def is_close(expected: Arrays, found: Arrays) -> bool:
    """Whether two computations differ by rounding alone: by at most :data:`TOLERANCE` of an output's largest value."""
    return distance(expected, found) <= TOLERANCE


def guarded(model: Any, change: Callable[[Any], Any], inputs: Arrays, what: str) -> tuple[Any, str]:
    """Changes a model where that changes none of its outputs.

    Args:
        model: The ``ModelProto``; it is left as it is.
        change: Makes a changed model of a copy of it.
        inputs: What both are run on.
        what: Name of the change, for the note.

    Returns:
        The changed model, or the given one when the change fails or shows in the outputs; and a note that says which.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        changed = change(copy)
        gap = distance(run(model, inputs), run(changed, inputs))
    except (StageFailed, *CODE_ERRORS) as error:
        return model, f"kept as it was: {what} failed: {first_line(error)}"
    if gap > TOLERANCE:
        return model, f"kept as it was: {what} changed an output by {gap:.3g} of its largest value"
    return changed, what


def slim(model: Any) -> Any:
    """Simplifies a graph with onnxslim, without the fusions after which operators no longer bear their layers' names."""
    import onnxslim

    return onnxslim.slim(model, skip_fusion_patterns=_SKIPPED_FUSIONS)


def opset(model: Any) -> int:
    """Returns the version of the standard operator set that a model asks for."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def with_opset(model: Any, wanted: int, inputs: Arrays) -> Any | None:
    """Returns the model in another operator set, or ``None`` where no converter can do that without changing what it computes.

    The version is read back from the result, which also has to run: a changed label alone does not pass.
    """
    import onnx
    import onnx.version_converter

    if opset(model) == wanted:
        return model
    try:
        changed = onnx.version_converter.convert_version(model, wanted)
        onnx.checker.check_model(changed)
        if opset(changed) == wanted and is_close(run(model, inputs), run(changed, inputs)):
            return changed
    except (StageFailed, onnx.checker.ValidationError, onnx.version_converter.ConvertError, *CODE_ERRORS):
        return None
    return None


def check(model: Any, signature: Signature, where: str) -> None:
    """Holds a model against the signature that it shall have, and against the ONNX specification.

    Raises:
        StageFailed: Names of inputs or outputs or their order differ, an input has other sizes, or the model is not valid ONNX.
    """
    import onnx

    for kind, values, specs in (("inputs", model.graph.input, signature.inputs), ("outputs", model.graph.output, signature.outputs)):
        found, wanted = [value.name for value in values], [spec.name for spec in specs]
        if found != wanted:
            hint = "make every input count and every output a tensor of its own"
            raise StageFailed(f"the exporter wrote {kind} {found}, expected {wanted}", where=where, hint=hint)
    for value, spec in zip(model.graph.input, signature.inputs, strict=True):
        sizes = tuple(size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim)
        if any(found != wanted for found, wanted in zip(sizes, spec.shape, strict=True) if isinstance(wanted, str) or isinstance(found, int)):
            raise StageFailed(f"the exporter gave input {spec.name!r} the sizes {list(sizes)}, expected {list(spec.shape)}", where=where)
    try:
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise StageFailed(f"the exporter wrote invalid ONNX: {first_line(error)}", where=where, hint="report it to the exporter's project") from error


def _without_weights(model: Any) -> Any:
    """Returns the model with large weights as inputs: the check copies what it looks at several times, and reads no weights."""
    import onnx

    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set(light.graph, field.name, value)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _LARGE_BYTES or tensor.external_data:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            light.graph.initializer.append(tensor)
    return light


def _set(message: Any, name: str, value: Any) -> None:
    if isinstance(value, str | int | bytes | float):
        setattr(message, name, value)
    else:
        getattr(message, name).MergeFrom(value)


def set_apart(model: Any, out: Path) -> bool:
    """Moves the large weights of a model that one file cannot hold into the file beside it, one tensor after the other.

    Args:
        model: The ``onnx_ir.Model``; changed in place where it is too large.
        out: The ``.onnx`` file that it will be written to; the weights go to ``<out>.data``.

    Returns:
        Whether that was necessary.
    """
    import onnx_ir

    stored = [value.const_value for graph in model.graphs() for value in graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in stored) <= MAX_BYTES:
        return False
    place = onnx_external.data_path(out)
    onnx_ir.external_data.unload_from_model(model, place.parent, place.name, size_threshold_bytes=_LARGE_BYTES)
    return True


def is_apart(model: Any) -> bool:
    """Whether weights of a ``ModelProto`` are in another file."""
    return any(tensor.external_data for tensor in model.graph.initializer)


def save(model: Any, out: Path) -> None:
    """Writes a model, or the graph of one whose weights were set apart.

    Raises:
        InputRejected: It is too large for one file.
    """
    size_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size_bytes > MAX_BYTES:
        what = f"has {size_bytes / 1e9:.2f} GB of weights, and this route writes one ONNX file, which holds {MAX_BYTES / 1e9:.2f} GB at most"
        raise InputRejected(what, where=out.name, hint="convert to a format without that limit (openvino), or make the model smaller")
    out.write_bytes(model.SerializeToString(deterministic=True))


def note(model: Any, key: str, value: str) -> None:
    """Writes an entry of the model's metadata."""
    entry = next((entry for entry in model.metadata_props if entry.key == key), None) or model.metadata_props.add()
    entry.key, entry.value = key, value


def rename_sizes(model: Any, names: Mapping[str, str]) -> None:
    """Renames free sizes wherever the graph declares them, also as parts of expressions."""
    from toolkit.pt2 import size_text

    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = str(size_text(size.dim_param, names))


def forget_origin(model: Any) -> None:
    """Drops stack traces, class names and build tags: they hold local paths and differ between machines."""
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
