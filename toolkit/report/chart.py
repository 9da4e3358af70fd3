"""Two small SVG charts, written by hand: the primary metric with intervals, and latency quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from toolkit.evidence import Report, Row
from toolkit.figures import Latency, Metric, show_latency, show_name, show_value
from toolkit.metrics import scale as scale_of
from toolkit.report import wording

WIDTH = 540
LEFT = 190
RIGHT = 96
TOP = 10
LINE = 46
FOOT = 44
LABEL_LENGTH = 29

_Scale = Callable[[float], float]


def metric(report: Report) -> str:
    """Draws each row's primary metric as a dot with its 95 % interval, beside the float source; empty when nothing was measured."""
    rows = [(row, row.metric) for row in report.rows if row.metric]
    if not rows:
        return ""
    name = rows[0][1].name
    source = report.source.metric if report.source else None
    shown = [one for _, one in rows] + ([source] if source else [])
    kind = scale_of(name)
    ticks = _ticks(min(m.low for m in shown), max(m.high for m in shown), most=kind.high)
    scale = _scale(ticks)
    parts = [_band(source, scale, len(rows))] if source else []
    parts += [_rate(row, one, index, scale) for index, (row, one) in enumerate(rows)]
    label = f"{show_name(name)}, %" if kind.rate else show_name(name)
    return _frame(f"{show_name(name)} with 95 % intervals", parts, len(rows), ticks, scale, label, 100 if kind.rate else 1)


def latency(report: Report) -> str:
    """Draws each median as a bar with the 90th percentile as a tick; empty when nothing was timed."""
    rows = [(row, row.latency_ms) for row in report.rows if row.latency_ms]
    if not rows:
        return ""
    ticks = _ticks(0.0, max(timed.p90_high for _, timed in rows))
    scale = _scale(ticks)
    parts = [_bar(row, timed, index, scale) for index, (row, timed) in enumerate(rows)]
    return _frame("Latency quantiles", parts, len(rows), ticks, scale, "latency of one inference, ms", 1)


def _rate(row: Row, metric: Metric, index: int, scale: _Scale) -> str:
    middle = _middle(index)
    low, high = scale(metric.low), scale(metric.high)
    ends = "".join(f"M{x:.1f} {middle - 5}v10" for x in (low, high))
    return (
        f"{_label(row, index)}<path class='whisker' d='M{low:.1f} {middle}H{high:.1f}{ends}'/>"
        f"<circle class='dot' cx='{scale(metric.value):.1f}' cy='{middle}' r='4.5'/>{_value(show_value(metric.name, metric.value), index)}"
    )


def _bar(row: Row, timed: Latency, index: int, scale: _Scale) -> str:
    middle = _middle(index)
    start, median, tail = scale(0), scale(timed.p50), scale(timed.p90)
    return (
        f"{_label(row, index)}<rect class='bar' x='{start:.1f}' y='{middle - 8}' width='{max(1.0, median - start):.1f}' height='16' rx='2'/>"
        f"<path class='whisker' d='M{median:.1f} {middle}H{tail:.1f}M{tail:.1f} {middle - 6}v12'/>{_value(show_latency(timed), index)}"
    )


def _band(source: Metric, scale: _Scale, lines: int) -> str:
    low, value, high = scale(source.low), scale(source.value), scale(source.high)
    height = LINE * lines
    return (
        f"<rect class='band' x='{low:.1f}' y='{TOP}' width='{max(1.0, high - low):.1f}' height='{height}'/>"
        f"<line class='source' x1='{value:.1f}' x2='{value:.1f}' y1='{TOP}' y2='{TOP + height}'/>"
    )


def _frame(title: str, parts: Sequence[str], lines: int, ticks: Sequence[float], scale: _Scale, unit: str, factor: float) -> str:
    """Puts grid, axis and title around the marks."""
    bottom = TOP + LINE * lines
    decimals = _decimals((ticks[1] - ticks[0]) * factor)
    grid = "".join(f"<line class='grid' x1='{scale(t):.1f}' x2='{scale(t):.1f}' y1='{TOP}' y2='{bottom}'/>" for t in ticks)
    numbers = "".join(f"<text class='soft' x='{scale(t):.1f}' y='{bottom + 16}' text-anchor='middle'>{t * factor:.{decimals}f}</text>" for t in ticks)
    axis = f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>"
    name = f"<text class='soft' x='{(LEFT + WIDTH - RIGHT) / 2:.0f}' y='{bottom + 34}' text-anchor='middle'>{escape(unit)}</text>"
    size = f"viewBox='0 0 {WIDTH} {bottom + FOOT}' role='img' aria-label='{escape(title)}'"
    return f"<svg {size}>{grid}{axis}{numbers}{name}{''.join(parts)}</svg>"


def _label(row: Row, index: int) -> str:
    middle = _middle(index)
    full = f"<title>{escape(wording.printable(wording.place(row)))}</title>"
    name, target = (escape(_short(wording.printable(text))) for text in (row.artifact, row.target))
    return f"<g>{full}<text x='0' y='{middle - 2}'>{name}</text><text class='soft' x='0' y='{middle + 13}'>{target}</text></g>"


def _value(text: str, index: int) -> str:
    return f"<text class='value' x='{WIDTH}' y='{_middle(index) + 4}' text-anchor='end'>{escape(text)}</text>"


def _middle(index: int) -> int:
    return TOP + LINE * index + LINE // 2


def _short(text: str) -> str:
    """Cuts a long name in its middle, where names differ least; the tooltip has it whole."""
    if len(text) <= LABEL_LENGTH:
        return text
    half = (LABEL_LENGTH - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _scale(ticks: Sequence[float]) -> _Scale:
    low, high = ticks[0], ticks[-1]
    return lambda value: LEFT + (value - low) / (high - low) * (WIDTH - RIGHT - LEFT - 12)


def _ticks(low: float, high: float, most: float = math.inf) -> list[float]:
    """Chooses three to seven round numbers around a range, in steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(min(high, most) / step - 1e-9))
    return [round(index * step, 12) for index in range(first, last + 1)]


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
