"""StableHLO modules of captured JAX programs: reading them for LiteRT's converter, and what that converter cannot take.

Specification of the operators: https://openxla.org/stablehlo/spec
"""

from __future__ import annotations

import re
from typing import Any

from toolkit import jax_programs
from toolkit.errors import StageFailed
from toolkit.factory import first_line
from toolkit.plugins import Obstacle

# VHLO is the serialized form; inlining gives every operator the whole path of the layers it was called from.
_PASSES = "builtin.module(vhlo-legalize-stablehlo,reconcile-unrealized-casts,inline)"
# How operators shall be sharded over devices, in a dialect that the converter cannot parse; there is one device here.
_SHARDING = re.compile(r",? ?sdy\.sharding(_rule|_per_value)? = #sdy\.\w+<.*?>(?=[,}])")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"(?!:\d)')  # a name followed by a number is a file with its line
_NO_LAYER = re.compile(r".*[(:].*|while|body|cond|branch_\d+_fun|closed_call|checkpoint|custom_[jv][vj]p_call")

_ORDER = "keep the order of values out of the model: jax.lax.top_k has a kernel"
_SOLVE = "solve it outside of the model, or write it with products and sums"
_INTEGER = "write it with products, quotients and comparisons"
_KERNEL_LESS = {
    "stablehlo.sort": _ORDER,
    "stablehlo.rng": "make random numbers outside of the model and pass them in",
    "stablehlo.rng_bit_generator": "make random numbers outside of the model and pass them in",
    "stablehlo.custom_call": _SOLVE,
    "stablehlo.cholesky": _SOLVE,
    "stablehlo.triangular_solve": _SOLVE,
    "stablehlo.fft": "compute the transform outside of the model, or as a product with its matrix",
    "stablehlo.popcnt": _INTEGER,
    "stablehlo.count_leading_zeros": _INTEGER,
    "stablehlo.shift_left": _INTEGER,
    "stablehlo.complex": "compute real and imaginary part apart",
}
_KERNEL_LESS_OF = {  # an operator that only lacks kernels for some element types
    "stablehlo.dot_general": (("bf16",), "compute in float32: give the layers dtype=float32"),
    "stablehlo.convolution": (("bf16",), "compute in float32: give the layers dtype=float32"),
    "stablehlo.xor": (("i1", "i8", "ui8", "i16", "i32", "ui32", "i64", "ui64"), "compare with != instead of ^"),
    "stablehlo.shift_right_logical": (("i64", "ui64", "i8", "ui8"), _INTEGER),
    "stablehlo.divide": (("ui8", "ui16", "ui32", "ui64"), "compute with signed integers"),
}


def context() -> Any:
    """Returns an MLIR context that knows what JAX writes and what LiteRT's converter makes of it."""
    from litert_converter import converter_api_ext
    from litert_converter.mlir import ir

    made = ir.Context()
    converter_api_ext.prepare_mlir_context(made)
    return made


def parse(program: jax_programs.Program) -> Any:
    """Returns the program as a StableHLO module with all functions inlined, inside the current MLIR context.

    Raises:
        StageFailed: The converter knows an older StableHLO than the program is written in.
    """
    from litert_converter.mlir import ir, passmanager

    exported = program.exported
    try:
        try:
            module = ir.Module.parse(bytes(exported.mlir_module_serialized))
        except ir.MLIRError as error:
            if "sdy" not in str(error):
                raise
            module = ir.Module.parse(_SHARDING.sub("", exported.mlir_module()))
        passmanager.PassManager.parse(_PASSES).run(module.operation)
    except (ir.MLIRError, RuntimeError, ValueError) as error:
        hint = "update litert-converter, or capture the model with an older JAX"
        raise StageFailed(f"LiteRT's converter cannot read the program: {first_line(error)}", where="stablehlo", hint=hint) from error
    return module


def drop_unused(module: Any) -> None:
    """Removes what nothing reads, as rewrites leave it behind."""
    for operation in reversed(operations(module)):
        plain = str(operation.name).startswith("stablehlo.") and not operation.regions and operation.results
        if plain and all(not list(result.uses) for result in operation.results):
            operation.erase()


def operations(module: Any, name: str = "") -> list[Any]:
    """Returns all operations, or those of one name, those inside others included."""
    from litert_converter.mlir import ir

    found = []

    def look(operation: Any) -> Any:
        if not name or operation.name == name:
            found.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(look)
    return found


def layer(operation: Any) -> str:
    """Returns the path of the layer that an operation belongs to, as JAX wrote it into its location: ``Net/stem``."""
    names = _PATH.findall(str(operation.location))
    # A call site is written "inner" at "outer"; the last part of a path is the operator's own name.
    parts = [part for name in reversed(names) for part in name.split("/")[:-1]]
    return "/".join(part for part in parts if part and not _NO_LAYER.fullmatch(part))


def obstacles(module: Any) -> list[Obstacle]:
    """Returns what TFLite has no kernel for, one for each operator and layer."""
    found: dict[tuple[str, str], Obstacle] = {}
    for operation in operations(module):
        hint = _hint(operation)
        if hint:
            name = spoken(operation)
            one = Obstacle(name, layer(operation), "has no TFLite kernel", hint)
            found.setdefault((one.operator, one.layer), one)
    return list(found.values())


def _hint(operation: Any) -> str:
    name = str(operation.name)
    if name in _KERNEL_LESS:
        return _KERNEL_LESS[name]
    if any(_element(value).startswith("complex") for value in operation.results):
        return _KERNEL_LESS["stablehlo.complex"]
    if name == "stablehlo.convolution" and _transposed(operation):
        spread = max([1, *numbers(operation, "rhs_dilation"), *numbers(operation, "window_strides")])
        if len(_kernel_sizes(operation)) > 2 or spread > 1:
            return "upsample first (jax.image.resize), then convolve"
    types, hint = _KERNEL_LESS_OF.get(name, ((), ""))
    lacking = any(_element(value) in types for value in operation.operands)
    return hint if lacking else ""


def spoken(operation: Any) -> str:
    """Names an operator as the user's program does: a call of LAPACK by its routine, others without their dialect."""
    name = str(operation.name).removeprefix("stablehlo.")
    target = operation.attributes["call_target_name"].value if name == "custom_call" else ""
    if name == "convolution" and _transposed(operation):
        return "transposed convolution with strides, with dilation or in three dimensions"
    kinds = _KERNEL_LESS_OF.get(str(operation.name))
    return target or (f"{name} of {_element(operation.operands[0])}" if kinds else name)


def _element(value: Any) -> str:
    from litert_converter.mlir import ir

    return str(ir.ShapedType(value.type).element_type) if isinstance(value.type, ir.ShapedType) or "tensor" in str(value.type) else ""


def mend_transposed_convolutions(module: Any) -> int:
    """Gives transposed convolutions whose padding the converter would take for another one a padding that it knows.

    It reads every such padding as SAME or VALID. Where kernel minus stride is odd, SAME became a larger picture without a word;
    paddings that are neither were guessed. VALID followed by a crop computes the same. Returns how many were changed.
    """
    changed = 0
    for operation in operations(module, "stablehlo.convolution"):
        if _transposed(operation) and not _padding_is_known(operation):
            _crop_valid(operation)
            changed += 1
    return changed


def _transposed(operation: Any) -> bool:
    return max(numbers(operation, "lhs_dilation"), default=1) > 1


def numbers(operation: Any, name: str) -> list[int]:
    """Returns an attribute that is a list of integers; an empty one where it is left out."""
    from litert_converter.mlir import ir

    return list(ir.DenseI64ArrayAttr(operation.attributes[name])) if name in operation.attributes else []


def padding(operation: Any) -> list[list[int]]:
    """Returns what a convolution or a window is padded with, before and after, by axis; nothing where it is left out."""
    import numpy as np
    from litert_converter.mlir import ir

    if "padding" not in operation.attributes:
        return [[0, 0]] * len(numbers(operation, "lhs_dilation"))
    return np.array(ir.DenseIntElementsAttr(operation.attributes["padding"])).tolist()


def _kernel_sizes(operation: Any) -> list[int]:
    """Sizes of the kernel's window, spread as its dilation says."""
    from litert_converter.mlir import ir

    text = str(operation.attributes["dimension_numbers"])
    order = re.findall(r"\[([^\]]*)\]", text)[1].replace(" ", "").split(",")
    shape = ir.ShapedType(operation.operands[1].type).shape
    spatial = [shape[order.index(str(axis))] for axis in range(len(order) - 2)]
    dilations = numbers(operation, "rhs_dilation") or [1] * len(spatial)
    return [(size - 1) * dilation + 1 for size, dilation in zip(spatial, dilations, strict=True)]


def _valid(operation: Any) -> list[list[int]]:
    """The padding of a transposed convolution of the kind VALID, by axis."""
    pairs = zip(_kernel_sizes(operation), numbers(operation, "lhs_dilation"), strict=True)
    return [[size - 1, max(size, stride) - 1] for size, stride in pairs]


def _same(size: int, stride: int) -> list[int]:
    """The padding of SAME, as ``jax.lax.conv_transpose`` computes it."""
    total = size + stride - 2
    before = size - 1 if stride > size - 1 else -(-total // 2)
    return [before, total - before]


def _padding_is_known(operation: Any) -> bool:
    given, sizes, strides = padding(operation), _kernel_sizes(operation), numbers(operation, "lhs_dilation")
    pairs = list(zip(sizes, strides, strict=True))
    even = all(size >= stride and (size - stride) % 2 == 0 for size, stride in pairs)
    return given == _valid(operation) or (even and given == [_same(*pair) for pair in pairs])


def _crop_valid(operation: Any) -> None:
    """Replaces a convolution by the one of padding VALID and a slice of its result; a wider padding adds zeros around it."""
    import numpy as np
    from litert_converter.mlir import ir

    valid, wanted = _valid(operation), padding(operation)
    cuts = [[have - want for have, want in zip(*pair, strict=True)] for pair in zip(valid, wanted, strict=True)]
    text = str(operation.attributes["dimension_numbers"])
    order = re.findall(r"\[([^\]]*)\]", text)[2].replace(" ", "").split(",")
    result = ir.ShapedType(operation.results[0].type)
    shape, starts = list(result.shape), [0] * result.rank
    edges = [[0, 0] for _ in shape]
    for axis, cut in enumerate(cuts):
        place = order.index(str(axis))
        edges[place] = cut
        shape[place] += sum(cut)
    with ir.InsertionPoint(operation), operation.location:
        whole = operation.clone()
        whole.attributes["padding"] = ir.DenseElementsAttr.get(np.array(valid, np.int64))
        whole.results[0].set_type(ir.RankedTensorType.get(shape, result.element_type))
        found = whole.results[0]
        if any(min(cut) < 0 for cut in edges):
            found = _pad(found, [[max(-edge, 0) for edge in cut] for cut in edges], shape)
            shape = list(ir.ShapedType(found.type).shape)
        starts = [max(cut[0], 0) for cut in edges]
        limits = [size - max(cut[1], 0) for size, cut in zip(shape, edges, strict=True)]
        found = _make("stablehlo.slice", result, [found], start_indices=starts, limit_indices=limits, strides=[1] * len(shape))
    operation.results[0].replace_all_uses_with(found)
    operation.erase()


def _pad(value: Any, edges: list[list[int]], shape: list[int]) -> Any:
    from litert_converter.mlir import ir

    element = ir.ShapedType(value.type).element_type
    scalar = ir.RankedTensorType.get([], element)
    zero = ir.Operation.create(
        "stablehlo.constant", results=[scalar], attributes={"value": ir.DenseElementsAttr.get_splat(scalar, ir.FloatAttr.get(element, 0.0))}
    )
    padded = ir.RankedTensorType.get([size + sum(edge) for size, edge in zip(shape, edges, strict=True)], element)
    low, high = ([edge[side] for edge in edges] for side in (0, 1))
    return _make("stablehlo.pad", padded, [value, zero.results[0]], edge_padding_low=low, edge_padding_high=high, interior_padding=[0] * len(shape))


def _make(name: str, result: Any, operands: list[Any], **numbers: list[int]) -> Any:
    from litert_converter.mlir import ir

    attributes = {key: ir.DenseI64ArrayAttr.get(value) for key, value in numbers.items()}
    return ir.Operation.create(name, results=[result], operands=operands, attributes=attributes).results[0]
