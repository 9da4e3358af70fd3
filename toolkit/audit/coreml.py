"""Reads what a Core ML package contains, as its specification says: signature, operators, weights. Nothing is compiled or run.

The format is Core ML's own (``Model.proto`` and ``MIL.proto``); the layout of ``weight.bin`` is not needed, as the program says
element type and shape of every weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from toolkit import coreml_models, modelfile
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit.element_types import element_bits
from toolkit.contents import Contents, Layer
from toolkit.errors import InputRejected

_COMPUTED = "-"
# Numbers of ArrayFeatureType.ArrayDataType: bits, and the kind above them.
_FEATURE_TYPES = {0x10020: "float32", 0x10010: "float16", 0x10040: "float64", 0x20020: "int32", 0x20008: "int8"}
# Operator -> argument that holds its weights, and its data.
_LAYERS = {
    **dict.fromkeys(("conv", "conv_transpose", "linear"), ("weight", "x")),
    **dict.fromkeys(("lstm", "gru", "rnn"), ("weight_ih", "x")),
    "matmul": ("y", "x"),
}
_CONSTANT = "const"
# What stands for a stored tensor in another form: it is read as the weight that it becomes.
_STORED = ("const", "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense", "constexpr_sparse_to_dense")


class CoreMLReader:
    """The reader behind ``edgekit inspect model.mlpackage``: the package is checked as a specification, not executed."""

    name = "coreml"
    version = 1
    modules: tuple[str, ...] = ("coremltools",)
    distributions: tuple[str, ...] = ("coremltools",)
    extra = "edgekit[torch,coreml]"
    format = "mlpackage"

    def read(self, model: Path) -> Contents:
        """Returns the contents of an ``.mlpackage`` folder that holds an ML program.

        Raises:
            InputRejected: The package is damaged, or holds another kind of model.
        """
        spec = coreml_models.read_spec(model)
        kind = spec.WhichOneof("Type")
        if kind != "mlProgram" or not spec.mlProgram.functions:
            raise InputRejected(f"holds a {kind}, expected an ML program", where=str(model), hint="convert with convert_to='mlprogram'")
        try:
            return _contents(model, spec)
        except (KeyError, ValueError, StopIteration) as error:
            hint = "export the model again"
            raise InputRejected(f"is not a usable mlpackage, its structure is damaged: {error}", where=str(model), hint=hint) from error


READER = CoreMLReader()


def _contents(path: Path, spec: Any) -> Contents:
    types = {number: name.lower() for name, number in coreml_models.messages().MIL__pb2.DataType.items()}
    program = _Program(spec.mlProgram, types)
    return Contents(
        format="mlpackage",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=Signature(inputs=tuple(map(_feature, spec.description.input)), outputs=tuple(map(_feature, spec.description.output))),
        operators=dict(Counter(operator.type for operator in program.operators if operator.type != _CONSTANT)),
        weight_bytes=program.weight_bytes(_stored_bytes(path)),
        layers=tuple(program.layer(operator) for operator in program.operators if operator.type in _LAYERS),
        details={
            "specification": str(spec.specificationVersion),
            "made_with": f"coremltools {spec.description.metadata.userDefined.get('com.github.apple.coremltools.version', '-')}",
            "not_done": "not executed here: Core ML runs on Apple's systems only",
        },
    )


def _stored_bytes(path: Path) -> int:
    weights = path / coreml_models.WEIGHTS
    return weights.stat().st_size if weights.is_file() else 0


class _Program:
    """The operators of all functions, and the stored tensors that they name."""

    def __init__(self, program: Any, types: dict[int, str]) -> None:
        self._types = types
        self.operators = [operator for function in program.functions.values() for operator in _operators(function)]
        self._stored = {output.name: operator for operator in self.operators if operator.type in _STORED for output in operator.outputs}

    def weight_bytes(self, limit: int) -> dict[str, int]:
        """Bytes of what is stored in the file of weights, by element type.

        Raises:
            ValueError: The program names more than the file of weights holds.
        """
        found: Counter[str] = Counter()
        for operator in self.operators:
            for value in self._files(operator):
                dtype, sizes = self._type(value.type)
                found[dtype] += (prod(sizes) * element_bits(dtype) + 7) // 8
        if sum(found.values()) > limit:
            raise ValueError(f"its weights take {sum(found.values()):,} bytes, the file of weights has {limit:,}")
        return dict(found)

    def layer(self, operator: Any) -> Layer:
        weight, data = _LAYERS[operator.type]
        stored = self._stored.get(_argument(operator, weight)) or self._stored.get(_argument(operator, data))
        values = [self._type(value.type) for value in self._files(stored)] if stored is not None else []
        dtype, sizes = max(values, key=lambda one: prod(one[1]), default=(_COMPUTED, []))
        return Layer(
            name=operator.outputs[0].name,
            operator=operator.type,
            weight_dtype=dtype,
            activation_dtype="float32",
            weight_bytes=(prod(sizes) * element_bits(dtype) + 7) // 8 if values else 0,
        )

    def _files(self, operator: Any) -> Iterator[Any]:
        given = [one.value for argument in operator.inputs.values() for one in argument.arguments if one.HasField("value")]
        yield from (value for value in (*operator.attributes.values(), *given) if value.WhichOneof("value") == "blobFileValue")

    def _type(self, value: Any) -> tuple[str, list[int]]:
        tensor = value.tensorType
        return self._types[tensor.dataType], [dimension.constant.size for dimension in tensor.dimensions]


def _operators(function: Any) -> Iterator[Any]:
    """Every operator of a function, those inside of branches and loops included."""
    pending = [function.block_specializations[function.opset]]
    while pending:
        for operator in pending.pop().operations:
            yield operator
            pending.extend(operator.blocks)


def _argument(operator: Any, name: str) -> str:
    """Name of the value bound to an argument; empty where it is left out or written in place."""
    arguments = operator.inputs[name].arguments if name in operator.inputs else []
    return next((str(one.name) for one in arguments), "")


def _feature(feature: Any) -> TensorSpec:
    array = feature.type.multiArrayType
    if feature.type.WhichOneof("Type") != "multiArrayType":
        return TensorSpec(name=feature.name, dtype=str(feature.type.WhichOneof("Type") or "unknown"), shape=())
    return TensorSpec(name=feature.name, dtype=_FEATURE_TYPES.get(array.dataType, "unknown"), shape=tuple(int(size) for size in array.shape))
