"""What makes a PyTorch model convert to something else without a word: each such fault is found here and called by its name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputRejected

if TYPE_CHECKING:
    import torch

# Weights of these types run on the CPU slowly or not at all, and every converter treats them in its own way.
_OTHER_FLOATS = ("float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_MOST_NOTES = 10
_MOST_NAMES = 4


def check_model(model: torch.nn.Module) -> None:
    """Looks at a model before it runs.

    Raises:
        InputRejected: A part is in training mode, or a weight is not on the CPU, not float32, or NaN.
    """
    where = type(model).__name__
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise InputRejected(f"the model is in training mode (first: {training[0]})", where=where, hint="call model.eval() first")
    away = [f"{name} on {tensor.device}" for name, tensor in _tensors(model) if tensor.device.type != "cpu"]
    if away:
        raise InputRejected(f"the model is not on the CPU (first: {away[0]})", where=where, hint="call model.cpu() first")
    odd = [(name, dtype) for name, tensor in model.named_parameters() if (dtype := _dtype(tensor)) in _OTHER_FLOATS]
    if odd:
        name, dtype = odd[0]
        what = f"the model's weights are {dtype}, not float32 (first: {name}; {len(odd)} in all)"
        raise InputRejected(what, where=where, hint="call model.float() first; smaller number formats are made from the float32 model")
    broken = next((name for name, tensor in model.named_parameters() if tensor.isnan().any()), None)
    if broken is not None:
        raise InputRejected(f"the model's weights hold NaN (first: {broken})", where=where, hint="load weights of a training that went well")


def notes(model: torch.nn.Module) -> tuple[str, ...]:
    """Returns what of a model stands in several places, a sentence each: a converted file may hold it once or several times."""
    aliased = aliased_modules(model)
    below = tuple(f"{name}." for names in aliased for name in names[1:])
    tied = [[name for name in names if not name.startswith(below)] for names in tied_weights(model)]
    said = [f"the layers {_listed(names)} are one and the same" for names in aliased]
    said += [f"the weights {_listed(names)} are one tensor" for names in tied if len(names) > 1]
    return (*said[:_MOST_NOTES], *([f"{len(said) - _MOST_NOTES} more layers or weights stand in several places"] if said[_MOST_NOTES:] else []))


def aliased_modules(model: torch.nn.Module) -> list[list[str]]:
    """Returns the names of modules with weights that are one and the same object, group by group; what is inside of one is not named."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if next(iter(module.parameters()), None) is not None:
            groups[id(module)].append(name)
    found = [names for names in groups.values() if len(names) > 1]
    inside = tuple(f"{name}." for names in found for name in names)
    return [names for names in found if not all(name.startswith(inside) for name in names)]


def tied_weights(model: torch.nn.Module) -> list[list[str]]:
    """Returns the names of parameters that are one and the same tensor, group by group."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        groups[id(tensor)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def changed_inputs(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns the inputs that a model wrote into."""
    return [name for name, value in after.items() if not _same(value, before[name])]


class Buffers:
    """The state of a model's buffers at one time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._state = self._read()

    def check_unchanged(self) -> None:
        """Raises when a buffer was written or replaced since.

        Raises:
            InputRejected: One was.
        """
        now = self._read()
        changed = [name for name in {**self._state, **now} if not _same_state(self._state.get(name), now.get(name))]
        if changed:
            what = f"the model changes its buffer {changed[0]!r} whenever it runs, which a converted file cannot"
            raise InputRejected(what, where=type(self._model).__name__, hint="keep state out of forward, or make it an input and an output")

    def _read(self) -> dict[str, tuple[Any, Any]]:
        # The count of writes costs nothing; tensors made in inference mode have none, so their values are kept.
        return {
            name: (id(tensor), tensor.clone() if tensor.is_inference() else tensor._version)
            for name, tensor in self._model.named_buffers(remove_duplicate=False)
        }


def _same_state(before: tuple[Any, Any] | None, now: tuple[Any, Any] | None) -> bool:
    if before is None or now is None or isinstance(before[1], int) != isinstance(now[1], int):
        return False
    return before == now if isinstance(before[1], int) else _same(before[1], now[1])


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    import torch

    if left.is_floating_point():
        left, right = left.nan_to_num(), right.nan_to_num()
    return left.shape == right.shape and bool(torch.equal(left, right))


def _tensors(model: torch.nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _listed(names: list[str]) -> str:
    first = names[:_MOST_NAMES]
    more = f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else ""
    return f"{', '.join(first)}{more}" if more else f"{', '.join(first[:-1])} and {first[-1]}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
