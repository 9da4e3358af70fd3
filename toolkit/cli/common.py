"""What every verb shares: options, output, errors and exit codes."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.cli.progress import Progress
    from toolkit.errors import ToolkitError


class Format(StrEnum):
    """How a result is written to standard output."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How the result is printed.", callback=lambda value: _remember(format=value))]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more: cache keys, logs, tracebacks.", callback=lambda value: _remember(verbose=value))
]
TargetOption = Annotated[str, typer.Option("--target", "-t", help="A shipped target's name, or a path to a .toml file.")]
ProjectArgument = Annotated[Path, typer.Argument(help="Folder with an edgekit.toml, or the file itself.", show_default="the current folder")]
ModelArgument = Annotated[Path, typer.Argument(help="Model file: .onnx, .tflite or .pt2.", show_default=False)]
JobsOption = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Steps that may run side by side.", show_default="at most 2")]

_state: dict[str, Any] = {"format": Format.text, "verbose": False}


def _remember(**option: Any) -> Any:
    """Keeps an option where the error handler, which runs outside the verb, can see it."""
    _state.update(option)
    if _state["verbose"]:
        logging.getLogger("edgekit").setLevel(logging.DEBUG)
    return next(iter(option.values()))


def print_as(format: Format) -> None:
    """Chooses how results are printed, for a verb whose own options say it in another way."""
    _remember(format=format)


def wants_json() -> bool:
    """Whether standard output is for machines."""
    return _state["format"] == Format.json


def verbose() -> bool:
    """Whether the user asked for more."""
    return bool(_state["verbose"])


def emit(result: Any, text: Callable[[Console], None]) -> None:
    """Prints a result to standard output, as JSON or as text.

    Args:
        result: A frozen record, or plain data.
        text: Prints it for people.
    """
    if wants_json():
        document = result.model_dump(mode="json", by_alias=True) if hasattr(result, "model_dump") else result
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    text(console())


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; wide enough for one line a row when a file or a log is written."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else 240)


def progress() -> Progress:
    """A listener that draws on standard error: bars on a terminal, plain lines elsewhere."""
    from toolkit.cli.progress import make

    return make(console(stderr=True), verbose=verbose())


def facts(rows: dict[str, object]) -> Callable[[Console], None]:
    """Renders name-value pairs."""

    def show(out: Console) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in rows.items():
            table.add_row(f"[bold]{name}[/bold]", str(value).replace("[", r"\["))
        out.print(table)

    return show


def show_version(value: bool) -> None:
    """Prints the version and exits."""
    if value:
        from toolkit.plugins import distribution_version

        typer.echo(f"edgekit {distribution_version('edgekit')}")
        raise typer.Exit


def guarded(command: Callable[[], Any]) -> int:
    """Runs the command; every way out becomes an exit code and at most one message.

    Returns:
        The exit code, as listed in :mod:`toolkit.errors`.
    """
    _listen_to_signals()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    from toolkit.errors import Interrupted, ToolkitError

    try:
        code = command()
    except ToolkitError as error:
        return _complain(error)
    except (KeyboardInterrupt, EOFError):
        return _complain(Interrupted("interrupted"))
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except Exception as error:  # noqa: BLE001  the last line of defence: a bug must not look like a user's mistake
        return _report_bug(error)
    return code if isinstance(code, int) else 0


def _complain(error: ToolkitError) -> int:
    if wants_json():
        typer.echo(json.dumps({"error": error.to_dict()}, indent=2))
    if error.__cause__ is not None and verbose():
        logging.getLogger("edgekit").debug("cause", exc_info=error.__cause__)
    typer.echo(f"error: {error}", err=True)
    if error.hint:
        typer.echo(f"  -> {error.hint}", err=True)
    return error.exit_code


def _report_bug(error: Exception) -> int:
    """Click's own usage errors, and everything nobody thought of."""
    exit_code = getattr(error, "exit_code", None)
    if isinstance(exit_code, int) and hasattr(error, "format_message"):
        typer.echo(f"error: {error.format_message()}", err=True)
        typer.echo("  -> run with --help to see what is expected", err=True)
        return exit_code
    logging.getLogger("edgekit").error("this is a bug in edgekit; please report it with the lines below", exc_info=error)
    return 70


def _listen_to_signals() -> None:
    """Makes a polite termination (``kill``, a cancelled CI job) clean up like Ctrl-C."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGTERM, stop)
