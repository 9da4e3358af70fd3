"""Every error Edgekit raises on purpose, and the exit code each one becomes.

::

    ToolkitError                     70  our bug, unless a subclass says otherwise
    ├── ConfigError                   2  a file or an argument says something we cannot follow
    ├── InputRejected                 3  bytes or samples that must not be used
    ├── SetupError                    4  this machine is not ready
    │   ├── MissingExtra                 an optional dependency is not installed
    │   └── StoreError                   the cache folder cannot be used
    ├── StageError                    5  a stage ran and did not deliver
    │   ├── NoRoute                      nothing converts this format into that one
    │   ├── UnsupportedOperators         a route's preflight found operators that it cannot convert
    │   ├── StageFailed                  the framework raised
    │   ├── StageCrashed                 the process died by a signal or without a result
    │   ├── StageTimeout                 the process outlived its time limit
    │   ├── StageOutOfMemory             the process hit a memory limit or was killed for it
    │   ├── ParityFailed                 the converted model does not compute what the source computes
    │   └── AuditFailed                  the file is not what its label says
    └── Interrupted                 130  Ctrl-C or a termination signal

A missed budget is a finding in a report (exit code 1), an undecided one is *inconclusive* (exit code 6 under
``--strict``); neither is an exception.
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_PASS = 0
EXIT_CHECK_FAILED = 1
EXIT_INCONCLUSIVE = 6


class ToolkitError(Exception):
    """Base of every deliberate error.

    Attributes:
        code: Stable identifier that scripts may match on.
        exit_code: What the command line returns when this error ends it.
        message: What happened, with found and expected values.
        where: The file, key, tensor or stage it happened in; empty when there is none.
        hint: What to do next; empty when there is nothing to add.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def to_dict(self) -> dict[str, str]:
        """Returns the error as plain strings, so that it can cross a process border."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}


class ConfigError(ToolkitError):
    """A configuration file, a target or a command-line argument is wrong."""

    code = "config"
    exit_code = 2


class InputRejected(ToolkitError):
    """A model file or a data set must not be used as it is."""

    code = "input-rejected"
    exit_code = 3


class SetupError(ToolkitError):
    """This machine or environment is not ready for what was asked."""

    code = "setup"
    exit_code = 4


class MissingExtra(SetupError):
    """An optional dependency is not installed."""

    code = "missing-extra"


class StoreError(SetupError):
    """The cache folder cannot be read or written."""

    code = "store"


class StageError(ToolkitError):
    """A stage ran and did not deliver its result."""

    code = "stage"
    exit_code = 5


class NoRoute(StageError):
    """No installed plugin converts or quantizes this format as asked."""

    code = "no-route"


class UnsupportedOperators(StageError):
    """A program has operators that a route cannot convert, found before the conversion began."""

    code = "unsupported-operator"


class StageFailed(StageError):
    """The framework that does the stage's work raised an exception."""

    code = "stage-failed"


class StageCrashed(StageError):
    """The stage's process died by a signal, or ended without a result."""

    code = "stage-crashed"


class StageTimeout(StageError):
    """The stage's process outlived its time limit and was ended."""

    code = "stage-timeout"


class StageOutOfMemory(StageError):
    """The stage's process hit its memory limit, or the system killed it."""

    code = "stage-out-of-memory"


class ParityFailed(StageError):
    """A converted model does not compute what its source computes."""

    code = "parity"


class AuditFailed(StageError):
    """A file's content does not fit its label, for example an int8 file with float weights."""

    code = "audit"


class Interrupted(ToolkitError):
    """The user or the system asked to stop."""

    code = "interrupted"
    exit_code = 130


def _family(root: type[ToolkitError]) -> dict[str, type[ToolkitError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_family(child))
    return found


def from_dict(document: dict[str, Any]) -> ToolkitError:
    """Rebuilds the error that :meth:`ToolkitError.to_dict` wrote down."""
    kind = _family(ToolkitError).get(document["code"], ToolkitError)
    return kind(document["message"], where=document["where"], hint=document["hint"])
