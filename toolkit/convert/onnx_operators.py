"""ONNX operators in PyTorch's words, as https://onnx.ai/onnx/operators describes them.

Every function takes a :class:`Call`; PyTorch comes with it, as it is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Unsupported(Exception):
    """A use of an operator that cannot be expressed; the message says which."""


class Call:
    """One operator with its values.

    Attributes:
        torch: The framework.
        inputs: Names of the inputs; empty for one that is left out.
        outputs: How many outputs are asked for.
        opset: Version of the operator set.
        constants: All values that are known while tracing, by name.
    """

    def __init__(self, torch: Any, node: Any, values: dict[str, Any], constants: dict[str, np.ndarray], opset: int) -> None:
        from onnx import helper

        self.torch = torch
        self.inputs = list(node.input)
        self.outputs = len(node.output)
        self.opset = opset
        self.constants = constants
        self._values = values
        self._attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def has(self, place: int) -> bool:
        """Whether an optional input is given."""
        return place < len(self.inputs) and bool(self.inputs[place])

    def tensor(self, place: int) -> Any:
        """The input at a place, as a tensor."""
        return self._values[self.inputs[place]]

    def optional(self, place: int) -> Any:
        """The input at a place, or ``None``."""
        return self.tensor(place) if self.has(place) else None

    def tensors(self) -> list[Any]:
        """All inputs."""
        return [self.tensor(place) for place in range(len(self.inputs))]

    def constant(self, place: int) -> np.ndarray:
        """The value of an input that must be known while tracing.

        Raises:
            Unsupported: It depends on the data.
        """
        name = self.inputs[place]
        if name not in self.constants:
            raise Unsupported(f"its input {place} ({name}) depends on the data")
        return self.constants[name]

    def numbers(self, place: int, attribute: str, default: Any = None) -> Any:
        """Whole numbers that newer operator sets take as an input and older ones as an attribute."""
        if self.has(place):
            return [int(value) for value in self.constant(place).reshape(-1)]
        return self.attribute(attribute, default)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, texts as text."""
        value = self._attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode()
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


Operator = Callable[[Call], Any]
OPERATORS: dict[str, Operator] = {}


def named(*names: str) -> Callable[[Operator], Operator]:
    """Registers a function under ONNX's names."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def _elementwise(names: dict[str, str]) -> None:
    """Operators that PyTorch has under another name, or the same, and that take tensors alone."""
    for name, own in names.items():
        OPERATORS[name] = lambda call, own=own: getattr(call.torch, own)(*call.tensors())  # type: ignore[misc]


_elementwise(
    {
        name: name.lower()
        for name in ("Abs", "Neg", "Sqrt", "Exp", "Log", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Tanh", "Erf", "Relu")
    }
    | {name: name.lower() for name in ("Sigmoid", "Sinh", "Cosh", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh", "Reciprocal", "Where", "MatMul")}
    | {"Add": "add", "Sub": "sub", "Mul": "mul", "Equal": "eq", "Less": "lt", "Greater": "gt", "LessOrEqual": "le", "GreaterOrEqual": "ge"}
    | {"Not": "logical_not", "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "IsNaN": "isnan", "Identity": "clone"}
)


@named("Div")
def _div(call: Call) -> Any:
    left, right = call.tensors()
    # ONNX divides whole numbers as C does.
    return call.torch.div(left, right, rounding_mode=None if left.is_floating_point() else "trunc")


@named("Mod")
def _mod(call: Call) -> Any:
    return (call.torch.fmod if call.attribute("fmod", 0) else call.torch.remainder)(*call.tensors())


@named("Pow")
def _pow(call: Call) -> Any:
    base, exponent = call.tensors()
    return call.torch.pow(base, exponent.to(base.dtype) if base.is_floating_point() else exponent)


def _many(join: Callable[[Call, Any, Any], Any]) -> Operator:
    def operator(call: Call) -> Any:
        found = call.tensor(0)
        for tensor in call.tensors()[1:]:
            found = join(call, found, tensor)
        return found

    return operator


OPERATORS["Max"] = _many(lambda call, one, other: call.torch.maximum(one, other))
OPERATORS["Min"] = _many(lambda call, one, other: call.torch.minimum(one, other))
OPERATORS["Sum"] = _many(lambda call, one, other: one + other)
OPERATORS["Mean"] = lambda call: OPERATORS["Sum"](call) / len(call.inputs)


@named("Clip")
def _clip(call: Call) -> Any:
    low = call.constant(1).item() if call.has(1) else call.attribute("min")
    high = call.constant(2).item() if call.has(2) else call.attribute("max")
    return call.tensor(0) if low is None and high is None else call.torch.clamp(call.tensor(0), low, high)


def _activation(name: str, **attributes: tuple[str, float]) -> Operator:
    """A function of ``torch.nn.functional``; ``attributes`` gives each parameter's name in ONNX and its default there."""

    def operator(call: Call) -> Any:
        given = {own: call.attribute(theirs, default) for own, (theirs, default) in attributes.items()}
        return getattr(call.torch.nn.functional, name)(call.tensor(0), **given)

    return operator


OPERATORS |= {
    "LeakyRelu": _activation("leaky_relu", negative_slope=("alpha", 0.01)),
    "Elu": _activation("elu", alpha=("alpha", 1.0)),
    "Celu": _activation("celu", alpha=("alpha", 1.0)),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "HardSwish": _activation("hardswish"),
    "Mish": _activation("mish"),
    "Gelu": _activation("gelu", approximate=("approximate", "none")),  # type: ignore[arg-type]
}


@named("Selu")
def _selu(call: Call) -> Any:
    x, scale = call.tensor(0), call.attribute("gamma", 1.0507010221481323)
    return scale * call.torch.nn.functional.elu(x, call.attribute("alpha", 1.6732631921768188))


@named("HardSigmoid")
def _hard_sigmoid(call: Call) -> Any:
    return call.torch.clamp(call.attribute("alpha", 0.2) * call.tensor(0) + call.attribute("beta", 0.5), 0, 1)


@named("PRelu")
def _prelu(call: Call) -> Any:
    x, slope = call.tensors()
    return call.torch.where(x >= 0, x, slope * x)


def _softmax(name: str) -> Operator:
    def operator(call: Call) -> Any:
        function, x = getattr(call.torch, name), call.tensor(0)
        if call.opset >= 13:
            return function(x, call.attribute("axis", -1))
        axis = call.attribute("axis", 1) % x.ndim
        return function(x.flatten(axis), axis).reshape(x.shape)  # older operator sets take all later axes together

    return operator


OPERATORS |= {"Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax")}


@named("Cast")
def _cast(call: Call) -> Any:
    from onnx import helper

    kind = np.dtype(helper.tensor_dtype_to_np_dtype(call.attribute("to"))).name
    return call.tensor(0).to(getattr(call.torch, kind))


@named("Dropout")
def _dropout(call: Call) -> Any:
    if call.has(2) and bool(call.constant(2)):
        raise Unsupported("it is in training mode")
    x = call.tensor(0)
    return (x.clone(), call.torch.ones_like(x, dtype=call.torch.bool))[: call.outputs]


@named("Gemm")
def _gemm(call: Call) -> Any:
    left, right = call.tensor(0), call.tensor(1)
    left = left.T if call.attribute("transA", 0) else left
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    if alpha == 1 and beta in (0, 1) and (not call.has(2) or beta == 0 or call.tensor(2).ndim == 1):
        weight = right if call.attribute("transB", 0) else right.T
        return call.torch.nn.functional.linear(left, weight, call.optional(2) if beta else None)
    found = alpha * (left @ (right.T if call.attribute("transB", 0) else right))
    return found + beta * call.tensor(2) if call.has(2) else found


@named("Einsum")
def _einsum(call: Call) -> Any:
    return call.torch.einsum(call.attribute("equation").replace(" ", ""), *call.tensors())


def _reduction(reduce: Callable[[Call, Any, list[int], bool], Any]) -> Operator:
    def operator(call: Call) -> Any:
        axes = call.numbers(1, "axes")
        x = call.tensor(0)
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return x.clone()
            axes = list(range(x.ndim))
        return reduce(call, x, axes, bool(call.attribute("keepdims", 1)))

    return operator


def _product(call: Call, x: Any, axes: list[int], keep: bool) -> Any:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = call.torch.prod(x, axis, keepdim=keep)
    return x


OPERATORS |= {
    "ReduceMean": _reduction(lambda call, x, axes, keep: call.torch.mean(x, axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda call, x, axes, keep: call.torch.sum(x, axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda call, x, axes, keep: call.torch.amax(x, axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda call, x, axes, keep: call.torch.amin(x, axes, keepdim=keep)),
    "ReduceL1": _reduction(lambda call, x, axes, keep: call.torch.sum(x.abs(), axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda call, x, axes, keep: call.torch.sqrt(call.torch.sum(x * x, axes, keepdim=keep))),
    "ReduceSumSquare": _reduction(lambda call, x, axes, keep: call.torch.sum(x * x, axes, keepdim=keep)),
    "ReduceLogSumExp": _reduction(lambda call, x, axes, keep: call.torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
}


def _arg(name: str) -> Operator:
    def operator(call: Call) -> Any:
        if call.attribute("select_last_index", 0):
            raise Unsupported("it takes the last of equal values")
        return getattr(call.torch, name)(call.tensor(0), call.attribute("axis", 0), keepdim=bool(call.attribute("keepdims", 1)))

    return operator


OPERATORS |= {"ArgMax": _arg("argmax"), "ArgMin": _arg("argmin")}


@named("TopK")
def _top_k(call: Call) -> Any:
    """Of equal values ONNX names the first and PyTorch any: only their places may differ."""
    largest, ordered = bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    return tuple(call.torch.topk(call.tensor(0), int(call.constant(1).reshape(-1)[0]), call.attribute("axis", -1), largest, ordered))


@named("CumSum")
def _cumulative_sum(call: Call) -> Any:
    if call.attribute("exclusive", 0) or call.attribute("reverse", 0):
        raise Unsupported("it is exclusive or runs backwards")
    return call.torch.cumsum(call.tensor(0), int(call.constant(1).reshape(-1)[0]))


@named("BatchNormalization")
def _batch_norm(call: Call) -> Any:
    if call.attribute("training_mode", 0):
        raise Unsupported("it is in training mode")
    x, scale, shift, mean, variance = call.tensors()[:5]
    return call.torch.nn.functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, call.attribute("epsilon", 1e-5))


@named("LayerNormalization")
def _layer_norm(call: Call) -> Any:
    if call.outputs > 1:
        raise Unsupported("its mean is asked for")
    x, axis = call.tensor(0), call.attribute("axis", -1)
    shape = x.shape[axis % x.ndim :]
    weight = call.tensor(1).expand(shape)
    bias = call.tensor(2).expand(shape) if call.has(2) else None
    return call.torch.nn.functional.layer_norm(x, shape, weight, bias, call.attribute("epsilon", 1e-5))


@named("RMSNormalization")
def _rms_norm(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", -1)
    axes = list(range(axis % x.ndim, x.ndim))
    return x * call.torch.rsqrt(call.torch.mean(x * x, axes, keepdim=True) + call.attribute("epsilon", 1e-5)) * call.tensor(1)


@named("InstanceNormalization")
def _instance_norm(call: Call) -> Any:
    x, scale, shift = call.tensors()
    return call.torch.nn.functional.instance_norm(x, weight=scale, bias=shift, eps=call.attribute("epsilon", 1e-5))


@named("GroupNormalization")
def _group_norm(call: Call) -> Any:
    x, scale, shift = call.tensors()
    groups = call.attribute("num_groups")
    if call.opset < 21:  # one scale per group, not per channel
        scale, shift = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, shift))
    return call.torch.nn.functional.group_norm(x, groups, scale, shift, call.attribute("epsilon", 1e-5))


@named("LpNormalization")
def _lp_norm(call: Call) -> Any:
    return call.torch.nn.functional.normalize(call.tensor(0), float(call.attribute("p", 2)), call.attribute("axis", -1))


@named("Trilu")
def _triangle(call: Call) -> Any:
    return (call.torch.triu if call.attribute("upper", 1) else call.torch.tril)(call.tensor(0), int(call.constant(1)) if call.has(1) else 0)
