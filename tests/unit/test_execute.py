"""Keys, caching, order, isolation: the pipeline's promises, on stages that do almost nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from toolkit import errors
from toolkit.pipeline.execute import execute
from toolkit.pipeline.steps import Check, Fact, Need, Step
from toolkit.store import Store
from toolkit.worker import Workers


def step(id: str, stage: str = "echo", **fields) -> Step:
    return Step(id, f"tests.stages:{stage}", **fields)


class Recorder:
    """Keeps what the pipeline said, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def planned(self, steps):
        self.said += [("planned", name) for name in steps]

    def started(self, name):
        self.said.append(("started", name))

    def progressed(self, name, done, total, note):
        self.said.append(("progressed", name))

    def finished(self, record):
        self.said.append((record.status, record.step))


def statuses(results) -> dict[str, str]:
    return {id: result.record.status for id, result in results.items()}


def test_a_chain_runs_in_order_and_then_comes_from_the_store(tmp_path):
    chain = [
        step("a", options={"append": "A"}),
        step("b", options={"append": "B"}, needs={"text": Need("a", "text.txt")}),
        step("c", needs={"text": Need("b", "text.txt")}, derived={"append": Fact("a", "length")}),
    ]
    store = Store(tmp_path)
    first = execute(chain, store)
    assert statuses(first) == {"a": "done", "b": "done", "c": "done"}
    assert (first["c"].folder / "text.txt").read_text() == "AB0"
    recorder = Recorder()
    second = execute(chain, store, listener=recorder)
    assert statuses(second) == {"a": "cached", "b": "cached", "c": "cached"}
    assert [result.record.key for result in first.values()] == [result.record.key for result in second.values()]
    assert not any(what == "started" for what, _ in recorder.said)
    assert second["c"].facts == first["c"].facts


def test_every_part_of_a_step_decides_its_key(tmp_path, monkeypatch):
    file = tmp_path / "input.txt"
    file.write_text("one")
    plugin = SimpleNamespace(name="p", version=1, modules=(), distributions=("numpy",), extra="")
    base = step("a", options={"append": "A"}, files={"text": file}, plugins=(plugin,))
    store = Store(tmp_path / "store")

    def key(variant: Step) -> str:
        return execute([variant], store)["a"].record.key

    original = key(base)
    assert key(base) == original
    changed = [
        key(replace(base, options={"append": "B"})),
        key(replace(base, stage="tests.stages:note_times")),
        key(replace(base, plugins=(SimpleNamespace(**{**vars(plugin), "version": 2}),))),
        key(replace(base, plugins=(SimpleNamespace(**{**vars(plugin), "distributions": ("scipy",)}),))),
        key(replace(base, checks=(Check("look", "tests.stages:echo", "text.txt", {}),))),
    ]
    monkeypatch.setattr("toolkit.pipeline.execute.own_code", lambda: "another version of Edgekit")
    changed.append(key(base))
    monkeypatch.undo()
    file.write_text("two")
    changed.append(key(base))
    assert len({original, *changed}) == len(changed) + 1


def test_equal_output_of_a_changed_step_is_not_computed_further(tmp_path):
    """A new version of a plugin that writes the same bytes leaves everything after it cached."""
    counter = tmp_path / "counter"
    store = Store(tmp_path / "store")

    def chain(version: int) -> list[Step]:
        after = step("b", "count", options={"counter": str(counter)}, needs={"text": Need("a", "text.txt")})
        plugin = SimpleNamespace(name="p", version=version, modules=(), distributions=(), extra="")
        return [step("a", options={"append": "A"}, plugins=(plugin,)), after]

    execute(chain(1), store)
    assert statuses(execute(chain(2), store)) == {"a": "done", "b": "cached"}
    assert counter.read_text().count("called") == 1


def test_a_failure_skips_what_needs_it_and_nothing_else(tmp_path):
    chain = [
        step("bad", "segfault"),
        step("after", needs={"x": Need("bad", "text.txt")}),
        step("far", needs={"x": Need("after", "text.txt")}),
        step("other", options={"append": "fine"}),
        step("all", partial=True, needs={"x": Need("bad", "text.txt"), "y": Need("other", "text.txt")}),
        step("none", partial=True, needs={"x": Need("bad", "text.txt"), "data": Need("other", "text.txt")}),
    ]
    store = Store(tmp_path)
    results = execute(chain, store)
    assert statuses(results) == {"bad": "failed", "after": "skipped", "far": "skipped", "other": "done", "all": "done", "none": "skipped"}
    assert isinstance(results["far"].error, errors.StageCrashed)
    assert (results["all"].folder / "text.txt").read_text() == "fine"
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_failed_check_publishes_nothing(tmp_path):
    checked = step("a", checks=(Check("refuse", "tests.stages:reject", "text.txt", {}),))
    store = Store(tmp_path)
    result = execute([checked], store)["a"]
    assert isinstance(result.error, errors.InputRejected)
    assert store.get(result.record.key) is None
    assert statuses(execute([checked], store)) == {"a": "failed"}


def test_a_check_sees_the_output_and_its_facts_are_kept(tmp_path):
    checked = step("a", options={"append": "seen"}, checks=(Check("look", "tests.stages:echo", "text.txt", {}),))
    facts = execute([checked], Store(tmp_path))["a"].facts
    assert facts["checks"]["look"]["length"] == len("seen")


def test_a_stage_warms_its_server_for_the_one_stage_that_follows_in_it(tmp_path):
    told = {}

    class Recording(Workers):
        def run(self, stage, job, **given):
            told[job.options["append"]] = given["warm"]
            return super().run(stage, job, **given)

    def run(folder, *names):
        told.clear()
        used = [SimpleNamespace(name=name, version=1, modules=(), distributions=(), extra="", preload=("decimal",), warm=(name,)) for name in names]
        followers = [step(one.name, options={"append": one.name}, needs={"text": Need("a", "text.txt")}, plugins=(one,)) for one in used]
        with Recording() as workers:
            execute([step("a", options={"append": "a"}, preload=("decimal",)), *followers], Store(tmp_path / folder), workers=workers)
        return told

    assert run("one", "colorsys") == {"a": ("colorsys",), "colorsys": ()}
    assert run("two", "colorsys", "tabnanny") == {"a": (), "colorsys": (), "tabnanny": ()}, "what one of them imports is not for the other"


def test_uncached_steps_run_every_time(tmp_path):
    counter = tmp_path / "counter"
    timing = step("t", "count", options={"counter": str(counter)}, cached=False)
    store = Store(tmp_path / "store")
    for _ in range(2):
        assert statuses(execute([timing], store)) == {"t": "done"}
    assert counter.read_text().count("called") == 2


def test_independent_steps_overlap_and_an_exclusive_one_never_does(tmp_path):
    chain = [
        step("a", "note_times", options={"n": 1}),
        step("b", "note_times", options={"n": 2}),
        step("x", "note_times", exclusive=True, cached=False),
    ]
    facts = {id: result.facts for id, result in execute(chain, Store(tmp_path), jobs=2).items()}
    assert facts["a"]["start"] < facts["b"]["end"]
    assert facts["b"]["start"] < facts["a"]["end"]
    assert facts["x"]["start"] >= max(facts["a"]["end"], facts["b"]["end"])


def test_a_missing_extra_is_found_before_anything_runs(tmp_path):
    absent = SimpleNamespace(name="absent", version=1, modules=("no_such_module",), distributions=(), extra="edgekit[absent]")
    counter = tmp_path / "counter"
    chain = [step("a", "count", options={"counter": str(counter)}), step("b", plugins=(absent,))]
    with pytest.raises(errors.MissingExtra) as caught:
        execute(chain, Store(tmp_path / "store"))
    assert 'pip install "edgekit[absent]"' in caught.value.hint
    assert not counter.exists()


def test_a_missing_file_fails_its_step_with_its_name(tmp_path):
    result = execute([step("a", files={"text": tmp_path / "absent.txt"})], Store(tmp_path / "store"))["a"]
    assert isinstance(result.error, errors.InputRejected)
    assert "absent.txt" in str(result.error)


def test_a_resumable_step_finds_what_a_killed_one_left(tmp_path):
    store, chain = Store(tmp_path), [step("a", "killed_twice", resumable=True)]
    for _ in range(2):
        assert statuses(execute(chain, store)) == {"a": "failed"}
    assert len(list((tmp_path / "unfinished").glob("*/steps"))) == 1
    assert execute(chain, store)["a"].facts["steps"] == 3
    assert not list((tmp_path / "unfinished").iterdir()), "what is finished leaves nothing"


def test_a_step_that_nothing_calls_for_is_skipped_and_nothing_is_wrong(tmp_path):
    chain = [
        step("a", options={"append": "A"}),
        step("rest", needs={"text": Need("a", "text.txt")}, options={"append": "R"}, only_if=(Fact("a", "length"),)),
        step("behind", needs={"text": Need("rest", "text.txt")}, options={"append": "B"}),
        step("either", needs={"text": Need("a", "text.txt"), "other": Need("behind", "text.txt")}, options={"append": "E"}, partial=True),
    ]
    results = execute(chain, Store(tmp_path))
    assert statuses(results) == {"a": "done", "rest": "unneeded", "behind": "unneeded", "either": "done"}
    assert all(result.error is None for result in results.values())
    longer = [step("0", options={"append": "0"}), replace(chain[0], needs={"text": Need("0", "text.txt")}), *chain[1:]]
    assert set(statuses(execute(longer, Store(tmp_path))).values()) <= {"done", "cached"}
