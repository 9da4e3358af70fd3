"""Who hears what the pipeline does. The command line draws it; a library call keeps silent."""

from __future__ import annotations

from typing import Protocol

from toolkit.evidence import StageRecord


class Listener(Protocol):
    """Callbacks of a run. They may come from several threads."""

    def planned(self, steps: list[str]) -> None:
        """The steps that will be looked at, in order."""

    def started(self, step: str) -> None:
        """A step is not in the store and begins to run."""

    def progressed(self, step: str, done: int, total: int, note: str) -> None:
        """A running step got further."""

    def finished(self, record: StageRecord) -> None:
        """A step is done, was cached, failed, or was skipped."""


class Silent:
    """Hears everything and says nothing."""

    def planned(self, steps: list[str]) -> None:
        """Says nothing."""

    def started(self, step: str) -> None:
        """Says nothing."""

    def progressed(self, step: str, done: int, total: int, note: str) -> None:
        """Says nothing."""

    def finished(self, record: StageRecord) -> None:
        """Says nothing."""
