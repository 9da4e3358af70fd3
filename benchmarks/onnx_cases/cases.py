"""The cases that the ``onnx`` package ships, as they are run here."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

OLDEST_OPSET = 13
# Their first input is data and the others are settings, which exporters write as constants.
SETTINGS = {
    "Clip", "Pad", "Resize", "Upsample", "Dropout", "TopK", "CumSum", "CumProd", "Trilu", "OneHot", "NonMaxSuppression", "ReverseSequence",
    "CenterCropPad", "Col2Im", "Split", "STFT", "DFT", "QuantizeLinear", "DequantizeLinear", "QLinearMatMul",
}  # fmt: skip
INDICES = {
    "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "TensorScatter", "Where", "Equal", "Less", "Greater", "LessOrEqual",
    "GreaterOrEqual", "Mod", "Compress", "Unique", "BitCast",
}  # fmt: skip
ALL_CONSTANT = {"ConstantOfShape", "Range", "EyeLike", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"}
_BFLOAT16_RTOL = 2.0**-6  # as ONNX's own runner has it: expected results are rounded at every step
_EXPANDED = re.compile(r"_expanded(_ver\d+)?$")


@dataclass(frozen=True)
class Case:
    """One case: a model of one operator, or of its definition, what it is given and what it shall give.

    Attributes:
        name: Its name; that of a definition ends with ``_expanded``.
        kind: The operator.
        model: The ``ModelProto``; settings are constants in it.
        given: What its inputs are, by name: arrays, or what is no tensor.
        expected: What its outputs are.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    name: str
    kind: str
    model: Any
    given: dict[str, Any]
    expected: dict[str, Any]
    rtol: float
    atol: float


def cases(kinds: set[str] | None = None) -> Iterator[Case]:
    """Yields the cases of operator set 13 and newer, those of the definitions of operators included; settings are constants of the model."""
    found = [case for case in _collected() if case.model is not None and case.data_sets]
    operators = {case.name: case.model.graph.node[0].op_type for case in found}
    for case in found:
        kind = operators.get(_EXPANDED.sub("", case.name), operators[case.name])
        if _opset(case.model) >= OLDEST_OPSET and (not kinds or kind in kinds):
            yield _case(case, kind)


def left_out() -> dict[str, int]:
    """Counts the cases that ``cases`` does not yield."""
    found: Counter[str] = Counter()
    for case in _collected():
        opset = _opset(case.model) if case.model is not None and case.data_sets else OLDEST_OPSET - 1
        if opset < OLDEST_OPSET:
            found["operators of other domains (ai.onnx.ml, training)" if not opset else f"older than operator set {OLDEST_OPSET}"] += 1
    return dict(found)


def _collected() -> list[Any]:
    """Makes all cases of ``onnx``, some of which overflow or divide by zero meanwhile."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def _opset(model: Any) -> int:
    """The version of ONNX's own operators; 0 where a model has none of them."""
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)


def _case(case: Any, kind: str) -> Case:
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    given, expected = ([_value(one) for one in values] for values in case.data_sets[0])
    values = dict(zip([one.name for one in model.graph.input], given, strict=False))
    fixed = {name: value for place, (name, value) in enumerate(values.items()) if isinstance(value, np.ndarray) and _is_setting(kind, place, value)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in fixed.items())
    free = [one for one in model.graph.input if one.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(free)
    wanted = dict(zip([one.name for one in model.graph.output], expected, strict=False))
    given = {one.name: values[one.name] for one in free if one.name in values}
    rtol = _BFLOAT16_RTOL if any(getattr(value, "dtype", None) == "bfloat16" for value in wanted.values()) else 0.0
    return Case(case.name, kind, model, given, wanted, max(case.rtol, rtol), case.atol)


def _value(given: Any) -> Any:
    """Returns an array, or what is no tensor as it is."""
    import onnx

    if isinstance(given, onnx.TensorProto):
        return onnx.numpy_helper.to_array(given)
    return np.asarray(given) if isinstance(given, np.generic | bool | int | float) else given


def _is_setting(kind: str, place: int, array: np.ndarray) -> bool:
    if kind in ALL_CONSTANT:
        return True
    return place > 0 and (kind in SETTINGS or (array.dtype == np.int64 and array.ndim <= 1 and kind not in INDICES))


def difference(got: np.ndarray, wanted: np.ndarray, case: Case) -> str:
    """Says how far a result is from what it should be; nothing where it is near enough. Element types are not compared.

    Of zeros among large numbers the expected ones themselves are off by those's last digit.
    """
    if got.shape != wanted.shape:
        return f"sizes {list(got.shape)} instead of {list(wanted.shape)}"
    one, other = (array.astype(np.float32) if array.dtype.kind == "V" else array for array in (got, wanted))
    try:
        np.testing.assert_allclose(one.astype(other.dtype), other, rtol=case.rtol, atol=max(case.atol, 1e-7, _last_digit(other)))
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


def _last_digit(wanted: np.ndarray) -> float:
    """Returns what one is in the last digit of the largest number, in float32."""
    finite = np.abs(wanted[np.isfinite(wanted)]) if wanted.dtype.kind == "f" else np.zeros(0)
    return float(np.finfo(np.float32).eps) * float(finite.max(initial=0.0))
