"""Int8 by us and by the peers, on the same trained networks, samples and machine, in one run.

    python -m benchmarks.quantization --work FOLDER [--models NAME ...]

Each file is made in a process of its own. Accuracy is that of held-out samples, its change against float paired (Newcombe 1998); latency is
timed in turns with the float twin on one thread. ``rescaled`` are the same networks with channels scaled between layers (:mod:`benchmarks.rescale`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rescale
from benchmarks.figures import ROOT
from benchmarks.quantization.cases import CASES
from benchmarks.quantization.makers import MAKERS
from benchmarks.quantization.verdict import judge, together
from toolkit import plugins
from toolkit.errors import ToolkitError
from toolkit.stats.proportions import paired_difference_interval, proportion_interval

RESULTS = Path(__file__).parents[1] / "results"
SPREAD = 4.0
_SECONDS = 600
_ROUNDS = 60


def main() -> None:
    """Runs the comparison; results so far are kept in the work folder, and a second run goes on from them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantization.json")
    given = parser.parse_args()
    kept = given.work / "quantization.json"
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for name in given.models:
        for format in MAKERS:
            for network in (name, f"{name}, rescaled"):
                rows += _compare(given.work.resolve(), name, network, format, {(row["network"], row["format"], row["maker"]) for row in rows})
                kept.write_text(json.dumps(rows, indent=1))
    rows.sort(key=_place)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(rows, indent=1) + "\n")
    text = table(rows) + "\n" + "".join(f"- {line}\n" for line in [*judge(rows), together(rows)])
    given.output.with_suffix(".md").write_text(text)
    print(text)


def _place(row: dict[str, Any]) -> tuple[int, int, bool, int]:
    """Where a row belongs, whichever run measured it."""
    name, _, rescaled = row["network"].partition(", ")
    return list(CASES).index(name), list(MAKERS).index(row["format"]), bool(rescaled), list(MAKERS[row["format"]]).index(row["maker"])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = ("network", "format", "made by", "accuracy", "change against float", "size", "latency over float", "CPU seconds", "peak MB", "")
    head = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
    return head + "".join(map(_line, rows))


def _line(row: dict[str, Any]) -> str:
    start = f"| {row['network']} | {row['format']} | {row['maker']} |"
    if "reason" in row:
        return f"{start} | | | | {row.get('seconds', 0):.0f} | | {row['reason']} |\n"
    value, low, high = (100 * one for one in row["accuracy"])
    change, worst, best = (100 * one for one in row["change"])
    accuracy = f"{value:.2f} % [{low:.2f}, {high:.2f}] n={row['n']}"
    moved = f"{change:+.2f} pp [{worst:+.2f}, {best:+.2f}]"
    size, ratio = f"{row['size_ratio']:.2f}", _time(row["latency_ratio"])
    return f"{start} {accuracy} | {moved} | {size} | {ratio} | {row['seconds']:.0f} | {row['peak_mb']:.0f} | {row.get('how', '')} |\n"


def _time(ratio: list[float]) -> str:
    middle, low, high = ratio
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _compare(work: Path, name: str, network: str, format: str, known: set[tuple[str, str, str]]) -> list[dict[str, Any]]:
    wanted = [maker for maker in MAKERS[format] if (network, format, maker) not in known]
    if not wanted:
        return []
    folder = work / name
    twin = _float(work, name, format)
    with np.load(folder / "eval.npz") as archive:
        data = {column: archive[column] for column in archive.files}
    model = twin
    if network != name:
        model = folder / f"rescaled.{format}"
        rescale.rescale(twin, model, spread=SPREAD)
    reference = _scores(model, data)
    found = []
    for maker in wanted:
        out = folder / f"{network.replace(', ', '-')}-{maker.replace(', ', '-').replace(' ', '-')}.{format}"
        row = {"network": network, "format": format, "maker": maker, **_made(maker, model, folder, out)}
        if "reason" not in row:
            row |= _judged(out, model, data, reference)
        print(_line(row), end="", flush=True)
        found.append(row)
    return found


def _float(work: Path, name: str, format: str) -> Path:
    """The float file, its samples beside it; made in a process of its own, as TensorFlow and PyTorch do not share one."""
    out = work / name / f"float.{format}"
    if not out.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.quantization.cases", name, format, str(out.parent)], cwd=ROOT, check=True)
    return out


def _made(maker: str, model: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Runs a maker; returns its cost, and what it said where it failed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    peak, command = out.with_suffix(".peak"), [sys.executable, "-m", "benchmarks.quantization.makers", maker, str(model), str(folder), str(out)]
    measured = ["/usr/bin/time", "-q", "-f", "%M", "-o", str(peak)] if Path("/usr/bin/time").exists() else []
    with subprocess.Popen(
        [*measured, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            _, told = child.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return {"seconds": _SECONDS, "reason": f"not done after {_SECONDS} s"}
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if child.returncode:
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        return {"seconds": seconds, "reason": (lines[-1] if lines else f"ended with {child.returncode}")[:300]}
    return {"seconds": seconds, "elapsed": time.monotonic() - started, "peak_mb": int(peak.read_text()) / 1024 if measured else float("nan")}


def _judged(out: Path, twin: Path, data: Any, reference: np.ndarray) -> dict[str, Any]:
    try:
        scores = _scores(out, data)
    except ToolkitError as error:
        return {"reason": f"its file does not run: {str(error).splitlines()[0][:200]}"}
    right, before = scores.argmax(1) == data["label"], reference.argmax(1) == data["label"]
    counts = [int((right & before).sum()), int((~right & before).sum()), int((right & ~before).sum()), int((~right & ~before).sum())]
    low, high = proportion_interval(int(right.sum()), len(right))
    return {
        "n": len(right),
        "accuracy": [float(right.mean()), low, high],
        "float_accuracy": float(before.mean()),
        "right": "".join("01"[int(one)] for one in right),
        "change": list(paired_difference_interval(*counts)),
        "size_ratio": out.stat().st_size / twin.stat().st_size,
        "latency_ratio": _ratio(out, twin, data),
        "how": _how(out),
    }


def _how(out: Path) -> str:
    """What our own evidence says of a file."""
    manifest = out.with_name(out.name + ".manifest.json")
    if not manifest.exists():
        return ""
    document = json.loads(manifest.read_text())
    taken = [name for name in document["evidence"].get("ladder", {}).get("taken", ()) if name != "default"]
    return ", ".join([document["scheme"], *taken])


def _scores(model: Path, data: Any) -> np.ndarray:
    """The classes' scores ``[n x classes]``, one sample at a time."""
    session = plugins.runtime_for(model.suffix[1:]).open(model, threads=1)
    columns, output = _columns(session, data), session.signature.outputs[0].name
    rows = range(len(data["label"]))
    return np.concatenate([session.run({name: column[row : row + 1] for name, column in columns.items()})[output] for row in rows])


def _columns(session: Any, data: Any) -> dict[str, np.ndarray]:
    """What a file takes: by name, or the only column for its only input."""
    inputs, names = session.signature.inputs, [name for name in data if name != "label"]
    source = {spec.name: spec.name if len(inputs) > 1 else names[0] for spec in inputs}
    return {spec.name: np.asarray(data[source[spec.name]], dtype=spec.dtype) for spec in inputs}


def _ratio(model: Path, twin: Path, data: Any) -> list[float]:
    """Quartiles of the ratios of both files' times, taken in turns: the median, the lower and the upper one."""
    runtime = plugins.runtime_for(model.suffix[1:])
    sessions = [runtime.open(path, threads=1) for path in (model, twin)]
    feeds = [{name: column[:1] for name, column in _columns(session, data).items()} for session in sessions]
    taken: list[list[float]] = [[], []]
    for turn in range(_ROUNDS + 10):
        order = (0, 1) if turn % 2 else (1, 0)
        for place in order:
            started = time.perf_counter()
            sessions[place].run(feeds[place])
            if turn >= 10:
                taken[place].append(time.perf_counter() - started)
    ratios = np.array(taken[0]) / np.array(taken[1])
    return [float(one) for one in np.quantile(ratios, (0.5, 0.25, 0.75))]


if __name__ == "__main__":
    main()
