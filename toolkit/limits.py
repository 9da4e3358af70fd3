"""Budgets: the limits that evidence is held against, and the refusal of limits that decide nothing.

A limit that no measurement could miss is a gate that cannot fire; one that no measurement could hold is a gate that is
always shut. Both are mistakes of whoever wrote them, and are refused where they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from toolkit.artifact import Frozen
from toolkit.errors import ConfigError
from toolkit.metrics import METRICS, scale

NUMBER_PATTERN = r"\d+\.?\d*|\.\d+"
# A larger model file is refused at the door, see toolkit.intake.
LARGEST_FILE_BYTES = 16 << 30


def read_fraction(value: Any) -> Any:
    """Reads ``"1%"`` or ``"1pp"`` as a fraction; whatever is no text stays as it is.

    Raises:
        ValueError: A text is neither.
    """
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*({NUMBER_PATTERN})\s*(pp|%)\s*", value)
        if not match:
            raise ValueError('write a fraction such as 0.01, or percentage points such as "1pp"')
        return float(match.group(1)) / 100
    return value


def _margin(value: Any) -> Any:
    """Refuses a margin that can never be exceeded, and one that nothing can be shown to hold."""
    if value == 1 and not isinstance(value, bool | str):
        raise ValueError('1 would allow any loss; for one percentage point write "1pp" or 0.01')
    read = read_fraction(value)
    if read == 0 and not isinstance(read, bool):
        raise ValueError('no number of samples shows that nothing at all was lost; write a margin such as "0.5pp"')
    return read


def _rate_limit(value: Any) -> Any:
    """Refuses the two ends of a rate: every model reaches 0, and no finite number of samples shows 1."""
    read = read_fraction(value)
    if read == 0 and not isinstance(read, bool):
        raise ValueError("every model reaches 0, so this budget could never fail")
    if read == 1 and not isinstance(read, bool):
        raise ValueError("no finite number of samples shows a rate of 1, so this budget could never pass")
    return read


@dataclass(frozen=True)
class _Sense:
    """Where a limit decides anything: of a largest value, below ``low`` nothing holds it, above ``high`` nothing misses it.

    Of a smallest value (``least``) it is the other way round.
    """

    low: float
    too_low: str
    high: float
    too_high: str
    remedy: str
    least: bool = False

    def problem(self, value: float) -> str:
        """Says why a limit decides nothing; empty when it does."""
        if self.low <= value <= self.high:
            return ""
        never = "pass" if (value < self.low) is not self.least else "fail"
        return f"{self.too_low if value < self.low else self.too_high}, so this could never {never}; {self.remedy}"


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Fraction = Annotated[Number, BeforeValidator(read_fraction), Field(ge=0, le=1)]
Rate = Annotated[Number, BeforeValidator(_rate_limit), Field(gt=0, lt=1)]
Margin = Annotated[Number, BeforeValidator(_margin), Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(gt=0, strict=True)]


class MetricBudget(Frozen):
    """Limits of one metric. Which of them make sense depends on the metric's scale.

    Attributes:
        min: Lowest value, for a metric of which more is better.
        max: Highest value, for an error.
        max_drop: Largest loss against the float source on the same samples, for a metric of which more is better.
        max_rise: Largest rise against the float source on the same samples, for an error.
    """

    min: Annotated[Number, BeforeValidator(read_fraction)] | None = None
    max: Annotated[Number, BeforeValidator(read_fraction)] | None = None
    max_drop: Annotated[Number, BeforeValidator(read_fraction)] | None = None
    max_rise: Annotated[Number, BeforeValidator(read_fraction)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> MetricBudget:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give at least one of min, max, max_drop, max_rise")
        return self

    def problem(self, name: str) -> str:
        """Says why these limits decide nothing for a metric; empty when they do."""
        kind = scale(name)
        wrong = ("max", "max_rise") if kind.better == "higher" else ("min", "max_drop")
        right = ("min", "max_drop") if kind.better == "higher" else ("max", "max_rise")
        for key in wrong:
            if getattr(self, key) is not None:
                return f"{key} does not limit {name}, of which {kind.better} is better; write {right[wrong.index(key)]}"
        limit, margin = getattr(self, right[0]), getattr(self, right[1])
        easy, hard = (kind.low, kind.high) if kind.better == "higher" else (kind.high, kind.low)
        if limit is not None and not kind.low < limit < kind.high:
            never = "fail" if abs(limit - easy) < abs(limit - hard) else "pass"
            return f"{right[0]} = {limit:g} is not inside the scale of {name}, {kind.low:g} to {kind.high:g}, so it could never {never}"
        for key, value in ((right[0], limit), (right[1], margin)):
            if value is not None and kind.idle is not None and value >= kind.idle:
                return f'{key} = {value:g}: a model that gives nothing at all reaches {kind.idle:g}, so it would not fail; for percent write "5%"'
        if margin is not None and margin <= 0:
            return f"{right[1]} = {margin:g}: no number of samples shows that nothing at all was lost, so it could never pass"
        if margin is not None and margin >= kind.high - kind.low:
            return f"{right[1]} = {margin:g} is as wide as the scale of {name}, so it could never fail"
        return ""


WITH_TWIN = ("max_size_ratio", "max_latency_ratio", "min_speedup")
"""Budgets that compare a file with its float twin of the same format."""


class Budgets(Frozen):
    """Limits that the evidence is held against; an absent one is not checked.

    Attributes:
        min_accuracy: Lowest top-1 accuracy, as a fraction.
        max_drop: Largest loss of the primary metric against the float source, on the same samples; ``"1pp"`` or ``0.01``.
        max_size_bytes: Largest model file.
        max_size_ratio: Largest size of a quantized file over its float twin.
        max_latency_p90_ms: Largest 90th percentile of one inference, in milliseconds, on whatever stands in for the target.
        max_latency_ratio: Largest median time over the float twin's, timed in turns: ``1.05`` allows 5 % more, ``0.8`` asks for 20 % less.
        min_speedup: Smallest median time of the float twin over this file's, timed in turns: ``1.2`` asks for 1.2 times as fast.
        max_peak_memory_mb: Largest peak of private memory of a fresh process, on top of the interpreter, in MB (10^6 bytes).
        metrics: Limits of single metrics, by name.
    """

    min_accuracy: Rate | None = None
    max_drop: Margin | None = None
    max_size_bytes: Count | None = None
    max_size_ratio: Positive | None = None
    max_latency_p90_ms: Positive | None = None
    max_latency_ratio: Positive | None = None
    min_speedup: Positive | None = None
    max_peak_memory_mb: Positive | None = None
    metrics: dict[str, MetricBudget] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _shares_are_of_rates(cls, document: Any) -> Any:
        """Refuses percentages of metrics that are not rates, while it can still be seen that they are percentages."""
        metrics = document.get("metrics") if isinstance(document, Mapping) else None
        for name, limits in metrics.items() if isinstance(metrics, Mapping) else ():
            for key, value in limits.items() if isinstance(limits, Mapping) else ():
                if isinstance(value, str) and not scale(name).rate:
                    raise ValueError(f"metrics.{name}.{key}: {name} is no rate, so {value!r} says nothing about it; write a number")
        return document

    @model_validator(mode="after")
    def _sensible(self) -> Budgets:
        for name, sense in _SENSE.items():
            value = getattr(self, name)
            if value is not None and (problem := sense.problem(value)):
                raise ValueError(f"{name} = {value:g}: {problem}")
        for name, budget in self.metrics.items():
            if name not in METRICS:
                raise ValueError(f"metrics.{name}: unknown metric; known: {', '.join(METRICS)}")
            if problem := budget.problem(name):
                raise ValueError(f"metrics.{name}: {problem}")
        return self

    def over(self, other: Budgets) -> Budgets:
        """Returns these budgets, with the other's where these say nothing."""
        mine, others = self.model_dump(exclude_none=True), other.model_dump(exclude_none=True)
        names = [*others["metrics"], *(name for name in mine["metrics"] if name not in others["metrics"])]
        metrics = {name: {**others["metrics"].get(name, {}), **mine["metrics"].get(name, {})} for name in names}
        return Budgets(**{**others, **mine, "metrics": metrics})


_SENSE = {
    "max_size_bytes": _Sense(100, "no model file is as small", LARGEST_FILE_BYTES, "a larger file is refused anyway", "the unit is bytes"),
    "max_size_ratio": _Sense(0.05, "8 of 32 bits are a quarter", 2, "a quantized file is never twice its float twin", "for percent write 0.35"),
    "max_latency_p90_ms": _Sense(1e-4, "this is below the clock's resolution", 3.6e6, "a stage is ended after an hour", "the unit is milliseconds"),
    "max_latency_ratio": _Sense(0.01, "no scheme is 100 times as fast", 100, "nobody would wait for it", "1.05 allows 5 % more time"),
    "min_speedup": _Sense(0.01, "nobody would wait for it", 100, "no scheme is 100 times as fast", "1.2 asks for 1.2 times as fast", least=True),
    "max_peak_memory_mb": _Sense(0.004096, "this is less than a page", 1e6, "no machine has as much", "the unit is MB (10^6 bytes)"),
}


def check_against(budgets: Budgets, *, memory_mb: float | None = None, timeout_seconds: float | None = None, where: str = "budgets") -> None:
    """Refuses budgets that can never fail, as the run itself fails first.

    Args:
        budgets: The limits.
        memory_mb: The target's memory cap in MB, which ends an inference that needs more; ``None`` for no cap.
        timeout_seconds: Time after which a stage is ended.
        where: What the error names as its place.

    Raises:
        ConfigError: A budget is as loose as the limit of the run, or looser.
    """
    if memory_mb is not None and budgets.max_peak_memory_mb is not None and budgets.max_peak_memory_mb >= memory_mb:
        raise ConfigError(
            f"max_peak_memory_mb = {budgets.max_peak_memory_mb:g} could never fail: the target's cap of {memory_mb:g} MB ends the run before",
            where=where,
            hint=f"write less than {memory_mb:g}, or leave it out: the cap is the limit",
        )
    if timeout_seconds is not None and budgets.max_latency_p90_ms is not None and budgets.max_latency_p90_ms >= timeout_seconds * 1000:
        raise ConfigError(
            f"max_latency_p90_ms = {budgets.max_latency_p90_ms:g} could never fail: a stage is ended after {timeout_seconds:g} s",
            where=where,
            hint="the unit is milliseconds",
        )
