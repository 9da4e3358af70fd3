"""Every way a child can die becomes the right typed error, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from toolkit import errors
from toolkit.job import Job
from toolkit.worker import Workers


@pytest.fixture(params=[(), ("decimal",)], ids=["fresh", "forked"], autouse=True)
def preload(request):
    """Every test runs both ways a child can come into being."""
    return request.param


@pytest.fixture
def call(preload, tmp_path):
    with Workers() as workers:
        yield partial(_call, workers, preload, tmp_path)


def _call(workers, preload, tmp_path: Path, stage: str, *, timeout_seconds: float = 60.0, progress=None, **options):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    job = Job({}, options, out, progress) if progress else Job({}, options, out)
    return workers.run(f"tests.stages:{stage}", job, timeout_seconds=timeout_seconds, log=tmp_path / "log.txt", preload=preload)


def test_facts_come_back_and_noise_stays_in_the_log(call, tmp_path, capfd):
    heard = []
    facts = call("echo", append="!", progress=lambda *event: heard.append(event))
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
        ("eat_memory", errors.StageOutOfMemory, "ran out of memory"),
        ("infinite_fact", errors.StageFailed, "ValueError"),
        ("no_such_stage", errors.StageFailed, "AttributeError"),
    ],
)
def test_deaths_are_typed(stage, kind, says, call):
    with pytest.raises(kind, match=says) as caught:
        call(stage)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message


def test_a_deliberate_error_keeps_type_place_and_advice(call):
    with pytest.raises(errors.InputRejected) as caught:
        call("reject")
    assert (caught.value.message, caught.value.where, caught.value.hint) == ("found 3, expected 4", "tensor x", "give 4")


def test_a_hang_is_ended(call):
    with pytest.raises(errors.StageTimeout, match="ran past 2 s"):
        call("hang", timeout_seconds=2)


@pytest.mark.parametrize("mistake", [ValueError("boom"), ConnectionError("boom"), SystemExit("boom")], ids=lambda mistake: type(mistake).__name__)
def test_what_a_listener_raises_is_raised_after_the_stage(mistake, call, tmp_path):
    def listener(*event):
        raise mistake

    with pytest.raises(type(mistake), match="boom") as caught:
        call("echo", append="!", progress=listener, timeout_seconds=10)
    assert caught.value is mistake
    assert (tmp_path / "out" / "text.txt").read_text() == "!"
    heard = []
    assert call("echo", progress=lambda *event: heard.append(event), timeout_seconds=10)["length"] == 0
    assert len(heard) == 2


def test_neither_a_listeners_mistake_nor_the_stages_error_is_lost(call):
    mistake = KeyError("boom")

    def listener(*event):
        raise mistake

    with pytest.raises(KeyError) as caught:
        call("tell_and_reject", progress=listener)
    assert caught.value is mistake
    assert isinstance(caught.value.__cause__, errors.InputRejected)


def test_progress_that_comes_after_the_time_limit_does_no_harm(call):
    for _ in range(4):
        with pytest.raises(errors.StageTimeout):
            call("tell_forever", timeout_seconds=0.4)
    assert call("echo", timeout_seconds=10)["length"] == 0


def test_stopped_workers_start_nothing(preload, tmp_path):
    workers = Workers()
    workers.stop()
    before = _descendants(os.getpid())
    with pytest.raises(errors.Interrupted) as caught:
        _call(workers, preload, tmp_path, "echo")
    assert caught.value.exit_code == 130
    assert _descendants(os.getpid()) == before


def test_a_stage_that_runs_while_the_workers_stop_is_interrupted(preload, tmp_path):
    options = {"started": str(tmp_path / "started"), "go": str(tmp_path / "never")}
    with Workers() as workers, ThreadPoolExecutor(1) as pool:
        running = pool.submit(_call, workers, preload, tmp_path, "slow", **options)
        _wait_for(lambda: (tmp_path / "started").exists())
        workers.stop()
        with pytest.raises(errors.Interrupted):
            running.result(timeout=30)


@pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
def test_what_a_stage_started_ends_with_it(call):
    pid = call("child_outlives")["pid"]
    _wait_for(lambda: not _alive(pid), seconds=5)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_killed_parent_takes_the_child_along(preload, tmp_path):
    script = (
        "from pathlib import Path; from toolkit.worker import Workers; from toolkit.job import Job\n"
        f"out = Path({str(tmp_path)!r})\n"
        "options = {'started': str(out / 'started'), 'go': str(out / 'never')}\n"
        f"Workers().run('tests.stages:slow', Job({{}}, options, out), timeout_seconds=300, preload={preload!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    try:
        _wait_for(lambda: (tmp_path / "started").exists())
        children = _descendants(parent.pid)
        assert len(children) == (2 if preload else 1)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: not any(_alive(pid) for pid in children))


def _descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return children + [below for child in children for below in _descendants(child)]


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


def test_two_owners_do_not_end_each_others_work(tmp_path, preload):
    (tmp_path / "slow").mkdir()
    options = {"started": str(tmp_path / "started"), "go": str(tmp_path / "go")}
    with Workers() as mine, ThreadPoolExecutor(1) as pool:
        job = Job({}, options, tmp_path / "slow")
        mine_runs = pool.submit(mine.run, "tests.stages:slow", job, timeout_seconds=60, preload=preload)
        _wait_for(lambda: (tmp_path / "started").exists())
        with Workers() as others:
            _call(others, preload, tmp_path, "echo")
        (tmp_path / "go").touch()
        assert mine_runs.result(timeout=30) == {}


def test_a_framework_that_cannot_be_imported_is_typed(tmp_path):
    with Workers() as workers, pytest.raises(errors.StageCrashed, match=r"cannot be imported.*no_such_framework"):
        _call(workers, ("no_such_framework",), tmp_path, "echo")
