"""What the name of a scheme means, and which runtime computes it how.

A name says which numbers are stored and computed: ``static_wi8_ai8`` has weights in int8 and activations in int8 whose ranges were found
before, ``dynamic_wi8`` finds them while it runs, ``weight_only_wi4`` computes in float and stores weights in 4 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from toolkit.config import SCHEMES
from toolkit.errors import ConfigError
from toolkit.mistakes import nearest

Kind = Literal["float", "dynamic", "weight_only", "static"]

NAMES: tuple[str, ...] = SCHEMES
"""Every scheme, the same in all formats."""

BLOCK = 32
"""Weights that share a scale in ``weight_only_wi4``, where the format can store that."""

_NAME = re.compile(r"float(?P<float>16|32)|(?P<kind>dynamic|weight_only|static)_wi(?P<weight>\d+)(?:_ai(?P<activation>\d+))?")


@dataclass(frozen=True)
class Scheme:
    """A decoded name.

    Attributes:
        name: The name.
        kind: Whether it computes in float, in integers whose ranges are found while it runs or before, or stores integers only.
        weight_bits: Bits of a stored weight.
        activation_bits: Bits of an activation as matrix products and convolutions take it; 32 is float32.
        block: Weights that share a scale, where that is not a whole channel; else ``None``.
    """

    name: str
    kind: Kind
    weight_bits: int
    activation_bits: int
    block: int | None = None


def decode(name: str) -> Scheme:
    """Reads a scheme's name.

    Raises:
        ConfigError: It is none.
    """
    found = _NAME.fullmatch(name)
    if not found or name not in NAMES:
        raise ConfigError(f"unknown scheme {name!r}", where="scheme", hint=nearest(name, list(NAMES)))
    if found["float"]:
        return Scheme(name, "float", int(found["float"]), 32)
    kind: Kind = found["kind"]  # type: ignore[assignment]  # the pattern allows no other
    bits = int(found["weight"])
    activation = {"dynamic": 8, "weight_only": 32}.get(kind) or int(found["activation"])
    return Scheme(name, kind, bits, activation, BLOCK if kind == "weight_only" and bits < 8 else None)


@dataclass(frozen=True)
class Support:
    """How a format's runtime computes a scheme.

    Attributes:
        runtime: The runtime that this was measured with.
        native: Whether it computes in the scheme's own numbers; else it computes in float from smaller weights.
        statement: What to know of it, a sentence.
    """

    runtime: str
    native: bool
    statement: str


_SUPPORT: dict[tuple[str, str], Support] = {
    ("onnx", "float16"): Support("onnxruntime", False, "weights become float32 when the model is loaded, and it runs as the float model does"),
    ("onnx", "dynamic_wi8"): Support(
        "onnxruntime",
        True,
        "matrix products only: a dynamically quantized convolution runs as ConvInteger, measured 7 to 10 times slower than float",
    ),
    ("onnx", "weight_only_wi8"): Support(
        "onnxruntime", False, "weights become float32 when the model is loaded, and it runs as the float model does"
    ),
    ("onnx", "weight_only_wi4"): Support(
        "onnxruntime", True, "matrix products run as MatMulNBits; weights of convolutions become float32 when the model is loaded"
    ),
    ("onnx", "static_wi8_ai8"): Support(
        "onnxruntime",
        True,
        "unsigned activations and signed weights (U8S8), its fastest pair; x86 without VNNI saturates unless reduce_range is set",
    ),
    ("onnx", "static_wi8_ai16"): Support(
        "onnxruntime", False, "its CPU kernels take no 16-bit activations: they are rounded, and computed in float, at 2 to 4 times its time"
    ),
    ("tflite", "float16"): Support("litert", False, "XNNPACK unpacks the weights once, and it runs as the float model does"),
    ("tflite", "dynamic_wi8"): Support(
        "litert",
        True,
        "about three times faster than float for transformers; convolutional networks were measured 2 to 3 times slower",
    ),
    ("tflite", "weight_only_wi8"): Support("litert", False, "XNNPACK unpacks the weights once, and it runs as the float model does"),
    ("tflite", "weight_only_wi4"): Support(
        "litert",
        False,
        "one scale for each channel, unpacked at every inference: 3 times slower than float; depthwise and transposed convolutions stay float",
    ),
    ("tflite", "static_wi8_ai8"): Support(
        "litert", True, "XNNPACK's fastest; HARD_SWISH and others without an int8 kernel of it stay in float, where they do not break it up"
    ),
    ("tflite", "static_wi8_ai16"): Support(
        "litert", True, "XNNPACK has no 16-bit kernels: reference code, measured 17 to 36 times slower than float; meant for accelerators"
    ),
    ("tflite", "static_wi4_ai8"): Support("litert", True, "dense layers and convolutions; depthwise and transposed convolutions keep 8 bits"),
    ("pte", "static_wi8_ai8"): Support("executorch", True, "XNNPACK's int8 kernels, measured at 0.5 to 0.8 of the float model's time"),
    ("pte", "dynamic_wi8"): Support("executorch", True, "dense layers, with a range for each row of activations"),
    ("openvino", "static_wi8_ai8"): Support("openvino", True, "oneDNN's int8 kernels, measured at 0.5 to 0.8 of the float model's time"),
    ("openvino", "weight_only_wi8"): Support("openvino", True, "weights are unpacked inside the matrix products"),
}


def support(format: str, scheme: str) -> Support | None:
    """How a format's runtime computes a scheme; ``None`` where nothing here makes it."""
    return _SUPPORT.get((format, scheme))
