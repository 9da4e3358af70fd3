"""ONNX's own definitions of operators in terms of others, as nodes that can take an operator's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def body(schema: Any, proto: Any, types: Sequence[Any], version: int) -> Any:
    """Returns an operator's definition, which for some depends on the types of the inputs; ``None`` where it has none.

    Args:
        schema: The operator's schema.
        proto: The node.
        types: Types of its inputs; ``None`` for one that is left out.
        version: The operator set of the model.
    """
    import onnx

    if schema.has_context_dependent_function:
        versions = [one for one in schema.context_dependent_function_opset_versions if one <= version]
        given = [b"" if type is None else type.SerializeToString() for type in types]
        found = schema.get_context_dependent_function_with_opset_version(max(versions), proto.SerializeToString(), given) if versions else None
    else:
        versions = [one for one in schema.function_opset_versions if one <= version] if schema.has_function else []
        found = schema.get_function_with_opset_version(max(versions)) if versions else None
    return onnx.FunctionProto.FromString(found) if found else None


def spelled_out(function: Any, schema: Any, proto: Any, prefix: str) -> list[Any]:
    """Returns the nodes of a definition, with the names and attributes of the node whose place they take.

    Args:
        function: The definition.
        schema: The operator's schema, whose defaults hold for attributes that the node does not have.
        proto: The node.
        prefix: What values inside are called by, so that they are nobody else's.
    """
    names = dict(zip(function.input, proto.input, strict=False)) | dict(zip(function.output, proto.output, strict=False))
    names |= dict.fromkeys([*function.input[len(proto.input) :], *function.output[len(proto.output) :]], "")
    defaults = [one.default_value for one in schema.attributes.values() if one.default_value.name]
    attributes = {one.name: one for one in (*defaults, *function.attribute_proto, *proto.attribute)}
    return [_renamed(inner, names, prefix, proto.name or proto.output[0], attributes) for inner in function.node]


def _renamed(inner: Any, names: dict[str, str], prefix: str, layer: str, attributes: Mapping[str, Any]) -> Any:
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(inner)
    del made.input[:], made.output[:], made.attribute[:]
    made.input.extend(names.get(name, f"{prefix}{name}") if name else "" for name in inner.input)
    made.output.extend(names.setdefault(name, f"{prefix}{name}") if name else "" for name in inner.output)
    made.name = f"{layer}/{inner.op_type}"
    for one in inner.attribute:
        copied = onnx.AttributeProto()
        copied.CopyFrom(attributes.get(one.ref_attr_name, one) if one.ref_attr_name else one)
        copied.name = one.name
        if one.HasField("g"):
            _rename_inside(copied.g, names, prefix, layer, attributes)
        if not copied.ref_attr_name:  # one that nobody gave is left out
            made.attribute.append(copied)
    return made


def _rename_inside(graph: Any, names: Mapping[str, str], prefix: str, layer: str, attributes: Mapping[str, Any]) -> None:
    """Renames what a graph inside a node takes, makes and sees of the values around it."""
    own = dict(names)
    for one in (*graph.input, *graph.initializer):
        own[one.name] = f"{prefix}{one.name}"
        one.name = own[one.name]
    nodes = [_renamed(node, own, prefix, layer, attributes) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for one in graph.output:
        one.name = own.get(one.name, f"{prefix}{one.name}")
