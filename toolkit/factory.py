"""Finds and calls the one function of the user's project that builds the model. Errors in it are shown where they happened."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, StageFailed

# What user code and frameworks raise when they do not work. MemoryError is left out on purpose: the worker names it better.
CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
HINT = 'write it as "module:function", with module a file or package of the project folder'


def load_factory(project: Path, spec: str) -> Callable[..., Any]:
    """Imports ``module:function`` from a project folder.

    The folder is put first on ``sys.path`` and stays there: the function may import its neighbours when it is called.

    Args:
        project: Folder that holds the module.
        spec: For example ``"model:build"``.

    Returns:
        The function, wrapped so that an exception inside it becomes a :class:`StageFailed` with the user's file and line.

    Raises:
        ConfigError: The text is not ``module:function``, or the folder, the module or the function does not exist.
        StageFailed: The module's own code raises while it is imported.
    """
    module_name, separator, function_name = spec.partition(":")
    if not separator or not _dotted(module_name) or not function_name.isidentifier():
        raise ConfigError(f"factory {spec!r} is not of the form module:function", hint=HINT)
    if not project.is_dir():
        raise ConfigError("is not a folder", where=str(project), hint="give the folder that holds the factory's module")
    function = getattr(_import(project, module_name, spec), function_name, None)
    if not callable(function):
        raise ConfigError(f"module {module_name!r} has no function {function_name!r}", where=f"factory {spec}", hint=HINT)
    return lambda *args, **kwargs: call(function, *args, project=project, what=f"factory {spec}", **kwargs)


def call(function: Callable[..., Any], *args: Any, project: Path, what: str, **kwargs: Any) -> Any:
    """Calls user code.

    Args:
        function: The user's function.
        *args: Passed on.
        project: The user's folder; the innermost line inside it is the one that is reported.
        what: Names the function in the message.
        **kwargs: Passed on.

    Raises:
        StageFailed: The function raises; ``where`` is the user's file and line.
    """
    try:
        return function(*args, **kwargs)
    except CODE_ERRORS as error:
        raise _blame(error, project, what) from error


def first_line(error: BaseException) -> str:
    """Returns an exception as one line: its type and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _import(project: Path, module_name: str, spec: str) -> Any:
    folder = str(project.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"there is no module {module_name!r} in {folder}", where=f"factory {spec}", hint=HINT) from error
        raise _blame(error, project, f"factory {spec}") from error
    except CODE_ERRORS as error:
        raise _blame(error, project, f"factory {spec}") from error


def _blame(error: BaseException, project: Path, what: str) -> StageFailed:
    folder = project.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    own = [f"{frame.filename}:{frame.lineno}" for frame in frames if Path(frame.filename).resolve().is_relative_to(folder)]
    if isinstance(error, SyntaxError) and error.filename:
        own.append(f"{error.filename}:{error.lineno}")
    return StageFailed(f"{what} raised {first_line(error)}", where=own[-1] if own else what, hint="mend the project's code and run again")
