"""The conversion step: every route that leads to a format, the most trusted first, each with the checks that its file must pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import plugins
from toolkit.artifact import Signature
from toolkit.config import Conversion, Parity
from toolkit.errors import NoRoute
from toolkit.evidence import Attempt
from toolkit.pipeline.race import OPTION, PASSED_OVER, all_fallen
from toolkit.pipeline.steps import Check, Fact, Need, Step, audit, model_file, wire

AUTO = "auto"
VIA = "via"
MISSING = "missing-extra"
# A route without a clean-up leaves graphs as they are, which is all that is asked for when it is to be left out.
_ANY_ROUTE_FOLLOWS = {"clean_up"}
# What changes how a converted file is to be fed, so that its comparison with the source must know.
_PARITY_KNOWS = ("layout", "batch_sizes")


@dataclass(frozen=True)
class Program:
    """What is converted, and what the result is held against.

    Attributes:
        format: Format of the program.
        file: The program file.
        signature: Its signature, or the fact that will tell it.
        expected: Folder with the source's inputs and outputs on real samples.
        scheme: What its numbers are, which conversion keeps.
    """

    format: str
    file: Need | Path
    signature: Signature | Fact
    expected: Need | Path
    scheme: str = "float32"


def of_source(format: str) -> Program:
    """The program that the step ``source`` leaves."""
    return Program(format, Need("source", model_file(format)), Fact("source", "signature"), Need("source", "expected"))


def convert(program: Program, format: str, wanted: Conversion, parity: Parity) -> tuple[Step, ...]:
    """A program in another format, published only if it computes what the source computes.

    The last step makes it. Where no route leads straight there, those before it make the files on the way, each held against the source
    too, and each in a process of its own as frameworks do not mix. A step is that of the first route that fits; what follows it when it
    falls is in :attr:`Step.otherwise`.

    Args:
        program: The source.
        format: The format to convert to.
        wanted: How to convert.
        parity: How close is close enough.

    Raises:
        NoRoute: Nothing converts the one format into the other, the named route does not, or none does what is asked for.
    """
    chain: list[Step] = []
    between = plugins.between(program.format, format) if wanted.route == AUTO else ()
    for stop in between:
        step = replace(_race(program, stop, Conversion(dynamic=wanted.dynamic), parity), id=f"{VIA}:{stop}")
        chain.append(_renamed(step))
        program = replace(program, format=stop, file=Need(step.id, model_file(stop)))
    return (*chain, _race(program, format, wanted, parity))


def _renamed(step: Step) -> Step:
    """Gives all ways of a step its identifier."""
    return replace(step, otherwise=_renamed(replace(step.otherwise, id=step.id)) if step.otherwise else None)


def _race(program: Program, format: str, wanted: Conversion, parity: Parity) -> Step:
    tried, passed_over = _sort_out(_routes(program.format, format, wanted.route), wanted)
    if not tried:
        raise all_fallen(format, passed_over, {})
    steps = [_alternative(route, program, wanted, parity) for route in tried]
    following: Step | None = None
    for step in reversed(steps):
        following = replace(step, otherwise=following)
    assert following is not None
    return replace(following, passed_over=tuple(passed_over))


def knows(route: plugins.Route) -> tuple[str, ...]:
    """Returns the options that a route follows."""
    return tuple(getattr(route, "options", ()))


def rewrites(route: plugins.Route) -> Mapping[str, str]:
    """Returns the rewrites that a route can apply, by name, and what each does."""
    found: Mapping[str, str] = getattr(route, "rewrites", {})
    return found


def fitting(source_format: str, wanted: Conversion, formats: Iterable[str]) -> dict[str, Conversion]:
    """Returns what is asked of the conversion to each of a project's formats, for one ``[convert]`` table speaks for all of them.

    A named route makes one format; the others are left to choose. ``opset`` means nothing to TFLite: an option that no route to a format
    knows is left out there, as long as another format has a route that does. Free sizes concern the program and are never left out.

    Raises:
        NoRoute: The named route leads to none of the formats.
    """
    leading = {format: plugins.routes(*plugins.last_leg(source_format, format)) for format in formats}
    named = {format: any(route.name == wanted.route for route in routes) for format, routes in leading.items()}
    own = {format: wanted if named[format] or not any(named.values()) else wanted.model_copy(update={"route": AUTO}) for format in leading}
    legs = {format: plugins.last_leg(source_format, format) for format in leading}
    known = {format: {name for route in _routes(*legs[format], own[format].route) for name in knows(route)} for format in leading}
    anywhere = set().union(*known.values())
    return {format: _without(own[format], anywhere - names) for format, names in known.items()}


def _without(wanted: Conversion, names: set[str]) -> Conversion:
    return wanted.model_copy(update={name: _DEFAULTS[name] for name in names & set(wanted.asked())})


_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in Conversion.model_fields.items()}


def _routes(source: str, format: str, name: str) -> list[plugins.Route]:
    """The named route alone, else all that lead there, the most trusted first."""
    found = plugins.routes(source, format)
    named = [route for route in found if route.name == name]
    if name != AUTO and not named:
        known = ", ".join(route.name for route in found)
        raise NoRoute(f"route {name!r} does not convert {source} to {format}; known: {known}", hint=f"name one of them, or {AUTO}")
    return found if name == AUTO else named


def _sort_out(routes: list[plugins.Route], wanted: Conversion) -> tuple[list[plugins.Route], list[Attempt]]:
    """Tells routes that can be tried from those that cannot do what is asked, or whose framework is absent.

    Where nothing but absent frameworks is in the way, the first such route is kept: running it says what to install.
    """
    unable = {route.name: attempt for route in routes if (attempt := _unable(route, wanted))}
    able = [route for route in routes if route.name not in unable]
    absent = {route.name: _absent(route) for route in able if plugins.missing_modules(route)}
    ready = [route for route in able if route.name not in absent]
    kept = ready or able[:1]
    passed_over = {**unable, **absent}
    return kept, [passed_over[route.name] for route in routes if route not in kept]


def _unable(route: plugins.Route, wanted: Conversion) -> Attempt | None:
    asked = [name for name in wanted.asked() if name not in _ANY_ROUTE_FOLLOWS] + (["dynamic"] if wanted.dynamic else [])
    if unknown := [name for name in asked if name not in knows(route)]:
        reason = f"does not know the option {' and '.join(unknown)}"
        instead = "; batch_sizes gives one file several" if "dynamic" in unknown and "batch_sizes" in knows(route) else ""
        return Attempt(route=route.name, outcome=PASSED_OVER, code=OPTION, reason=reason, hint=f"leave out {' and '.join(unknown)}{instead}")
    if strange := [name for name in wanted.rewrites if name not in rewrites(route)]:
        known = ", ".join(rewrites(route)) or "none"
        reason = f"does not know the rewrite {' and '.join(strange)}"
        return Attempt(route=route.name, outcome=PASSED_OVER, code=OPTION, reason=reason, hint=f"its rewrites: {known}")
    return None


def _absent(route: plugins.Route) -> Attempt:
    reason = f"needs {', '.join(plugins.missing_modules(route))}, which is not installed"
    return Attempt(route=route.name, outcome=PASSED_OVER, code=MISSING, reason=reason, hint=f'run: pip install "{route.extra}"')


def _alternative(route: plugins.Route, program: Program, wanted: Conversion, parity: Parity) -> Step:
    asked = {name: value for name, value in wanted.model_dump(mode="json").items() if name in wanted.asked() and name in knows(route)}
    checks, not_checked = _checks(route.format, program, wanted, parity)
    needs, files = wire("program", program.file)
    derived = {"signature": program.signature} if isinstance(program.signature, Fact) else {}
    signature = {} if isinstance(program.signature, Fact) else {"signature": program.signature.model_dump(mode="json")}
    return Step(
        f"convert:{route.format}",
        "toolkit.convert.stage:run",
        {"route": route.name, **signature, **asked},
        needs=needs,
        files=files,
        plugins=(route,),
        derived=derived,
        checks=checks,
        not_checked=not_checked,
        route=route.name,
    )


def _checks(format: str, program: Program, wanted: Conversion, parity: Parity) -> tuple[tuple[Check, ...], dict[str, str]]:
    """What a converted file must pass, and what cannot be checked here: a format may have nothing that runs it, or reads it."""
    checks, not_checked = [], {}
    runtime = _runtime(format)
    if runtime is None:
        not_checked["parity"] = f"no runtime executes {format} on this machine"
    else:
        checks.append(_parity(format, runtime, program.expected, wanted, parity))
    if runtime is None and plugins.find_reader(format) is None:
        not_checked["audit"] = f"no reader for {format}"
    else:
        checks.append(audit(format, program.scheme))
    return tuple(checks), not_checked


def _runtime(format: str) -> plugins.Runtime | None:
    try:
        return plugins.runtime_for(format)
    except NoRoute:
        return None


def _parity(format: str, runtime: plugins.Runtime, expected: Need | Path, wanted: Conversion, parity: Parity) -> Check:
    needs, files = wire("expected", expected)
    options: dict[str, Any] = {"runtime": runtime.name, "min_sqnr_db": parity.min_sqnr_db, "name": model_file(format)}
    asked = wanted.model_dump(mode="json", exclude_defaults=True)
    options |= {name: asked[name] for name in _PARITY_KNOWS if name in asked}
    return Check("parity", "toolkit.measure.parity:run", model_file(format), options, needs=needs, files=files, plugins=(runtime,))


def dynamic_option(wanted: Conversion) -> dict[str, dict[str, str]]:
    """Returns the free sizes as a stage's option, whose keys JSON makes strings."""
    return {name: {str(axis): size for axis, size in axes.items()} for name, axes in wanted.dynamic.items()}
