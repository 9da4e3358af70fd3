"""What every verb shares: options, output, errors and exit codes."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from toolkit.cli.progress import Progress
    from toolkit.errors import ToolkitError


class Format(StrEnum):
    """How a result is written to standard output."""

    text = "text"
    json = "json"


class TaskName(StrEnum):
    """The tasks of :data:`toolkit.config.Task`, which would cost the help page half a second to import."""

    image_classification = "image-classification"
    text_classification = "text-classification"
    audio_classification = "audio-classification"
    image_segmentation = "image-segmentation"
    token_classification = "token-classification"
    text_generation = "text-generation"
    automatic_speech_recognition = "automatic-speech-recognition"


EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE: what a shell reports of a program that the signal ended
_WIDE = 240

FormatOption = Annotated[Format, typer.Option("--format", help="How the result is printed.", callback=lambda value: _remember(format=value))]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more: cache keys, logs, tracebacks.", callback=lambda value: _remember(verbose=value))
]
CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", "-c", help="Representative samples: .npz, or a folder of .npy.", show_default=False)
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="Calibration recipe, by name or path.")]
SamplesOption = Annotated[int | None, typer.Option("--samples", "-n", min=1, help="Calibration samples.", show_default="the recipe's")]
EvaluationOption = Annotated[
    Path | None, typer.Option("--evaluation", help="Samples kept for evaluation: calibration must use none of them.", show_default=False)
]
TargetOption = Annotated[str, typer.Option("--target", "-t", help="A shipped target's name, or a path to a .toml file.")]
ProjectArgument = Annotated[Path, typer.Argument(help="Folder with an edgekit.toml, or the file itself.", show_default="the current folder")]
ModelArgument = Annotated[Path, typer.Argument(help="Model file or folder, such as .onnx, .tflite or .pt2.", show_default=False)]
TaskOption = Annotated[TaskName, typer.Option("--task", help="What the model does.")]
JobsOption = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Steps that may run side by side.", show_default="at most 2")]

_state: dict[str, Any] = {"format": Format.text, "verbose": False, "interrupted": False}


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
    """A console as wide as the terminal or COLUMNS; wide enough for one line a row when a file or a log is written."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) else _WIDE
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=None if stream.isatty() else width)


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
        The exit code, as listed in :mod:`toolkit.errors`; 141 when whoever read the output has gone.
    """
    from toolkit.errors import Interrupted, SetupError

    _listen_to_signals()
    sys.stdout, sys.stderr = (cast(TextIO, _Outlet(stream)) if stream else stream for stream in (sys.stdout, sys.stderr))
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if _asks_for_json(sys.argv[1:]):
        print_as(Format.json)
    try:
        code = _finish(command)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except ClosedPipe:
        _write_nowhere(sys.__stdout__, sys.__stderr__)
        return EXIT_CLOSED_PIPE
    except Unwritable as error:
        _write_nowhere(sys.__stdout__)
        typer.echo(f"error: the output cannot be written: {error}", err=True)
        return SetupError.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    return code


def _finish(command: Callable[[], Any]) -> int:
    from toolkit.errors import Interrupted, ToolkitError

    try:
        code = command()
    except ToolkitError as error:
        return _complain(error)
    except (KeyboardInterrupt, EOFError):
        return _complain(Interrupted("interrupted"))
    except Exception as error:  # noqa: BLE001  the last line of defence: a bug must not look like a user's mistake
        return _complain(Interrupted("interrupted")) if _state["interrupted"] else _refuse(error)
    if code == Interrupted.exit_code and _state["interrupted"]:  # Typer makes a silent exit code of an interrupt
        return _complain(Interrupted("interrupted"))
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


def _refuse(error: Exception) -> int:
    """Typer's own usage errors, and everything nobody thought of."""
    from toolkit.errors import ConfigError, ToolkitError

    if hasattr(error, "format_message"):
        said = error.format_message().replace("Value error, ", "")
        if said.startswith("Usage:"):
            typer.echo(said, err=True)
            return ConfigError.exit_code
        context = getattr(error, "ctx", None)
        return _complain(ConfigError(said, hint=f"run: {context.command_path if context else 'edgekit'} --help"))
    if wants_json():
        typer.echo(json.dumps({"error": ToolkitError(f"{type(error).__name__}: {error}").to_dict()}, indent=2))
    logging.getLogger("edgekit").error("this is a bug in edgekit; please report it with the lines below", exc_info=error)
    return ToolkitError.exit_code


def _asks_for_json(words: Sequence[str]) -> bool:
    """Looks for the option itself: a usage error is raised before any option is read."""
    own = words[: words.index("--")] if "--" in words else words
    return "--format=json" in own or any(name in ("--format", "-f") and value == "json" for name, value in itertools.pairwise(own))


def _listen_to_signals() -> None:
    """Makes a polite termination (``kill``, a cancelled CI job) clean up like Ctrl-C, once: cleaning up is not interrupted."""

    def stop(*_: Any) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        _state["interrupted"] = True
        raise KeyboardInterrupt

    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, OSError):
            if signal.getsignal(name) is not signal.SIG_IGN:
                signal.signal(name, stop)


class Unwritable(BaseException):
    """Standard output or error takes no more. No library should handle it: Rich and Typer would exit with 1, a missed budget."""


class ClosedPipe(Unwritable):
    """Whoever read our output has gone, which is no error."""


class _Outlet:
    """Standard output or error: a closed pipe is told from every other one, and tables leave no blanks at line ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._telling():
            self._stream.write(text if self._stream.isatty() else re.sub(" +(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        with self._telling():
            self._stream.flush()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            raise ClosedPipe from error
        except OSError as error:
            raise Unwritable(error.strerror) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _write_nowhere(*streams: TextIO | None) -> None:
    """Keeps the interpreter from complaining when it flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, cast(TextIO, stream).fileno())
