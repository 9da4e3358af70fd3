"""Frozen facts about what a model file contains, the same for every format. No I/O happens here."""

from __future__ import annotations

from collections import Counter

from pydantic import Field

from toolkit import display
from toolkit.artifact import Frozen, Signature


class Layer(Frozen):
    """One operator that multiplies with weights: convolution, fully connected, matrix product.

    Attributes:
        name: The node's name in the file.
        operator: The operator's name in the format's own words, for example ``Conv`` or ``FULLY_CONNECTED``.
        weight_dtype: Stored element type of the weights, for example ``int8``; ``-`` when both operands are computed.
        activation_dtype: Element type its input carries when it runs: ``int8``/``uint8`` when
            quantized, ``dynamic int8`` when quantized on the fly, else ``float32``.
        weight_bytes: Stored size of the weights.
    """

    name: str
    operator: str
    weight_dtype: str
    activation_dtype: str
    weight_bytes: int


class Contents(Frozen):
    """What is in a model file.

    Attributes:
        format: ``onnx``, ``tflite`` and so on.
        size_bytes: Size of the file.
        sha256: Digest of the file.
        signature: Inputs and outputs.
        operators: How often each operator occurs.
        weight_bytes: Stored bytes of weights by element type.
        layers: Every operator that multiplies with weights.
        details: Format-specific facts such as opset or producer.
    """

    format: str
    size_bytes: int
    sha256: str
    signature: Signature
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    layers: tuple[Layer, ...] = ()
    details: dict[str, str] = Field(default_factory=dict)

    def _repr_html_(self) -> str:
        facts = {
            "size_bytes": f"{self.size_bytes:,}",
            "inputs": ", ".join(map(str, self.signature.inputs)),
            "outputs": ", ".join(map(str, self.signature.outputs)),
            "operators": ", ".join(f"{name} {count}" for name, count in Counter(self.operators).most_common()),
            "weights": ", ".join(f"{dtype} {size:,} B" for dtype, size in self.weight_bytes.items()),
            **self.details,
        }
        return display.facts_html(f"{self.format} model", facts)
