"""Stages on a CPU with fewer instructions than this one, emulated by QEMU in user mode.

Neither ONNX Runtime nor LiteRT can be told to leave instructions alone; both ask the CPU what it has. QEMU answers for another
CPU and executes no instruction that this one lacks. Arithmetic is exact to the bit, with one exception: QEMU computes the
estimates of reciprocals and square roots (RCPPS, RSQRTPS) exactly, where silicon gives 12 bits.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from toolkit import plugins
from toolkit.errors import StageCrashed, StageTimeout, from_dict
from toolkit.job import Facts, Job

CPUS = ("Haswell", "SandyBridge", "Nehalem")
"""AVX2 without AVX-512 and VNNI; AVX without FMA; SSE 4.2. QEMU cannot add what it has no code for, so none of them is newer."""

_EMULATOR = "qemu-x86_64"
_CPU_FACTS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")  # x86's and ARM's lines of /proc/cpuinfo
_CHILD = Path(plugins.__file__).with_name("worker_child.py")


def unavailable() -> str:
    """Says why no CPU can be emulated here; empty when it can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"{_EMULATOR} emulates other CPUs on x86-64 Linux only"
    return "" if shutil.which(_EMULATOR) else f"{_EMULATOR} is not installed"


def this_cpu() -> str:
    """Returns a digest of what decides which kernels run here: the CPU's model and instructions, and whether others can be emulated."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        first = f"{platform.processor()} {platform.machine()}"
    lasting = [line for line in first.splitlines() if line.startswith(_CPU_FACTS)]
    return hashlib.sha256("\n".join([*lasting, unavailable()]).encode()).hexdigest()


def run_on(cpu: str, stage: str, job: Job, *, timeout_seconds: float) -> Facts:
    """Runs a stage in a process that believes to be on another CPU.

    The process belongs to this one's group, so that it ends with it.

    Args:
        cpu: QEMU's name of the CPU.
        stage: Dotted name of the stage.
        job: What it works on.
        timeout_seconds: When it is ended.

    Raises:
        ToolkitError: What the stage raised.
        StageCrashed: The process died, for example of an instruction that the CPU has not.
        StageTimeout: It took too long.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-emulated-") as scratch:
        folder = Path(scratch)
        inputs = {role: str(path) for role, path in job.inputs.items()}
        request = {"stage": stage, "inputs": inputs, "options": dict(job.options), "out": str(job.out)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        status = _execute([_EMULATOR, "-cpu", cpu, sys.executable, "-P", str(_CHILD), scratch], timeout_seconds)
        try:
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StageCrashed(f"ended with status {status} on an emulated {cpu}", where=stage, hint="leave this CPU out") from None
    if "error" in result:
        raise from_dict(result["error"])
    facts: Facts = result["facts"]
    return facts


def _execute(command: list[str], timeout_seconds: float) -> int:
    # The child ends when its standard input closes, so that is kept open until it has ended.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise StageTimeout(f"took more than {timeout_seconds:g} s under emulation", hint="give fewer samples, or leave this CPU out") from error
