"""What of a program has no kernel, asked of one operator of each kind instead of the whole program.

Splitting a program takes as long as a part of its conversion. Its operators repeat, though: a network of hundreds of convolutions has a
handful of kinds. So each kind is executed once on tensors without data, and what PyTorch calls below it is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any

from toolkit.convert import torch_programs
from toolkit.factory import CODE_ERRORS
from toolkit.plugins import Obstacle

if TYPE_CHECKING:
    import torch

# What a capture notes of its assumptions; it vanishes in every conversion.
NOTES = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"}
# Other looks at the same values, which every conversion has or drops.
_VIEWS = {"view", "_unsafe_view", "reshape", "alias", "detach", "lift_fresh_copy"}

Table = Mapping[Any, Callable[..., Any]]
Split = Callable[["torch.export.ExportedProgram"], "torch.export.ExportedProgram"]


def obstacles(
    program: torch.export.ExportedProgram,
    split: Split,
    table: Table,
    supported: Callable[[Any], bool],
    reason: str,
    *,
    whole: Container[Any] = (),
) -> list[Obstacle]:
    """Returns the operators that a route cannot convert, as :func:`torch_programs.obstacles` of the split program does, but sooner.

    What fails when it is tried is split on its own, as a program of one operator; all of the program is only where that cannot be done.
    The program is not changed.

    Args:
        program: The program as it was captured.
        split: Splits a program as the route does.
        table: The route's decompositions, by operator.
        supported: Whether the route can convert an operator of a split program.
        reason: What is wrong with the others, as a part of a sentence.
        whole: Operators that the route takes as they are although the table, or PyTorch itself, splits them.
    """
    suspects = _suspects(program, table, supported, whole)
    lacking: dict[Any, list[Any]] = {}
    for kind, node in suspects.items():
        alone = _alone(node)
        if alone is None:
            return torch_programs.obstacles(split(program), supported, reason)
        lacking[kind] = [one.target for one in torch_programs.calls(split(alone)) if not supported(one.target)]
    nodes = torch_programs.calls(program) if any(lacking.values()) else ()
    found = [torch_programs.obstacle(operator, node, reason) for node in nodes for operator in lacking.get(_kind(node), ())]
    return list(dict.fromkeys(found))


def _suspects(
    program: torch.export.ExportedProgram, table: Table, supported: Callable[[Any], bool], whole: Container[Any]
) -> dict[Any, torch.fx.Node]:
    """One operator of each kind that has no kernel, or cannot be tried."""
    kinds: dict[Any, torch.fx.Node] = {}
    for node in torch_programs.calls(program):
        if node.target not in whole and torch_programs.plain_name(node.target) not in NOTES | _VIEWS and not _stays(node.target, table, supported):
            kinds.setdefault(_kind(node), node)
    return {kind: node for kind, node in kinds.items() if not _is_supported(node, table, supported)}


def _alone(node: torch.fx.Node) -> torch.export.ExportedProgram | None:
    """A program of one operator, on zeros of the sizes that it has in its own; ``None`` where PyTorch cannot capture that."""
    import torch

    operator = _functional(node.target)

    class Alone(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
        def forward(self, *tensors: torch.Tensor) -> Any:
            left = iter(tensors)
            args, kwargs = _mapped(given, lambda one: next(left) if isinstance(one, torch.Tensor) else one)
            return operator(*args, **kwargs)

    tensors: list[torch.Tensor] = []
    try:
        given = _mapped((node.args, dict(node.kwargs)), _blank)
        _mapped(given, lambda one: tensors.append(torch.zeros_like(one)) if isinstance(one, torch.Tensor) else None)
        with torch.no_grad():
            return torch.export.export(Alone(), tuple(tensors))
    except CODE_ERRORS:
        return None


def _stays(operator: Any, table: Container[Any], supported: Callable[[Any], bool]) -> bool:
    """Whether an operator is split no more, and has a kernel."""
    return operator not in table and not operator._can_decompose() and _known(operator, supported)


def _known(operator: Any, supported: Callable[[Any], bool]) -> bool:
    return torch_programs.plain_name(operator) in NOTES | _VIEWS or supported(operator) or supported(_functional(operator))


def _functional(operator: Any) -> Any:
    """``aten.relu.default`` for ``aten.relu_.default``: programs are split without operators that write into their inputs."""
    import torch

    packet = getattr(torch.ops.aten, torch_programs.plain_name(operator), None)
    return getattr(packet, operator._overloadname, operator)


def _kind(node: torch.fx.Node) -> Any:
    """Calls that are split alike: the same operator on tensors of the same dtypes and ranks, with the same kinds of other arguments."""
    return node.target, repr(_mapped((node.args, dict(node.kwargs)), _rank)), len(node.users)


def _rank(value: Any) -> Any:
    import torch

    if isinstance(value, torch.fx.Node):
        value = value.meta.get("val")
    if isinstance(value, torch.Tensor):
        return value.dtype, value.dim()
    return value if isinstance(value, bool | str | torch.dtype | None) else type(value)


def _is_supported(node: torch.fx.Node, table: Table, supported: Callable[[Any], bool]) -> bool:
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            args, kwargs = _mapped((node.args, dict(node.kwargs)), _blank)
            found = _calls_below(_functional(node.target), args, kwargs, table)
    except CODE_ERRORS:
        return False
    return all(_known(operator, supported) for operator in found)


def _blank(value: Any) -> Any:
    """A tensor without data of a node's sizes; free sizes are those of the example that the program was captured with."""
    import torch

    if isinstance(value, torch.fx.Node):
        value = value.meta["val"]
    if isinstance(value, torch.Tensor):
        return torch.empty_strided([_size(one) for one in value.shape], [_size(one) for one in value.stride()], dtype=value.dtype)
    return _size(value) if isinstance(value, torch.SymInt) else value


def _size(value: Any) -> int:
    return value if isinstance(value, int) else int(value.node.hint)


def _calls_below(operator: Any, args: Any, kwargs: Any, table: Table) -> set[Any]:
    """Executes an operator and returns those that neither PyTorch nor the table splits any more."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.utils._python_dispatch import TorchDispatchMode

    found: set[Any] = set()

    class Recorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by the type checker
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func.namespace == "prim":  # a question of tensors without data about themselves
                return func(*args, **kwargs)
            with self:
                result = table[func](*args, **kwargs) if func in table else func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            found.add(func)
            return func(*args, **kwargs)

    with enable_python_dispatcher(), Recorder():  # under which PyTorch splits as it does while it captures
        operator(*args, **kwargs)
    return found


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Applies a function to the leaves of lists, tuples and dictionaries; those of a traced graph are unlike Python's own."""
    if isinstance(value, list | tuple):
        return [_mapped(one, change) for one in value] if isinstance(value, list) else tuple(_mapped(one, change) for one in value)
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    return change(value)
