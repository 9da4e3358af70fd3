"""A pytest plugin: checks of model files as tests.

::

    def test_phone(edgekit):
        edgekit.check("model.tflite", target="android-midrange-litert", data="eval.npz", reference="float.tflite", max_drop="1pp")

pytest loads this module in every project that has Edgekit installed, so nothing but pytest itself is imported here; a check
imports what it needs when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from toolkit.artifact import Artifact
    from toolkit.evidence import Report, Row
    from toolkit.limits import Budgets
    from toolkit.pipeline.single import Samples
    from toolkit.store import Store

_DEFAULTS = {
    "data": "held-out samples of checks that name none; relative to the folder of this file",
    "reference": "float model of checks that name none; relative to the folder of this file",
    "target": "target of checks that name none",
    "task": "task of checks that name none",
}
_DOUBTS = pytest.StashKey[list[str]]()
_LINE = "edgekit"
_COLORS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class Edgekit:
    """What the fixture ``edgekit`` gives a test. Relative paths start at the test file's folder, or else at pytest's rootdir.

    A fail fails the test with one message. *Inconclusive* is no failure: the test goes on, and counts as skipped if
    nothing in it fails; under ``--edgekit-strict`` it fails. Any :class:`~toolkit.errors.ToolkitError` fails the test with its
    message and hint.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._item: pytest.Item = request.node
        self._config = request.config
        self._folders = tuple(dict.fromkeys((request.path.parent, request.config.rootpath)))

    def check(
        self,
        model: Artifact | str | Path,
        *,
        target: str | None = None,
        data: Samples | None = None,
        reference: Artifact | str | Path | None = None,
        task: str | None = None,
        output: str | None = None,
        classes: Sequence[str] | None = None,
        primary: str | None = None,
        positive: int | str | None = None,
        specificity: float | None = None,
        seconds: float | None = None,
        baseline: str | Path | None = None,
        store: Store | None = None,
        **budgets: Any,
    ) -> Row:
        """Measures one model file and holds it against budgets.

        Args:
            model: The model file.
            target: A shipped target's name, or a path to a ``.toml`` file; ``edgekit_target`` by default.
            data: Held-out samples with ``label``, or a path to them; ``edgekit_data`` by default.
            reference: The float source; by default ``edgekit_reference``, or ``NAME.float32.FORMAT`` beside a model called
                ``NAME.SCHEME.FORMAT`` when a budget needs one.
            task: What the model does; ``edgekit_task`` by default, and image classification without that.
            output: Name of the output that answers, when there are several.
            classes: Names of the classes, by index.
            primary: The metric that ``max_drop`` limits; the first of the task's by default.
            positive: The class that matters where one stands against the rest: its index or its name.
            specificity: The specificity at which sensitivity is measured.
            seconds: Timed seconds.
            baseline: A committed baseline that the evidence must not fall behind.
            store: Where stage outputs are kept; the user's cache by default.
            **budgets: The keys of :class:`toolkit.Budgets`: ``max_drop="1pp"``, ``metrics={"roc_auc": {"min": 0.9}}``.

        Returns:
            The evidence, for a test that asserts more.
        """
        __tracebackhide__ = True
        import toolkit

        with _as_failure():
            place = self._target(target)
            path = self._model(model)
            found = self._reference(reference, path, _judged(budgets, place, baseline))
            options = _given(
                task=task or self._ini("task"),
                output=output,
                classes=classes,
                metrics=_given(primary=primary, positive=positive, specificity=specificity) or None,
                seconds=seconds,
                baseline=None if baseline is None else self._find(baseline),
                store=store,
            )
            report = toolkit.check(path, self._data(data), target=place, reference=found, budgets=budgets, **options)
        self._conclude(report)
        return report.rows[0]

    def check_project(
        self, project: str | Path = ".", *, baseline: str | Path | None = None, jobs: int | None = None, store: Store | None = None
    ) -> Report:
        """Holds a whole project against its budgets.

        Args:
            project: Folder with an ``edgekit.toml``, or the file itself.
            baseline: A committed baseline; by default ``edgekit-baseline.json`` in the project's folder, if there is one.
            jobs: How many steps may run side by side.
            store: Where stage outputs are kept; the user's cache by default.

        Returns:
            The report, for a test that asserts more.
        """
        __tracebackhide__ = True
        import toolkit
        from toolkit.pipeline import baseline as baselines

        with _as_failure():
            place = self._find(project)
            own = baselines.find(place if place.is_dir() else place.parent)
            committed = own if baseline is None else self._find(baseline)
            report = toolkit.check_project(place, baseline=committed, jobs=jobs, store=store)
        self._conclude(report)
        return report

    def check_golden(self, model: Artifact | str | Path, golden: str | Path, *, target: str | None = None, store: Store | None = None) -> Report:
        """Runs a model on a golden's inputs; its outputs must lie within the golden's envelope.

        Args:
            model: The model file.
            golden: The file that ``edgekit golden update`` wrote.
            target: A target with the golden's runtime; the golden's own runtime and threads by default.
            store: Where stage outputs are kept; the user's cache by default.

        Returns:
            The report, with one finding for each output.
        """
        __tracebackhide__ = True
        import toolkit

        with _as_failure():
            place = None if target is None else self._target(target)
            report = toolkit.check_golden(self._model(model), self._find(golden), target=place, store=store)
        self._conclude(report)
        return report

    def _conclude(self, report: Report) -> None:
        """Writes down every row, then fails or remembers a doubt."""
        __tracebackhide__ = True
        for row in report.rows:
            self._item.user_properties += _properties(row)
        worst = str(report.verdict)
        if worst == "pass":
            return
        bad = [row for row in report.rows if row.verdict != "pass"]
        if worst == "fail" or _strict(self._config):
            pytest.fail("\n".join(map(_explain, bad)) or f"{worst}: nothing was judged", pytrace=False)
        self._item.stash.setdefault(_DOUBTS, []).extend([*map(_doubt, bad)] or [f"{worst}: nothing was judged"])

    def _find(self, path: str | Path) -> Path:
        return _existing(path, self._folders)

    def _model(self, model: Artifact | str | Path) -> Artifact | Path:
        return self._find(model) if isinstance(model, str | Path) else model

    def _ini(self, name: str) -> str | None:
        return self._config.getini(f"edgekit_{name}") or None

    def _ini_path(self, name: str) -> Path | None:
        value = self._ini(name)
        folder = self._config.inipath.parent if self._config.inipath else self._config.rootpath
        return _existing(value, (folder,)) if value else None

    def _target(self, target: str | None) -> str:
        name = target or self._ini("target")
        if not name:
            raise _missing("no target: where shall the model run?", "target", "android-midrange-litert")
        return str(self._find(name)) if name.endswith(".toml") else name

    def _data(self, data: Samples | None) -> Samples:
        if isinstance(data, str | Path):
            return self._find(data)
        found = data if data is not None else self._ini_path("data")
        if found is None:
            raise _missing("no held-out samples to measure on", "data", "eval.npz")
        return found

    def _reference(self, reference: Artifact | str | Path | None, model: Artifact | Path, limits: Budgets) -> Artifact | Path | None:
        if reference is not None:
            return self._model(reference)
        chosen = self._ini_path("reference")
        needed = _needing_reference(limits)
        if chosen or not needed:
            return chosen
        path = model if isinstance(model, Path) else model.path
        twin = _float_twin(path)
        if twin is None or not twin.is_file():
            looked = f"; there is no {twin.name} beside the model" if twin else ""
            raise _missing(f"{needed} compares with a float model, and none was named{looked}", "reference", "model.float32.tflite")
        return twin


@pytest.fixture
def edgekit(request: pytest.FixtureRequest) -> Edgekit:
    """Checks model files: ``edgekit.check("model.tflite", target="android-midrange-litert", max_drop="1pp")``."""
    return Edgekit(request)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--edgekit-strict`` and the defaults that an ini file may set."""
    group = parser.getgroup("edgekit", "checks of model files")
    group.addoption("--edgekit-strict", action="store_true", help="a check that is inconclusive fails its test instead of skipping it")
    parser.addini("edgekit_strict", "a check that is inconclusive fails its test instead of skipping it", type="bool", default=False)  # type: ignore[maybe-unrecognized-str-typeform]
    for name, text in _DEFAULTS.items():
        parser.addini(f"edgekit_{name}", text, type="string", default="")  # type: ignore[maybe-unrecognized-str-typeform]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Marks a test that passed with a doubt as skipped.

    Skipping on the spot would hide whatever the rest of the test finds.
    """
    report = yield
    doubts = item.stash.get(_DOUBTS, [])
    if doubts and report.when == "call" and report.passed:
        path, line, _ = item.reportinfo()
        report.outcome = "skipped"
        report.longrepr = (str(path), (line or 0) + 1, "Skipped: " + "; ".join(doubts))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists every check with its verdict and figures. They come with the reports, as another process may have run the test."""
    lines: dict[str, list[str]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        found = [str(value) for name, value in getattr(report, "user_properties", ()) if name == _LINE]
        if len(found) > len(lines.get(report.nodeid, ())) if found else False:
            lines[report.nodeid] = found
    if not lines:
        return
    terminalreporter.write_sep("=", "edgekit")
    for line in (line for found in lines.values() for line in found):
        verdict, _, rest = line.partition(" ")
        terminalreporter.write(f"{verdict:<12}", **{_COLORS.get(verdict, "bold"): True})
        terminalreporter.write_line(f" {rest}")


def _strict(config: pytest.Config) -> bool:
    return bool(config.getoption("--edgekit-strict") or config.getini("edgekit_strict"))


@contextmanager
def _as_failure() -> Iterator[None]:
    """Turns a user's mistake into a failure of the test that says no more than the command line would."""
    __tracebackhide__ = True
    from toolkit.errors import Interrupted, ToolkitError

    try:
        yield
    except Interrupted:
        raise KeyboardInterrupt from None
    except ToolkitError as error:
        message = f"edgekit: {error}" + (f"\n  -> {error.hint}" if error.hint else "")
        raise pytest.fail.Exception(message, pytrace=False) from None


def _existing(path: str | Path, folders: tuple[Path, ...]) -> Path:
    """Finds a file or folder in the first of the folders that has it.

    Raises:
        InputRejected: None has it.
    """
    from toolkit.errors import InputRejected

    found = next((folder / path for folder in folders if (folder / path).exists()), None)
    if found is None:
        raise InputRejected("does not exist", where=str(path), hint="looked in " + " and ".join(map(str, folders)))
    return found


def _missing(what: str, name: str, example: str) -> Exception:
    from toolkit.errors import ConfigError

    hint = f'pass {name}="{example}", or set edgekit_{name} = {example} in pytest.ini, or in [tool.pytest.ini_options] of pyproject.toml'
    return ConfigError(what, where="edgekit.check", hint=hint)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _judged(budgets: Mapping[str, Any], target: str, baseline: str | Path | None) -> Budgets:
    """Reads the budgets that will be judged, the target's own included; a check without any would pass whatever it is given."""
    from toolkit.config import make_budgets
    from toolkit.errors import ConfigError
    from toolkit.limits import Budgets
    from toolkit.resources import load_target

    limits = make_budgets(dict(budgets)).over(load_target(target).budgets)
    if limits == Budgets() and baseline is None:
        raise ConfigError("there is no budget to hold the model against", where="edgekit.check", hint='give at least one, such as max_drop="1pp"')
    return limits


def _needing_reference(limits: Budgets) -> str:
    """Names the first budget that compares with a float model; empty when there is none."""
    from toolkit.limits import WITH_TWIN

    own = [name for name in ("max_drop", *WITH_TWIN) if getattr(limits, name) is not None]
    of_metrics = [
        f"metrics.{name}.{key}" for name, limit in limits.metrics.items() for key in ("max_drop", "max_rise") if getattr(limit, key) is not None
    ]
    return next(iter([*own, *of_metrics]), "")


def _float_twin(model: Path) -> Path | None:
    """Names the float file beside a quantized one, as Edgekit calls its files: ``NAME.SCHEME.FORMAT``."""
    from toolkit.config import AUTO, SCHEMES

    parts = re.fullmatch(rf"(.+)\.({'|'.join((AUTO, *SCHEMES))})(\.\w+)", model.name)
    if parts is None or parts[2] == "float32":
        return None
    return model.with_name(f"{parts[1]}.float32{parts[3]}")


def _figures(row: Row) -> str:
    """Spells out what was measured, each figure with its interval and count; the reason where that is all there is."""
    from toolkit.figures import show_change, show_p90
    from toolkit.report.wording import printable

    found = [str(row.metric)] if row.metric else []
    found += [f"change {show_change(row.change)} n={row.change.n:,}"] if row.change else []
    found += [f"p90 {show_p90(row.latency_ms)} n={row.latency_ms.n:,}"] if row.latency_ms else []
    return "; ".join(found) or printable(row.reason)


def _place(row: Row) -> str:
    from toolkit.report.wording import place, printable

    return printable(place(row)) + (f" ({row.stand_in})" if row.stand_in else "")


def _explain(row: Row) -> str:
    """Says which budgets a row does not hold, and what was measured."""
    from toolkit.report.wording import printable, problems

    lines = [f"{row.verdict}: {_place(row)}"]
    lines += [f"  {finding.budget} {finding.verdict}: {printable(finding.reason)}" for finding in problems(row)]
    return "\n".join([*lines, f"  measured: {_figures(row)}"])


def _doubt(row: Row) -> str:
    """Says in one line what is undecided, and what would decide it."""
    from toolkit.report.wording import printable, problems

    return f"{row.verdict}: {_place(row)}: " + ", ".join(printable(finding.reason) for finding in problems(row))


def _properties(row: Row) -> list[tuple[str, object]]:
    """Gives a row as properties for JUnit XML; the first one is the line of the summary."""
    properties: list[tuple[str, object]] = [(_LINE, f"{row.verdict} {_place(row)}: {_figures(row)}"), ("edgekit.verdict", str(row.verdict))]
    if row.metric:
        metric = row.metric
        properties += [("edgekit.metric", metric.name), ("edgekit.value", metric.value), ("edgekit.samples", metric.n)]
        properties.append(("edgekit.interval", f"[{metric.low}, {metric.high}]"))
    if row.change:
        properties += [("edgekit.change", row.change.value), ("edgekit.change_interval", f"[{row.change.low}, {row.change.high}]")]
    return properties
