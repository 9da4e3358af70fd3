"""What this machine is, so that a figure can be read years later."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

from toolkit.errors import SetupError
from toolkit.plugins import discover, distribution_version


def describe() -> dict[str, Any]:
    """Returns CPU, system, Python and the versions of every distribution that a plugin uses."""
    names = {"edgekit", "numpy"}
    for group in ("sources", "routes", "quantizers", "runtimes"):
        with contextlib.suppress(SetupError):  # a broken plugin is doctor's to tell
            names.update(name for plugin in discover(group).values() for name in plugin.distributions)
    versions = {name: distribution_version(name) for name in sorted(names)}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version != "-"},
    }


def _cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
