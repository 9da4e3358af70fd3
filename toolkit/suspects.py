"""What makes an integer model slower than its float twin. Frozen; no I/O happens here."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.artifact import Frozen

RESPONSIBLE = "responsible"


class Suspect(Frozen):
    """Operators of one kind that are likely to make a file slower than its float twin.

    Attributes:
        operator: Their kind in the format's own words, for example ``ConvInteger``.
        count: How many there are.
        reason: Why they are slow.
        share_ms: What they took of one inference, in milliseconds; ``None`` where the runtime did not tell.
        share: What part of the inference that is, 0..1; ``None`` likewise.
        names: The first of them.
    """

    operator: str
    count: int
    reason: str
    share_ms: float | None = None
    share: float | None = None
    names: tuple[str, ...] = ()


class Slower(Frozen):
    """A file that was measured slower than its float twin in the same run.

    Attributes:
        ratio: Median over the twin's median.
        low: Lower end of the ratio's interval.
        high: Upper end of it.
        suspects: The operators responsible, as far as the file and the runtime's profiler tell; the costliest first.
    """

    ratio: float
    low: float
    high: float
    suspects: tuple[Suspect, ...] = ()


def show_suspects(suspects: Sequence[Suspect]) -> str:
    """Formats suspects: ``21 ConvInteger (3.100 ms, 80 %): quantized while it runs, ...``."""
    return "; ".join(map(_show_suspect, suspects)) or "no operator that is known to be slow"


def _show_suspect(one: Suspect) -> str:
    took = f" ({one.share_ms:.3f} ms, {one.share:.0%})" if one.share_ms is not None and one.share is not None else ""
    return f"{one.count} {one.operator}{took}: {one.reason}"


def show_slower(slower: Slower, *, why: bool = True) -> str:
    """Formats how much slower a file is, and what is responsible."""
    measured = f"slower than its float twin: {slower.ratio:.2f} [{slower.low:.2f}, {slower.high:.2f}] of its time"
    return f"{measured}; {RESPONSIBLE}: {show_suspects(slower.suspects)}" if why else measured
