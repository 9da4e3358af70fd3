"""Child processes: how one is started, heard and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_SCRIPT = Path(__file__).with_name("worker_child.py")
# Frameworks that print at import, and a fixed order of hashes, which some exporters let into their files.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}


class Child:
    """A running ``worker_child.py``, in a process group of its own."""

    def __init__(self, arguments: list[str], log: IO[bytes], hear: Callable[[list[Any]], None]) -> None:
        """Starts it.

        Args:
            arguments: Its command-line arguments.
            log: Where its output goes.
            hear: Called with each of its messages, from a thread. It must not raise: nobody would hear any more.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "faulthandler", str(_SCRIPT), *arguments],
            stdin=subprocess.PIPE,  # closes when we die, which tells the child to end
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
        self._hear = hear
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; ``None`` while it runs."""
        return self._process.poll()

    def wait(self, timeout_seconds: float) -> int:
        """Waits for its end and returns its exit status.

        Raises:
            subprocess.TimeoutExpired: It runs on.
        """
        return self._process.wait(timeout_seconds)

    def say(self, message: dict[str, Any]) -> None:
        """Writes one line to its standard input; a dead child hears nothing."""
        stream = self._process.stdin
        if stream:
            with contextlib.suppress(BrokenPipeError, ValueError):  # dead, or hung up by another thread
                stream.write(json.dumps(message).encode() + b"\n")
                stream.flush()

    def hang_up(self, timeout_seconds: float) -> None:
        """Closes its standard input and gives it some time to end by itself."""
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_seconds)

    def listen_out(self, timeout_seconds: float) -> None:
        """Waits until its last message was heard."""
        self._listener.join(timeout_seconds)

    def end(self) -> None:
        """Ends it with everything that it started, and hears its last message. May be called again."""
        kill_group(self._process.pid)
        self.hang_up(60)
        self.listen_out(5)
        if self._process.stdout:
            self._process.stdout.close()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError, TypeError):
                self._hear(json.loads(line))


def kill_group(pid: int) -> None:
    """Kills a process group; elsewhere than on POSIX systems, the process alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)
