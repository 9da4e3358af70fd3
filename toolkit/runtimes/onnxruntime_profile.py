"""Time of every operator in ONNX Runtime, from its own profiler, told back in the nodes of the file.

Recording costs time, some of it within the operators themselves: two to four microseconds each, which is nothing for a
convolution and half of a small transformer. What it costs is measured on a chain of nodes that do next to nothing, and taken off.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from toolkit import onnx_external
from toolkit.errors import StageFailed
from toolkit.plugins import Arrays, Event
from toolkit.runtimes import complaints
from toolkit.runtimes.onnxruntime import RUNTIME, OnnxSession, errors, session_options

OPTIMIZED = "optimized.onnx"
WEIGHTS = "weights.bin"
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_SUFFIX = "_kernel_time"
_CHAIN_NODES = 100
_CHAIN_RUNS = 30


def open_profiled(model: Path, *, threads: int) -> ProfiledOnnxSession:
    """Loads a model with ONNX Runtime's profiler switched on; see :class:`toolkit.plugins.ProfiledSession`.

    Raises:
        InputRejected: The file, or one that its weights are in, is missing or damaged, or it is not ONNX.
        StageOutOfMemory: The process may not have the memory the model needs.
    """
    import onnxruntime

    folder = Path(tempfile.mkdtemp(prefix="edgekit-profile-"))
    options = _recording(session_options(threads), folder)
    # The graph as it is executed, without its weights, tells what became of the file's nodes.
    options.optimized_model_filepath = str(folder / OPTIMIZED)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except errors() as error:
        shutil.rmtree(folder, ignore_errors=True)
        onnx_external.data_files(model)  # as when it is opened without a profiler
        raise complaints.cannot_open(model, RUNTIME.name, error) from error
    return ProfiledOnnxSession(session, model, folder)


class ProfiledOnnxSession(OnnxSession):
    """A loaded ONNX model whose operators are timed.

    Attributes:
        signature: Inputs and outputs of the loaded model.
    """

    def __init__(self, session: Any, model: Path, folder: Path) -> None:
        super().__init__(session)
        self._session, self._model, self._folder = session, model, folder
        self._runs = 0
        self._clean_up = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch and records it; see :meth:`OnnxSession.run`."""
        outputs = super().run(inputs)
        self._runs += 1
        return outputs

    def events(self) -> list[list[Event]]:
        """Ends the recording and returns the events of each run.

        Raises:
            StageFailed: The profiler did not record every run.
        """
        runs = read_runs(Path(self._session.end_profiling()))
        if len(runs) != self._runs:
            raise StageFailed(f"ONNX Runtime recorded {len(runs)} of {self._runs} inferences", hint="profile for a shorter time")
        # The chain is timed now, right after the model, so that both met the same machine.
        cost = _recorder_cost()
        origins = _Origins(_nodes(self._model), _nodes(self._folder / OPTIMIZED))
        self._clean_up()
        return [[_event(one, ms, origins) for one, ms in zip(run.nodes, own_times(run, cost), strict=True)] for run in runs]


@dataclass(frozen=True)
class Run:
    """What was recorded of one inference.

    Attributes:
        nodes: The profiler's node events in the order of execution, without those that only contain others.
        gap_us: Time between the nodes, in which the recorder works and the executor picks the next node.
    """

    nodes: list[dict[str, Any]]
    gap_us: float


@dataclass(frozen=True)
class RecorderCost:
    """What recording adds to nodes that do next to nothing.

    Attributes:
        within_us: Time added to each node's own.
        between_us: Time from one node to the next.
    """

    within_us: float
    between_us: float


def read_runs(trace: Path) -> list[Run]:
    """Reads a profile that ONNX Runtime wrote, inference by inference."""
    events = [event for event in json.loads(trace.read_text(encoding="utf-8")) if "dur" in event]
    spans = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])
    executes = [event for event in events if event["name"] == "SequentialExecutor::Execute"]
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_SUFFIX)]
    starts = np.array([span["ts"] for span in spans])
    runs: list[Run] = []
    sorted_nodes, sorted_executes = _by_span(nodes, starts), _by_span(executes, starts)
    for number in range(len(spans)):
        inside = _without_containers(sorted_nodes.get(number, []))
        whole = max((event["dur"] for event in sorted_executes.get(number, [])), default=0)
        runs.append(Run(inside, max(0.0, whole - sum(event["dur"] for event in inside))))
    return runs


def own_times(run: Run, cost: RecorderCost) -> list[float]:
    """Returns every node's time in milliseconds without what recording added to it.

    The recorder works between the nodes as well as within them. In a model that fills the caches it is slower than in the
    chain; by how much is seen between the nodes, and within them it is taken to be slower by the same factor. Whole microseconds
    and an average cost put the shortest nodes below zero as often as above: they become zero, and the others give up as much,
    or the sum would be too large (by 7 % in a transformer of 79 nodes and 60 microseconds).
    """
    if not run.nodes:
        return []
    slower = max(1.0, run.gap_us / len(run.nodes) / max(cost.between_us, 1e-3))
    left_us = [event["dur"] - cost.within_us * slower for event in run.nodes]
    positive_us = sum(max(0.0, one) for one in left_us)
    scale = max(0.0, sum(left_us)) / positive_us * 1e-3 if positive_us else 0.0
    return [max(0.0, one) * scale for one in left_us]


def _by_span(events: Iterable[dict[str, Any]], starts: np.ndarray) -> dict[int, list[dict[str, Any]]]:
    """Sorts events to the inference that they began in, each in the order of their beginning."""
    found: dict[int, list[dict[str, Any]]] = {}
    for event in sorted(events, key=lambda event: event["ts"]):  # a stable sort: of two that began together, the first recorded leads
        found.setdefault(int(np.searchsorted(starts, event["ts"], side="right")) - 1, []).append(event)
    return found


def _without_containers(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Takes from each control-flow node the time of the nodes it ran, which are listed on their own."""
    kept = []
    for node in nodes:
        if node["args"].get("op_name") in CONTROL_FLOW:
            end = node["ts"] + node["dur"]
            inner = [one for one in nodes if one is not node and node["ts"] <= one["ts"] and one["ts"] + one["dur"] <= end]
            contained = [one for one in inner if one["args"].get("op_name") not in CONTROL_FLOW]
            node = {**node, "dur": max(0, node["dur"] - sum(one["dur"] for one in contained))}
        kept.append(node)
    return kept


def _recorder_cost() -> RecorderCost:
    """Times a chain of tiny additions with and without recording."""
    import onnxruntime

    def opened(model: bytes, folder: Path | None = None) -> Any:
        options = session_options(1, "ORT_DISABLE_ALL")
        return onnxruntime.InferenceSession(model, _recording(options, folder) if folder else options, providers=["CPUExecutionProvider"])

    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        one, plain, recorded = opened(_chain(1)), opened(_chain(_CHAIN_NODES)), opened(_chain(_CHAIN_NODES), Path(folder))
        feed = {"t0": np.zeros((1, 1, 1, 1), np.float32)}
        times: dict[str, list[int]] = {"one": [], "plain": []}
        for _ in range(_CHAIN_RUNS):
            for name, session in (("one", one), ("plain", plain)):
                start = time.perf_counter_ns()
                session.run(None, feed)
                times[name].append(time.perf_counter_ns() - start)
            recorded.run(None, feed)
        runs = read_runs(Path(recorded.end_profiling()))
    real_us = (median(times["plain"]) - median(times["one"])) * 1e-3 / (_CHAIN_NODES - 1)
    seen_us = median(sum(event["dur"] for event in run.nodes) / _CHAIN_NODES for run in runs)
    return RecorderCost(max(0.0, seen_us - real_us), median(run.gap_us / _CHAIN_NODES for run in runs))


def _recording(options: Any, folder: Path) -> Any:
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    return options


def _chain(length: int) -> bytes:
    """Builds a model of additions, each waiting for the one before, on one number."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 1, 1)) for name in ("t0", f"t{length}")]
    nodes = [helper.make_node("Add", [f"t{place}", "t0"], [f"t{place + 1}"], name=f"n{place}") for place in range(length)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _nodes(model: Path) -> list[Any]:
    import onnx

    return list(onnx.load(str(model), load_external_data=False).graph.node)


def _event(recorded: Mapping[str, Any], ms: float, origins: _Origins) -> Event:
    arguments = recorded["args"]
    name = recorded["name"].removesuffix(_SUFFIX)
    operator = arguments.get("op_name", "")
    kernel = " ".join(filter(None, (arguments.get("provider", "").removesuffix("ExecutionProvider"), origins.domain(name))))
    return Event(name=name, operator=operator, kernel=kernel, ms=ms, nodes=origins.of(name, operator, int(arguments.get("node_index", -1))))


class _Origins:
    """Which nodes of the file an executed node stands for.

    An executed node keeps the name of the tensor it ends in, or carries that name or a node's in its own; from there, all
    nodes back to the tensors that other executed nodes end in are part of it. What was put in between to change a layout or
    a shape belongs to the node that consumes it, or else to the one before.
    """

    def __init__(self, written: Sequence[Any], executed: Sequence[Any]) -> None:
        self._written, self._executed = written, executed
        self._maker = {output: node for node in written for output in node.output if output}
        self._named = {node.name: node for node in written if node.name}
        self._by_name = {node.name: node for node in executed if node.name}

    def domain(self, name: str) -> str:
        """Returns the operator set of an executed node, where that is not ONNX's own."""
        node = self._by_name.get(name)
        return "" if node is None or node.domain in ("", "ai.onnx") else node.domain

    def of(self, name: str, operator: str, index: int) -> tuple[str, ...]:
        """Returns the names of the file's nodes, first the one that the executed node ends in."""
        node = self._by_name.get(name)
        if node is not None:
            return self._covered.get(name) or self._neighbour(node)
        # A node without a name keeps its place in the file.
        known = 0 <= index < len(self._written) and self._written[index].op_type == operator
        return (_name(self._written[index]),) if known else ()

    @cached_property
    def _ends(self) -> dict[str, list[str]]:
        """Tensors of the file that each executed node ends in."""
        return {node.name: list(self._ends_of(node)) for node in self._executed if node.name}

    def _ends_of(self, node: Any) -> Iterator[str]:
        kept = [output for output in node.output if output in self._maker]
        if kept:
            yield from kept
            return
        for word in _words(node.name):
            if word in self._maker:
                yield word
                return
            if word in self._named:
                yield from self._named[word].output
                return

    @cached_property
    def _covered(self) -> dict[str, tuple[str, ...]]:
        ends = {tensor for tensors in self._ends.values() for tensor in tensors}
        return {name: tuple(self._back(tensors, ends)) for name, tensors in self._ends.items() if tensors}

    def _back(self, tensors: list[str], ends: set[str]) -> Iterator[str]:
        waiting, seen = list(tensors), set(tensors)
        while waiting:
            node = self._maker[waiting.pop(0)]
            yield _name(node)
            for source in node.input:
                if source in self._maker and source not in ends and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def _neighbour(self, node: Any) -> tuple[str, ...]:
        produced, consumed = set(node.output), set(node.input)
        users = [other for other in self._executed if produced.intersection(other.input)]
        makers = [other for other in self._executed if consumed.intersection(other.output)]
        return next((self._covered[other.name] for other in (*users, *makers) if other.name in self._covered), ())


def _words(name: str) -> Iterator[str]:
    """Takes off what optimisers add to a name, such as ``fused x``, ``x_token_3``, ``x_nchwc`` or ``x/MatMulAddFusion``."""
    yield name
    bare = re.sub(r"(_nchwc|_token_\d+)+$", "", name.removeprefix("fused "))
    while bare:
        yield bare
        bare = bare.rpartition("/")[0]


def _name(node: Any) -> str:
    return node.name or node.output[0]
