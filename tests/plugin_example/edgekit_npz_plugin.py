"""A whole Edgekit plugin in one file: ONNX graphs of linear layers and ReLU, stored and executed with NumPy alone.

An ``.nplin`` file is what ``numpy.savez`` writes: ``program``, a JSON text with the signature and the nodes in order, and
the constants ``0``, ``1`` and so on.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageFailed
from toolkit.plugins import Arrays, Route, Runtime

DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


def _gemm(a: Any, b: Any, c: Any = 0, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> Any:
    """General matrix product as the ONNX operator defines it; attributes keep ONNX's names."""
    return alpha * ((a.T if transA else a) @ (b.T if transB else b)) + beta * c


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "Gemm": _gemm,
    "MatMul": np.matmul,
    "Relu": lambda x: np.maximum(x, 0),
}


class OnnxToNumpy:
    """Writes an ``.nplin`` file from an ONNX graph of Add, Gemm, MatMul and Relu."""

    name = "onnx_nplin"
    version = 1
    source = "onnx"
    format = "nplin"
    modules: tuple[str, ...] = ("onnx",)
    distributions: tuple[str, ...] = ("edgekit-npz-plugin", "onnx", "numpy")
    extra = "edgekit-npz-plugin"

    def convert(self, program: Path, out: Path, signature: Signature) -> None:
        """Reads an ``.onnx`` file; see :meth:`toolkit.plugins.Route.convert`.

        Raises:
            InputRejected: The file is not ONNX.
            StageFailed: The graph has another operator.
        """
        import onnx
        from google.protobuf.message import DecodeError

        try:
            graph = onnx.load_model(str(program)).graph
        except (DecodeError, OSError) as error:
            raise InputRejected(f"is not ONNX: {error}", where=str(program), hint="export the model again") from error
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        nodes = [_node(node, onnx.helper.get_attribute_value) for node in graph.node]
        _write(out, signature, constants, nodes)

    def contract_example(self, folder: Path) -> tuple[Path, Signature, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Gives the contract tests a program, its signature, inputs ``[n x 4]`` and the outputs ``[n x 3]`` to expect."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        rng = np.random.default_rng(5)
        first, second, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 4), (6, 3), (3,)))
        graph = helper.make_graph(
            [
                helper.make_node("Gemm", ["x", "first"], ["hidden"], transB=1, alpha=0.5),
                helper.make_node("Relu", ["hidden"], ["bent"]),
                helper.make_node("MatMul", ["bent", "second"], ["sums"]),
                helper.make_node("Add", ["sums", "bias"], ["logits"]),
            ],
            "example",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
            [numpy_helper.from_array(array, name) for name, array in (("first", first), ("second", second), ("bias", bias))],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(folder / "example.onnx"))
        x = rng.normal(size=(5, 4)).astype(np.float32)
        logits = np.maximum(0.5 * x @ first.T, 0) @ second + bias
        return folder / "example.onnx", _signature(("x", 4), ("logits", 3)), {"x": x}, {"logits": logits}


class NumpyRuntime:
    """Runs ``.nplin`` files. NumPy's own threads are not steered: ``threads`` is taken as advice."""

    name = "nplin"
    version = 1
    formats: tuple[str, ...] = ("nplin",)
    modules: tuple[str, ...] = ("numpy",)
    distributions: tuple[str, ...] = ("edgekit-npz-plugin", "numpy")
    extra = "edgekit-npz-plugin"

    def open(self, model: Path, *, threads: int) -> NumpySession:
        """Loads a model; see :meth:`toolkit.plugins.Runtime.open`.

        Raises:
            InputRejected: The file is missing, damaged or not an ``.nplin`` file.
        """
        try:
            with model.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                program = json.loads(str(archive["program"]))
                constants = {name: archive[str(index)] for index, name in enumerate(program["constants"])}
                return NumpySession(Signature.model_validate(program["signature"]), constants, program["nodes"])
        except DAMAGED as error:
            raise InputRejected(f"is not a usable .nplin file: {error}", where=str(model), hint="export the model again") from error

    def contract_example(self, folder: Path) -> Path:
        """Gives the contract tests a small model that takes any float inputs."""
        weights = np.random.default_rng(6).normal(size=(4, 3)).astype(np.float32)
        bend = {"operator": "Relu", "inputs": ["x"], "output": "bent", "attributes": {}}
        multiply = {"operator": "MatMul", "inputs": ["bent", "weights"], "output": "logits", "attributes": {}}
        _write(folder / "example.nplin", _signature(("x", 4), ("logits", 3)), {"weights": weights}, [bend, multiply])
        return folder / "example.nplin"


class NumpySession:
    """A loaded model.

    Attributes:
        signature: Inputs and outputs.
    """

    def __init__(self, signature: Signature, constants: Mapping[str, np.ndarray], nodes: list[dict[str, Any]]) -> None:
        self.signature = signature
        self._constants = constants
        self._nodes = [(OPERATORS[node["operator"]], node["inputs"], node["output"], node["attributes"]) for node in nodes]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch.

        Raises:
            InputRejected: The arrays do not fit the signature.
        """
        found = {name: (array.dtype.name, array.shape) for name, array in inputs.items()}
        wanted = {spec.name: (spec.dtype, spec.shape) for spec in self.signature.inputs}
        if found != wanted:
            raise InputRejected(f"found inputs {found}, expected {wanted}", where="nplin inputs", hint="prepare them as the signature says")
        values = {**self._constants, **inputs}
        for operator, arguments, output, attributes in self._nodes:
            values[output] = operator(*(values[name] for name in arguments), **attributes)
        return {spec.name: values[spec.name] for spec in self.signature.outputs}


ROUTE: Route = OnnxToNumpy()
RUNTIME: Runtime = NumpyRuntime()


def _node(node: Any, value_of: Callable[[Any], Any]) -> dict[str, Any]:
    if node.op_type not in OPERATORS or node.domain:
        message = f"cannot convert operator {node.op_type}; known: {', '.join(OPERATORS)}"
        raise StageFailed(message, where=f"node {node.name or node.output[0]!r}", hint="choose a format that has this operator")
    attributes = {attribute.name: value_of(attribute) for attribute in node.attribute}
    return {"operator": node.op_type, "inputs": list(node.input), "output": node.output[0], "attributes": attributes}


def _write(out: Path, signature: Signature, constants: Mapping[str, np.ndarray], nodes: list[dict[str, Any]]) -> None:
    """Equal models give equal bytes: ``numpy.savez`` stores no time of day."""
    program = {"signature": signature.model_dump(mode="json"), "constants": list(constants), "nodes": nodes}
    arrays: dict[str, Any] = {str(index): array for index, array in enumerate(constants.values())}
    with out.open("wb") as file:
        np.savez(file, program=np.array(json.dumps(program)), **arrays)


def _signature(given: tuple[str, int], wanted: tuple[str, int]) -> Signature:
    specs = [(TensorSpec(name=name, dtype="float32", shape=(1, size)),) for name, size in (given, wanted)]
    return Signature(inputs=specs[0], outputs=specs[1])
