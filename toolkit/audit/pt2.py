"""Reads what a ``.pt2`` file of ``torch.export`` contains: ATen operators, signature and weights. The program is not run.

``torch.export.load`` can unpickle; :func:`toolkit.intake.check_model` has refused every file in which that could run code.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit import modelfile, pt2
from toolkit.artifact import Signature, TensorSpec
from toolkit.contents import Contents, Layer

COMPUTED = "-"
_MAX_HOPS = 64

# ATen operator -> (positions of its weights, position of its data); a matrix product takes weights on either side.
_LAYERS = {
    **{f"conv{n}d": ((1,), 0) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ((1,), 0) for n in (1, 2, 3)},
    **dict.fromkeys(("convolution", "linear", "matmul", "mm", "bmm"), ((1,), 0)),
    **dict.fromkeys(("addmm", "baddbmm"), ((2,), 1)),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), ((2,), 0)),
}
_EITHER_SIDE = {"matmul", "mm", "bmm"}
_RESHAPING = {
    "t",
    "permute",
    "transpose",
    "numpy_T",
    "view",
    "reshape",
    "flatten",
    "unsqueeze",
    "squeeze",
    "contiguous",
    "clone",
    "_to_copy",
    "to",
    "alias",
}
_INTEGERS = {"int8", "uint8", "int16"}


class Pt2Reader:
    """The reader behind ``edgekit inspect model.pt2`` and the audit of captured programs."""

    name = "pt2"
    version = 1
    modules = ("torch",)
    preload = pt2.PRELOAD
    distributions = ("torch",)
    extra = "edgekit[torch]"
    format = "pt2"

    def read(self, model: Path) -> Contents:
        """Returns the contents of a ``.pt2`` file.

        Raises:
            InputRejected: The file is damaged, or may run code when it is loaded.
        """
        return _contents(model, pt2.load(model))


def _contents(path: Path, program: Any) -> Contents:
    weights = _Weights(program)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    weight_bytes: Counter[str] = Counter()
    for tensor in weights.all():
        weight_bytes[_dtype(tensor)] += tensor.nbytes
    return Contents(
        format="pt2",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=_signature(program),
        operators=dict(Counter(_operator(node) for node in nodes)),
        weight_bytes=dict(weight_bytes),
        layers=tuple(_layer(node, weights) for node in nodes if _base(node) in _LAYERS),
        details=_details(path, program),
    )


class _Weights:
    """Finds the stored tensor behind a node of the graph."""

    def __init__(self, program: Any) -> None:
        signature = program.graph_signature
        self._stored: dict[str, Any] = {**program.constants, **program.state_dict}
        lifted = signature.inputs_to_lifted_tensor_constants
        self._names: Mapping[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **lifted}

    def all(self) -> Iterable[Any]:
        """Every stored tensor once, however many names it has."""
        return {id(tensor): tensor for tensor in self._stored.values() if hasattr(tensor, "nbytes")}.values()

    def behind(self, node: Any) -> Any | None:
        for _ in range(_MAX_HOPS):
            if node.op == "placeholder":
                return self._stored.get(self._names.get(node.name, ""))
            if _base(node) not in _RESHAPING and not _base(node).startswith("dequantize"):
                return None
            node = node.args[0]
        return None


def _layer(node: Any, weights: _Weights) -> Layer:
    positions, data = _LAYERS[_base(node)]
    found = _found(node, positions, weights)
    if not found and _base(node) in _EITHER_SIDE:
        found, data = _found(node, (0,), weights), 1
    return Layer(
        name=_module(node),
        operator=_operator(node),
        weight_dtype=" and ".join(sorted({_dtype(tensor) for tensor in found})) or COMPUTED,
        activation_dtype=_activation(node.args[data]),
        weight_bytes=sum(tensor.nbytes for tensor in found),
    )


def _found(node: Any, positions: tuple[int, ...], weights: _Weights) -> list[Any]:
    operands = [node.args[position] for position in positions]
    flat = [entry for operand in operands for entry in (operand if isinstance(operand, (list, tuple)) else [operand])]
    return [tensor for entry in flat if (tensor := weights.behind(entry)) is not None]


def _activation(node: Any) -> str:
    if _base(node).startswith("dequantize"):
        node = node.args[0]
    dtype = _dtype(node.meta["val"])
    return dtype if dtype in _INTEGERS else "float32"


def _module(node: Any) -> str:
    """Path of the module that the operator came from, for example ``features.0.conv``; the node's own name without one."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (stack[-1][0] if stack else "") or node.name


def _operator(node: Any) -> str:
    target = node.target
    return str(target) if hasattr(target, "overloadpacket") else getattr(target, "__name__", str(target))


def _base(node: Any) -> str:
    """``conv2d`` for ``aten.conv2d.default``; the node's name for a placeholder."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else str(node.target)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _signature(program: Any) -> Signature:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    own = [str(name) for name in inputs]
    numbered = [f"output_{position}" for position in range(len(outputs))]
    return Signature(
        inputs=tuple(map(_spec, _names(program.call_spec.in_spec, own), (values.get(str(name), name) for name in inputs))),
        outputs=tuple(map(_spec, _names(program.call_spec.out_spec, numbered), (values.get(str(name), name) for name in outputs))),
    )


def _names(spec: Any, fallback: list[str]) -> list[str]:
    """Names of leaves that are values of a dictionary (keyword arguments, or a dictionary of outputs); else the fallback's."""
    from torch.utils import _pytree as pytree  # the public torch.export.ExportedProgram.call_spec is made of these

    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    named = tree[1] if isinstance(tree, tuple) and len(tree) == 2 and isinstance(tree[1], dict) else tree
    keys = {leaf: str(key) for key, leaf in named.items() if isinstance(leaf, int)} if isinstance(named, dict) else {}
    return [keys.get(position, name) for position, name in enumerate(fallback)]


def _spec(name: str, value: Any) -> TensorSpec:
    if not hasattr(value, "shape"):
        return TensorSpec(name=name, dtype=type(value).__name__, shape=())
    return TensorSpec(name=name, dtype=_dtype(value), shape=tuple(size if isinstance(size, int) else str(size) for size in value.shape))


def _details(path: Path, program: Any) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        written = [json.loads(archive.read(name)) for name in archive.namelist() if name.partition("/")[2] == "models/model.json"]
    parameters = sum(tensor.numel() for tensor in program.state_dict.values())
    return {"torch": str(written[0].get("torch_version", "-")) if written else "-", "dialect": str(program.dialect), "parameters": f"{parameters:,}"}


READER = Pt2Reader()
