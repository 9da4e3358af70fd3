"""How the inputs and outputs of a live model get their names; the same rules in every framework.

A name is never guessed: where the given names and the model's own could be matched in two ways, the model is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from toolkit.errors import InputRejected


def check_names(kind: str, names: Iterable[Any]) -> None:
    """Makes sure that names can be parameters of a function, which most formats ask for in one way or another.

    Args:
        kind: What they name, ``input`` or ``output``.
        names: The names.

    Raises:
        InputRejected: One is not a Python identifier.
    """
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise InputRejected(f"{kind} name {name!r} is not a Python identifier", where=f"{kind}s", hint="use letters, digits and underscores")


def check_chosen(outputs: tuple[str, ...]) -> None:
    """Looks at the names that a user gives to outputs.

    Raises:
        InputRejected: One is not a Python identifier, or stands there twice.
    """
    check_names("output", outputs)
    if len(set(outputs)) < len(outputs):
        raise InputRejected(f"output names {list(outputs)} repeat", where="outputs", hint="give every output its own name")


def by_keyword(parameters: Iterable[inspect.Parameter], inputs: tuple[str, ...], *, called: str, where: str) -> bool:
    """Decides how inputs are passed: by keyword where all their names are parameters, otherwise by position in their order.

    Args:
        parameters: Those of the function, without ``self``.
        inputs: Names of the inputs, in the user's order.
        called: What the user knows the function as, for the message: ``forward``.
        where: Where it is, for the message: ``Net.forward``.

    Raises:
        InputRejected: There are fewer parameters than inputs, or an input has the name of a parameter at another place.
    """
    parameters = list(parameters)
    positional = [item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    keywords = [item.name for item in parameters if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)]
    kinds = {item.kind for item in parameters}
    if set(inputs) <= set(keywords) or (not positional and inspect.Parameter.VAR_KEYWORD in kinds):
        return True
    room = len(positional) >= len(inputs) or inspect.Parameter.VAR_POSITIONAL in kinds
    # A name that the function knows, at another place, means the order is not the user's: guessing would swap inputs silently.
    swapped = any(name in positional and positional.index(name) != place for place, name in enumerate(inputs))
    if not room or swapped:
        what = f"inputs are named {list(inputs)}, {called} takes {positional or keywords}"
        raise InputRejected(what, where=where, hint=f"name the examples like {called}'s parameters")
    return False


def parts(result: Any) -> dict[str, Any]:
    """Names what a model returned: by the keys of a dictionary or the fields of a named tuple, else ``output_0`` and so on.

    ``None`` is no output: models return it in the place of what they were not asked for.
    """
    if isinstance(result, Mapping):
        found = dict(result)
    elif isinstance(result, tuple) and hasattr(result, "_asdict"):
        found = result._asdict()
    else:
        found = {f"output_{place}": value for place, value in enumerate(result if isinstance(result, tuple | list) else [result])}
    return {name: value for name, value in found.items() if value is not None}


def name_outputs(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Follows the names that a user gives to outputs: they choose some of the model's own, or give all of them new names, in order.

    Args:
        found: The model's outputs, see :func:`parts`.
        names: The names; empty keeps the model's own.

    Returns:
        The outputs in the order of ``names``, or of ``found``.

    Raises:
        InputRejected: The model returns none, the names are not as many, or one is the model's own name of another output.
    """
    if not found:
        raise InputRejected("the model has no outputs", where="outputs", hint="return at least one tensor")
    if set(names) <= set(found):
        return {name: found[name] for name in names or found}
    swapped = [name for place, name in enumerate(names) if name in found and list(found).index(name) != place]
    if swapped:
        what = f"the model returns {list(found)}, so {swapped[0]!r} of the names {list(names)} would be given to another output"
        raise InputRejected(what, where="outputs", hint="name outputs that the model returns, or rename all of them")
    if len(names) != len(found):
        count = f"{len(found)} output{'s' * (len(found) > 1)}"
        what = f"the model returns {count} {list(found)}, found {len(names)} name{'s' * (len(names) > 1)} {list(names)}"
        raise InputRejected(what, where="outputs", hint="name outputs that the model returns, or rename all of them")
    return dict(zip(names, found.values(), strict=True))


def named_outputs(result: Any, names: tuple[str, ...], *, is_tensor: Callable[[Any], bool], noun: str = "tensor") -> dict[str, Any]:
    """Names what a model returned, and makes sure that every output is what the framework computes with.

    Args:
        result: What the model returned.
        names: Names that the user gives; see :func:`name_outputs`.
        is_tensor: Whether a value is a tensor of the framework.
        noun: What the framework calls one.

    Raises:
        InputRejected: The names do not fit, or an output is something else.
    """
    found = name_outputs(parts(result), names)
    check_names("output", found)
    for name, value in found.items():
        if not is_tensor(value):
            what = f"output {name!r} is a {type(value).__name__}, not {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
            raise InputRejected(what, where="outputs", hint=f"return {noun}s, or choose outputs by name")
    return found


def positional(parameters: Iterable[inspect.Parameter]) -> tuple[str, ...]:
    """Returns the names of the parameters that may be given by position, in order."""
    return tuple(item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD))
