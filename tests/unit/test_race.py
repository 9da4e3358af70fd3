"""Several ways to one output: in turn, each with its reason, until one delivers. On stages and routes that do almost nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from toolkit import errors, plugins
from toolkit.config import Conversion, Parity
from toolkit.pipeline import conversion
from toolkit.pipeline.execute import execute
from toolkit.pipeline.race import all_fallen
from toolkit.pipeline.steps import Check, Need, Step
from toolkit.store import Store


def race(*ways: tuple[str, str], **options: dict) -> Step:
    """A step of several ways: name and stage of each; ``options`` by name."""
    step = None
    for name, stage in reversed(ways):
        given = {"append": name, **options.get(name, {})}
        step = Step("convert:new", f"tests.stages:{stage}", given, route=name, otherwise=step)
    assert step is not None
    return step


def outcomes(result) -> list[tuple[str, str, str]]:
    return [(one.route, one.outcome, one.code) for one in result.attempts]


def run(step: Step, tmp_path, **more):
    return execute([step], Store(tmp_path / "store"), **more)[step.id]


def text_of(result) -> str:
    return (result.folder / "text.txt").read_text()


def test_the_first_that_delivers_is_taken(tmp_path):
    result = run(race(("best", "echo"), ("second", "segfault")), tmp_path)
    assert text_of(result) == "best"
    assert outcomes(result) == [("best", "taken", ""), ("second", "passed over", "not-needed")]
    assert result.attempts[0].seconds > 0 and result.attempts[1].seconds is None
    assert result.record.attempts == result.attempts and result.record.status == "done"


@pytest.mark.parametrize(
    ("stage", "code"),
    [
        ("framework_error", "stage-failed"),
        ("segfault", "stage-crashed"),
        ("abort", "stage-crashed"),
        ("leave", "stage-crashed"),
        ("killed", "stage-out-of-memory"),
        ("eat_memory", "stage-out-of-memory"),
        ("reject", "input-rejected"),
    ],
)
def test_every_way_to_die_leads_on_to_the_next(tmp_path, stage, code):
    result = run(race(("dies", stage), ("lives", "echo")), tmp_path)
    assert text_of(result) == "lives"
    assert outcomes(result) == [("dies", "failed", code), ("lives", "taken", "")]
    assert result.attempts[0].reason and "\n" not in result.attempts[0].reason
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_a_time_out_leads_on(tmp_path):
    result = run(race(("hangs", "hang"), ("lives", "echo")), tmp_path, timeout_seconds=3.0)
    assert outcomes(result) == [("hangs", "failed", "stage-timeout"), ("lives", "taken", "")]


def test_a_failed_check_leads_on_and_publishes_nothing_of_the_first(tmp_path):
    liar = replace(race(("liar", "echo")), checks=(Check("parity", "tests.stages:reject", "text.txt", {}),))
    result = run(replace(liar, otherwise=race(("honest", "echo"))), tmp_path)
    assert text_of(result) == "honest"
    assert outcomes(result) == [("liar", "failed", "input-rejected"), ("honest", "taken", "")]
    entries = Store(tmp_path / "store").entries()
    assert [key for key, _, _ in entries] == [result.record.key]


def test_each_way_has_its_own_key_and_failures_are_not_cached(tmp_path):
    counter = tmp_path / "counter"
    step = race(("first", "count"), ("second", "echo"), first={"counter": str(counter)})
    broken = replace(step, checks=(Check("parity", "tests.stages:reject", "text.txt", {}),))
    first = run(broken, tmp_path)
    again = run(broken, tmp_path)
    assert (first.record.status, again.record.status) == ("done", "cached")
    assert first.record.key == again.record.key
    assert counter.read_text().count("called") == 2, "a failure is tried again: it may have been this machine's"
    assert again.attempts[1].outcome == "taken" and again.attempts[1].seconds is None
    mended = run(step, tmp_path)
    assert text_of(mended) == "first" and mended.record.key != first.record.key


def test_what_comes_after_gets_the_output_of_the_way_that_was_taken(tmp_path):
    after = Step("after", "tests.stages:echo", {"append": "!"}, needs={"text": Need("convert:new", "text.txt")})
    results = execute([race(("falls", "segfault"), ("holds", "echo")), after], Store(tmp_path))
    assert (results["after"].folder / "text.txt").read_text() == "holds!"


def test_when_all_fall_there_is_one_error_with_a_line_for_each(tmp_path):
    after = Step("after", "tests.stages:echo", needs={"text": Need("convert:new", "text.txt")})
    results = execute([race(("a", "framework_error"), ("b", "segfault")), after], Store(tmp_path))
    failed = results["convert:new"]
    assert type(failed.error) is errors.StageError and failed.error.exit_code == 5
    lines = str(failed.error).splitlines()
    assert "no route to new: 2 of 2 were tried" in lines[0]
    assert lines[1].startswith("  a failed: ") and "unsupported operator Foo" in lines[1]
    assert lines[2].startswith("  b failed: ") and "SIGSEGV" in lines[2]
    assert "full output: " in failed.error.hint
    assert failed.record.status == "failed" and failed.record.error["code"] == "stage"
    assert [one.outcome for one in failed.record.attempts] == ["failed", "failed"]
    assert results["after"].record.status == "skipped"
    assert Store(tmp_path).entries() == []


def test_the_only_way_fails_with_its_own_error(tmp_path):
    failed = run(race(("alone", "reject")), tmp_path)
    assert isinstance(failed.error, errors.InputRejected)
    assert failed.error.message == "found 3, expected 4" and failed.error.hint == "give 4"


def test_errors_of_one_kind_stay_of_that_kind(tmp_path):
    failed = run(race(("a", "reject"), ("b", "reject")), tmp_path)
    assert type(failed.error) is errors.InputRejected and failed.error.hint == "give 4"


def test_an_interrupt_leads_nowhere(tmp_path, monkeypatch):
    calls = []

    def interrupted(self, stage, job, **_):
        calls.append(stage)
        raise errors.Interrupted("stop")

    monkeypatch.setattr("toolkit.worker.Workers.run", interrupted)
    result = run(race(("a", "echo"), ("b", "echo")), tmp_path)
    assert isinstance(result.error, errors.Interrupted) and len(calls) == 1


def test_unsupported_operators_pass_a_way_over(tmp_path):
    result = run(race(("walled", "unsupported"), ("open", "echo")), tmp_path)
    assert text_of(result) == "open"
    walled, taken = result.attempts
    assert (walled.outcome, walled.code) == ("passed over", "unsupported-operator")
    assert walled.reason == "operator aten.stft in layer 'front.spectrum' has no TFLite kernel"
    assert walled.hint == "compute the spectrum outside" and walled.seconds is None
    assert taken.outcome == "taken"


def test_when_every_way_is_passed_over_there_is_no_route(tmp_path):
    failed = run(race(("a", "unsupported"), ("b", "unsupported")), tmp_path)
    assert type(failed.error) is errors.NoRoute and failed.error.exit_code == 5
    assert str(failed.error).count("operator aten.stft in layer 'front.spectrum' has no TFLite kernel") == 2, "one line a route"
    assert "0 of 2 were tried" in str(failed.error)
    assert failed.error.hint == "compute the spectrum outside"
    assert Store(tmp_path).entries() == []


def test_the_hint_is_that_of_the_first_that_was_tried():
    one = conversion.Attempt(route="absent", outcome="passed over", code="missing-extra", reason="needs x", hint='run: pip install "y"')
    two = conversion.Attempt(route="tried", outcome="failed", code="parity", reason="differs", hint="look there")
    error = all_fallen("onnx", [one, two], {"tried": errors.ParityFailed("differs", hint="look there")})
    assert type(error) is errors.ParityFailed and error.hint == "look there"
    assert "absent was passed over: needs x" in str(error) and "tried failed: differs" in str(error)


# Which routes are tried at all


def route(name: str, **more):
    own = {
        "name": name,
        "version": 1,
        "modules": (),
        "distributions": (),
        "extra": f"edgekit[{name}]",
        "source": "old",
        "format": "new",
        "trust": 0.5,
    }
    return SimpleNamespace(**{**own, **more}, convert=None)


@pytest.fixture
def install(monkeypatch):
    """Installs fake routes, a runtime of ``new`` unless that is not wanted, and no readers."""

    def make(*routes, runs: tuple[str, ...] = ("new",)):
        runtime = SimpleNamespace(name="runs", version=1, modules=(), distributions=(), extra="", formats=runs)
        found = {"routes": {one.name: one for one in routes}, "runtimes": {"runs": runtime} if runs else {}, "readers": {}}
        monkeypatch.setattr(plugins, "discover", lambda group: found[group])

    return make


def planned(wanted: Conversion | None = None, format: str = "new") -> Step:
    return conversion.convert(conversion.of_source("old"), format, wanted or Conversion(), Parity())[-1]


def ways(step: Step | None) -> list[str]:
    return [step.route, *ways(step.otherwise)] if step else []


def test_routes_are_tried_in_the_order_of_trust(install):
    install(route("low", trust=0.2), route("high", trust=0.9), route("middle"))
    assert ways(planned()) == ["high", "middle", "low"]


def test_a_named_route_is_tried_alone_and_must_lead_there(install):
    install(route("low", trust=0.2), route("high", trust=0.9))
    assert ways(planned(Conversion(route="low"))) == ["low"]
    with pytest.raises(errors.NoRoute, match="route 'other' does not convert old to new; known: high, low"):
        planned(Conversion(route="other"))


def test_a_route_without_its_framework_is_passed_over_with_the_install_line(install):
    install(route("absent", trust=0.9, modules=("no_such_framework",)), route("there"))
    step = planned()
    assert ways(step) == ["there"]
    (passed,) = step.passed_over
    assert (passed.route, passed.code, passed.hint) == ("absent", "missing-extra", 'run: pip install "edgekit[absent]"')


def test_where_only_frameworks_are_missing_the_machine_is_not_ready(install, tmp_path):
    install(route("absent", modules=("no_such_framework",)))
    with pytest.raises(errors.MissingExtra, match="no_such_framework"):
        execute([replace(planned(), needs={}, derived={}, checks=())], Store(tmp_path))


def test_a_route_that_does_not_know_an_option_is_passed_over(install):
    install(route("plain", trust=0.9), route("knows", options=("opset",)))
    step = planned(Conversion(opset=17))
    assert ways(step) == ["knows"] and step.options["opset"] == 17
    assert [(one.route, one.code, one.reason) for one in step.passed_over] == [("plain", "option", "does not know the option opset")]
    assert "opset" not in planned().options
    with pytest.raises(errors.NoRoute) as caught:
        planned(Conversion(layout="channels_last"))
    assert "0 of 2 were tried" in str(caught.value) and caught.value.hint == "leave out layout"


def test_free_sizes_ask_for_a_route_that_takes_them(install):
    install(route("fixed", trust=0.9), route("free", options=("dynamic",)))
    step = planned(Conversion(dynamic={"x": {0: "batch"}}))
    assert ways(step) == ["free"] and "dynamic" not in step.options, "the signature says which sizes are free"


def test_parity_is_told_what_changes_how_a_file_is_fed(install):
    install(route("knows", options=("layout", "batch_sizes", "opset")))
    step = planned(Conversion(layout="channels_last", batch_sizes=(1, 4), opset=17))
    (parity,) = (check for check in step.checks if check.name == "parity")
    assert (parity.options["layout"], parity.options["batch_sizes"]) == ("channels_last", [1, 4]) and "opset" not in parity.options


def test_a_rewrite_must_be_one_of_the_routes_own(install):
    install(
        route("none", trust=0.9, options=("rewrites",), rewrites={"other": "does"}), route("some", options=("rewrites",), rewrites={"gelu": "does"})
    )
    step = planned(Conversion(rewrites=("gelu",)))
    assert ways(step) == ["some"] and step.options["rewrites"] == ["gelu"]
    assert step.passed_over[0].reason == "does not know the rewrite gelu"


def test_any_route_follows_when_no_clean_up_is_wanted(install):
    install(route("cleans", options=("clean_up",)), route("never"))
    step = planned(Conversion(clean_up=False))
    assert ways(step) == ["cleans", "never"]
    assert step.options["clean_up"] is False and "clean_up" not in step.otherwise.options


def test_a_format_that_nothing_runs_is_converted_without_parity_and_says_so(install, tmp_path):
    install(route("only"), runs=())
    step = planned()
    assert step.checks == ()
    assert step.not_checked == {"parity": "no runtime executes new on this machine", "audit": "no reader for new"}
    facts = run(replace(race(("only", "echo")), not_checked=step.not_checked), tmp_path).facts
    assert facts["checks"]["parity"] == {"not_done": "no runtime executes new on this machine"}


def test_one_table_speaks_for_all_formats_of_a_project(install):
    install(route("to_new", options=("opset",)), route("to_other", format="other"), route("to_third", format="third", options=("layout",)))
    found = conversion.fitting("old", Conversion(opset=17, layout="channels_last", route="to_other"), ["new", "other", "third"])
    assert (found["new"].opset, found["new"].layout, found["new"].route) == (17, None, "auto")
    assert (found["other"].opset, found["other"].layout, found["other"].route) == (None, None, "to_other")
    assert (found["third"].opset, found["third"].layout, found["third"].route) == (None, "channels_last", "auto")
    unknown = conversion.fitting("old", Conversion(batch_sizes=(4,)), ["new", "other"])
    assert all(one.batch_sizes == (4,) for one in unknown.values()), "what nobody knows is left for the refusal"
