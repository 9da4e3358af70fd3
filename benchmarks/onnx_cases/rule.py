"""Which cases a TFLite file can express at all.

The rule looks at a case's operators, at the element types of its inputs and outputs, and at whether those are tensors; never at what a
compiler makes of it. A case is expressible unless one of these holds:

- An input or an output is a sequence or an optional value, or an operator makes sequences inside. TFLite's graphs hold tensors only
  (``TensorType`` and ``SubGraph`` in LiteRT's schema.fbs; RESOURCE and VARIANT have kernels for hash tables and variables alone).
- An input or an output has an element type with no way in or out of the types that kernels compute in. That way is the kernel of CAST, or
  of BITCAST for 64-bit unsigned integers, which arithmetic of signed ones then serves. CAST takes float16, bfloat16, float64, bool, int4,
  uint4 and the integers of 8 to 32 bits and signed ones of 64 both ways; it gives int2, but no input of a graph can be that. It knows
  neither float8 nor float4 nor uint2 (tflite/kernels/cast.cc; each pair was tried with a file of one operator).
- It is about text. Strings can be tensors, but no kernel casts, joins, splits or matches them; EQUAL compares them, so that is expressible.
- It decodes compressed images: there is no such kernel.
- It draws random numbers. There are kernels for that, but no right answer to compare with.

What can be put together of builtin kernels (tflite/kernels/register.cc) counts as expressible, however long that is: integers that wrap
around, bits, determinants, Fourier transforms, graphs inside of operators. So do results whose size depends on the data, as WHERE has one,
and results without elements.

The cases of operators' definitions (``_expanded``) count like all others: they are graphs of many operators, which an exporter may as well
write. Operators of other domains (``ai.onnx.ml``, training) and cases older than operator set 13 are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.onnx_cases.cases import Case

_BOTH_WAYS = {
    "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "BOOL", "INT4", "INT8", "INT16", "INT32", "INT64", "UINT4", "UINT8", "UINT16", "UINT32", "UINT64",
}  # fmt: skip
_OUT_ONLY = {"INT2"}
_TEXT_KERNELS = {"Equal"}
_KINDS = {
    **dict.fromkeys(("StringConcat", "StringSplit", "StringNormalizer", "RegexFullMatch", "TfIdfVectorizer"), "works on text"),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"), "draws random numbers"),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceInsert", "SequenceErase", "SequenceLength", "SequenceMap", "SplitToSequence",
         "ConcatFromSequence", "Optional"), "has values that are no tensors"),
    "ImageDecoder": "decodes compressed images",
}  # fmt: skip
_NO_TENSOR = "has values that are no tensors"


def inexpressible(case: Case) -> str:
    """Returns why no TFLite file can express a case; an empty text where one can."""
    nodes = list(_nodes(case.model.graph))
    constants = {one.name for one in case.model.graph.initializer}
    for node in nodes:
        if node.op_type in _KINDS:
            return _KINDS[node.op_type]
        if node.op_type == "Dropout" and _draws(node, case.model.graph):
            return "draws random numbers"
    kinds = {node.op_type for node in nodes}
    given = [_of_type(one.type, kinds, given=True) for one in case.model.graph.input if one.name not in constants]
    return next(filter(None, [*given, *(_of_type(one.type, kinds) for one in case.model.graph.output)]), "")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _of_type(type: Any, kinds: set[str], *, given: bool = False) -> str:
    from onnx import TensorProto

    if not type.HasField("tensor_type"):
        return _NO_TENSOR
    name = TensorProto.DataType.Name(type.tensor_type.elem_type)
    if name == "STRING":
        return "" if kinds <= _TEXT_KERNELS else "works on text"
    if name in _BOTH_WAYS or (name in _OUT_ONLY and not given):
        return ""
    return f"has an element type that nothing casts {'from' if given else 'to'}: {name.lower()}"


def _draws(node: Any, graph: Any) -> bool:
    """Whether a Dropout drops anything: it does in training, unless its share is zero."""
    from onnx import numpy_helper

    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    tensors = [one for one in graph.node if one.op_type == "Constant" and one.attribute[0].name == "value"]
    known |= {one.output[0]: numpy_helper.to_array(one.attribute[0].t) for one in tensors}
    share, training = ([*node.input, "", ""][place] for place in (1, 2))
    trains = bool(np.any(known[training])) if training in known else bool(training)
    return trains and (share not in known or bool(np.any(known[share])))
