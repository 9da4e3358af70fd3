"""Smaller weights in ONNX graphs that compute in float: 16 bits, 8 bits for each channel, 4 bits for each block.

The stored integers pass ``Cast`` and a product with their scales, not ``DequantizeLinear``: ONNX Runtime computes the former once, when the model
is loaded, and the latter at every inference, measured at 2.2 times the float model's time on mobilenet_v2.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from toolkit.quantization.onnx_prepared import STANDARD, at_least, attribute, layers, stored
from toolkit.quantization.scheme import BLOCK

_INT4_OPSET, _INT4_IR = 21, 10
_LEAST = 1024
_CUTS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_LARGEST_HALF = 65504.0


def to_half(model: Any, kept: Collection[str]) -> list[str]:
    """Stores weights, and other large float tensors, in float16.

    Args:
        model: The float model, changed in place.
        kept: Names of layers that stay float32.

    Returns:
        Names of layers that stay float32 because a weight of theirs is beyond what float16 holds.
    """
    import onnx

    of_layer = {name: node.name for node, name in layers(model)}
    inside = _weight_inputs(model)
    beyond = []
    for tensor in list(model.graph.initializer):
        owner = of_layer.get(tensor.name)
        small = np.prod(tensor.dims, dtype=np.int64) < _LEAST and owner is None
        if tensor.data_type != onnx.TensorProto.FLOAT or owner in kept or small or tensor.name not in inside:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size and np.abs(values).max() > _LARGEST_HALF:
            beyond += [owner] if owner else []
            continue
        half = f"{tensor.name}_float16"
        _swap(model, tensor, [onnx.numpy_helper.from_array(values.astype(np.float16), half)])
        _put_first(model, [onnx.helper.make_node("Cast", [half], [tensor.name], name=f"{tensor.name}_cast", to=onnx.TensorProto.FLOAT)])
    return beyond


def to_bytes(model: Any, kept: Collection[str], *, per_channel: bool) -> None:
    """Stores weights in int8, symmetric, and the rows of embeddings likewise.

    Args:
        model: The float model, changed in place.
        kept: Names of layers that stay float.
        per_channel: A scale for every output channel, or one for the whole tensor.
    """
    import onnx

    known = stored(model)
    for weight, axis in _channel_axes(model, kept).items():
        values = onnx.numpy_helper.to_array(known[weight])
        others = tuple(one for one in range(values.ndim) if one != axis or not per_channel)
        _unfold(model, known[weight], values, others, values.shape, bits=8)
    shrink_embeddings(model, kept)


def to_nibbles(model: Any, kept: Collection[str]) -> Any:
    """Stores weights in 4 bits with a scale for each block along a channel's weights; products run as ``MatMulNBits``.

    Args:
        model: The float model; it is changed.
        kept: Names of layers that stay float.

    Returns:
        The model.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = at_least(model, _INT4_OPSET)
    model.ir_version = max(model.ir_version, _INT4_IR)
    products = _as_products(model, kept)
    library = MatMulNBitsQuantizer(model, bits=4, block_size=BLOCK, is_symmetric=False, nodes_to_exclude=_without(model, products))
    library.process()
    model = library.model.model
    known = stored(model)
    for weight, axis in _channel_axes(model, kept).items():
        values = onnx.numpy_helper.to_array(known[weight])
        turned = np.moveaxis(values, axis, 0)
        block = block_size(int(np.prod(turned.shape[1:], dtype=np.int64)))
        _unfold(model, known[weight], turned.reshape(len(turned), -1, block), (2,), turned.shape, bits=4, turn=axis)
    shrink_embeddings(model, kept)
    return model


def block_size(length: int) -> int:
    """The largest number of weights of at most twice the usual block that divides a channel's; the whole channel where that is tiny.

    Args:
        length: Weights of a channel.
    """
    best = max(one for one in range(1, 2 * BLOCK + 1) if length % one == 0)
    return best if best >= BLOCK // 4 else length


def shrink_embeddings(model: Any, kept: Collection[str]) -> None:
    """Stores tables that ``Gather`` takes rows of in int8 with a scale for each row; only the rows that are taken are unpacked.

    Args:
        model: The float model, changed in place.
        kept: Names of nodes that stay float.
    """
    import onnx

    known = stored(model)
    nodes, readers = [], [name for node in model.graph.node for name in node.input]
    for node in list(model.graph.node):
        table = known.get(node.input[0]) if node.op_type == "Gather" and node.domain in STANDARD else None
        if table is None or node.name in kept or attribute(node, "axis", 0) != 0 or not _is_table(table) or readers.count(table.name) > 1:
            nodes.append(node)
            continue
        values, scale = _rounded(onnx.numpy_helper.to_array(table), (1,), bits=8)
        name, output = table.name, node.output[0]
        _swap(model, table, [onnx.numpy_helper.from_array(values, f"{name}_int8"), onnx.numpy_helper.from_array(scale, f"{name}_scale")])
        nodes += [
            onnx.helper.make_node("Gather", [f"{name}_int8", node.input[1]], [f"{output}_int8"], name=node.name),
            onnx.helper.make_node("Gather", [f"{name}_scale", node.input[1]], [f"{output}_scale"], name=f"{output}_scale"),
            onnx.helper.make_node("Cast", [f"{output}_int8"], [f"{output}_cast"], name=f"{output}_cast", to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [f"{output}_cast", f"{output}_scale"], [output], name=f"{output}_scaled"),
        ]
    _replace(model, nodes)


def _is_table(tensor: Any) -> bool:
    import onnx

    return bool(tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2 and np.prod(tensor.dims, dtype=np.int64) >= _LEAST)


def _rounded(values: np.ndarray, axes: tuple[int, ...], *, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric integers and their scale, which is 1 along ``axes``.

    With few bits, cutting off the largest values can cost less than the coarser steps that they need: the scale with the smallest squared
    error is taken, and the widest of equal ones.
    """
    most = 2 ** (bits - 1) - 1
    largest = np.abs(values, dtype=np.float32).max(axis=axes, keepdims=True, initial=0)
    widest = np.where(largest > 0, largest / most, 1).astype(np.float32)
    best, least = widest, np.full(widest.shape, np.inf)
    for share in (1.0,) if bits >= 8 else _CUTS:
        scale = widest * np.float32(share)
        error = ((np.clip(np.round(values / scale), -most, most) * scale - values) ** 2).sum(axis=axes, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.clip(np.round(values / best), -most, most).astype(np.int8), best


def _unfold(model: Any, tensor: Any, values: np.ndarray, axes: tuple[int, ...], shape: Sequence[int], *, bits: int, turn: int = 0) -> None:
    """Puts integers in a weight's place, and the operators that make it of them again.

    Args:
        model: The model.
        tensor: The weight.
        values: Its values, perhaps in blocks.
        axes: Axes along which a scale is shared.
        shape: What the blocks become again.
        bits: Bits of an integer.
        turn: Where the first axis goes at last.
    """
    import ml_dtypes
    import onnx

    name = tensor.name
    whole, scale = _rounded(values, axes, bits=bits)
    packed = whole if bits == 8 else whole.astype(ml_dtypes.int4)
    kept = [onnx.numpy_helper.from_array(packed, f"{name}_int{bits}"), onnx.numpy_helper.from_array(scale, f"{name}_scale")]
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [f"{name}_int{bits}"], {"to": onnx.TensorProto.FLOAT}),
        ("Mul", [f"{name}_scale"], {}),
    ]
    if tuple(values.shape) != tuple(shape):
        kept.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape"))
        steps.append(("Reshape", [f"{name}_shape"], {}))
    if turn:
        order = list(range(1, len(shape)))
        order.insert(turn, 0)
        steps.append(("Transpose", [], {"perm": order}))
    nodes, last = [], ""
    for number, (operator, inputs, attributes) in enumerate(steps):
        output = name if number == len(steps) - 1 else f"{name}_{operator.lower()}"
        nodes.append(onnx.helper.make_node(operator, ([last] if last else []) + inputs, [output], name=f"{name}_{operator.lower()}", **attributes))
        last = output
    _swap(model, tensor, kept)
    _put_first(model, nodes)


def _channel_axes(model: Any, kept: Collection[str]) -> dict[str, int]:
    """Weights of layers that are not kept, with the axis of their output channels; a shared weight has that of its first layer."""
    found: dict[str, int] = {}
    known = stored(model)
    for node, weight in layers(model):
        if node.name in kept:
            found[weight] = -1
            continue
        ndim = len(known[weight].dims)
        if node.op_type in ("Conv", "LSTM", "GRU", "RNN"):
            axis = 0 if node.op_type == "Conv" else 1
        elif node.op_type == "ConvTranspose":
            axis = 1 if attribute(node, "group", 1) == 1 else 0
        elif node.op_type == "Gemm":
            axis = _gemm_axis(node, weight)
        else:
            axis = ndim - 1 if node.input[1] == weight else ndim - 2
        found.setdefault(weight, axis)
        if node.op_type in ("LSTM", "GRU", "RNN") and node.input[2] in known:
            found.setdefault(node.input[2], 1)
    return {weight: axis for weight, axis in found.items() if axis >= 0}


def _gemm_axis(node: Any, weight: str) -> int:
    if node.input[1] == weight:
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if attribute(node, "transA", 0) else 0


def _as_products(model: Any, kept: Collection[str]) -> set[str]:
    """Writes ``Gemm`` as ``MatMul`` and ``Add``; returns the names of products that may be packed."""
    import onnx

    known, nodes, found = stored(model), [], set()
    for node in list(model.graph.node):
        plain = node.op_type == "Gemm" and attribute(node, "alpha", 1.0) == 1 and attribute(node, "beta", 1.0) == 1
        if not plain or attribute(node, "transA", 0) or node.name in kept or node.input[1] not in known:
            nodes.append(node)
            if node.op_type == "MatMul" and node.name not in kept and node.input[1] in known:
                found.add(node.name)
            continue
        weight = node.input[1]
        if attribute(node, "transB", 0):
            weight = f"{node.input[1]}_turned"
            if weight not in known:
                turned = onnx.numpy_helper.from_array(np.ascontiguousarray(onnx.numpy_helper.to_array(known[node.input[1]]).T), weight)
                model.graph.initializer.append(turned)
                known[weight] = turned
        product = f"{node.output[0]}_product" if len(node.input) > 2 else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], weight], [product], name=node.name))
        if len(node.input) > 2:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_add"))
        found.add(node.name)
    _replace(model, nodes)
    _forget_unused(model)
    return found


def _without(model: Any, products: set[str]) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in products]


def _weight_inputs(model: Any) -> set[str]:
    """Tensors that only operators of the main graph read: those of subgraphs and outputs are left as they are."""
    read = {name for node in model.graph.node for name in node.input}
    return read - {value.name for value in model.graph.output} - {value.name for value in model.graph.input}


def _swap(model: Any, tensor: Any, others: list[Any]) -> None:
    model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(others)


def _put_first(model: Any, nodes: list[Any]) -> None:
    _replace(model, [*nodes, *model.graph.node])


def _replace(model: Any, nodes: Sequence[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]  # they belong to the graph that is cleared
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _forget_unused(model: Any) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
