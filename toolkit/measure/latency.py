"""Stage: how long one inference takes, for several models side by side, and how far the machine can be trusted.

All models sit in one process and take turns, see :mod:`toolkit.measure.turns`. Each is loaded several times; a ratio and its
interval come from those replicates, so that they hold for the file and not for the way it happened to lie in memory.

The baseline is loaded once more and takes part like any other model (an A/A run). How far it differs from itself is the noise
of this measurement: nothing closer than that can be told apart here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from toolkit import dataset, modelfile, plugins
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError
from toolkit.figures import Latency
from toolkit.job import Facts, Job
from toolkit.measure import neighbours
from toolkit.measure.affinity import pinned
from toolkit.measure.feed import batch_size, open_session
from toolkit.measure.turns import Contender, group, prepare, take_turns, turn_order, warm_up
from toolkit.stats.paired_rounds import replicated_ratio_interval
from toolkit.stats.resampling import block_quantile_interval

DATA = "data"
TWIN = ""
# Each round times every model at least once, and below 36 times no order statistic bounds the 90th percentile with 95 %.
ROUNDS = 36
BUDGET_SECONDS = 1.0
WARMUP_SECONDS = 1.0
REPLICATES = 6
FEWEST_LOADS = 3
LOADED_BYTES = 1 << 30
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
MS = 1e-6


def run(job: Job) -> Facts:
    """Times single inferences at batch size 1, or at the model's own when that is fixed to another.

    Inputs: one model file per artifact name, and ``data`` (folder of a data set that fits all of them). Options:
    ``runtime``, ``threads``, ``baseline`` (artifact name or ``None``), ``stand_in``, and optionally ``rounds`` (36),
    ``warmup_seconds`` (limit per loaded model, 1.0), ``seconds`` (time budget per model, 1.0), ``cpus`` (which CPUs to use; all by
    default) and ``max_noise`` (copied into the record).

    Returns:
        A :class:`toolkit.figures.Latency` as a dictionary for each artifact name. ``noise`` is that of the baseline, or of the first
        model without one.

    Raises:
        ConfigError: The baseline is not among the models, or a CPU cannot be used.
        InputRejected: A model is damaged or the data do not fit it.
    """
    options = job.options
    models = {name: path for name, path in job.inputs.items() if name != DATA}
    baseline = options.get("baseline")
    if baseline is not None and baseline not in models:
        raise ConfigError(f"baseline {baseline!r} is not among the models: {', '.join(models)}")
    reference = baseline or next(iter(models))
    rounds = max(1, options.get("rounds", ROUNDS))
    replicates = max(1, min(REPLICATES, rounds // 2))
    with pinned(options.get("cpus") or ()) as unpinned:
        data = dataset.load(job.inputs[DATA]).laid_out(options.get("layout"))
        contenders = _load({**models, TWIN: models[reference]}, data, options, replicates)
        loads = len(contenders[TWIN].sessions)
        groups = loads if loads > 1 else replicates
        seconds = float(options.get("seconds", BUDGET_SECONDS))
        others = neighbours.watch()
        take_turns(list(contenders.values()), rounds, seconds, groups, lambda number: job.progress(number, rounds, "timing"))
        busy = others()
    ratios = {name: _ratios(contender, contenders[reference], groups) for name, contender in contenders.items()}
    shared = {
        "rounds": rounds,
        "noise": _noise(ratios, reference),
        "max_noise": options.get("max_noise"),
        "neighbours": None if busy is None else round(busy, 2),
        "stand_in": f"{options['stand_in']}, {unpinned}" if unpinned else options["stand_in"],
    }
    facts = {}
    for name in models:
        ratio = _ratio(ratios, name, baseline) if baseline is not None else {}
        steady = contenders[name].steady and contenders[baseline or name].steady
        record = {**_quantiles(contenders[name]), **ratio, **shared, "steady": steady}
        facts[name] = Latency.model_validate(record).model_dump(mode="json")
    return facts


def _load(models: Mapping[str, Path], data: Dataset, options: Mapping[str, Any], most: int) -> dict[str, Contender]:
    """Loads every model as often as asked and as memory allows, and warms all of them up.

    One of each is loaded before the second of any, forwards and backwards, so that no model gets all the early memory. Of two
    loads nobody can tell how much loads differ: large models are loaded once.
    """
    runtime = plugins.get("runtimes", options["runtime"])
    fitting = LOADED_BYTES // max(1, sum(modelfile.size_bytes(path) for path in models.values()))
    contenders = {name: Contender([]) for name in models}
    for number in range(min(most, fitting) if min(most, fitting) >= FEWEST_LOADS else 1):
        for name in turn_order(list(models), number):
            session = open_session(runtime, models[name], options["threads"])
            loaded = prepare(data, session, batch_size(session.signature, free=1))
            warm_up(loaded, float(options.get("warmup_seconds", WARMUP_SECONDS)))
            contenders[name].sessions.append(loaded)
    return contenders


def _ratios(contender: Contender, reference: Contender, groups: int) -> list[float]:
    """Returns how many times the reference's the contender's median is, by group of rounds, that is, by load where there are several.

    Medians are compared round by round, as neighbouring blocks saw the same machine; of a group's rounds the median counts.
    """
    by_group: list[list[float]] = [[] for _ in range(groups)]
    for number, (times, others) in enumerate(zip(contender.rounds_ns, reference.rounds_ns, strict=True)):
        by_group[group(number, groups)].append(math.log(median(times) / median(others)))
    return [math.exp(median(logs)) for logs in by_group]


def _ratio(ratios: Mapping[str, Sequence[float]], name: str, baseline: str) -> dict[str, float | None]:
    if name == baseline:
        return {"ratio_to_float": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    value, low, high = replicated_ratio_interval(ratios[name], ratios[baseline], [ratios[TWIN]])
    return {"ratio_to_float": value, "ratio_low": low, "ratio_high": high}


def _noise(ratios: Mapping[str, Sequence[float]], reference: str) -> float | None:
    """How far the reference may differ from itself; every model's spread helps to know it."""
    others = [ratios[name] for name in ratios if name not in (TWIN, reference)]
    _, low, high = replicated_ratio_interval(ratios[TWIN], ratios[reference], others)
    return None if low is None or high is None else max(1 - low, high - 1)


def _quantiles(contender: Contender) -> dict[str, float | int]:
    rounds_ms = [[one * MS for one in times] for times in contender.rounds_ns]
    found: dict[str, float | int] = {"n": sum(map(len, rounds_ms))}
    for name, q in QUANTILES.items():
        found[name], found[f"{name}_low"], found[f"{name}_high"] = block_quantile_interval(rounds_ms, q)
    return found
