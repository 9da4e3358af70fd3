"""What users want to know of the operators that can be lowered: their element types, versions and limits; docs/onnx-to-tflite.md lists it."""

from __future__ import annotations

from dataclasses import dataclass

FLOATS = frozenset({"float16", "float32", "float64"})
"""Element types that are carried as float32."""
NUMBERS = FLOATS | {"int8", "int16", "int32", "int64", "uint8", "uint16"}
"""Those that are carried as float32 or int32."""
COMMON = NUMBERS | {"bool"}
WIDE = COMMON | {"uint32"}
EVERY = WIDE | {"uint64"}
"""All that a TFLite file can carry."""


@dataclass(frozen=True)
class Facts:
    """What is to be known of one operator.

    Attributes:
        dtypes: Element types that it can be lowered for, as far as ONNX allows them.
        typed: Which input has them.
        since: The oldest version of the operator that can be lowered.
        limits: What else must hold, in plain words.
    """

    dtypes: frozenset[str] = EVERY
    typed: int = 0
    since: int = 1
    limits: str = ""


SPELLED_OUT: dict[str, Facts] = {}
"""The same of operators that are spelled out as others; see :data:`toolkit.convert.tfl.program.EXPANSIONS`."""
