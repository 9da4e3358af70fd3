"""The store never shows half an entry: not after an exception, not after ``kill -9``, not in a race."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from toolkit.errors import StoreError
from toolkit.store import Store, canonical, digest_of

KEY = digest_of({"a": 1})
MANIFESTS = {
    "files is a list": '{"files": []}',
    "files is null": '{"files": null}',
    "a digest is a number": '{"files": {"sub/file.txt": 1}}',
    "a name is no name": '{"files": {"a\\u0000b": "00"}}',
    "not an object": "[1]",
    "too deep": "[" * 100_000,
}


def put(store: Store, key: str = KEY, text: str = "hello") -> None:
    with store.staging(key, {"a": 1}) as out:
        (out / "sub").mkdir()
        (out / "sub" / "file.txt").write_text(text)


def test_round_trip(tmp_path):
    store = Store(tmp_path)
    assert store.get(KEY) is None
    put(store)
    entry = store.get(KEY)
    assert entry is not None
    assert (entry.folder / "sub" / "file.txt").read_text() == "hello"
    assert list(entry.files) == ["sub/file.txt"]


def test_an_exception_publishes_nothing_and_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="boom"), store.staging(KEY, {}) as out:
        (out / "half").write_text("half")
        raise ValueError("boom")
    assert store.get(KEY) is None
    assert list((tmp_path / "staging").iterdir()) == []


def test_keys_do_not_depend_on_the_order_of_a_mapping():
    assert canonical({"b": 1, "a": [1, 2]}) == canonical({"a": [1, 2], "b": 1})
    assert canonical({"a": 1}) != canonical({"a": 1.5})
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"a": float("nan")})


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", *MANIFESTS])
def test_a_damaged_entry_is_dropped_with_a_warning(damage, tmp_path, caplog):
    store = Store(tmp_path)
    put(store)
    file = store.get(KEY).folder / "sub" / "file.txt"
    file.chmod(0o644)
    if damage == "flip":
        file.write_text("hellO")
    elif damage == "truncate":
        file.write_text("")
    elif damage == "remove":
        file.unlink()
    else:
        manifest = file.parents[2] / "manifest.json"
        manifest.write_text(MANIFESTS.get(damage, manifest.read_text()[:20]))
    assert store.get(KEY) is None
    assert "damaged" in caplog.text
    put(store, text="again")
    assert (store.get(KEY).folder / "sub" / "file.txt").read_text() == "again"


def test_two_writers_of_one_key_both_succeed(tmp_path):
    store = Store(tmp_path)
    barrier = threading.Barrier(4)

    def write() -> None:
        with store.staging(KEY, {}) as out:
            (out / "file.txt").write_text("same")
            barrier.wait()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (store.get(KEY).folder / "file.txt").read_text() == "same"
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("delay_ms", [0, 5, 20, 60])
def test_kill_9_leaves_no_half_entry_and_the_next_store_sweeps(delay_ms, tmp_path):
    script = (
        "import sys; from pathlib import Path; from toolkit.store import Store\n"
        f"store = Store(Path({str(tmp_path)!r}))\n"
        "print('ready', flush=True)\n"
        "for number in range(10**6):\n"
        "    with store.staging(f'{number:064x}', {}) as out:\n"
        "        for part in range(20):\n"
        "            (out / f'{part}.bin').write_bytes(bytes(5000))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        writer.stdout.readline()
        while not any(tmp_path.glob("stages/*/*/manifest.json")):
            time.sleep(0.01)
        time.sleep(delay_ms / 1000)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    store = Store(tmp_path)
    assert list((tmp_path / "staging").iterdir()) == []
    keys = [key for key, _, _ in store.entries()]
    assert keys
    assert all(len(store.get(key).files) == 20 for key in keys)


def test_work_in_progress_is_not_swept(tmp_path):
    store = Store(tmp_path)
    with store.staging(KEY, {}) as out:
        Store(tmp_path)
        (out / "file.txt").write_text("still here")
    assert (store.get(KEY).folder / "file.txt").read_text() == "still here"


def test_remove_counts_what_it_removes(tmp_path):
    store = Store(tmp_path)
    put(store)
    assert store.remove(unused_days=1) == (0, 0)
    count, size_bytes = store.remove()
    assert count == 1
    assert size_bytes >= len("hello")
    assert store.get(KEY) is None


def test_a_place_that_is_a_file_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "file" / "cache")
    assert caught.value.exit_code == 4
    assert "EDGEKIT_CACHE" in caught.value.hint
