"""Small words of the ONNX format that its readers share: element types, domains, attributes."""

from __future__ import annotations

from typing import Any

STANDARD_DOMAINS = {"", "ai.onnx"}


def dtype_name(code: int) -> str:
    """NumPy's name for an ONNX element type; types NumPy lacks keep ONNX's name in lower case."""
    import onnx

    name = onnx.TensorProto.DataType.Name(code)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def domain_of(name: str) -> str:
    """The standard domain has two names."""
    return "" if name in STANDARD_DOMAINS else name


def label(node: Any) -> str:
    """An operator's name, with its domain where that is not the standard one."""
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def int_attribute(node: Any, name: str, default: int) -> int:
    """Returns a whole-number attribute."""
    return next((entry.i for entry in node.attribute if entry.name == name), default)
