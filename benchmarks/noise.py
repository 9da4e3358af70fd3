"""Latency verdicts on a machine that is not quiet: does a busy neighbour make equal models look unequal, or hide a slower one?"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Skipped
from toolkit.checks.latency import max_ratio
from toolkit.evidence import Verdict
from toolkit.figures import Latency
from toolkit.job import Job
from toolkit.measure import latency
from toolkit.stats.proportions import proportion_interval

TRIALS = 100
SECONDS = 0.5
MAX_NOISE = 0.1
LAYERS = 10
CHANNELS, SIZE = 32, 32
RUNTIMES = {"onnx": "onnxruntime", "tflite": "litert"}
NO_SLOWER, THREE_PERCENT = 1.0, 1.03
MOST_FALSE_ALARMS, LEAST_FOUND = 5.0, 90.0
BUSY = "while True: pass"


def measure(rounds: int) -> list[Figure]:
    """Measures a model against a copy of itself and against one with a tenth more work, 100 times each, while another process computes.

    The number of measurements does not hang on ``rounds``: the bars are about 100.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch, _neighbour():
        families = [_models(Path(scratch), format) for format in RUNTIMES]
        equal: list[Latency] = []
        slower: list[Latency] = []
        for number in range(TRIALS):
            folder, format = families[number % len(families)]
            equal.append(_time(folder, f"copy.{format}", f"model.{format}", RUNTIMES[format]))
            slower.append(_time(folder, f"slower.{format}", f"model.{format}", RUNTIMES[format]))
    everything = [*equal, *slower]
    return [
        _rate("noise.false_alarms", equal, Verdict.FAIL, NO_SLOWER, "two copies of one file, failed as slower", at_most=MOST_FALSE_ALARMS),
        _rate("noise.found", slower, Verdict.FAIL, THREE_PERCENT, "10 % more layers, failed", at_least=LEAST_FOUND),
        _rate("noise.found_any", slower, Verdict.FAIL, NO_SLOWER, "10 % more layers, failed", at_least=LEAST_FOUND),
        _rate("noise.false_passes", slower, Verdict.PASS, THREE_PERCENT, "10 % more layers, passed"),
        _rate("noise.equal_passed", equal, Verdict.PASS, THREE_PERCENT, "two copies of one file, passed"),
        Figure("noise.a_a", "%", [100 * (one.noise or 0.0) for one in everything], "what the A/A run says"),
        Figure("noise.equal", "x", [one.ratio_to_float or 0.0 for one in equal], "ratio of two copies"),
        Figure("noise.slower", "x", [one.ratio_to_float or 0.0 for one in slower], "ratio to a model with 10 % more layers"),
        Figure("noise.p50", "ms", [one.p50 for one in equal], "median of one inference"),
    ]


def _rate(
    name: str, found: list[Latency], verdict: Verdict, limit: float, what: str, *, at_most: float | None = None, at_least: float | None = None
) -> Figure:
    count = sum(max_ratio(limit, one)[0] is verdict for one in found)
    low, high = proportion_interval(count, len(found))
    said = f"{what} at max_latency_ratio {limit:g}: {count} of {len(found)}, Wilson interval {low:.1%} to {high:.1%}"
    return Figure(name, "%", [100 * count / len(found)], said, at_most=at_most, at_least=at_least)


@contextmanager
def _neighbour() -> Iterator[None]:
    """Keeps one core busy; the operating system chooses which."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _time(folder: Path, candidate: str, baseline: str, runtime: str) -> Latency:
    inputs = {"candidate": folder / candidate, "baseline": folder / baseline, "data": folder / "samples"}
    options = {"runtime": runtime, "threads": 1, "baseline": "baseline", "seconds": SECONDS, "max_noise": MAX_NOISE, "stand_in": "host cpu"}
    return Latency.model_validate(latency.run(Job(inputs, options, folder))["candidate"])


def _models(scratch: Path, format: str) -> tuple[Path, str]:
    """Exports a chain of equal convolutions, one with a tenth more of them, and copies the first."""
    try:
        import torch
    except ImportError as error:
        raise Skipped(str(error)) from None
    import toolkit
    from toolkit.dataset import Dataset
    from toolkit.store import Store

    folder = scratch / format
    images = np.random.default_rng(0).normal(size=(16, CHANNELS, SIZE, SIZE)).astype(np.float32)
    Dataset({"image": images}).write(folder / "samples")
    torch.manual_seed(0)
    for name, layers in (("model", LAYERS), ("slower", LAYERS + LAYERS // 10)):
        chain = [torch.nn.Sequential(torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), torch.nn.ReLU()) for _ in range(layers)]
        model = torch.nn.Sequential(*chain).eval()
        toolkit.export(model, {"image": images[:4]}, format=format, output=folder / f"{name}.{format}", store=Store(scratch / "cache"))
    shutil.copy(folder / f"model.{format}", folder / f"copy.{format}")
    return folder, format
