"""Time of every operator in ExecuTorch, from the event trace (ETDump) that its runtime writes.

A program keeps no layers of the model it came from (they are in a separate ETRecord), so operators are told by name only.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from toolkit.errors import StageFailed
from toolkit.plugins import Event
from toolkit.runtimes.executorch import ExecuTorchSession

_BLOCK = "Execute"
# Spans that only contain others.
_CONTAINERS = ("Method::execute", "Program::load_method", "OPERATOR_CALL")
_DELEGATE = "DELEGATE_CALL"


class ProfiledExecuTorchSession(ExecuTorchSession):
    """A loaded program whose operators are timed.

    Attributes:
        signature: Inputs and outputs of the loaded program.
    """

    def events(self) -> list[list[Event]]:
        """Ends the recording and returns the events of each run.

        Raises:
            StageFailed: The runtime recorded nothing, as one built without its event tracer does.
        """
        from executorch.devtools import Inspector

        with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
            trace = Path(folder) / "trace.etdp"
            self._module.write_etdump_result_to_file(str(trace), str(Path(folder) / "debug.bin"))
            if not trace.is_file():
                raise StageFailed("ExecuTorch recorded nothing", hint="install the executorch wheel, whose runtime has the event tracer")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it misses the tensors' values, which nobody asked for
                blocks = [block for block in Inspector(etdump_path=str(trace)).event_blocks if block.name == _BLOCK]
        recorded = [event for block in blocks for event in block.events if event.perf_data is not None and event.name not in _CONTAINERS]
        # A delegate that tells its own kernels is not counted a second time as a whole.
        delegated = any(event.is_delegated_op for event in recorded)
        timed = [event for event in recorded if not (delegated and event.name == _DELEGATE)]
        count = max((len(event.perf_data.raw) for event in timed), default=0)
        return [[_event(event, event.perf_data.raw[run]) for event in timed if run < len(event.perf_data.raw)] for run in range(count)]


def _event(recorded: Any, ms: float) -> Event:
    """A kernel of a delegate is ``Convolution (NHWC, F32) IGEMM #2``, one of ExecuTorch's own ``native_call_aten::add.out``."""
    name = str(recorded.name)
    plain = name.rpartition(" #")[0] or name
    operator = plain.removeprefix("native_call_").split(" (")[0]
    backend = recorded.delegate_backend_name or "delegate"
    return Event(name, operator, f"{backend} {plain}" if recorded.is_delegated_op else "portable", max(0.0, float(ms)))
