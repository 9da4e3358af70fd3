"""Every way a child can die becomes the right typed error, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit import errors, worker
from toolkit.job import Job


def call(stage: str, tmp_path: Path, *, timeout_seconds: float = 60.0, memory_bytes: int | None = None, progress=None, **options):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    job = Job({}, options, out, progress) if progress else Job({}, options, out)
    return worker.run(f"tests.stages:{stage}", job, timeout_seconds=timeout_seconds, log=tmp_path / "log.txt", memory_bytes=memory_bytes)


def test_facts_come_back_and_noise_stays_in_the_log(tmp_path, capfd):
    heard = []
    facts = call("echo", tmp_path, append="!", progress=lambda *event: heard.append(event))
    assert facts == {"options": {"append": "!"}, "length": 0}
    assert heard == [(1, 2, "half"), (2, 2, "done")]
    assert capfd.readouterr().out == ""
    assert "noise" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("stage", "kind", "says"),
    [
        ("framework_error", errors.StageFailed, "ValueError: unsupported operator Foo"),
        ("segfault", errors.StageCrashed, "SIGSEGV"),
        ("abort", errors.StageCrashed, "SIGABRT"),
        ("leave", errors.StageCrashed, "status 7"),
        ("system_exit", errors.StageFailed, "SystemExit"),
        ("killed", errors.StageOutOfMemory, "SIGKILL"),
        ("infinite_fact", errors.StageFailed, "ValueError"),
        ("no_such_stage", errors.StageFailed, "AttributeError"),
    ],
)
def test_deaths_are_typed(stage, kind, says, tmp_path):
    with pytest.raises(kind, match=says) as caught:
        call(stage, tmp_path)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message


def test_a_deliberate_error_keeps_type_place_and_advice(tmp_path):
    with pytest.raises(errors.InputRejected) as caught:
        call("reject", tmp_path)
    assert (caught.value.message, caught.value.where, caught.value.hint) == ("found 3, expected 4", "tensor x", "give 4")


def test_a_hang_is_ended(tmp_path):
    with pytest.raises(errors.StageTimeout, match="ran past 2 s"):
        call("hang", tmp_path, timeout_seconds=2)


@pytest.mark.skipif(sys.platform != "linux", reason="address space limits are enforced on Linux alone")
def test_a_memory_limit_is_typed(tmp_path):
    with pytest.raises(errors.StageOutOfMemory):
        call("eat_memory", tmp_path, memory_bytes=2 << 30)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_what_a_stage_started_ends_with_it(tmp_path):
    pid = call("child_outlives", tmp_path)["pid"]
    assert not _alive(pid)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_killed_parent_takes_the_child_along(tmp_path):
    script = (
        "from pathlib import Path; from toolkit import worker; from toolkit.job import Job\n"
        f"out = Path({str(tmp_path)!r})\n"
        "options = {'started': str(out / 'started'), 'go': str(out / 'never')}\n"
        "worker.run('tests.stages:slow', Job({}, options, out), timeout_seconds=300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    try:
        _wait_for(lambda: (tmp_path / "started").exists())
        children = _children(parent.pid)
        assert children
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: not any(_alive(pid) for pid in children))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def _wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
