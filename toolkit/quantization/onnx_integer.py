"""Rewrites an ONNX graph so that more of it runs in ONNX Runtime's integer kernels, with the same function.

The runtime has none for ``HardSigmoid`` and ``ReduceMean``: each makes it leave the integers and come back. On mobilenet_v3_small these
rewrites, with the first convolution in float, brought static int8 from 1.31 to 0.91 of the float model's time.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.quantization.onnx_prepared import attribute, stored, writers

_STEM_CHANNELS = 4
_STEM_MACS = 1_000_000
_ACTIVATIONS = ("Relu", "Clip", "HardSigmoid", "Sigmoid", "LeakyRelu", "HardSwish")


@dataclass(frozen=True)
class Gate:
    """A hard sigmoid that was written as a clipped sum.

    Attributes:
        output: Its tensor; it holds values of 0 to ``top``.
        top: Largest value.
        factor: What brings that to 0..1; the scale of the tensor's readers takes it in.
    """

    output: str
    top: float
    factor: float


def slow_stem(model: Any) -> list[str]:
    """Names a first convolution that is faster in float: few input channels leave the integer kernel mostly idle.

    Measured on AVX-512 with VNNI: 1.8 times slower in int8, for 3 channels of 224 x 224 pixels.
    """
    import onnx

    known = stored(model)
    inputs = {value.name for value in model.graph.input} - set(known)
    shapes = _shapes(onnx.shape_inference.infer_shapes(model))
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in inputs and node.input[1] in known:
            weight = known[node.input[1]].dims
            places = np.prod(list(shapes.get(node.output[0], ()))[2:] or [0])
            few = weight[1] <= _STEM_CHANNELS and attribute(node, "group", 1) == 1
            if few and np.prod(weight) * places >= _STEM_MACS:
                return [node.name]
    return []


def with_activations(model: Any, kept: Collection[str]) -> set[str]:
    """Adds to nodes that stay float the activations that only they feed, up to the product of ``x * sigmoid(x)``."""
    found = set(kept)
    made_by = writers(model)
    for node in model.graph.node:
        sources = [made_by[name] for name in node.input if name in made_by]
        is_activation = node.op_type in _ACTIVATIONS
        is_gated = node.op_type == "Mul" and len(sources) == 2 and any(one.op_type in _ACTIVATIONS for one in sources)
        if sources and (is_activation or is_gated) and all(one.name in found for one in sources):
            found.add(node.name)
    return found


def rewritten(model: Any) -> set[str]:
    """Names the nodes that :func:`pool_means` and :func:`open_gates` would write as others."""
    known, shapes = stored(model), _shapes(model)
    return {node.name for node in model.graph.node if node.op_type == "HardSigmoid" or _is_pooling(node, known, shapes)}


def _is_pooling(node: Any, known: dict[str, Any], shapes: dict[str, list[int]]) -> bool:
    axes = _axes(node, known) if node.op_type == "ReduceMean" else []
    return len(axes) == 2 and len(shapes.get(node.input[0], ())) == 4 and sorted(axis % 4 for axis in axes) == [2, 3]


def pool_means(model: Any) -> dict[str, str]:
    """Writes means over a picture as ``GlobalAveragePool``, for which there is an integer kernel.

    Returns:
        For each tensor that is new the one that has the same values.
    """
    import onnx

    known, shapes = stored(model), _shapes(model)
    nodes, same = [], {}
    for node in model.graph.node:
        if not _is_pooling(node, known, shapes):
            nodes.append(node)
            continue
        keeps = attribute(node, "keepdims", 1)
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not keeps:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], list(node.output), name=f"{node.name}_flat", axis=1))
            same[pooled] = node.output[0]
    _replace(model, nodes)
    return same


def open_gates(model: Any, kept: Collection[str]) -> list[Gate]:
    """Writes ``HardSigmoid`` as ``Clip(x + beta / alpha, 0, 1 / alpha)``, whose two operators have integer kernels.

    That is ``1 / alpha`` times too large: :func:`close_gates` puts it right in the scale, once the graph is quantized.

    Args:
        model: The float model, changed in place.
        kept: Names of nodes that stay float; they are left alone.
    """
    import onnx

    gates, nodes = [], []
    for node in model.graph.node:
        if node.op_type != "HardSigmoid" or node.name in kept or node.output[0] in {value.name for value in model.graph.output}:
            nodes.append(node)
            continue
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        output = node.output[0]
        bounds = [_constant(model, value) for value in (beta / alpha, 0.0, 1 / alpha)]
        nodes.append(onnx.helper.make_node("Add", [node.input[0], bounds[0]], [f"{output}_sum"], name=f"{node.name}_sum"))
        nodes.append(onnx.helper.make_node("Clip", [f"{output}_sum", *bounds[1:]], [output], name=node.name))
        gates.append(Gate(output, 1 / alpha, alpha))
    _replace(model, nodes)
    return gates


def close_gates(model: Any, gates: Collection[Gate]) -> None:
    """Brings opened gates back to 0..1: what dequantizes them gets the scale times ``alpha``, and who reads them in float a product."""
    import onnx

    known, made_by = stored(model), writers(model)
    by_tensor = {gate.output: gate for gate in gates}
    for node in model.graph.node:
        quantizer = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        gate = by_tensor.get(quantizer.input[0]) if quantizer is not None and quantizer.op_type == "QuantizeLinear" else None
        if gate:
            scale = onnx.numpy_helper.to_array(known[node.input[1]]) * np.float32(gate.factor)
            name = f"{node.input[1]}_gate"
            model.graph.initializer.append(onnx.numpy_helper.from_array(scale.astype(np.float32), name))
            node.input[1] = name
    nodes = []
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in by_tensor and node.op_type != "QuantizeLinear":
                node.input[position] = f"{name}_closed"
        nodes.append(node)
        for gate in [by_tensor[name] for name in node.output if name in by_tensor]:
            factor = _constant(model, gate.factor)
            nodes.append(onnx.helper.make_node("Mul", [gate.output, factor], [f"{gate.output}_closed"], name=f"{gate.output}_closed"))
    used = {name for node in nodes for name in node.input}
    _replace(model, [node for node in nodes if not node.name.endswith("_closed") or node.output[0] in used])


def _constant(model: Any, value: float) -> str:
    import onnx

    name = f"edgekit_{value:.9g}"
    if name not in stored(model):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    return name


def _axes(node: Any, known: dict[str, Any]) -> list[int]:
    """Axes of a reduction: an attribute before opset 18, an input from then on."""
    import onnx

    if len(node.input) > 1:
        return [int(axis) for axis in onnx.numpy_helper.to_array(known[node.input[1]]).reshape(-1)] if node.input[1] in known else []
    return list(attribute(node, "axes", []))


def _shapes(model: Any) -> dict[str, list[int]]:
    """Shapes of tensors, 0 for a size that is free."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values if value.type.tensor_type.HasField("shape")}


def _replace(model: Any, nodes: list[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]  # they belong to the graph that is cleared
    del model.graph.node[:]
    model.graph.node.extend(copies)
