"""``toolkit.make_golden`` and ``toolkit.check_golden``: outputs that a later run must repeat, as closely as the ways of running allow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from toolkit import dataset, environment, plugins
from toolkit.artifact import Artifact
from toolkit.config import Target
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError
from toolkit.evidence import Finding, Report, Row, Verdict, worst
from toolkit.figures import Variant
from toolkit.measure import envelope as stage
from toolkit.measure import golden as goldens
from toolkit.measure.golden import Deviation, Golden, Recorded
from toolkit.measure.outputs import read
from toolkit.pipeline.deliver import check_writable, copy
from toolkit.pipeline.envelope import find_target, scores_of, step
from toolkit.pipeline.execute import Result
from toolkit.pipeline.listener import Listener
from toolkit.pipeline.single import Samples, on_disk, open_model, run_steps, runtime_of
from toolkit.store import Store

SAMPLES = 32


def make_golden(
    artifact: Artifact | str | Path,
    data: Samples,
    file: str | Path,
    *,
    target: str | Target = "desktop-ort",
    samples: int = SAMPLES,
    output: str | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Golden:
    """Writes a model's inputs, outputs and envelope into one small file, to be committed beside the tests.

    Every sample is run in every way, emulated ones included.

    Args:
        artifact: The model file.
        data: Real samples by input name, or a path to them.
        file: The ``.npz`` file to write.
        target: A shipped target's name, a path to a ``.toml`` file, or a target; its runtime and threads are the default way.
        samples: How many samples to keep, at most 32; fewer are kept where they would take more than 5 MB.
        output: Name of the output that holds the class scores; by default every output that labels samples counts.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        What the file says beside its arrays.

    Raises:
        ConfigError: An unknown target, a wrong number of samples, or a file that is not called ``.npz`` or cannot be there.
        InputRejected: The model or the samples must not be used, one sample is too large, or the envelope could never be left.
        SetupError: The file cannot be written.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed in the default way.
    """
    out = Path(file)
    if out.suffix != ".npz":
        raise ConfigError(f"a golden is an .npz file, found the suffix {out.suffix!r}", where=str(out), hint="end its name in .npz")
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= SAMPLES:
        raise ConfigError(f"expected 1 to {SAMPLES}, found {samples!r}", where="samples", hint="a golden is small: take fewer samples")
    if out.is_dir():
        raise ConfigError("is a folder", where=str(out), hint="name a file that ends in .npz")
    check_writable(out.parent)
    opened, _ = open_model(artifact, store)
    place = find_target(target)
    options = {"samples": samples, "emulated_samples": samples, "max_bytes": goldens.MAX_BYTES, "output": scores_of(opened, output)}
    with on_disk(data) as path:
        chain = [step(opened, path, runtime_of(place, opened), place.threads, options)]
        result = run_steps(chain, store, listener)["envelope"]
    recorded = _recorded(opened, place, result)
    with tempfile.TemporaryDirectory(prefix="edgekit-golden-") as scratch:
        packed = Path(scratch) / "golden.npz"
        packed.write_bytes(goldens.pack(recorded))
        copy(packed, out)
    return recorded.golden


def check_golden(
    artifact: Artifact | str | Path,
    file: str | Path,
    *,
    target: str | Target | None = None,
    store: Store | None = None,
    listener: Listener | None = None,
) -> Report:
    """Runs a model on a golden's inputs and holds its outputs against the golden's, within its envelope and no further.

    Args:
        artifact: The model file; it need not be the one that the golden was made of.
        file: The golden.
        target: Another target with the golden's runtime; the golden's own runtime and threads by default.
        store: Where stage outputs are kept; the user's cache by default.
        listener: Who hears about progress.

    Returns:
        A report with one row, and one finding for each output.

    Raises:
        ConfigError: The target has another runtime than the golden.
        InputRejected: The model or the golden must not be used, or the model has another signature than the golden's.
        MissingExtra: The runtime is not installed.
        StageError: The runtime failed.
    """
    recorded = goldens.unpack(Path(file))
    golden = recorded.golden
    opened, _ = open_model(artifact, store)
    place = _place(golden, target)
    runtime = runtime_of(place, opened)
    goldens.check_signature(golden, opened.signature, str(opened.path))
    options = {"samples": golden.n, "variants": []}
    with on_disk(Dataset(recorded.inputs, None, str(file))) as path:
        result = run_steps([step(opened, path, runtime, place.threads, options)], store, listener)["envelope"]
    findings = (_origin(golden, opened), *(_finding(golden, one) for one in goldens.compare(recorded, _outputs(result))))
    row = _row(golden, opened, place, findings, cached=result.cached)
    return Report(
        schema=2, project=opened.manifest.name, verdict=row.verdict, rows=(row,), stages=(result.record,), environment=environment.describe()
    )


def _row(golden: Golden, opened: Artifact, target: Target, findings: tuple[Finding, ...], *, cached: bool) -> Row:
    failed = [finding.reason for finding in findings if finding.verdict is Verdict.FAIL]
    passed = f"every output lies within the envelope of {_measured(golden)} other ways, n={golden.n}; {findings[0].reason}"
    return Row(
        artifact=opened.path.name,
        format=opened.format,
        scheme=opened.scheme,
        runtime=target.runtime,
        target=target.name,
        stand_in=target.stand_in,
        size_bytes=opened.size_bytes,
        cached=cached,
        verdict=worst(finding.verdict for finding in findings),
        reason=failed[0] if failed else passed,
        findings=findings,
    )


def _recorded(opened: Artifact, target: Target, result: Result) -> Recorded:
    facts = result.facts
    runtime: plugins.Runtime = plugins.get("runtimes", target.runtime)
    golden = Golden(
        schema=1,
        model=opened.path.name,
        sha256=opened.manifest.sha256,
        signature=opened.signature,
        target=target.name,
        runtime=target.runtime,
        threads=target.threads,
        versions=plugins.versions(runtime),
        cpu=environment.describe()["cpu"],
        n=facts["n"],
        rows=tuple(facts["rows"]),
        labelled=tuple(facts["labelled"]),
        max_abs=facts["max_abs"],
        flipped=tuple(facts["rows"].index(row) for row in facts["flipped"]),
        variants=tuple(Variant.model_validate(variant) for variant in facts["variants"]),
    )
    inputs = dataset.load(_folder(result) / stage.INPUTS).columns
    return Recorded(golden, {name: np.array(column) for name, column in inputs.items()}, _outputs(result))


def _outputs(result: Result) -> dict[str, np.ndarray]:
    return read(_folder(result) / stage.OUTPUTS, result.facts["outputs"])


def _folder(result: Result) -> Path:
    if result.folder is None:
        raise RuntimeError(f"{result.record.step} has no output")
    return result.folder


def _place(golden: Golden, target: str | Target | None) -> Target:
    """The golden's own settings, or another target with the same runtime."""
    if target is None:
        return Target(name=golden.target, runtime=golden.runtime, threads=golden.threads)
    place = find_target(target)
    if place.runtime != golden.runtime:
        message = f"target {place.name!r} runs on {place.runtime}, the golden was recorded on {golden.runtime}"
        raise ConfigError(message, where="target", hint="choose a target with the golden's runtime, or make a golden for this one")
    return place


def _origin(golden: Golden, opened: Artifact) -> Finding:
    """Says whether this is the file that the golden was made of; either is right."""
    same = golden.sha256 == opened.manifest.sha256
    found = "this is the file that the golden was made of" if same else "this is another file than the golden was made of"
    digests = "" if same else f" (SHA-256 {opened.manifest.sha256[:12]}, the golden's {golden.model} had {golden.sha256[:12]})"
    return Finding(budget="golden", verdict=Verdict.PASS, reason=found + digests)


def _finding(golden: Golden, found: Deviation) -> Finding:
    allowed = f"allowed {found.allowed:.6g} (largest of {_measured(golden)} other ways)"
    if found.within:
        reason = f"largest difference {found.difference:.6g}, {allowed}, n={golden.n}"
        return Finding(budget=f"golden:{found.output}", verdict=Verdict.PASS, reason=reason)
    reasons = []
    if not found.difference <= found.allowed:
        place = f"sample {found.sample}, element {list(found.element)}"
        values = f"expected {found.expected:.9g}, found {found.found:.9g}"
        reasons.append(f"output {found.output!r} differs in {place}: {values}, difference {found.difference:.6g}, {allowed}")
    if found.flips:
        sample, before, now = found.flips[0]
        more = f" and {len(found.flips) - 1} more samples" if len(found.flips) > 1 else ""
        may = ", ".join(map(str, golden.flipped)) or "none"
        reasons.append(f"output {found.output!r} labels sample {sample}{more} anew: expected {before}, found {now}; samples that may change: {may}")
    return Finding(budget=f"golden:{found.output}", verdict=Verdict.FAIL, reason=f"{'; '.join(reasons)}; n={golden.n}")


def _measured(golden: Golden) -> int:
    """Number of ways that the envelope was measured from."""
    return sum(1 for variant in golden.variants if variant.max_abs)
