"""Quantization-aware training: a forward pass in which weights and activations are rounded as static int8 rounds them.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), and Krishnamoorthi,
"Quantizing deep convolutional networks for efficient inference: A whitepaper" (2018). The model stays as it is, so that it is exported and
quantized as any other: PyTorch's calls are intercepted where an int8 operator reads a tensor.

- Weights are symmetric, -127..127, with a scale for each output channel, as ``static_wi8_ai8`` has them. Such a scale follows its channel: a
  weight times a number rounds to the rounded weight times that number. So the batch norm behind a convolution, which a converter folds into
  its weights channel by channel, need not be folded to train.
- Activations have 256 steps over a range that includes zero, one range a tensor: a moving average of each batch's minimum and maximum.
- A tensor is rounded where an int8 operator reads it, and at the model's outputs. Batch norm and ReLU behind a convolution become part of it,
  so that what is between them is not rounded. Reshaping, max pooling and concatenation pass values on, whose reader rounds them.
- Softmax, layer norm and GELU compute in float on what an int8 operator has written, hence on rounded inputs. Recurrent layers and what is
  inside of ``MultiheadAttention`` stay float, but for the weights of its projections.
- Biases are 32 bits wide, and not rounded.

Gradients pass where a value is inside its range, and end where it is cut off (straight-through, Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from toolkit.errors import StageFailed

if TYPE_CHECKING:
    import torch

_DECAY = 0.99
_STEPS = 255
_WEIGHT_STEPS = 127
_MASK = -1e4  # values down here, and none nearly as large, are a mask that was or will be added to scores before a softmax
_LINEAR = ("conv1d", "conv2d", "conv3d", "linear")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_PRODUCTS = ("matmul", "__matmul__", "__rmatmul__", "bmm", "mm")
_SUMS = ("add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "mul", "__mul__", "__rmul__")
_IN_PLACE = {"add_": "add", "__iadd__": "add", "sub_": "sub", "__isub__": "sub", "mul_": "mul", "__imul__": "mul"}
_ONE_INPUT = (
    *(
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "mean",
        "interpolate",
        "div",
        "__truediv__",
    ),
    *("hardswish", "hardsigmoid", "sigmoid", "silu", "tanh", "gelu", "leaky_relu", "elu", "prelu", "softmax", "layer_norm", "dropout"),
)
_ATTENTION = ((5, "in_proj_weight", 0), (11, "out_proj_weight", 0), *((-1, f"{which}_proj_weight", 0) for which in "qkv"))


@dataclass(frozen=True)
class _Reads:
    """What an operator reads as int8: activations by position or name, and weights with the axis of their output channels."""

    activations: tuple[tuple[int, str], ...]
    weights: tuple[tuple[int, str, int], ...] = ()


def _operators() -> dict[str, _Reads]:
    one, two = _Reads(((0, "input"),)), _Reads(((0, "input"), (1, "other")))
    attention = _Reads(((0, "query"), (1, "key"), (2, "value")))
    return {
        **dict.fromkeys(_LINEAR, _Reads(((0, "input"),), ((1, "weight", 0),))),
        **dict.fromkeys(_TRANSPOSED, _Reads(((0, "input"),), ((1, "weight", 1),))),
        **dict.fromkeys((*_PRODUCTS, *_SUMS, *_IN_PLACE), two),
        **dict.fromkeys(_ONE_INPUT, one),
        "addmm": _Reads(((1, "mat1"),), ((2, "mat2", 1),)),
        "einsum": _Reads(((1, ""), (2, ""))),
        "scaled_dot_product_attention": attention,
        "multi_head_attention_forward": _Reads(attention.activations, _ATTENTION),
    }


_READS = _operators()


@dataclass
class _Range:
    """The range of one tensor that an operator reads.

    Attributes:
        call: Number and name of the call, and which of its tensors it is.
        low: Average of the batches' minima, at most 0; a scalar on the model's device.
        high: Average of their maxima, at least 0.
        batches: How many were seen.
        rounded: Whether it is rounded; what has once held a mask is not.
    """

    call: str
    low: torch.Tensor
    high: torch.Tensor
    batches: int = 0
    rounded: bool = True

    def learn(self, x: torch.Tensor) -> None:
        """Moves to a batch: the plain mean of the first hundred, and an exponential average from then on."""
        low, high = x.detach().float().aminmax()
        if bool((low <= _MASK) & (high < -low / 10)):
            self.rounded = False
            return
        self.batches += 1
        share = max(1 / self.batches, 1 - _DECAY)
        self.low = self.low.to(x.device).lerp(low.clamp(max=0), share)
        self.high = self.high.to(x.device).lerp(high.clamp(min=0), share)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds to 256 steps, of which one is zero."""
        import torch

        low, high = self.low.to(x.device), self.high.to(x.device)
        scale = ((high - low) / _STEPS).clamp(min=torch.finfo(torch.float32).tiny)
        zero_point = (-low / scale).round().clamp(0, _STEPS).int()
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, _STEPS)


@dataclass
class Rounding:
    """Rounds what a model computes with, as static int8 does.

    Its calls must come in the same order in every forward pass, as a range belongs to a place in that order. Statistics of batch norm should
    stand still from the start: int8 has them inside of the weights. Weights should be trained already: ranges follow slowly, and what grows faster
    than they do is cut off and learns nothing.

    Attributes:
        model: The model; nothing of it is changed.
    """

    model: torch.nn.Module
    _ranges: list[_Range] = field(default_factory=list, init=False)

    @contextmanager
    def active(self, *, learning: bool) -> Iterator[None]:
        """Rounds in one forward pass of the model.

        Args:
            learning: Whether ranges move to what passes. The first pass of all sets them in any case.

        Raises:
            StageFailed: The model computes in another order than in the passes before.
        """
        one = _Pass(self._ranges, learning)
        hook = self.model.register_forward_hook(lambda _model, _inputs, outputs: one.outputs(outputs))
        try:
            with _intercepting(one.call):
                yield
        finally:
            hook.remove()
        one.close()

    def state_dict(self) -> dict[str, Any]:
        """Returns the ranges."""
        return {"ranges": [dict(vars(one)) for one in self._ranges]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts ranges back."""
        self._ranges[:] = [_Range(**one) for one in state["ranges"]]


class _Pass:
    """One forward pass: which call comes next, and which tensors are rounded already."""

    def __init__(self, ranges: list[_Range], learning: bool) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self._ranges, self._learning, self._first, self._next = ranges, learning, not ranges, 0
        self._rounded: Any = WeakTensorKeyDictionary()  # tensor -> its version, and what it is rounded to

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes one of PyTorch's calls, on rounded tensors where int8 has it so."""
        import torch

        name = getattr(function, "__name__", "")
        reads = _READS.get(name)
        if reads is None:
            return function(*args, **kwargs)
        given: list[Any] = list(args)
        for position, named in reads.activations:
            _replace(given, kwargs, position, named, partial(self._operand, call=f"{name}, {named or position}"))
        groups = _groups(name, args, kwargs)
        for position, named, axis in reads.weights:
            _replace(given, kwargs, position, named, partial(round_weight, axis=axis, groups=groups))
        in_place = name in _IN_PLACE or bool(kwargs.pop("inplace", False))
        result = (getattr(torch, _IN_PLACE[name]) if name in _IN_PLACE else function)(*given, **kwargs)
        if in_place:  # the tensor itself must change, and not what it was rounded to
            result = args[0].copy_(result)
        if name == "dropout":  # its reader has the rounded values, some of them 0; while training the others are larger than in use
            self._rounded[result] = result._version, result
        return result

    def outputs(self, found: Any) -> Any:
        """Rounds what the model returns."""
        import torch
        from torch.utils import _pytree

        return _pytree.tree_map(lambda x: self._activation(x, "output") if isinstance(x, torch.Tensor) else x, found)

    def close(self) -> None:
        """Ends the pass.

        Raises:
            StageFailed: It was shorter than those before it.
        """
        if self._next < len(self._ranges):
            raise _disorder(self._ranges[self._next].call, "the end")

    def _operand(self, x: Any, call: str) -> Any:
        import torch

        if isinstance(x, torch.nn.Parameter) and x.dim() == 2 and call.startswith(_PRODUCTS):
            return round_weight(x, 0 if call.endswith("input") else 1)
        return self._activation(x, call) if isinstance(x, torch.Tensor) else x

    def _activation(self, x: torch.Tensor, call: str) -> torch.Tensor:
        if not x.is_floating_point() or x.dim() == 0 or x.numel() == 0:
            return x
        version, rounded = self._rounded.get(x, (None, None))
        if version == x._version:
            return rounded
        range_ = self._range(x, call)
        if range_.rounded and (self._learning or not range_.batches):
            range_.learn(x)
        if not range_.rounded:
            return x
        rounded = range_.round(x)
        self._rounded[x] = x._version, rounded
        return rounded

    def _range(self, x: torch.Tensor, call: str) -> _Range:
        """Returns the range that belongs to the next tensor."""
        call, index = f"{self._next}: {call}", self._next
        self._next += 1
        if self._first:
            zero = x.new_zeros((), dtype=_float32())
            self._ranges.append(_Range(call, zero, zero.clone()))
        elif index >= len(self._ranges) or self._ranges[index].call != call:
            raise _disorder(self._ranges[index].call if index < len(self._ranges) else "the end", call)
        return self._ranges[index]


def round_weight(weight: torch.Tensor, axis: int, groups: int = 1) -> torch.Tensor:
    """Rounds a weight to -127..127 steps, with a scale for each output channel.

    Args:
        weight: Of any shape, floating point.
        axis: The axis of the output channels.
        groups: Groups of a transposed convolution, which have their input channels, axis 0, apart and their output channels together.
    """
    import torch

    if not isinstance(weight, torch.Tensor):
        return weight
    if groups > 1:
        parts = [round_weight(part, axis) for part in weight.chunk(groups)]
        return torch.cat(parts)
    values = weight.float()
    others = [one for one in range(weight.dim()) if one != axis]
    largest = values.detach().abs().amax(dim=others) if others else values.detach().abs()
    scale = (largest / _WEIGHT_STEPS).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(values, scale, zero_point, axis, -_WEIGHT_STEPS, _WEIGHT_STEPS)


def _groups(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Returns the groups of a transposed convolution (its seventh argument); 1 for anything else."""
    if name not in _TRANSPOSED:
        return 1
    return int(args[6] if len(args) > 6 else kwargs.get("groups", 1))


def _replace(args: list[Any], kwargs: dict[str, Any], position: int, name: str, change: Callable[[Any], Any]) -> None:
    if name in kwargs:
        kwargs[name] = change(kwargs[name])
    elif 0 <= position < len(args):
        args[position] = change(args[position])


def _intercepting(call: Callable[..., Any]) -> Any:
    """A context in which every call of PyTorch's goes through a function."""
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
            return call(func, args, dict(kwargs or {}))

    return Mode()


def _float32() -> torch.dtype:
    import torch

    return torch.float32


def _disorder(expected: str, found: str) -> StageFailed:
    return StageFailed(
        f"the model computes in another order from one pass to the next: expected {expected!r}, found {found!r}",
        where='finetune.strategy = "qat"',
        hint="take out what depends on chance or on values, such as skipped layers, or use another strategy",
    )
