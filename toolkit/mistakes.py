"""What is wrong with a document, in one sentence with a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from toolkit.errors import ConfigError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FACTORY_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
FactoryName = Annotated[str, Field(pattern=FACTORY_PATTERN)]
_PATTERNS = {
    NAME_PATTERN: "begin with a letter or digit; go on with letters, digits, dots, dashes and underscores",
    FACTORY_PATTERN: "write module:function, for example digits:build",
}


def explain(kind: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    """Turns one validation problem into one sentence; the rest are counted.

    An unknown key comes first: it is often the very reason why another one is missing.
    """
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {key!r}{more}", where=where, hint=nearest(path[-1], _keys_at(kind, path[:-1])))
    if first["type"] == "missing":
        return ConfigError(f"key {key!r} is missing{more}", where=where, hint="edgekit init writes a commented example")
    message = _PATTERNS.get(first.get("ctx", {}).get("pattern", ""), first["msg"].removeprefix("Value error, "))
    found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
    return ConfigError(f"{f'{key}: ' if key else ''}{message}{found}{more}", where=where, hint=_remedy(first))


def nearest(word: str, known: list[str]) -> str:
    """Suggests the known word that looks most like a wrong one."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _remedy(problem: Mapping[str, Any]) -> str:
    """What to write instead, where that can be guessed: a choice misspelt, or a percentage without its sign."""
    value, context = problem["input"], problem.get("ctx", {})
    if problem["type"] == "literal_error" and isinstance(value, str):
        return nearest(value, re.findall(r"'([^']*)'", context["expected"]))
    if 1 in (context.get("le"), context.get("lt")) and isinstance(value, float | int) and 1 < value < 100:
        return f'write {value / 100:g} or "{value:g}%"'
    return "see docs/configuration.md"


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Lists the keys that are known at a place in a document; a table of tables has keys of its own making."""
    own_keys = False
    for part in path:
        if own_keys:
            own_keys = False
            continue
        field = kind.model_fields.get(part)
        inner = [one for one in _types_in(field.annotation) if isinstance(one, type) and issubclass(one, BaseModel)] if field else []
        if not field or not inner:
            return []
        kind, own_keys = inner[0], get_origin(field.annotation) is dict
    return [field.alias or name for name, field in kind.model_fields.items()]


def _types_in(annotation: Any) -> list[Any]:
    return [annotation, *(one for inner in get_args(annotation) for one in _types_in(inner))]
