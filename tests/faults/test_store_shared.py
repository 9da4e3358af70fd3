"""Several processes, one store: opening, publishing, using and emptying it at the same time; and disks that are full or read-only."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from toolkit import store as module
from toolkit.errors import InputRejected, StoreError
from toolkit.store import Store, digest_of

ROOT = Path(__file__).parents[2]
KEY = digest_of({"a": 1})


def put(store: Store, key: str = KEY) -> None:
    with store.staging(key, {"a": 1}) as out:
        (out / "file.txt").write_text("hello")


def age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * 86400,) * 2)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def user_of(root: Path) -> subprocess.Popen[str]:
    """A process that uses the store until its standard input closes."""
    script = f"import sys; from pathlib import Path; from toolkit.store import Store\nwith Store(Path({str(root)!r})).in_use():\n"
    process = start("-c", script + "    print('ready', flush=True)\n    sys.stdin.read()\n")
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def test_opening_and_publishing_at_once_fails_nobody(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from toolkit.store import Store\n"
        "number, deadline = 0, time.monotonic() + 3\n"
        "while time.monotonic() < deadline:\n"
        f"    store = Store(Path({str(tmp_path)!r}))\n"
        "    with store.staging(f'{sys.argv[1]}{number:063x}', {}) as out:\n"
        "        Store(store.root)\n"
        "        (out / 'file.txt').write_text('hello')\n"
        "    if store.get(f'{sys.argv[1]}{number:063x}') is None: raise SystemExit('lost')\n"
        "    number += 1\n"
        "print(number)\n"
    )
    processes = [start("-c", script, name) for name in "abcd"]
    published = [int(process.communicate(timeout=60)[0] or 0) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(Store(tmp_path).entries()) == sum(published)
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_sweep_removes_what_nobody_holds_and_nothing_else(tmp_path):
    staging, logs = Store(tmp_path).root / "staging", tmp_path / "logs"
    (staging / "orphan.lock").touch()
    (staging / "killed").mkdir()
    (staging / "killed.lock").touch()
    (staging / "unlocked").mkdir()
    age(staging / "unlocked", 1)
    (logs / "dangling.txt").symlink_to(logs / "absent.txt")  # as if it had vanished after it was listed
    for name, days in {"old.txt": 15, "new.txt": 13}.items():
        (logs / name).touch()
        age(logs / name, days)
    with FileLock(staging / "beginning.lock"):
        Store(tmp_path)
        assert [path.name for path in staging.iterdir()] == ["beginning.lock"]
    assert {path.name for path in logs.iterdir()} - {"dangling.txt"} == {"new.txt"}


def test_a_staging_folder_is_locked_before_it_exists(tmp_path, monkeypatch):
    store = Store(tmp_path)
    made, mkdir = [], Path.mkdir

    def watched(path: Path, *words, **options) -> None:
        if path.parent == tmp_path / "staging":
            made.append(path.with_suffix(".lock").exists())
            Store(tmp_path)
        mkdir(path, *words, **options)

    monkeypatch.setattr(Path, "mkdir", watched)
    put(store)
    assert made == [True]
    assert store.get(KEY) is not None


def test_what_was_just_used_is_not_pruned(tmp_path):
    store = Store(tmp_path)
    other = digest_of({"a": 2})
    for key in (KEY, other):
        put(store, key)
        age(tmp_path / "stages" / key[:2] / key / "manifest.json", 60)
    assert store.get(KEY) is not None
    assert store.remove(unused_days=30)[0] == 1
    assert [key for key, _, _ in store.entries()] == [KEY]


def test_a_cache_that_one_may_only_read_still_serves(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with Store(tmp_path).in_use():
        assert store.get(KEY) is not None


def test_nobody_empties_a_store_in_use(tmp_path):
    store = Store(tmp_path)
    put(store)
    log = store.log_path("a")
    log.write_text("log")
    first, second = user_of(tmp_path), user_of(tmp_path)
    with pytest.raises(StoreError, match="2 runs are using it"):
        store.remove()
    end(first)
    with pytest.raises(StoreError, match="1 run is using it") as caught:
        store.remove(unused_days=30)
    assert "--force" in caught.value.hint
    assert store.get(KEY) is not None
    assert log.exists()
    second.send_signal(signal.SIGKILL)
    end(second)
    assert store.remove()[0] == 1
    assert list((tmp_path / "users").iterdir()) == []


def test_force_empties_a_store_in_use(tmp_path):
    store = Store(tmp_path)
    put(store)
    process = user_of(tmp_path)
    assert store.remove(force=True)[0] == 1
    end(process)


def test_no_run_begins_while_the_store_is_emptied(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store)
    said, discard = [], Store._discard

    def begin() -> None:
        with Store(tmp_path).in_use():
            said.append("begun")

    thread = threading.Thread(target=begin)

    def slowly(self: Store, home: Path) -> None:
        thread.start()
        time.sleep(0.3)
        discard(self, home)
        said.append("emptied")

    monkeypatch.setattr(Store, "_discard", slowly)
    store.remove()
    thread.join()
    assert said == ["emptied", "begun"]


def test_the_command_line_asks_for_force(tmp_path):
    put(Store(tmp_path))
    process = user_of(tmp_path)
    environment = {**os.environ, "EDGEKIT_CACHE": str(tmp_path)}

    def cache(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "toolkit", "cache", *words], cwd=ROOT, env=environment, capture_output=True, text=True)

    for refused in (cache("clear"), cache("prune", "--days", "0")):
        assert refused.returncode == 4
        assert "1 run is using it" in refused.stderr
    assert cache("clear", "--force").returncode == 0
    assert Store(tmp_path).entries() == []
    end(process)


def test_log_names_differ_and_clearing_removes_logs(tmp_path):
    store = Store(tmp_path)
    paths = [store.log_path("measure:a/b c") for _ in range(50)]
    assert len(set(paths)) == 50
    assert all(path.parent == tmp_path / "logs" and path.name.startswith("measure-a-b-c-") for path in paths)
    for path in paths:
        path.write_text("log")
    store.remove(unused_days=1)
    assert len(list(store.logs.iterdir())) == 50
    store.remove()
    assert list(store.logs.iterdir()) == []


def test_an_entry_that_cannot_be_read_is_an_error_and_is_kept(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store)

    def refuse(path: Path) -> str:
        raise InputRejected("cannot be read: Too many open files", where=str(path)) from OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(module, "digest_file", refuse)
        with pytest.raises(StoreError, match="Too many open files"):
            store.get(KEY)
    assert store.get(KEY) is not None
    manifest = tmp_path / "stages" / KEY[:2] / KEY / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        store.get(KEY)


def test_a_disk_that_fills_while_publishing_is_a_store_error(tmp_path, monkeypatch):
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreError, match="No space left"):
            put(store)
    assert store.get(KEY) is None
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that this user has not")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("place", ["out", "elsewhere"])
def test_a_full_disk_is_a_store_error(place, tiny_disk):
    """A stage's own files fill the disk, or something else does, so that publishing fails."""
    store = Store(tiny_disk)
    with pytest.raises(StoreError, match="No space left") as caught, store.staging(KEY, {}) as out:
        (out / "file.txt").write_text("hello")
        try:
            (out if place == "out" else tiny_disk).joinpath("filler").write_bytes(bytes(1 << 20))
        except OSError:
            if place == "out":
                raise
    assert "free some space" in caught.value.hint
    (tiny_disk / "filler").unlink(missing_ok=True)
    put(store)
    assert store.get(KEY) is not None


def test_what_else_a_block_raises_passes_as_it_is(tmp_path):
    with pytest.raises(PermissionError), Store(tmp_path).staging(KEY, {}):
        raise PermissionError(errno.EACCES, "Permission denied", "the user's own file")


def test_what_is_unfinished_stays_until_it_is_finished_emptied_or_old(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.unfinished("key") as kept:
        (kept / "state").write_text("half")
        with store.unfinished("key") as other:
            assert other is None, "two must not write one"
        raise KeyboardInterrupt
    with store.unfinished("key") as kept:
        assert (kept / "state").read_text() == "half"
    with store.unfinished("key") as kept:
        assert not list(kept.iterdir())
    folder = tmp_path / "unfinished" / "old"
    folder.mkdir()
    Store(tmp_path)
    assert folder.exists()
    os.utime(folder, (0, 0))
    Store(tmp_path)
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), store.unfinished("key") as kept:
        (kept / "state").write_text("half")
        raise KeyboardInterrupt
    store.remove()
    assert not list((tmp_path / "unfinished").iterdir())
