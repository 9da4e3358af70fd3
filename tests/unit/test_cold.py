"""Cold starts are measured on models whose memory is known, and with children that die in every way."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.models import samples, tiny_onnx, wide_onnx, wide_tflite
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageCrashed, StageFailed, StageOutOfMemory
from toolkit.figures import ColdStart, Memory
from toolkit.job import Job
from toolkit.measure import cold, cold_child, memory
from toolkit.pipeline.rows import benchmark_notes, machine_records

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="caps and peaks of a process are Linux's")
ELEMENTS = 12_000_000
WIDE_BYTES = 4 * ELEMENTS


def start(folder, models, data, **options):
    data.write(folder / "data")
    given = {"runtime": "onnxruntime", "threads": 1, "memory_bytes": None, "repeats": 1, **options}
    return cold.run(Job({**models, "data": folder / "data"}, given, folder))


@LINUX
@pytest.mark.parametrize(
    ("runtime", "module", "write", "copies"), [("onnxruntime", "onnxruntime", wide_onnx, 4), ("litert", "ai_edge_litert", wide_tflite, 1.5)]
)
def test_memory_and_times_of_a_model_that_sums_many_numbers(tmp_path, runtime, module, write, copies):
    pytest.importorskip(module)
    file = write(tmp_path / ("wide.onnx" if runtime == "onnxruntime" else "wide.tflite"), ELEMENTS)
    found = start(tmp_path, {"wide": file}, Dataset({"x": np.ones((2, 1), np.float32)}), repeats=2, runtime=runtime)["wide"]
    used, times = Memory.model_validate(found["memory"]), ColdStart.model_validate(found["cold"])
    assert WIDE_BYTES <= used.peak_bytes < copies * WIDE_BYTES
    assert WIDE_BYTES <= used.resident_bytes < copies * WIDE_BYTES
    assert WIDE_BYTES <= used.arena_bytes < WIDE_BYTES + 1000
    assert (used.cap, used.cap_bytes, used.n, times.n) == ("none", None, 2, 2)
    assert 0 < times.load_low <= times.load_ms <= times.load_high
    assert 0 < times.first_low <= times.first_ms <= times.first_high


@LINUX
def test_a_cap_is_told_from_a_failure(tmp_path):
    pytest.importorskip("onnxruntime")
    models = {"wide": wide_onnx(tmp_path / "wide.onnx", ELEMENTS), "small": wide_onnx(tmp_path / "small.onnx", 1000)}
    found = start(tmp_path, models, Dataset({"x": np.ones((2, 1), np.float32)}), memory_bytes=WIDE_BYTES // 2)
    assert found["wide"]["over_cap"] is True
    assert "memory cap of 24,000,000 bytes" in found["wide"]["message"]
    used = Memory.model_validate(found["wide"]["memory"])
    assert (used.cap, used.cap_bytes, used.n) == ("exceeded", WIDE_BYTES // 2, 1)
    assert used.peak_bytes >= WIDE_BYTES, "a budget must see what it really needs"
    assert (found["small"]["memory"]["cap"], found["small"]["memory"]["cap_bytes"]) == ("enforced", WIDE_BYTES // 2)


@LINUX
def test_a_start_keeps_to_the_cpus_of_the_target(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from toolkit import plugins

    seen = []
    runtime = plugins.get("runtimes", "onnxruntime")

    class Watching:
        def __getattr__(self, name):
            return getattr(runtime, name)

        def open(self, model, *, threads):
            seen.append(os.sched_getaffinity(0))
            return runtime.open(model, threads=threads)

    Dataset({"x": samples(2)}).write(tmp_path / "data")
    monkeypatch.setattr(plugins, "get", lambda group, name: Watching())
    cpu, before = max(os.sched_getaffinity(0)), os.sched_getaffinity(0)
    request = {"model": str(tiny_onnx(tmp_path / "m.onnx")), "data": str(tmp_path / "data"), "runtime": "", "threads": 1, "memory_bytes": None}
    cold_child.measure({**request, "cpus": [cpu]}, lambda message: None)
    assert seen == [{cpu}]
    assert os.sched_getaffinity(0) == before


@LINUX
def test_a_cpu_that_is_not_there_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="CPU 9999"):
        start(tmp_path, {"m": tiny_onnx(tmp_path / "m.onnx")}, Dataset({"x": samples(2)}), cpus=[9999])


def test_a_damaged_model_is_rejected(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a" * 50)
    with pytest.raises(InputRejected, match="onnxruntime can load"):
        start(tmp_path, {"m": tmp_path / "m.onnx"}, Dataset({"x": samples(2)}))


def test_data_that_do_not_fit_are_rejected(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputRejected, match="columns are"):
        start(tmp_path, {"m": tiny_onnx(tmp_path / "m.onnx")}, Dataset({"other": samples(2)}))


def test_the_child_ends_with_whoever_started_it(tmp_path):
    request = {"model": "m.onnx", "data": "data", "runtime": "onnxruntime", "threads": 1, "memory_bytes": None}
    ended = subprocess.run([sys.executable, "-P", str(cold._CHILD), json.dumps(request)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, b"")


# --- children of the test's own ---------------------------------------------------------------------------------------

DONE = '{"done": {"load_ms": 1, "first_ms": 2, "private_bytes": 10, "resident_bytes": 20, "cap": "none"}}'


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Puts a script in the place of the real child; it finds the request in ``request``."""

    def use(body):
        script = tmp_path / "child.py"
        setting = "import json, os, signal, sys, time\nrequest = json.loads(sys.argv[1])\n"
        script.write_text(setting + "def say(text):\n    print(text, flush=True)\n" + textwrap.dedent(body).replace("DONE", repr(DONE)))
        monkeypatch.setattr(cold, "_CHILD", script)
        return {"m": tiny_onnx(tmp_path / "m.onnx")}, Dataset({"x": samples(2)})

    pytest.importorskip("onnx")
    return use


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", StageCrashed, "SIGSEGV"),
        ("os.abort()", StageCrashed, "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", StageOutOfMemory, "SIGKILL"),
        ("sys.exit(3)", StageCrashed, "status 3 and no result"),
        ('say(\'{"ready": {"private_bytes": 1}}\'); os.abort()', StageCrashed, "SIGABRT"),
        ('say(\'{"error": {"code": "stage-failed", "message": "no", "where": "", "hint": ""}}\')', StageFailed, "no"),
    ],
)
def test_every_death_is_typed(tmp_path, child, body, error, message):
    with pytest.raises(error, match=message):
        start(tmp_path, *child(body))


def test_a_crash_that_only_the_cap_causes_is_a_lack_of_memory(tmp_path, child):
    made = child("os.abort() if request['memory_bytes'] else (say('{\"ready\": {\"private_bytes\": 0}}'), say(DONE))")
    found = start(tmp_path, *made, memory_bytes=1000)["m"]
    assert found["over_cap"]
    assert "SIGABRT" in found["message"]


def test_a_system_that_tells_no_memory_gives_no_zero_bytes(tmp_path, child, monkeypatch):
    made = child('say(\'{"ready": {"private_bytes": 0}}\'); say(DONE)')
    assert Memory.model_validate(start(tmp_path, *made)["m"]["memory"]).resident_bytes == 20
    monkeypatch.setattr(memory, "MEASURABLE", False)
    found = start(tmp_path, *made)["m"]
    assert found["memory"] is None
    assert found["cold"]["first_ms"] == 2


def test_a_crash_with_and_without_the_cap_is_a_crash(tmp_path, child):
    with pytest.raises(StageCrashed):
        start(tmp_path, *child("os.abort()"), memory_bytes=1000)


@LINUX
def test_memory_that_is_given_back_before_the_end_is_seen(tmp_path, child):
    body = """
        import mmap, pathlib
        status = pathlib.Path("/proc/self/status").read_text()
        before = int(status.split("VmData:")[1].split()[0]) * 1024
        say(json.dumps({"ready": {"private_bytes": before}}))
        held = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        time.sleep(0.3)
        held.close()
        say(DONE)
    """
    peak = start(tmp_path, *child(body))["m"]["memory"]["peak_bytes"]
    assert 64 << 20 <= peak < 66 << 20


def test_medians_and_ranges(tmp_path, child):
    body = """
        count = len(list(os.scandir(os.environ["COLD_TEST"])))
        open(os.path.join(os.environ["COLD_TEST"], str(count)), "w").close()
        say('{"ready": {"private_bytes": 0}}')
        load = [5, 1, 3][count]
        say(json.dumps({"done": {"load_ms": load, "first_ms": 10 * load, "private_bytes": load, "resident_bytes": 2 * load, "cap": "none"}}))
    """
    (tmp_path / "calls").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLD_TEST", str(tmp_path / "calls"))
        patch.setattr(memory, "OBSERVABLE", False)
        found = start(tmp_path, *child(body), repeats=3)["m"]
    times = {"load_ms": 3, "load_low": 1, "load_high": 5, "first_ms": 30, "first_low": 10, "first_high": 50, "n": 3}
    assert found["cold"] == times
    assert (found["memory"]["peak_bytes"], found["memory"]["resident_bytes"]) == (3, 6)
    assert found["memory"]["weight_bytes"] == 4 * (12 + 3)


def test_elsewhere_than_on_linux_the_largest_resident_set_stands_in(monkeypatch):
    monkeypatch.setattr(memory, "OBSERVABLE", False)
    used = memory.usage()
    assert len(set(used.values())) == 1
    assert used["private_bytes"] > 1 << 20
    with memory.memory_cap(1000) as cap:
        assert cap == "not enforced here"


def test_a_benchmark_says_why_not_to_rely_on_it():
    quiet = {"m": {"steady": True, "noise": 0.01, "max_noise": 0.1}}
    assert benchmark_notes("m", quiet, {"m": {}}, {}) == ()
    loud = {"m": {"steady": False, "noise": 0.2, "max_noise": 0.1}}
    told = benchmark_notes("m", loud, {"m": {"over_cap": True, "message": "needs more"}}, {"notes": ["batch 2: fixed to 1"]})
    assert [words in line for words, line in zip(("steady", "noise", "needs more", "batch 2"), told, strict=True)] == [True] * 4


def test_a_system_that_cannot_pin_is_told_in_the_row():
    timed = {"p50": 1, "p50_low": 1, "p50_high": 1, "p90": 1, "p90_low": 1, "p90_high": 1, "n": 36, "stand_in": "host cpu, not pinned"}
    assert machine_records("m", {"m": timed}, {}, {}, "this phone")["latency_ms"].stand_in == "this phone, not pinned"
    assert machine_records("m", {"m": {**timed, "stand_in": "host cpu"}}, {}, {}, "this phone")["latency_ms"].stand_in == "this phone"
