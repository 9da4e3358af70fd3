"""The stage that makes a float model file smaller, after making sure that the calibration samples fit it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit import dataset, modelfile, plugins
from toolkit.columns import check_columns
from toolkit.contents import Contents
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, NoRoute, StageFailed, ToolkitError
from toolkit.job import Facts, Job
from toolkit.quantization import auto
from toolkit.quantization.beginning import quicken
from toolkit.quantization.ladder import DEFAULT, Climb, climb
from toolkit.quantization.rungs import RUNGS
from toolkit.quantization.search import Search, open_search
from toolkit.quantization.vocabulary import check_vocabulary
from toolkit.quantization.workshop import MIN_MAX, State, Workshop, check_size

LABEL = "label.json"
"""Says which layers of the model beside it were kept in float on purpose; the audit demands exactly those."""


def run(job: Job) -> Facts:
    """Quantizes ``job.inputs["model"]`` and writes ``model.<format>`` with its ``label.json``.

    Args:
        job: Inputs ``model``; ``calibration`` (a folder of columns) for schemes that need it; ``search``, the samples that repairs and
            ``auto`` are chosen on; ``twin`` where losses count against another float file; ``program``, the captured program that the model
            comes from, for quantizers that start from it; ``statistics`` of its activations, which are collected otherwise. Options
            ``format``, or ``quantizer`` by name; ``scheme``, or ``auto``; ``method`` (how activation ranges are found), ``per_channel``;
            ``max_drop`` with ``rungs``, the budget that the repair ladder is climbed for, and what it may try; ``runtime``, ``threads``,
            ``output`` and ``task`` of the search; ``layout`` (the model's, where it is another than the samples').

    Raises:
        ConfigError: There is no such quantizer, scheme or method, or calibration samples are needed and missing.
        InputRejected: The model is damaged or too large, or the samples do not fit its inputs.
        MissingExtra: The quantizer's libraries are not installed.
        NoRoute: Nothing makes this scheme for this format.
        StageFailed: The library cannot quantize the model, or wrote nothing.
    """
    format = job.options.get("format") or plugins.get("quantizers", job.options["quantizer"]).format
    model, scheme = job.inputs["model"], job.options["scheme"]
    if scheme != auto.AUTO:
        _known(job.options, format)
    check_size(model)
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=job.out) as folder:
        contents = _contents(job, format)
        calibration = _samples(job, "calibration", contents)
        named, program = str(job.options.get("quantizer") or ""), job.inputs.get("program")
        workshop = Workshop(format, Path(folder), calibration, named, job.progress, job.kept, program)
        if "statistics" in job.inputs:
            workshop.adopt(model, job.inputs["statistics"])
        search = _search(job, contents, format)
        state = State(model, scheme, job.options.get("method", MIN_MAX), bool(job.options.get("per_channel", True)))
        job.progress(0, 1, f"{scheme}, {len(calibration)} samples" if calibration else scheme)
        return _made(job, workshop, search, state, contents)


def _made(job: Job, workshop: Workshop, search: Search | None, state: State, contents: Contents | None) -> Facts:
    chosen = _choice(job, workshop, search, state, contents) if contents and state.scheme == auto.AUTO else None
    state = replace(state, scheme=chosen.scheme) if chosen else state
    if search and chosen and contents and chosen.scheme == auto.STATIC:
        chosen, state = _quicker(workshop, search, state, contents, chosen)
    first = state.keep_float
    found = _repaired(job, workshop, search, state, chosen is not None) if search else None
    if search and found and chosen and chosen.usual:
        chosen, found = _usual(job, workshop, search, replace(state, scheme=chosen.usual), chosen, found)
    state = found.state if found else state
    made = found.model if found else workshop.make(state)
    out = job.out / f"model.{workshop.format}"
    modelfile.copy(made, out)
    label = _label(state, first, found, workshop.told(state))
    out.with_name(LABEL).write_text(json.dumps(label, indent=1) + "\n", encoding="utf-8")
    job.progress(1, 1, f"{modelfile.size_bytes(out):,} bytes")
    return (
        {"label": label, "unheld": found is not None and found.asked and not found.held}
        | _facts(job, workshop, state, out)
        | ({"auto": chosen.facts()} if chosen else {})
        | ({"ladder": found.facts()} if found else {})
    )


def _repaired(job: Job, workshop: Workshop, search: Search, state: State, chosen: bool) -> Climb | None:
    """Climbs the ladder for the budget; ``auto`` climbs its cheap rungs where there is none, and its file would lose much."""
    limit, rungs = job.options.get("max_drop"), job.options.get("rungs", list(RUNGS))
    if limit is not None:
        return climb(workshop, search, state, max_drop=float(limit), rungs=rungs, twin=job.inputs.get("twin"))
    quick = [name for name in auto.QUICK if name in rungs]
    if not (chosen and quick):
        return None
    found = climb(workshop, search, state, max_drop=auto.AIM, rungs=quick)
    found.asked = False
    return found


def _quicker(workshop: Workshop, search: Search, state: State, contents: Contents, chosen: auto.Choice) -> tuple[auto.Choice, State]:
    """Keeps the first layers in float where the file is slow, and faster with them."""
    try:
        found = quicken(workshop, search, state, contents)
    except (InputRejected, StageFailed):  # what cannot be made is for the ladder
        return chosen, state
    if not found.layers:
        slow = f"; int8 is not faster here, it takes {found.before:.2f} of the float model's time" if found.before > 1 else ""
        return replace(chosen, why=chosen.why + slow), state
    why = f"{chosen.why}; with {_first(len(found.layers))} in float {found.after:.2f} of the float model's time instead of {found.before:.2f}"
    return replace(chosen, why=why), replace(state, keep_float=found.layers)


def _usual(job: Job, workshop: Workshop, search: Search, state: State, chosen: auto.Choice, found: Climb) -> tuple[auto.Choice, Climb]:
    """Gives the usual scheme another chance, as cheap repairs may bring back what it lost: it is taken where it holds and is faster."""
    quick = [name for name in auto.QUICK if name in job.options.get("rungs", auto.QUICK)]
    try:
        again = climb(workshop, search, state, max_drop=found.max_drop, rungs=quick, twin=job.inputs.get("twin"))
    except ToolkitError:
        return chosen, found
    if not again.held:
        return chosen, found
    mine, other = (auto.latency_ratio(search, one.model, state.model) for one in (again, found))
    if found.held and mine >= other * auto.FASTER:
        return chosen, found
    again.asked = found.asked
    repairs = ", ".join(name for name in again.taken() if name != DEFAULT)
    why = f"{state.scheme} holds after {repairs}, and takes {mine:.2f} of the float model's time, {chosen.scheme} {other:.2f}"
    return replace(chosen, scheme=state.scheme, why=why), again


def _facts(job: Job, workshop: Workshop, state: State, out: Path) -> Facts:
    quantizer = workshop.quantizer(state.scheme)
    seen = workshop.samples_seen(state) if state.scheme in quantizer.needs_calibration else 0
    layout = {"layout": job.options["layout"]} if job.options.get("layout") else {}
    return layout | {
        "made_by": quantizer.name,
        "versions": plugins.versions(quantizer),
        "scheme": state.scheme,
        "ranges": stability.facts() if seen and (stability := workshop.stability(state.model)) else None,
        "calibration": {"n": seen, "method": state.method} if seen else None,
        "ratio": modelfile.size_bytes(out) / modelfile.size_bytes(job.inputs["model"]),
    }


def _known(options: Mapping[str, Any], format: str) -> None:
    """Refuses a scheme or a method that is not there, before anything is read."""
    quantizer = plugins.get("quantizers", options["quantizer"]) if options.get("quantizer") else plugins.quantizer(format, options["scheme"])
    scheme, method = options["scheme"], options.get("method", MIN_MAX)
    for what, value, known in (("scheme", scheme, quantizer.schemes), ("method", method, getattr(quantizer, "methods", (MIN_MAX,)))):
        if value not in known:
            message = f"unknown {what} {value!r}; {quantizer.name} {'makes' if what == 'scheme' else 'knows'} {', '.join(known)}"
            raise ConfigError(message, where=what, hint="choose one of them")
    plugins.require(quantizer)


def _choice(job: Job, workshop: Workshop, search: Search | None, state: State, contents: Contents) -> auto.Choice:
    """The scheme of ``auto``: measured where there is something to measure on."""
    among = job.options.get("among") or (auto.STATIC, auto.DYNAMIC)
    first = auto.choose(contents, among)
    if search:
        return auto.refine(first, workshop, search, state, among)
    try:
        workshop.quantizer(first.scheme)
    except NoRoute as error:
        raise NoRoute(f"auto chose {first.scheme}, as {first.why}: {error.message}", hint="name a scheme") from error
    return first


def _contents(job: Job, format: str) -> Contents | None:
    """What the model contains, where anything depends on it: a plugin's format may have no reader."""
    if job.options["scheme"] != auto.AUTO and not {"calibration", "search"} & set(job.inputs):
        return None
    contents: Contents = plugins.reader(format).read(job.inputs["model"])
    return contents


def _search(job: Job, contents: Contents | None, format: str) -> Search | None:
    samples = _samples(job, "search", contents)
    return open_search(samples, job.options, format) if samples else None


def _samples(job: Job, role: str, contents: Contents | None) -> Dataset | None:
    """Loads samples and checks them here, because the libraries accept wrong shapes, NaN and Inf."""
    if role not in job.inputs or contents is None:
        return None
    samples = dataset.load(job.inputs[role]).laid_out(job.options.get("layout"))
    check_columns(samples, contents.signature)
    check_vocabulary(samples, job.inputs["model"], contents.format)
    return samples


def _label(state: State, first: tuple[str, ...], found: Climb | None, told: Mapping[str, Any]) -> Facts:
    """What is float on purpose: the first layers for the sake of speed, others by repair, and what the quantizer has no kernels for."""
    quick = f"{_first(len(first))}: faster in float" if first and set(first) <= set(state.keep_float) else ""
    why = f"kept in float by the repair ladder: {', '.join(found.taken())}" if found and set(state.keep_float) - set(first) else ""
    kept = sorted({*state.keep_float, *told.get("kept_float", ())})
    return {"scheme": state.scheme, "kept_float": kept, "why": "; ".join(filter(None, (quick, why, told.get("why", ""))))}


def _first(count: int) -> str:
    return "the first layer" if count == 1 else f"the first {count} layers"
