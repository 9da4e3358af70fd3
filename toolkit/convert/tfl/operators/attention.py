"""ONNX Runtime's attention over several heads, and the turning of pairs of features by their place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.convert.tfl.facts import FLOATS
from toolkit.convert.tfl.graph import Graph, Tensor
from toolkit.convert.tfl.lower import Call, operator
from toolkit.convert.tfl.operators.convolution import joined
from toolkit.convert.tfl.program import TYPINGS, Node, Program, Type, Unsupported

_ATTENTION, _HEADS, _ROTARY = "com.microsoft.Attention", "com.microsoft.MultiHeadAttention", "com.microsoft.RotaryEmbedding"


def _refuse(node: Node, simple: int, attributes: Sequence[str] = ()) -> None:
    """Refuses inputs from one on, more than one output, and attributes that are set."""
    if any(node.inputs[simple:]) or any(node.outputs[1:]) or any(node.attributes.get(name, 0) for name in attributes):
        raise Unsupported("keeps keys and values, or has another extra, which is not supported")


def _attention_type(node: Node, program: Program) -> list[Type]:
    _refuse(node, 6, ("do_rotary",))
    if any(node.inputs[4:5]):
        raise Unsupported("reads keys and values of an earlier run")
    given, bias = program.type(node.inputs[0]), program.type(node.inputs[2]) if node.inputs[2:3] and node.inputs[2] else None
    width = program.type(node.inputs[1]).shape[1] if bias is None else bias.shape[0]
    sizes = node.attributes.get("qkv_hidden_sizes") or [width // 3] * 3
    return [Type(given.dtype, (*given.shape[:-1], sizes[2]))]


def _heads_type(node: Node, program: Program) -> list[Type]:
    _refuse(node, 6)
    if any(not name or len(program.type(name).shape) != 3 for name in [*node.inputs, "", ""][:3]):
        raise Unsupported("has keys and values in one tensor, or heads as an axis")
    query, value = (program.type(node.inputs[place]) for place in (0, 2))
    return [Type(query.dtype, (*query.shape[:-1], value.shape[-1]))]


def _rotary_type(node: Node, program: Program) -> list[Type]:
    if node.attributes.get("is_packed_batching", 0) or node.attributes.get("scale", 1.0) != 1.0:
        raise Unsupported("packs its samples, or scales them")
    return [program.type(node.inputs[0])]


TYPINGS |= {_ATTENTION: _attention_type, _HEADS: _heads_type, _ROTARY: _rotary_type}


@operator(_ATTENTION, dtypes=FLOATS, limits="fixed sizes; no keys and values of earlier runs; a mask has one number for each sample and key")
def _attention(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    batch, length, _ = call.known(value.shape, "a size")
    bias = call.x(2) if call.has(2) else None
    weight = graph.transpose(call.x(1), (1, 0))
    width = weight.shape[0]
    sizes = call.attribute("qkv_hidden_sizes") or [width // 3] * 3
    product = graph.add("FULLY_CONNECTED", [value, weight, bias], (batch, length, width), keepNumDims=True)
    inputs = [product, graph.integers(sizes), graph.constant(2, np.int32)]
    parts = graph.add_many("SPLIT_V", inputs, [((batch, length, size), product.dtype) for size in sizes], numSplits=3)
    return _attend(call, parts, call.x(3) if call.has(3) else None, call.x(5) if call.has(5) else None)


@operator(
    _HEADS, dtypes=FLOATS, limits="fixed sizes; three inputs of three axes, nothing of earlier runs; a mask has one number for each sample and key"
)
def _multi_head(call: Call) -> Tensor:
    graph = call.graph
    parts = [call.x(place) for place in range(3)]
    if call.has(3):
        bias, start = call.x(3), 0
        for place, part in enumerate(parts):
            size = part.shape[-1]
            own = graph.constant(bias.data[start : start + size]) if bias.data is not None else graph.slice(bias, [start], (size,))
            parts[place], start = graph.binary("ADD", part, own), start + size
    return _attend(call, parts, call.x(4) if call.has(4) else None, call.x(5) if call.has(5) else None)


def _attend(call: Call, parts: Sequence[Tensor], mask: Tensor | None, added: Tensor | None) -> Tensor:
    """Adds the attention of queries to keys, and the sum of the values by it."""
    graph, heads = call.graph, call.attribute("num_heads")
    for part in parts:
        call.known(part.shape, "a size")
    query, key, value = (_by_head(graph, part, heads) for part in parts)
    batch, _, length, size = query.shape
    past = key.shape[2]
    scale = call.attribute("scale", 0.0) or 1 / np.sqrt(size)
    query = graph.binary("MUL", query, graph.constant(np.float32(scale)))
    scores = graph.add("BATCH_MATMUL", [query, key], (batch, heads, length, past), adjX=False, adjY=True)
    lowest = np.float32(call.attribute("mask_filter_value", -10000.0))
    if mask is not None:
        scores = graph.binary("ADD", scores, _penalty(graph, mask, (batch, past), lowest))
    if call.attribute("unidirectional", 0):
        scores = graph.binary("ADD", scores, graph.constant(np.triu(np.full((length, past), lowest), past - length + 1)))
    if added is not None:
        scores = graph.binary("ADD", scores, added)
    shares = graph.unary("SOFTMAX", scores, beta=1.0)
    made = graph.add("BATCH_MATMUL", [shares, value], (batch, heads, length, value.shape[3]), adjX=False, adjY=False)
    return graph.reshape(graph.transpose(made, (0, 2, 1, 3)), call.shape())


def _by_head(graph: Graph, value: Tensor, heads: int) -> Tensor:
    batch, length, width = value.shape
    return graph.transpose(graph.reshape(value, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def _penalty(graph: Graph, mask: Tensor, shape: tuple[int, int], lowest: np.float32) -> Tensor:
    """Returns what is added to the scores of keys that are masked: a mask has ones for those that count."""
    if mask.shape != shape:
        raise Unsupported("has a mask other than one number for each sample and key")
    left_out = graph.binary("SUB", graph.constant(np.float32(1)), graph.cast(mask, np.float32))
    return graph.reshape(graph.binary("MUL", left_out, graph.constant(lowest)), (shape[0], 1, 1, shape[1]))


@operator(_ROTARY, dtypes=FLOATS, limits="fixed sizes; no packed samples, no scale")
def _rotary(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    batch, length, heads, size = call.known(_turned(call, value).shape, "a size")
    turned = _turned(call, value)
    width = call.attribute("rotary_embedding_dim", 0) or size
    cosine, sine = (_by_place(call, call.x(place), (batch, length)) for place in (2, 3))
    first, second, *rest = _pairs(call, turned, width)
    even = graph.binary("SUB", graph.binary("MUL", first, cosine), graph.binary("MUL", second, sine))
    odd = graph.binary("ADD", graph.binary("MUL", first, sine), graph.binary("MUL", second, cosine))
    if call.attribute("interleaved", 0):
        packed = graph.add("PACK", [even, odd], (*even.shape, 2), valuesCount=2, axis=4)
        made = graph.reshape(packed, (batch, length, heads, width))
    else:
        made = joined(graph, [even, odd], 3)
    whole = joined(graph, [made, *rest], 3)
    return graph.transpose(whole, (0, 2, 1, 3)) if value.rank == 4 else graph.reshape(whole, value.shape)


def _turned(call: Call, value: Tensor) -> Tensor:
    """Returns ``[samples x places x heads x features]``."""
    if value.rank == 4:
        return call.graph.transpose(value, (0, 2, 1, 3))
    batch, length, width = value.shape
    heads, part = call.attribute("num_heads", 0), call.attribute("rotary_embedding_dim", 0)
    size = width // heads if heads else part or 2 * call.type(2).shape[1]
    return call.graph.reshape(value, (batch, length, width // size, size))


def _by_place(call: Call, table: Tensor, shape: tuple[int, int]) -> Tensor:
    """Returns the rows of a table for every place; one position alone is that of the first place."""
    graph, places = call.graph, call.x(1)
    if places.shape == (1,):
        places = graph.binary("ADD", graph.constant(np.arange(shape[1], dtype=np.int32)), places)
    found = graph.add("GATHER", [table, places], (*places.shape, table.shape[1]), axis=0, batchDims=0)
    samples = shape[0] if places.rank == 2 else 1
    return graph.reshape(found, (samples, shape[1], 1, table.shape[1]))


def _pairs(call: Call, value: Tensor, width: int) -> list[Tensor]:
    """Splits features into the first and second ones of each pair, and those that stay."""
    graph, front, size = call.graph, value.shape[:-1], value.shape[-1]
    used = graph.slice(value, [0] * 4, (*front, width))
    rest = [graph.slice(value, [0, 0, 0, width], (*front, size - width))] if size > width else []
    if not call.attribute("interleaved", 0):
        return [graph.slice(used, [0, 0, 0, start], (*front, width // 2)) for start in (0, width // 2)] + rest
    pairs = graph.reshape(used, (*front, width // 2, 2))
    found = graph.add_many("UNPACK", [pairs], [((*front, width // 2), value.dtype)] * 2, num=2, axis=4)
    return [*found, *rest]
