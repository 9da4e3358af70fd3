"""A content-addressed store of stage outputs that survives ``kill -9`` and races.

A stage writes into a private staging folder; one ``rename`` publishes it under the SHA-256 of everything that decided
its content. Whoever finds a key therefore finds a complete entry or none. A staging folder is held by a file lock that
dies with its process, so that what a killed process left behind can be told from work in progress, and swept. A run
holds such a lock for as long as it reads entries, so that nobody empties the store below it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from toolkit.errors import InputRejected, StoreError
from toolkit.modelfile import sha256_file

log = logging.getLogger("edgekit")

ENVIRONMENT_VARIABLE = "EDGEKIT_CACHE"
_LOG_DAYS = 14
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

digest_file = sha256_file


@dataclass(frozen=True)
class Entry:
    """One published stage output.

    Attributes:
        key: Full SHA-256 of the stage's canonical inputs.
        folder: The output folder. Read-only.
        files: SHA-256 of each file, by relative POSIX path.
    """

    key: str
    folder: Path
    files: Mapping[str, str]


def canonical(document: Any) -> bytes:
    """Serializes a document so that equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest_of(document: Any) -> str:
    """Returns the SHA-256 of a document's canonical JSON."""
    return hashlib.sha256(canonical(document)).hexdigest()


def default_root() -> Path:
    """Returns ``$EDGEKIT_CACHE``, or the platform's cache folder."""
    given = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgekit", appauthor=False))


class Store:
    """Stage outputs below one folder."""

    def __init__(self, root: Path | None = None) -> None:
        """Opens the store, makes its folders, and sweeps what killed processes left.

        Args:
            root: The folder; :func:`default_root` when absent.

        Raises:
            StoreError: The folder cannot be made or written.
        """
        self.root = (root or default_root()).absolute()
        names = ("stages", "staging", "unfinished", "logs", "users")
        self._stages, self._staging, self._unfinished, self.logs, self._users = (self.root / name for name in names)
        with self._guard():
            for folder in (self._stages, self._staging, self.logs, self._users):
                folder.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def get(self, key: str) -> Entry | None:
        """Returns a published entry after verifying every file, or ``None``.

        A damaged entry is dropped with a warning, so that the stage runs again.

        Raises:
            StoreError: The entry is there and cannot be read.
        """
        home = self._home(key)
        with self._guard():
            try:
                entry = _read_entry(key, home)
            except FileNotFoundError:
                return None
            if entry is None or not _intact(entry):
                log.warning("a damaged cache entry was dropped and will be computed again: %s", home)
                self._discard(home)
                return None
        with contextlib.suppress(OSError):  # a cache that only others may write serves all the same
            os.utime(home / "manifest.json")
        return entry

    @contextlib.contextmanager
    def staging(self, key: str, inputs: Any) -> Iterator[Path]:
        """Gives an empty folder to write into, and publishes it when the block ends without an exception.

        Args:
            key: The key to publish under.
            inputs: The document behind the key, kept for people who ask why something was recomputed.

        Raises:
            StoreError: The disk is full or the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self._guard():
                work = stack.enter_context(self._workplace(key[:8]))
                (work / "out").mkdir()
            with self._guard(full_disk_alone=True):
                yield work / "out"
            with self._guard():
                self._publish(key, work, inputs)

    @contextlib.contextmanager
    def unfinished(self, key: str) -> Iterator[Path | None]:
        """Gives a folder in which an interrupted stage finds what it left, under the same key; it goes when the block ends well.

        Where another process works for the same key there is none, as two must not write one.

        Args:
            key: The key that the output will be published under.

        Raises:
            StoreError: The folder cannot be made.
        """
        folder = self._unfinished / key
        lock = FileLock(folder.with_suffix(".lock"), thread_local=False)
        try:
            self._unfinished.mkdir(exist_ok=True)
            lock.acquire(timeout=0)
        except OSError:  # also filelock's Timeout
            yield None
            return
        try:
            with self._guard():
                folder.mkdir(exist_ok=True)
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which leaves it where there is something in it
            with contextlib.suppress(OSError):
                folder.with_suffix(".lock").unlink()
            lock.release()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps others from removing entries while the block runs. Any number of processes may use the store at a time.

        Raises:
            StoreError: The disk is full.
        """
        with contextlib.ExitStack() as stack:
            with self._guard(), _suppress_read_only(), self._gate():
                stack.enter_context(_fresh_lock(self._users, "run"))
            yield

    def log_path(self, step: str) -> Path:
        """Names a new log file; no two calls give the same name, in whatever process.

        Raises:
            StoreError: The folder of logs cannot be made.
        """
        with self._guard():
            self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', step)[:100]}-{uuid.uuid4().hex[:12]}.txt"

    def entries(self) -> list[tuple[str, int, float]]:
        """Lists key, size in bytes and time of last use of every entry.

        Raises:
            StoreError: The folder cannot be read.
        """
        found = []
        with self._guard():
            for manifest in self._stages.glob("*/*/manifest.json"):
                home = manifest.parent
                with contextlib.suppress(FileNotFoundError):  # somebody removed it meanwhile
                    size_bytes = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
                    found.append((home.name, size_bytes, manifest.stat().st_mtime))
        return sorted(found)

    def remove(self, *, unused_days: float = 0.0, force: bool = False) -> tuple[int, int]:
        """Removes entries and logs that were not used for some days; all of them by default.

        Args:
            unused_days: What was used within this time stays.
            force: Also while a run uses the store; that run may then fail.

        Returns:
            How many entries and how many bytes of them were removed.

        Raises:
            StoreError: A run uses the store, or the folder cannot be written.
        """
        with self._guard(), self._gate():
            users = self._count_users()
            if users and not force:
                hint = "wait until it is done, or force it: edgekit cache clear --force"
                raise StoreError(f"cannot be emptied: {users} {'run is' if users == 1 else 'runs are'} using it", where=str(self.root), hint=hint)
            limit = time.time() - unused_days * 86400 if unused_days else math.inf
            old = [(key, size_bytes) for key, size_bytes, used in self.entries() if used <= limit]
            for key, _ in old:
                self._discard(self._home(key))
            self._remove_logs(limit)
            self._remove_unfinished(limit)
        return len(old), sum(size_bytes for _, size_bytes in old)

    def _home(self, key: str) -> Path:
        return self._stages / key[:2] / key

    def _publish(self, key: str, work: Path, inputs: Any) -> None:
        files = {}
        for path in sorted((work / "out").rglob("*")):
            if path.is_file():
                _flush_to_disk(path)
                path.chmod(0o444)
                files[path.relative_to(work / "out").as_posix()] = digest_file(path)
        manifest = work / "manifest.json"
        manifest.write_text(json.dumps({"key": key, "inputs": inputs, "files": files}, indent=1, sort_keys=True), encoding="utf-8")
        _flush_to_disk(manifest)
        home = self._home(key)
        home.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.rename(home)
        except OSError:
            # Somebody else published the same key first, which is the same content.
            if self.get(key) is None:
                raise
        _flush_to_disk(home.parent)

    def _discard(self, home: Path) -> None:
        """Removes an entry; it is moved away first so that no reader sees half of it."""
        with self._workplace("discard") as grave, contextlib.suppress(FileNotFoundError):
            home.rename(grave / "entry")

    @contextlib.contextmanager
    def _workplace(self, name: str) -> Iterator[Path]:
        """Gives a new folder that is removed in the end, by a later sweep if need be; its lock is there before it is."""
        with _fresh_lock(self._staging, name) as lock:
            work = lock.with_suffix("")
            try:
                work.mkdir()
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _gate(self) -> FileLock:
        """One at a time: a run that begins, or a removal, so that no run begins in the middle of one."""
        return FileLock(self.root / "users.lock")

    def _count_users(self) -> int:
        return sum(not _remove_if_abandoned(marker) for marker in self._users.glob("*.lock"))

    def _remove_logs(self, limit: float) -> None:
        for old in self.logs.iterdir():
            with contextlib.suppress(OSError):
                if old.stat().st_mtime <= limit:
                    old.unlink()

    def _remove_unfinished(self, limit: float) -> None:
        """Removes what interrupted stages left and nobody came back for."""
        for folder in self._unfinished.glob("*"):
            with contextlib.suppress(OSError):
                if folder.is_dir() and folder.stat().st_mtime <= limit:
                    _remove_if_abandoned(folder.with_suffix(".lock"), folder)

    def _sweep(self) -> None:
        """Removes what killed processes left, and old logs. Others work here meanwhile, so whatever was listed may be gone."""
        self._remove_logs(time.time() - _LOG_DAYS * 86400)
        self._remove_unfinished(time.time() - _LOG_DAYS * 86400)
        self._count_users()
        for lock in self._staging.glob("*.lock"):
            _remove_if_abandoned(lock, lock.with_suffix(""))
        for work in self._staging.iterdir():
            # A folder without a lock comes from somewhere else, perhaps a file system that lost the lock.
            with contextlib.suppress(OSError):
                if work.is_dir() and not work.with_suffix(".lock").exists() and time.time() - work.stat().st_mtime > 3600:
                    shutil.rmtree(work, ignore_errors=True)

    @contextlib.contextmanager
    def _guard(self, *, full_disk_alone: bool = False) -> Iterator[None]:
        """Says what the system says as a :class:`StoreError`; of foreign code, a full disk alone."""
        hint = f"free some space, mend the permissions, or set {ENVIRONMENT_VARIABLE} to another folder"
        try:
            yield
        except OSError as error:
            if full_disk_alone and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StoreError(f"the cache cannot be used: {error.strerror or error}", where=str(error.filename or self.root), hint=hint) from error
        except InputRejected as error:
            if full_disk_alone:
                raise
            raise StoreError(f"the cache cannot be used: {error.message}", where=error.where, hint=hint) from error


def _read_entry(key: str, home: Path) -> Entry | None:
    """Reads a manifest; ``None`` when it is not one."""
    try:
        files = json.loads((home / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Entry(key, home / "out", files) if isinstance(files, dict) else None


def _intact(entry: Entry) -> bool:
    return all(_matches(entry.folder / name, digest) for name, digest in entry.files.items())


def _matches(path: Path, digest: str) -> bool:
    """Whether a file is there with the right bytes. One that cannot be read for now is an error, and no reason to drop it."""
    try:
        return digest_file(path) == digest
    except ValueError:  # no name of a file, such as one with a zero byte
        return False
    except InputRejected as error:
        if isinstance(error.__cause__, _MISSING):
            return False
        raise


@contextlib.contextmanager
def _fresh_lock(folder: Path, name: str) -> Iterator[Path]:
    """Holds a lock file of a name that nobody had before, and removes it in the end."""
    while True:
        path = folder / f"{name}-{uuid.uuid4().hex}.lock"
        lock = FileLock(path, thread_local=False)
        lock.acquire()
        if path.exists():
            break
        lock.release()  # a sweeper found the file before it was held, and removed it
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _remove_if_abandoned(path: Path, *folders: Path) -> bool:
    """Removes a lock file and what it guards if no process holds it. What cannot be decided counts as held."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except OSError:  # also filelock's Timeout
        return False
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()
    lock.release()
    return True


@contextlib.contextmanager
def _suppress_read_only() -> Iterator[None]:
    """Lets a cache serve that this user may read and not write."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


def _flush_to_disk(path: Path) -> None:
    """Asks the system to keep a file or a folder's names through a power cut."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
