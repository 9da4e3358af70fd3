"""What holds for all tests."""

import contextlib
import signal
from importlib.util import find_spec

import pytest

# Whoever starts a job in the background of a shell makes it deaf to Ctrl-C, and so all of its children; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Edgekit gives each framework a process of its own. Tests do not, and triton crashes when it is imported after TensorFlow.
if find_spec("tensorflow") and find_spec("triton"):
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401


@pytest.fixture(autouse=True)
def plain_output(monkeypatch):
    """A test that calls the command line in this process leaves no output format behind for the next one, and no terminal's width counts."""
    from toolkit.cli import common

    monkeypatch.delenv("COLUMNS", raising=False)
    before = dict(common._state)
    yield
    common._state.update(before)
