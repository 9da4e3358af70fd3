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
        scales: How many scales its integer weights have: 1 for the whole tensor, more by channel or block; 0 where there are none or the
            file does not tell.
    """

    name: str
    operator: str
    weight_dtype: str
    activation_dtype: str
    weight_bytes: int
    scales: int = 0


class Node(Frozen):
    """One operator of the graph, in the order of the file.

    Attributes:
        name: The node's name in the file, or its first output's where nodes have no names.
        operator: The operator's name in the format's own words.
        layer: The layer of the user's model it comes from, for example ``features.3.conv.0``; empty where nothing tells.
        inputs: Names of the computed tensors it reads, the model's inputs among them; stored ones are not listed.
        outputs: Names of the tensors it computes.
        macs: Multiply-accumulates of one inference at the file's own shapes, 1 for each free size; 0 for an operator that
            multiplies nothing.
        moved_bytes: Weights, inputs and outputs of the operator: what must be read or written once.
        dtype: Element type that its arithmetic runs in: ``float32``, ``int8`` and so on.
    """

    name: str
    operator: str
    layer: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    macs: int = 0
    moved_bytes: int = 0
    dtype: str = "float32"


class NoKernel(Frozen):
    """An operator that stands between integers and has no fast integer kernel in the format's runtime.

    Attributes:
        name: The node's name.
        operator: Its kind in the format's own words.
        reason: What the runtime does instead.
    """

    name: str
    operator: str
    reason: str


class Structure(Frozen):
    """How integers and floats lie in a file's main graph, as its runtime on a CPU executes it.

    Attributes:
        int8_share: Share of the multiply-accumulates that run on integers of at most 8 bits, 0..1; ``None`` where nothing is counted.
        no_kernel: Operators between integers that run in float or in reference code: pairs of ``QuantizeLinear`` and
            ``DequantizeLinear`` that ONNX Runtime does not fuse, integer operators that XNNPACK leaves out.
        float_islands: Connected float operators, by name, that read what was dequantized and whose results are quantized again.
        transposes: Transpositions of computed tensors.
    """

    int8_share: float | None = None
    no_kernel: tuple[NoKernel, ...] = ()
    float_islands: tuple[tuple[str, ...], ...] = ()
    transposes: int = 0


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
        nodes: Every operator of the main graph.
        structure: How integers and floats lie in it; ``None`` where the reader does not tell.
        arena_bytes: Smallest arena that holds all computed tensors that live at the same time; ``None`` where sizes are free.
        details: Format-specific facts such as opset or producer.
    """

    format: str
    size_bytes: int
    sha256: str
    signature: Signature
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    layers: tuple[Layer, ...] = ()
    nodes: tuple[Node, ...] = ()
    structure: Structure | None = None
    arena_bytes: int | None = None
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
