"""Evaluation speed: Edgekit's loop over samples against the bare runtime's, one thread, same process, same tensors.

And evaluation memory: the peak of the whole stage on 1,000 and on 5,000 pictures.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import product
from benchmarks.figures import ROOT, Figure, Skipped, ratios, turns

PER_ROUND = 7
LEAST = 0.9
BLOCK_SECONDS = 0.25
SAMPLES = 5000
MOBILENET_SAMPLES = 32
MEMORY_SAMPLES = (1000, 5000)
MOST_GROWTH_MB = 10
Loop = Callable[[], np.ndarray]

STAGE = """
import sys
from pathlib import Path
import sklearn.metrics  # what the metrics need anyway, so that its own memory hides nothing
from toolkit.job import Job
from toolkit.measure import accuracy

model, data, out = map(Path, sys.argv[1:])
options = {"runtime": "onnxruntime", "threads": 1, "memory_bytes": None, "task": "image-classification", "classes": 1000}
accuracy.run(Job({"model": model, "data": data}, options, out))
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


def measure(rounds: int) -> list[Figure]:
    """Compares both loops on the digits models and on a network of MobileNetV2's size."""
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as scratch:
        digits = np.resize(product.held_out(), (SAMPLES, 1, 8, 8))
        models = product.finished() / "out" / "models"
        for file in sorted(models.glob("*.onnx")) + sorted(models.glob("*.tflite")):
            found += _compare(file.name.removeprefix("digits."), file, digits, Path(scratch) / "digits", rounds)
        try:
            for name, file, images in _mobilenets(Path(scratch)):
                found += _compare(name, file, images, Path(scratch) / "mobilenet", rounds)
                found += _memory(file, Path(scratch) / "memory") if file.suffix == ".onnx" and sys.platform == "linux" else []
        except Skipped as reason:
            print(f"throughput: MobileNetV2 left out: {reason}")
    return found


def _compare(name: str, model: Path, images: np.ndarray, folder: Path, rounds: int) -> list[Figure]:
    bare_of = {".onnx": _bare_onnx, ".tflite": _bare_tflite}
    ours = {"ours": _ours(model, images, folder), "stage": _stage(model, images, folder)}
    loops = {**ours, "bare": bare_of[model.suffix](model, images)}
    for loop in ours:
        if not np.array_equal(loops[loop](), loops["bare"]()):
            raise RuntimeError(f"{name}: the loops disagree on the scores")
    passes = {loop: max(1, round(BLOCK_SECONDS / _seconds(run, 1))) for loop, run in loops.items()}
    rates: dict[str, list[float]] = {loop: [] for loop in loops}
    for loop in turns(list(loops), rounds * PER_ROUND):
        rates[loop].append(passes[loop] * len(images) / _seconds(loops[loop], passes[loop]))
    return [
        Figure(f"throughput.{name}", "x", ratios(rates["ours"], rates["bare"]), "samples per second over the bare loop's", at_least=LEAST),
        Figure(f"throughput.{name}.stage", "x", ratios(rates["stage"], rates["bare"]), "the same, scores checked and written", at_least=LEAST),
        Figure(f"throughput.{name}.bare", "us", [1e6 / rate for rate in rates["bare"]], "the bare loop, microseconds a sample"),
        Figure(f"throughput.{name}.ours", "us", [1e6 / rate for rate in rates["ours"]], "toolkit.measure.accuracy.predict, microseconds a sample"),
    ]


def _seconds(run: Loop, passes: int) -> float:
    started = time.perf_counter()
    for _ in range(passes):
        run()
    return time.perf_counter() - started


def _ours(model: Path, images: np.ndarray, folder: Path) -> Loop:
    """The loop that the evaluation stage runs, on samples mapped from disk as they are there."""
    from toolkit import dataset, plugins
    from toolkit.dataset import Dataset
    from toolkit.measure.accuracy import predict

    if not folder.exists():
        Dataset({"image": images}).write(folder)
    data = dataset.load(folder)
    session = plugins.runtime_for(model.suffix[1:]).open(model, threads=1)
    return lambda: predict(session, data)


def _stage(model: Path, images: np.ndarray, folder: Path) -> Loop:
    """All that the stage does with outputs while they come: checked, reduced to records, written."""
    from toolkit import dataset, plugins
    from toolkit.dataset import Dataset
    from toolkit.measure.accuracy import record
    from toolkit.measure.tasks import prepare
    from toolkit.measure.tasks.interface import Question

    data = dataset.load(folder)
    task = prepare(Question("image-classification"), Dataset(data.columns, np.zeros(len(images), np.int64)))
    session = plugins.runtime_for(model.suffix[1:]).open(model, threads=1)

    def loop() -> np.ndarray:
        record(session, data, task, folder / "scores.records")
        return np.load(folder / "scores.records", mmap_mode="r")

    return loop


def _memory(model: Path, folder: Path) -> list[Figure]:
    """Evaluates blank pictures in fresh processes; a file of zeros takes no disk."""
    peaks_mb = []
    for n in MEMORY_SAMPLES:
        data, out = folder / f"data{n}", folder / f"out{n}"
        data.mkdir(parents=True)
        out.mkdir()
        np.lib.format.open_memmap(data / "image.npy", "w+", np.float32, (n, 3, 224, 224)).flush()
        np.save(data / "label.npy", np.arange(n) % 1000)
        command = [sys.executable, "-c", STAGE, model, data, out]
        found = subprocess.run([str(part) for part in command], cwd=ROOT, check=True, capture_output=True, text=True)
        peaks_mb.append(int(found.stdout.split()[-1]) * 1024 / 1e6)
    growth = [peaks_mb[1] - peaks_mb[0]]
    what = "peak resident memory of the stage on {:,} pictures"
    return [
        *(Figure(f"throughput.memory.{n}", "MB", [peak], what.format(n)) for n, peak in zip(MEMORY_SAMPLES, peaks_mb, strict=True)),
        Figure("throughput.memory.growth", "MB", growth, "what 4,000 more of them add to it", at_most=MOST_GROWTH_MB),
    ]


def _bare_onnx(model: Path, images: np.ndarray) -> Loop:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def loop() -> np.ndarray:
        return np.concatenate([session.run(None, {name: images[row : row + 1]})[0] for row in range(len(images))])

    return loop


def _bare_tflite(model: Path, images: np.ndarray) -> Loop:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def loop() -> np.ndarray:
        scores = []
        for row in range(len(images)):
            interpreter.set_tensor(source, images[row : row + 1])
            interpreter.invoke()
            scores.append(interpreter.get_tensor(result))
        return np.concatenate(scores)

    return loop


def _mobilenets(scratch: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Exports an untrained MobileNetV2 through Edgekit: what its weights are does not change how long it takes."""
    try:
        import torch
        from torchvision.models import mobilenet_v2
    except ImportError as error:
        raise Skipped(str(error)) from None
    import toolkit
    from toolkit.store import Store

    torch.manual_seed(0)
    model = mobilenet_v2(weights=None).eval()
    images = np.random.default_rng(0).random((MOBILENET_SAMPLES, 3, 224, 224), dtype=np.float32)
    for format in ("onnx", "tflite"):
        file = scratch / f"mobilenet.{format}"
        toolkit.export(model, {"image": images[:2]}, format=format, output=file, store=Store(scratch / "cache"))
        yield f"mobilenet_v2.float32.{format}", file, images
