"""A server that imports a framework can itself be killed: the error says what happened, the next stage runs, nothing stays."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from toolkit import errors
from toolkit.forkserver import ForkServer
from toolkit.job import Job
from toolkit.worker import Workers, _last_words

PRELOAD = ("decimal",)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="servers fork, which is safe on Linux alone")


def echo(workers: Workers, out: Path, preload: tuple[str, ...] = PRELOAD):
    out.mkdir(exist_ok=True)
    return workers.run("tests.stages:echo", Job({}, {}, out), timeout_seconds=30, preload=preload)


def kill_server_below_a_stage(workers: Workers, folder: Path, how: signal.Signals) -> Exception | None:
    """Kills the server while a stage of it runs; returns what the stage's caller got."""
    options = {"started": str(folder / "started"), "go": str(folder / "never")}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(workers.run, "tests.stages:slow", Job({}, options, folder), timeout_seconds=30, preload=PRELOAD)
        deadline = time.monotonic() + 30
        while not (folder / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(workers._servers[PRELOAD]._server._process.pid, how)
        return running.exception(timeout=30)


@pytest.mark.parametrize(("how", "kind"), [(signal.SIGKILL, errors.StageOutOfMemory), (signal.SIGSEGV, errors.StageCrashed)])
def test_a_server_killed_below_a_stage_is_no_import_error(how, kind, tmp_path):
    with Workers() as workers:
        error = kill_server_below_a_stage(workers, tmp_path, how)
        assert type(error) is kind
        assert how.name in str(error)
        assert "import" not in str(error)
        assert echo(workers, tmp_path / "out")["length"] == 0


def test_a_death_during_the_imports_says_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "deadly_framework.py").write_text("import os, signal\nprint('loading kernels', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Workers() as workers, pytest.raises(errors.StageCrashed, match=r"cannot be imported.*loading kernels"):
        echo(workers, tmp_path / "out", ("deadly_framework",))


def test_no_output_of_a_server_stays_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "stage").mkdir()
    with Workers() as workers:
        kill_server_below_a_stage(workers, tmp_path / "stage", signal.SIGKILL)
        echo(workers, tmp_path / "out")
        with pytest.raises(errors.StageCrashed):
            echo(workers, tmp_path / "out", ("no_such_framework",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "stage"]


def test_a_prepared_server_is_the_one_that_stages_are_forked_from(tmp_path):
    with Workers() as workers:
        workers.prepare(PRELOAD)
        server = workers._servers[PRELOAD]
        echo(workers, tmp_path / "out")
        assert workers._servers == {PRELOAD: server} and server.alive
    assert not server.alive


def test_a_server_imports_what_comes_next_beside_a_stage_and_passes_over_what_it_cannot_import(tmp_path):
    modules = ["colorsys", "no_such_module", "tabnanny"]
    job = Job({}, {"modules": modules}, tmp_path)
    with Workers() as workers:
        call = partial(workers.run, "tests.stages:imported", job, timeout_seconds=30, preload=PRELOAD)
        assert call(warm=modules) == {"imported": []}, "the stage that runs meanwhile is not held up by them"
        deadline = time.monotonic() + 30
        while (found := call()["imported"]) != ["colorsys", "tabnanny"]:
            assert time.monotonic() < deadline, found
        assert len(workers._servers) == 1


def test_a_replaced_server_is_stopped(tmp_path):
    with Workers() as workers:
        kill_server_below_a_stage(workers, tmp_path, signal.SIGKILL)
        dead = workers._servers[PRELOAD]
        echo(workers, tmp_path / "out")
        assert workers._servers[PRELOAD] is not dead
        assert dead._server._process.stdout.closed
        assert dead._server._process.stdin.closed


def test_a_log_that_cannot_be_read_has_no_last_words(tmp_path):
    assert _last_words(tmp_path / "absent.txt") == ""
    assert _last_words(tmp_path) == ""
    (tmp_path / "log.txt").write_text("one\nFatal Python error: Segmentation fault\ntwo\n")
    assert _last_words(tmp_path / "log.txt") == "Fatal Python error: Segmentation fault"


def test_a_caller_who_gives_up_while_progress_arrives_does_no_harm():
    class Vanishing(dict):
        """As if the caller's thread forgot its job right after somebody looked whether it is there."""

        def __contains__(self, job: object) -> bool:
            found = super().__contains__(job)
            self.clear()
            return found

    server = ForkServer(PRELOAD)
    try:
        server._progress = Vanishing({7: print})
        server._replies = Vanishing()
        server._hear(["progress", 7, 1, 2, "half"])
        server._hear(["progress", 8, 1, 2, "half"])
        server._hear(["ended", 8, 0])
    finally:
        server.stop()
