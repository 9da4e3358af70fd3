"""Reads what a SavedModel contains: signatures, the operators behind one of them, and its weights. Nothing is loaded or run.

The folder is read as the protobuf message it is: that takes milliseconds, where importing TensorFlow takes seconds, and nothing in
it can run or open files by being looked at. Sizes and element types of variables are those that the graph states; the checkpoint
beside it must be as large as they ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from toolkit import modelfile, savedmodel_operators
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit.damage import reading
from toolkit.audit.element_types import element_bits
from toolkit.audit.savedmodel_graph import Graph, Scope
from toolkit.contents import Contents, Layer
from toolkit.savedmodel_messages import MetaGraph, Node, Tensor, dtype, read_graphs, sizes

_COMPUTED = "-"
_SERVE, _SERVING = "serve", "serving_default"
_FILE, _VARIABLES = "saved_model.pb", "variables/variables.data-*"
_MAX_HOPS = 64
_MAX_OPERATORS = 500_000
_STORED = {"Const", "HostConst", "VarHandleOp", "VariableV2", "Variable"}
# Operator -> (positions of its weights, position of its data); a matrix product takes weights on either side.
_LAYERS: dict[str, tuple[tuple[int, ...], int]] = {
    **dict.fromkeys(("Conv2D", "Conv3D", "DepthwiseConv2dNative", "XlaConvV2", "Conv", "_FusedConv2D"), ((1,), 0)),
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), ((1,), 2)),
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "XlaDotV2", "_FusedMatMul"), ((1,), 0)),
}
_EITHER_SIDE = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "XlaDotV2", "_FusedMatMul"}
# A weight is still the stored one behind these.
_PASSING = {
    *("Identity", "IdentityN", "ReadVariableOp", "Cast", "Reshape", "Transpose", "Squeeze", "ExpandDims", "StopGradient", "Enter"),
    *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel", "FakeQuantWithMinMaxArgs", "QuantizeAndDequantizeV4"),
}
# What moves tensors between graphs and computes nothing.
_NOT_COUNTED = _STORED | {"Placeholder", "PlaceholderWithDefault", "Identity", "IdentityN", "ReadVariableOp", "NoOp"}


class SavedModelReader:
    """The reader behind ``edgekit inspect`` of SavedModels and their audit."""

    name = "savedmodel"
    version = 1
    modules = ("numpy",)
    distributions = ("numpy",)
    extra = "edgekit"
    format = "savedmodel"

    def read(self, model: Path) -> Contents:
        """Returns the contents of a SavedModel folder: of its signature ``serving_default``, else of the first by name.

        Raises:
            InputRejected: The folder is damaged, or has no signature.
        """
        with reading(model, self.format, OSError, ValueError, KeyError, IndexError, OverflowError, RecursionError):
            return _contents(model)


READER = SavedModelReader()


@dataclass
class _Found:
    """What the outputs of a signature need.

    Attributes:
        operators: How often each operator occurs, once for each call of the function that it is in.
        layers: Those that multiply with weights.
        weights: Element type and stored bytes of each weight, by the function and node that hold it.
        variables: Those of them that are variables, which lie in the checkpoint.
    """

    operators: Counter[str] = field(default_factory=Counter)
    layers: list[Layer] = field(default_factory=list)
    weights: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    variables: set[tuple[str, str]] = field(default_factory=set)


def _contents(path: Path) -> Contents:
    meta = _serving(read_graphs((path / _FILE).read_bytes()))
    keys = [key for key, (_, outputs) in meta.signatures.items() if outputs and not key.startswith("__")]
    if not keys:
        raise ValueError("it has no signature; save it with tf.saved_model.save(model, folder, signatures=function)")
    key = _SERVING if _SERVING in keys else keys[0]
    inputs, outputs = meta.signatures[key]
    found = _walk(Graph(meta), outputs)
    weight_bytes: Counter[str] = Counter()
    for kind, size in found.weights.values():
        weight_bytes[kind] += size
    return Contents(
        format="savedmodel",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=Signature(inputs=_specs(inputs), outputs=_specs(outputs)),
        operators=dict(found.operators),
        weight_bytes={kind: size for kind, size in weight_bytes.items() if size},
        layers=tuple(found.layers),
        details=_details(path, meta, key, keys, found),
    )


def _serving(graphs: list[MetaGraph]) -> MetaGraph:
    tagged = [meta for meta in graphs if meta.tags == (_SERVE,)]
    if not tagged:
        raise ValueError(f"it has no graph with the tag {_SERVE!r}; found {[list(meta.tags) for meta in graphs] or 'no graph'}")
    return tagged[0]


def _details(path: Path, meta: MetaGraph, key: str, keys: list[str], found: _Found) -> dict[str, str]:
    used = sum(found.weights[place][1] for place in found.variables)
    stored = sum(file.stat().st_size for file in path.glob(_VARIABLES))
    if used > stored:
        raise ValueError(f"its variables take {used:,} bytes, the files of variables have {stored:,}")
    facts = {"tensorflow": meta.tensorflow or "-", "layout": "TensorFlow 2, objects" if meta.with_objects else "graph alone", "signature": key}
    others = [_described(name, *meta.signatures[name]) for name in keys if name != key]
    facts |= {"other_signatures": "; ".join(others)} if others else {}
    if stored:
        facts["variables"] = f"{len(found.variables):,} of {used:,} bytes; the files of variables have {stored:,}"
    unsafe = list(savedmodel_operators.unsafe(path / _FILE))
    return facts | ({"runs_code_or_opens_files": ", ".join(unsafe)} if unsafe else {})


def _described(key: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> str:
    return f"{key}: {', '.join(map(str, _specs(inputs)))} -> {', '.join(map(str, _specs(outputs)))}"


def _specs(tensors: dict[str, Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, dtype=tensor.dtype, shape=_shape(tensor)) for name, tensor in tensors.items())


def _shape(tensor: Tensor) -> tuple[int | str, ...]:
    if tensor.shape is None:
        return ("...",)
    return tuple(f"d{axis}" if size < 0 else size for axis, size in enumerate(tensor.shape))


def _walk(graph: Graph, outputs: dict[str, Tensor]) -> _Found:
    """Visits every operator that the outputs need, in the order of their names' first use."""
    found, seen = _Found(), set[tuple[int, str]]()
    pending = [(tensor.place, graph.main) for tensor in reversed(outputs.values()) if tensor.place]
    while pending:
        source = graph.source(*pending.pop())
        if source is None or (id(source[1]), source[0].name) in seen:
            continue
        node, scope = source
        seen.add((id(scope), node.name))
        if len(seen) > _MAX_OPERATORS:
            raise ValueError(f"its functions call each other for more than {_MAX_OPERATORS:,} operators")
        _record(node, scope, graph, found)
        for body in graph.bodies(node, scope):
            pending += [(tensor, body) for tensor in body.function.returns]
        pending += [(tensor, scope) for tensor in reversed(node.inputs)]
    return found


def _record(node: Node, scope: Scope, graph: Graph, found: _Found) -> None:
    if node.kind in _STORED:
        place = (scope.function.name, node.name)
        found.weights[place] = _stored(node)
        if node.kind not in ("Const", "HostConst"):
            found.variables.add(place)
    if node.kind not in _NOT_COUNTED:
        found.operators[node.kind] += 1
    if node.kind in _LAYERS:
        found.layers.append(_layer(node, scope, graph))


def _stored(node: Node) -> tuple[str, int]:
    """Returns element type and stored bytes of a constant or a variable."""
    kind = node.dtype("dtype")
    if node.kind in ("Const", "HostConst"):
        tensor = node.attributes["value"].one(8)
        return kind or dtype(tensor.number(1)), tensor.value_bytes(4)
    shape = sizes(node.attributes["shape"].one(7)) or ()
    return kind, prod(max(size, 0) for size in shape) * element_bits(kind) // 8


def _layer(node: Node, scope: Scope, graph: Graph) -> Layer:
    positions, data = _LAYERS[node.kind]
    weights = list(_weights(node, positions, scope, graph))
    if not weights and node.kind in _EITHER_SIDE:
        weights = list(_weights(node, (data,), scope, graph))
    kinds = sorted({kind for kind, _ in weights})
    return Layer(
        name=node.name,
        operator=node.kind,
        weight_dtype=" and ".join(kinds) or _COMPUTED,
        activation_dtype=node.dtype("T") or node.dtype("LhsT") or "float32",
        weight_bytes=sum(size for _, size in weights),
    )


def _weights(node: Node, positions: tuple[int, ...], scope: Scope, graph: Graph) -> Iterator[tuple[str, int]]:
    for tensor in (node.inputs[place] for place in positions if place < len(node.inputs)):
        source = graph.source(tensor, scope)
        for _ in range(_MAX_HOPS):
            if source is None or source[0].kind not in _PASSING:
                break
            source = graph.source(source[0].inputs[0], source[1])
        if source and source[0].kind in _STORED:
            yield _stored(source[0])
