"""``kill -9`` and Ctrl-C at any moment of a run: nothing half-written, nothing left running, and the next run continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.store import Store

ROOT = Path(__file__).parents[2]
SCRIPT = """
from pathlib import Path
from toolkit.pipeline.execute import execute
from toolkit.pipeline.steps import Need, Step
from toolkit.store import Store
chain = [Step("s0", "tests.stages:big", {"n": 0})]
for n in range(1, 8):
    chain.append(Step(f"s{n}", "tests.stages:big", {"n": n}, needs={"before": Need(f"s{n - 1}", "big.bin")}))
results = execute(chain, Store(Path(CACHE)), jobs=2)
import json
print(json.dumps({id: [result.record.status, result.record.key] for id, result in results.items()}))
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")


def start(cache: Path) -> subprocess.Popen[str]:
    code = SCRIPT.replace("CACHE", repr(str(cache)))
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(cache: Path) -> dict[str, list[str]]:
    process = start(cache)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.parametrize("moment_seconds", [0.2, 0.6, 1.0, 1.5])
def test_kill_9_and_continue(moment_seconds, tmp_path):
    reference = finish(tmp_path / "unbroken")
    process = start(tmp_path / "cache")
    time.sleep(moment_seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = Store(tmp_path / "cache")
    survivors = {key for key, _, _ in store.entries()}
    assert all(store.get(key) is not None for key in survivors)
    after = finish(tmp_path / "cache")
    assert {id: key for id, (_, key) in after.items()} == {id: key for id, (_, key) in reference.items()}
    assert {key for status, key in after.values() if status == "cached"} == survivors
    _nothing_left(tmp_path / "cache")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_end_is_130_and_leaves_nothing(how, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "edgekit.toml").write_text(
        'schema = 1\nname = "slow"\ntask = "image-classification"\ntargets = ["desktop-ort"]\n'
        'schemes = ["float32"]\n[data]\nfactory = "code:load"\n[model]\nfactory = "code:build"\n'
    )
    (tmp_path / "project" / "code.py").write_text(
        f"import time\nfrom pathlib import Path\n"
        f"def load():\n    Path({str(tmp_path / 'started')!r}).touch()\n    time.sleep(600)\ndef build(): pass\n"
    )
    pytest.importorskip("torch")
    environment = {**os.environ, "EDGEKIT_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "toolkit", "run", str(tmp_path / "project")]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "project" / "edgekit-out").exists()
    _nothing_left(tmp_path / "cache")


def _nothing_left(cache: Path) -> None:
    assert list((cache / "staging").iterdir()) == []
    deadline = time.monotonic() + 10
    while left := [pid for pid in _processes() if str(cache) in _command(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _processes() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid()]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return ""
