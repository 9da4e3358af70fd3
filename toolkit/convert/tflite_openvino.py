"""TFLite to OpenVINO IR through OpenVINO's TFLite frontend: the way for models of Keras, TensorFlow and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import openvino_ir
from toolkit.errors import InputRejected
from toolkit.factory import first_line
from toolkit.plugins import Route

_SERVING = "serving_default"


def _names(path: Path) -> tuple[list[str], list[str], set[str]]:
    """Returns the signature's names of inputs and outputs in the order of the main graph's, and the names of all tensors."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path))
        keys = list(interpreter.get_signature_list())
        runner = interpreter.get_signature_runner(_SERVING if _SERVING in keys else keys[0]) if keys else None
        inputs = _in_order(interpreter.get_input_details(), runner.get_input_details() if runner else {})
        outputs = _in_order(interpreter.get_output_details(), runner.get_output_details() if runner else {})
        return inputs, outputs, {str(details["name"]) for details in interpreter.get_tensor_details()}
    except (ValueError, RuntimeError) as error:
        raise InputRejected(f"is not a model that LiteRT can load: {first_line(error)}", where=path.name, hint="make the file again") from error


def _in_order(tensors: list[dict[str, Any]], named: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names tensors as the signature does, each by another name where one tensor has several; by their own where it has none."""
    names: dict[int, list[str]] = {}
    for name, details in named.items():
        names.setdefault(int(details["index"]), []).append(name)
    return [names[one["index"]].pop(0) if names.get(one["index"]) else str(one["name"]) for one in tensors]


ROUTE: Route = openvino_ir.FileRoute("tflite", _names, ("ai_edge_litert",), ("ai-edge-litert",), "edgekit[litert,openvino]")
