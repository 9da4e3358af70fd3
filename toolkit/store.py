"""A content-addressed store of stage outputs that survives ``kill -9`` and races.

A stage writes into a private staging folder; one ``rename`` publishes it under the SHA-256 of everything that decided
its content. Whoever finds a key therefore finds a complete entry or none. A staging folder is held by a file lock that
dies with its process, so that what a killed process left behind can be told from work in progress, and swept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from toolkit.errors import StoreError

log = logging.getLogger("edgekit")

ENVIRONMENT_VARIABLE = "EDGEKIT_CACHE"
_CHUNK_BYTES = 1 << 20
_LOG_DAYS = 14


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

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents: equal outputs have equal digests, whatever made them."""
        return digest_of(dict(self.files))


def canonical(document: Any) -> bytes:
    """Serializes a document so that equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest_of(document: Any) -> str:
    """Returns the SHA-256 of a document's canonical JSON."""
    return hashlib.sha256(canonical(document)).hexdigest()


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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
        self._stages, self._staging, self.logs = (self.root / name for name in ("stages", "staging", "logs"))
        with self._guard():
            for folder in (self._stages, self._staging, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def get(self, key: str) -> Entry | None:
        """Returns a published entry after verifying every file, or ``None``.

        A damaged entry is dropped with a warning, so that the stage runs again.
        """
        home = self._home(key)
        try:
            manifest = json.loads((home / "manifest.json").read_text(encoding="utf-8"))
            entry = Entry(key, home / "out", manifest["files"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            entry = None
        if entry is None or not _intact(entry):
            log.warning("a damaged cache entry was dropped and will be computed again: %s", home)
            self._discard(home)
            return None
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
        with self._guard():
            work = Path(tempfile.mkdtemp(dir=self._staging, prefix=f"{key[:8]}-"))
            lock = FileLock(work.with_suffix(".lock"))
            lock.acquire()
            (work / "out").mkdir()
        try:
            yield work / "out"
            with self._guard():
                self._publish(key, work, inputs)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def entries(self) -> list[tuple[str, int, float]]:
        """Lists key, size in bytes and time of last use of every entry."""
        found = []
        for manifest in self._stages.glob("*/*/manifest.json"):
            home = manifest.parent
            size_bytes = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
            found.append((home.name, size_bytes, manifest.stat().st_mtime))
        return sorted(found)

    def remove(self, *, unused_days: float = 0.0) -> tuple[int, int]:
        """Removes entries that were not used for some days; all of them by default.

        Returns:
            How many entries and how many bytes were removed.
        """
        limit = time.time() - unused_days * 86400
        old = [(key, size_bytes) for key, size_bytes, used in self.entries() if used <= limit]
        for key, _ in old:
            self._discard(self._home(key))
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
        with self._guard():
            grave = Path(tempfile.mkdtemp(dir=self._staging, prefix="discard-"))
            with contextlib.suppress(FileNotFoundError):
                home.rename(grave / "entry")
            shutil.rmtree(grave, ignore_errors=True)

    def _sweep(self) -> None:
        """Removes staging folders whose process is gone, and logs that nobody will look at any more."""
        for old in self.logs.iterdir():
            if time.time() - old.stat().st_mtime > _LOG_DAYS * 86400:
                old.unlink(missing_ok=True)
        for work in [path for path in self._staging.iterdir() if path.is_dir()]:
            lock = FileLock(work.with_suffix(".lock"))
            if not Path(lock.lock_file).exists():
                if time.time() - work.stat().st_mtime > 3600:
                    shutil.rmtree(work, ignore_errors=True)
                continue
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):
                shutil.rmtree(work, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = f"free some space, mend the permissions, or set {ENVIRONMENT_VARIABLE} to another folder"
            raise StoreError(f"the cache cannot be used: {error.strerror or error}", where=str(error.filename or self.root), hint=hint) from error


def _intact(entry: Entry) -> bool:
    try:
        return all(digest_file(entry.folder / name) == digest for name, digest in entry.files.items())
    except OSError:
        return False


def _flush_to_disk(path: Path) -> None:
    """Asks the system to keep a file or a folder's names through a power cut."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
