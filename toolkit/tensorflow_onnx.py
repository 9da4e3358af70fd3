"""TensorFlow graphs and TFLite files to ONNX through tf2onnx, with its faults mended and its names kept.

tf2onnx leaves what it does not know in the file under TensorFlow's own name and says so in its log alone, so that the exact GELU
became an ``Erfc`` that no runtime executes; and it takes every constant that a function captured for one more input. Here the
graph comes frozen, the missing operators are made of known ones, and what is still unknown is an error that names it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import onnx_settled, savedmodels
from toolkit.artifact import Signature
from toolkit.errors import StageFailed
from toolkit.factory import CODE_ERRORS, first_line

OPSET = 18
"""The newest operator set that tf2onnx 1.17 writes."""
OLDEST_OPSET = 9


def to_onnx(function: Any, out: Path, *, inputs: Sequence[str], outputs: Sequence[str], opset: int | None = None) -> None:
    """Writes a concrete function as one self-contained ``.onnx`` file.

    Args:
        function: A ``tf.types.experimental.ConcreteFunction`` with static shapes.
        out: The file to write.
        inputs: Names of its inputs, in the order of ``function.inputs`` without what it captures.
        outputs: Names of its outputs, in the order of ``function.outputs``.
        opset: ONNX operator set; ``OPSET`` by default.

    Raises:
        InputRejected: The function keeps lookup tables or variables that it writes to, or has other inputs or outputs.
        StageFailed: An operator has no ONNX counterpart, or the result is not valid ONNX with these names.
    """
    frozen_to_onnx(savedmodels.freeze(function, inputs, outputs), out, opset=opset)


def frozen_to_onnx(frozen: savedmodels.Frozen, out: Path, *, opset: int | None = None, sizes: Signature | None = None) -> None:
    """Writes a frozen graph as one self-contained ``.onnx`` file.

    Args:
        frozen: The graph.
        out: The file to write.
        opset: ONNX operator set; ``OPSET`` by default.
        sizes: Inputs and outputs, which say what sizes that are free in the graph are called.

    Raises:
        StageFailed: As :func:`to_onnx`.
    """
    import tf2onnx.convert

    given, made = list(frozen.inputs.values()), list(frozen.outputs.values())
    model = _converted(tf2onnx.convert.from_graph_def, frozen.graph, opset, name="model", input_names=given, output_names=made)
    _finish(model, frozen.inputs, frozen.outputs, out, sizes)


def tflite_to_onnx(model: Path, out: Path, signature: Signature, *, opset: int | None = None) -> None:
    """Writes a TFLite file as one self-contained ``.onnx`` file, with its signature's names.

    Args:
        model: The ``.tflite`` file.
        out: The file to write.
        signature: Inputs and outputs of the file.
        opset: ONNX operator set; ``OPSET`` by default.

    Raises:
        StageFailed: As :func:`to_onnx`.
    """
    savedmodels.quiet()
    import tf2onnx.convert

    inputs, outputs = _tensor_names(model, signature)
    converted = _converted(tf2onnx.convert.from_tflite, str(model), opset)
    _fix_sizes(converted.graph, inputs, signature)
    _finish(converted, inputs, outputs, out)


def _converted(convert: Callable[..., Any], source: Any, opset: int | None, **options: Any) -> Any:
    import tensorflow as tf
    import tf2onnx.graph
    import tf2onnx.utils

    version = OPSET if opset is None else opset
    if not OLDEST_OPSET <= version <= OPSET:
        message = f"tf2onnx writes operator sets {OLDEST_OPSET} to {OPSET}, found {version}"
        raise StageFailed(message, where="opset", hint=f"ask for one of them, or for none to get {OPSET}")
    tf2onnx.utils.INTERNAL_NAME = 1  # a counter that goes into names, and on from one model to the next
    tf2onnx.graph.Node.__hash__ = _ordered_hash()
    handlers: dict[str, tuple[Any, list[Any]]] = {name: (handler, []) for name, handler in _MENDED.items() if version >= _since(name)}
    try:
        with warnings.catch_warnings(), onnx_settled.steady_merging():
            warnings.simplefilter("ignore")  # of TensorFlow, about the interpreter that tf2onnx reads shapes with
            return convert(source, opset=version, custom_op_handlers=handlers, **options)[0]
    except (*CODE_ERRORS, tf.errors.OpError) as error:
        raise StageFailed(
            f"tf2onnx cannot convert the graph: {first_line(error)}", where="tf2onnx", hint="replace that operator in the model"
        ) from error


def _since(operator: str) -> int:
    return 11 if operator.startswith("Resize") else OLDEST_OPSET


def _ordered_hash() -> Callable[[Any], int]:
    """tf2onnx keeps nodes in sets and takes what comes first; by their addresses in memory, that was another one each time."""
    count = itertools.count()

    def order(node: Any) -> int:
        found: int = node.__dict__.setdefault("_edgekit_order", next(count))
        return found

    return order


def _erfc(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """``erfc(x) = 1 - erf(x)``."""
    dtype, shape = graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
    _rebuilt(graph, node, lambda build: build("Sub", [build.number(1), build("Erf", [node.input[0]])]), dtype, shape)


def _gelu(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """``x/2 (1 + erf(x/√2))``, or with ``tanh(√(2/π) (x + 0.044715 x³))`` in its place (Hendrycks and Gimpel, 2016)."""
    x, dtype, shape = node.input[0], graph.get_dtype(node.output[0]), graph.get_shape(node.output[0])
    tanh = bool(node.get_attr_value("approximate", 0))

    def made(build: _Build) -> str:
        if tanh:
            cube = build("Mul", [build("Mul", [build("Mul", [x, x]), x]), build.number(0.044715)])
            bend = build("Tanh", [build("Mul", [build("Add", [x, cube]), build.number(math.sqrt(2 / math.pi))])])
        else:
            bend = build("Erf", [build("Div", [x, build.number(math.sqrt(2))])])
        return build("Mul", [build("Mul", [x, build("Add", [bend, build.number(1)])]), build.number(0.5)])

    _rebuilt(graph, node, made, dtype, shape)


def _resize(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """Gives the size itself: tf2onnx gives its ratio to the input's, of which runtimes round the product down, 5 x 2.6 to 12."""
    from tf2onnx import utils
    from tf2onnx.onnx_opset.nn import Resize

    output, shape = node.output[0], graph.get_shape(node.output[0])
    Resize.version_11(graph, node)
    if shape and min(shape) > 0:
        resize = graph.get_node_by_output(output).inputs[0]
        sizes = graph.make_const(utils.make_name("sizes"), np.array(shape, np.int64)[[0, 3, 1, 2]])
        nothing = graph.make_const(utils.make_name("scales"), np.zeros(0, np.float32))
        graph.replace_inputs(resize, [*resize.input[:2], nothing.output[0], sizes.output[0]])


def _left(graph: Any, node: Any, name: str, _: list[Any]) -> None:
    """Leaves an operator as it is, so that it is reported: tf2onnx would write another one without a word."""


_MENDED = {
    "Erfc": _erfc,
    "TFL_GELU": _gelu,
    "ResizeBilinear": _resize,
    "ResizeNearestNeighbor": _resize,
    "ResizeBicubic": _resize,
    "ResizeArea": _left,  # became the nearest neighbour
}


class _Build:
    """Adds nodes of one element type and shape to tf2onnx's graph, called after the node that they replace."""

    def __init__(self, graph: Any, name: str, dtype: int, shape: Any) -> None:
        self._graph, self._name, self._dtype, self._shape = graph, name, dtype, shape

    def __call__(self, operator: str, inputs: list[str]) -> str:
        from tf2onnx import utils

        node = self._graph.make_node(operator, inputs, name=utils.make_name(f"{self._name}/{operator}"), dtypes=[self._dtype], shapes=[self._shape])
        node.skip_conversion = True
        return str(node.output[0])

    def number(self, value: float) -> str:
        from tf2onnx import utils

        array = np.array(value, dtype=utils.map_onnx_to_numpy_type(self._dtype))
        return str(self._graph.make_const(utils.make_name(f"{self._name}/constant"), array).output[0])


def _rebuilt(graph: Any, node: Any, make: Callable[[_Build], str], dtype: int, shape: Any) -> None:
    output = node.output[0]
    graph.remove_node(node.name)
    graph.make_node(
        "Identity", [make(_Build(graph, node.name, dtype, shape))], outputs=[output], dtypes=[dtype], shapes=[shape]
    ).skip_conversion = True


def _tensor_names(model: Path, signature: Signature) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the tensors' names in a TFLite file by the signature's names; without a signature they are the same."""
    from tf2onnx.tflite.Model import Model

    file = Model.GetRootAsModel(model.read_bytes(), 0)
    graph = file.Subgraphs(0)
    names = [{spec.name: spec.name for spec in specs} for specs in (signature.inputs, signature.outputs)]
    for place in range(file.SignatureDefsLength()):
        definition = file.SignatureDefs(place)
        maps = []
        for count, entry in ((definition.InputsLength(), definition.Inputs), (definition.OutputsLength(), definition.Outputs)):
            entries = [entry(number) for number in range(count)]
            maps.append({one.Name().decode(): graph.Tensors(one.TensorIndex()).Name().decode() for one in entries})
        if all(set(own) == set(named) for own, named in zip(maps, names, strict=True)):
            names = [{name: own[name] for name in named} for own, named in zip(maps, names, strict=True)]
            break
    return names[0], names[1]


def _fix_sizes(graph: Any, inputs: Mapping[str, str], signature: Signature) -> None:
    """Gives inputs that are free in the file the sizes of the signature; the outputs' follow when the model is checked."""
    from onnx import helper

    wanted = {inputs[spec.name]: spec.shape for spec in signature.inputs}
    for value in graph.input:
        kind = value.type.tensor_type
        if value.name in wanted and len(kind.shape.dim) == len(wanted[value.name]):
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind.elem_type, wanted[value.name]))


def _finish(model: Any, inputs: Mapping[str, str], outputs: Mapping[str, str], out: Path, sizes: Signature | None = None) -> None:
    import onnx

    _check_operators(model)
    _rename(model.graph, inputs, outputs)
    onnx_settled.settle(model)
    if sizes is not None:
        _name_sizes(model.graph, sizes)
    for kind, values, names in (("inputs", model.graph.input, inputs), ("outputs", model.graph.output, outputs)):
        found = [value.name for value in values]
        if sorted(found) != sorted(names):
            message = f"tf2onnx wrote {kind} {found}, expected {list(names)}"
            raise StageFailed(message, where="tf2onnx", hint="make every input count and every output a tensor of its own")
    try:
        _infer_outputs(model)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise StageFailed(f"tf2onnx wrote invalid ONNX: {first_line(error)}", where="tf2onnx", hint="report it to the exporter's project") from error
    out.write_bytes(model.SerializeToString(deterministic=True))


def _name_sizes(graph: Any, signature: Signature) -> None:
    """Calls free sizes as the signature does; tf2onnx numbers them."""
    names = {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}
    for value in (*graph.input, *graph.output):
        for dimension, size in zip(value.type.tensor_type.shape.dim, names.get(value.name, ()), strict=False):
            if isinstance(size, str):
                dimension.dim_param = size


def _infer_outputs(model: Any) -> None:
    """Fills in sizes of outputs that tf2onnx left open, where they follow from the inputs'."""
    import onnx

    if not any(dimension.dim_param for value in model.graph.output for dimension in value.type.tensor_type.shape.dim):
        return
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        for dimension, known in zip(value.type.tensor_type.shape.dim, found.type.tensor_type.shape.dim, strict=True):
            if known.HasField("dim_value"):
                dimension.dim_value = known.dim_value


def _check_operators(model: Any) -> None:
    """Whatever tf2onnx could not convert is still there under TensorFlow's name."""
    import onnx

    versions = {entry.domain: entry.version for entry in model.opset_import}
    unknown = []
    for node in _nodes(model.graph):
        try:
            onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            unknown.append(f"{node.op_type.removeprefix('TFL_')} ({node.name})")
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        message = f"tf2onnx has no ONNX counterpart for {', '.join(unknown[:3])}{more}"
        raise StageFailed(message, where="tf2onnx", hint="replace that operator in the model")


def _nodes(graph: Any) -> list[Any]:
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                found += _nodes(inner)
    return found


def _rename(graph: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Calls inputs and outputs by the signature's names; a name that another tensor has is taken from that one."""
    from onnx import helper

    wanted = {tensor: name for name, tensor in inputs.items()}
    copies = []
    for name, tensor in outputs.items():
        if tensor in wanted:  # one tensor under two names
            copies.append((tensor, name))
        else:
            wanted[tensor] = name
    everything = [graph, *(inner for node in graph.node for inner in _graphs(node))]
    taken = {name for name in (*inputs, *outputs) if name not in wanted}
    new = {**{name: f"{name}/inner" for name in taken}, **wanted}
    for one in everything:
        for node in one.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        for value in (*one.input, *one.output, *one.value_info, *one.initializer):
            value.name = new.get(value.name, value.name)
    values = {value.name: value for value in (*graph.input, *graph.output)}
    ordered = [helper.make_value_info(name, values[new[tensor]].type) for name, tensor in outputs.items() if new[tensor] in values]
    for tensor, name in copies:
        graph.node.append(helper.make_node("Identity", [new[tensor]], [name], name=f"{name}/Identity"))
    del graph.output[:]
    graph.output.extend(ordered)


def _graphs(node: Any) -> list[Any]:
    found = []
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            found += [graph, *(inner for other in graph.node for inner in _graphs(other))]
    return found
