"""What collecting calibration statistics costs: CPU time over plain inference of the same samples, and peak memory.

``python -m benchmarks.calibration_cost`` exports an untrained MobileNetV2 and an untrained DistilBERT (what the weights are does not change how
long they take), and gives every contender a process of its own, in which it takes turns with plain inference on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import calibration_onnx, calibration_tflite
from benchmarks.__main__ import _environment as describe
from benchmarks.__main__ import status, table
from benchmarks.figures import ROOT, Figure, ratios
from toolkit.dataset import Dataset
from toolkit.quantization.observe import observe

FORMATS: dict[str, Any] = {"onnx": calibration_onnx, "tflite": calibration_tflite}
MODELS = ("mobilenet_v2", "distilbert")
BARS = {("mobilenet_v2", "min_max"): 1.3, ("mobilenet_v2", "histograms"): 1.6, ("distilbert", "min_max"): 1.1, ("distilbert", "histograms"): 1.25}
SAMPLES = (128, 512)
PEER_SAMPLES = {"mobilenet_v2": 128, "distilbert": 32}
MEMORY_SAMPLES = (32, 2048)
MOST_MEMORY_GROWTH = 1.1
EXACT_SAMPLES = 8
LENGTH = 128
_SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes ``calibration_cost.json`` and ``calibration_cost.md``; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_cost", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only these")
    parser.add_argument("--model", choices=MODELS, action="append", help="only these")
    parser.add_argument("--samples", type=int, action="append", help=f"how many, of ours (default: {SAMPLES})")
    parser.add_argument("--repeat", type=int, default=3, help="rounds in which a contender and plain inference take turns (%(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="ours only")
    parser.add_argument("--work", type=Path, default=ROOT / ".benchmarks" / "calibration_cost", help="where the models are kept (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results (%(default)s)")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.one:
        print(json.dumps(_one(**asked.one)))
        return 0
    asked.work.mkdir(parents=True, exist_ok=True)
    found: list[Figure] = []
    for name in asked.model or MODELS:
        for format in asked.format or FORMATS:
            found += _measure(asked, format, name)
    print(table(found))
    _write(asked.output, found)
    return status(found)


def _measure(asked: argparse.Namespace, format: str, name: str) -> list[Figure]:
    """All contenders on one model."""
    file = asked.work / f"{name}.{format}"
    if not file.exists():
        _child(asked, {"task": "export", "format": format, "model": str(file)})
    found = []

    def cost(rival: str, samples: int, rounds: int) -> None:
        told = _child(asked, {"task": "cost", "format": format, "model": str(file), "rival": rival, "samples": samples, "rounds": rounds})
        key, what = f"calibration.{name}.{format}.{rival}.{samples}", f"{rival}: CPU time over plain inference of the same {samples} samples"
        found.append(Figure(key, "x", ratios(told["rival"], told["plain"]), what, at_most=BARS.get((name, rival))))
        found.append(Figure(f"{key}.memory", "MB", [told["peak_mb"]], f"{rival}: peak resident memory, {samples} samples"))

    for rival in ("min_max", "histograms"):
        for samples in asked.samples or SAMPLES:
            cost(rival, samples, asked.repeat)
        told = [_child(asked, {"task": "memory", "format": format, "model": str(file), "rival": rival, "samples": n}) for n in MEMORY_SAMPLES]
        growth = told[1]["peak_mb"] / told[0]["peak_mb"]
        what = f"{rival}: peak resident memory at {MEMORY_SAMPLES[1]} samples over that at {MEMORY_SAMPLES[0]}"
        found.append(Figure(f"calibration.{name}.{format}.{rival}.growth", "x", [growth], what, at_most=MOST_MEMORY_GROWTH))
    told_exact = _child(asked, {"task": "exact", "format": format, "model": str(file)})["exact"]
    found.append(
        Figure(f"calibration.{name}.{format}.exact", "x", [float(told_exact)], "min-max ranges are those of all values in memory", at_least=1)
    )
    for rival in () if asked.no_peers else _child(asked, {"task": "peers", "format": format, "model": str(file)})["peers"]:
        try:
            cost(rival, getattr(FORMATS[format], "FEWER", {}).get(rival, PEER_SAMPLES[name]), 1)
        except subprocess.CalledProcessError as error:
            print(f"{name} {format} {rival}: left out: {error.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return found


def _child(asked: argparse.Namespace, one: dict[str, Any]) -> dict[str, Any]:
    """Runs a part in a process of its own, whose peak memory is of nothing else."""
    command = [sys.executable, "-m", "benchmarks.calibration_cost", "--one", json.dumps(one)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=os.environ | _SINGLE)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _one(task: str, format: str, model: str, rival: str = "", samples: int = 0, rounds: int = 1) -> dict[str, Any]:
    """What a child process does."""
    file, contenders = Path(model), FORMATS[format]
    if task == "export":
        _export(file)
        return {}
    if task == "exact":
        return {"exact": contenders.exact(file, _samples(file.stem, EXACT_SAMPLES))}
    if task == "peers":
        return {"peers": [name for name in contenders.rivals(file, _samples(file.stem, 1), peers=True) if "." in name or name == "nncf"]}
    if task == "memory":  # one sample told many times, which takes no memory of its own
        first = _samples(file.stem, 1)
        data = Dataset({name: np.broadcast_to(column, (samples, *column.shape[1:])) for name, column in first.columns.items()})
        observe(file, data, histograms=rival == "histograms")  # nothing beside it, as plain inference's model takes memory as well
        return {"peak_mb": _peak_mb()}
    chosen = contenders.rivals(file, _samples(file.stem, samples), peers=rival not in ("min_max", "histograms"))
    if rival in ("min_max", "histograms"):  # what is imported on the way is not counted to anybody
        contenders.rivals(file, _samples(file.stem, 1), peers=False)[rival]()
    seconds: dict[str, list[float]] = {"plain": [], "rival": []}
    for number in range(rounds):
        for name in ("plain", "rival") if number % 2 == 0 else ("rival", "plain"):
            started = time.process_time()
            chosen[rival if name == "rival" else name]()
            seconds[name].append(time.process_time() - started)
    return {**seconds, "peak_mb": _peak_mb()}


def _samples(name: str, samples: int) -> Dataset:
    rng = np.random.default_rng(0)
    if name == "mobilenet_v2":
        return Dataset({"image": rng.standard_normal((samples, 3, 224, 224), dtype=np.float32)})
    ids = rng.integers(0, 30_000, (samples, LENGTH))
    return Dataset({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def _export(file: Path) -> None:
    """Exports an untrained model through Edgekit."""
    import torch

    import toolkit
    from toolkit.store import Store

    torch.manual_seed(0)
    model: torch.nn.Module
    if file.stem == "mobilenet_v2":
        from torchvision.models import mobilenet_v2

        model = mobilenet_v2(weights=None)
    else:
        from transformers import DistilBertConfig, DistilBertModel

        model = _Encoder(DistilBertModel(DistilBertConfig(attn_implementation="eager"))).module
    toolkit.export(model.eval(), dict(_samples(file.stem, 2).columns), format=file.suffix[1:], output=file, store=Store(file.parent / "cache"))


class _Encoder:
    """DistilBERT with tensors for inputs and one for its output."""

    def __init__(self, encoder: Any) -> None:
        import torch

        class Encoder(torch.nn.Module):  # type: ignore[misc,unused-ignore]
            def __init__(self) -> None:
                super().__init__()
                self.encoder = encoder

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
                return hidden

        self.module = Encoder()


def _peak_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _write(folder: Path, found: Sequence[Figure]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "environment": describe(0), "figures": [one.to_dict() for one in found]}
    (folder / "calibration_cost.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [
        "CPU time over plain inference of the same samples, one thread; the median of some rounds in which both take turns, smallest and largest",
        "beside it. Loading the model counts to the contenders and not to plain inference. `python -m benchmarks.calibration_cost` makes this file.",
        "",
        "| figure | value | | bar | | what |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        verdict = {True: "holds", False: "**missed**", None: ""}[one.holds]
        spread = f"{min(one.samples):.2f} to {max(one.samples):.2f}" if len(one.samples) > 1 else ""
        lines.append(f"| {one.name} | {statistics.median(one.samples):.2f} {one.unit} | {spread} | {one.bar} | {verdict} | {one.what} |")
    (folder / "calibration_cost.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
