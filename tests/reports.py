"""A report with one of everything, for tests of whatever reads reports."""

from __future__ import annotations

from toolkit.evidence import Attempt, Evaluation, Finding, Report, Row, StageRecord, Training, Verdict
from toolkit.figures import Change, ClassChange, ColdStart, Flip, Flips, Latency, Memory, Metric, Roofline

PASS, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def latency(p50: float, p90: float, ratio: float | None = None) -> Latency:
    return Latency(
        p50=p50,
        p90=p90,
        p50_low=p50 * 0.98,
        p50_high=p50 * 1.02,
        p90_low=p90 * 0.96,
        p90_high=p90 * 1.05,
        n=812,
        ratio_to_float=ratio,
    )


def row(artifact: str, target: str, findings: tuple[Finding, ...], **given: object) -> Row:
    """Fills in what the row's verdict follows from."""
    bad = [finding for verdict in (FAIL, INCONCLUSIVE) for finding in findings if finding.verdict is verdict]
    facts = {
        "artifact": artifact,
        "format": artifact.rsplit(".", 1)[-1],
        "scheme": artifact.split(".")[1],
        "runtime": "litert" if artifact.endswith("tflite") else "onnxruntime",
        "target": target,
        "stand_in": "host cpu",
        "verdict": bad[0].verdict if bad else PASS,
        "reason": bad[0].reason if bad else f"{len(findings)} budgets hold",
        "findings": findings,
    }
    return Row.model_validate(facts | given)


def accuracy(value: float, low: float, high: float, n: int = 900) -> Metric:
    return Metric(name="top1_accuracy", value=value, low=low, high=high, n=n)


def everything() -> dict[str, object]:
    """What can be measured about one artifact beyond accuracy, size and latency."""
    auc = Metric(name="roc_auc", value=0.9987, low=0.9971, high=0.9995, n=900, method="DeLong")
    moved = Change(metric="roc_auc", value=-0.0004, low=-0.0011, high=0.0002, n=900, method="DeLong")
    cold = ColdStart(load_ms=1.84, load_low=1.71, load_high=2.05, first_ms=0.61, first_low=0.57, first_high=0.72, n=5)
    peaks = {"float32": 31.2, "int8": 118.4}
    floor = Roofline(macs=412_000, moved_bytes=61_400, peak_gmacs=peaks, bandwidth_gbs=11.9, floor_ms=0.0081, bound="memory", reached=0.098)
    return {
        "metrics": (accuracy(0.9556, 0.9401, 0.9672), auc),
        "changes": (Change(value=-0.0044, low=-0.0102, high=0.0011, n=900, lost=6, gained=2), moved),
        "classes": (
            ClassChange(name="eight", n=87, reference=0.9540, candidate=0.9080, low=-0.1012, high=0.0021, lost=4, gained=0, p_value=0.625),
            ClassChange(name="one", n=91, reference=0.9890, candidate=0.9890, low=-0.0401, high=0.0401),
        ),
        "flips": Flips(
            count=9, n=900, listed=(Flip(sample=17, label=8, reference=8, candidate=3), Flip(sample=402, label=1, reference=7, candidate=1))
        ),
        "samples_digest": "c4" * 32,
        "cold": cold,
        "memory": Memory(
            peak_bytes=2_310_144, resident_bytes=3_104_768, arena_bytes=41_472, weight_bytes=26_980, cap_bytes=64_000_000, cap="enforced", n=3
        ),
        "roofline": floor,
    }


def rows() -> tuple[Row, ...]:
    held = Finding(budget="max_size_bytes", verdict=PASS, reason="the file has 98,304 bytes (98.3 KB); allowed 50,000,000: holds")
    fast = Finding(
        budget="max_latency_p90_ms", verdict=PASS, reason="p90 latency 0.167 ms [0.160, 0.175] over 812 runs on host cpu; allowed 50.000 ms: holds"
    )
    unsure = Finding(
        budget="max_drop",
        verdict=INCONCLUSIVE,
        reason="accuracy fell by 0.44 pp [-1.02, +0.11] on 900 samples; allowed 1.00 pp: undecided, about 966 samples would decide at this rate",
    )
    lost = Finding(budget="max_drop", verdict=FAIL, reason="accuracy fell by 3.00 pp [-4.31, -1.80] on 900 samples; allowed 1.00 pp: missed")
    float_metric = accuracy(0.96, 0.9451, 0.9710)
    return (
        row(
            "digits.float32.tflite",
            "android-mid-litert",
            (held, fast),
            metric=float_metric,
            size_bytes=98304,
            latency_ms=latency(0.141, 0.167),
            cached=True,
        ),
        row(
            "digits.static_wi8_ai8.tflite",
            "android-mid-litert",
            (unsure, held),
            metric=accuracy(0.9556, 0.9401, 0.9672),
            change=Change(value=-0.0044, low=-0.0102, high=0.0011, n=900, lost=6, gained=2),
            size_bytes=29_672,
            latency_ms=latency(0.083, 0.102, 0.59).model_copy(
                update={"ratio_low": 0.57, "ratio_high": 0.61, "noise": 0.021, "max_noise": 0.1, "rounds": 36}
            ),
            **everything(),
        ),
        row(
            "digits.static_wi8_ai8.onnx",
            "host-onnx",
            (lost, held, fast),
            metric=accuracy(0.93, 0.9115, 0.9449),
            change=Change(value=-0.03, low=-0.0431, high=-0.018, n=900, lost=30, gained=3),
            size_bytes=1_310_720,
            latency_ms=latency(0.120, 0.148, 0.85),
        ),
        row("digits.dynamic_wi8.onnx", "host-onnx", (), verdict=FAIL, reason="stage quantize:onnx:dynamic_wi8 failed: ShapeInferenceError"),
    )


def attempts() -> tuple[Attempt, ...]:
    """Routes to ONNX, of which the third was taken."""
    return (
        Attempt(route="absent_onnx", outcome="passed over", code="missing-extra", reason="needs nothing_here, which is not installed"),
        Attempt(route="torch_jit_onnx", outcome="failed", code="parity", reason="output 'logits' differs: SQNR 12.0 dB", hint="look", seconds=3.5),
        Attempt(route="torch_onnx", outcome="taken", seconds=4.2),
    )


def sample_report() -> Report:
    """Returns a report with passing, failing, undecided and unmeasured rows and with stages of every status."""
    error = {
        "code": "stage-failed",
        "message": "ShapeInferenceError: [ShapeInferenceError] Inferred shape and existing shape differ in dimension 0: (64) vs (10)",
        "where": "quantize:onnx:dynamic_wi8",
        "hint": "look into the stage's log with: edgekit log quantize:onnx:dynamic_wi8",
    }
    return Report(
        schema=2,
        project="digits",
        verdict=FAIL,
        source=Evaluation(artifact="digits.pt2", runtime="torch", target="host", metric=accuracy(0.96, 0.9451, 0.9710)),
        training=Training(
            device="cuda",
            why="auto takes the GPU that PyTorch finds (cuda)",
            epochs=20,
            best_epoch=17,
            validation_accuracy=0.9667,
            n=90,
            samples_per_second=9120.4,
            cpu_samples_per_second=1520.2,
        ),
        notes=("the weights embed.weight and head.weight are one tensor",),
        rows=rows(),
        stages=(
            StageRecord(step="finetune", status="cached", key="5f" * 32),
            StageRecord(step="convert:onnx", status="done", key="0a" * 32, seconds=4.21, attempts=attempts()),
            StageRecord(step="convert:tflite", status="done", key="1b" * 32, seconds=9.87),
            StageRecord(step="quantize:onnx:dynamic_wi8", status="failed", key="2c" * 32, seconds=1.5, error=error),
            StageRecord(step="evaluate:onnx:dynamic_wi8", status="skipped"),
            StageRecord(step="benchmark:host-onnx", status="done", seconds=3.3),
        ),
        environment={"cpu": "x86-64, 2 cores", "system": "Linux", "python": "3.11.2", "versions": {"onnxruntime": "1.31.1", "numpy": "2.4.6"}},
    )
