"""Edgekit: from a trained model to a phone, with evidence.

>>> import toolkit
>>> onnx = toolkit.export(model, {"image": images}, format="onnx")
>>> int8 = toolkit.quantize(onnx, scheme="static_wi8_ai8", calibration={"image": images})
>>> toolkit.evaluate(int8, "eval.npz", target="desktop-ort", reference=onnx)

Names are loaded when they are first used, and no framework is imported in this process unless a live model is captured.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.artifact import Artifact, Manifest, Signature, TensorSpec
    from toolkit.config import Project, Recipe, Target
    from toolkit.contents import Contents
    from toolkit.dataset import Dataset
    from toolkit.errors import ToolkitError
    from toolkit.evidence import Benchmark, Envelope, Evaluation, Profile, Report, Row, Verdict
    from toolkit.figures import Change, Latency, Metric
    from toolkit.pipeline.audit import Audit, audit_model
    from toolkit.pipeline.baseline import load_baseline, update_baseline
    from toolkit.pipeline.calibrate import Calibration, calibrate
    from toolkit.pipeline.doctor import Diagnosis, doctor
    from toolkit.pipeline.envelope import envelope
    from toolkit.pipeline.export import export
    from toolkit.pipeline.finetune import Finetuned, Tuned, finetune
    from toolkit.pipeline.golden import check_golden, make_golden
    from toolkit.pipeline.init import init
    from toolkit.pipeline.inspect import inspect
    from toolkit.pipeline.measure import benchmark, check, evaluate
    from toolkit.pipeline.plan import Plan
    from toolkit.pipeline.profile import profile
    from toolkit.pipeline.quantize import quantize
    from toolkit.pipeline.run import Run, check_project, exit_code, run, write_reports
    from toolkit.pipeline.run import plan_project as plan
    from toolkit.pipeline.size import check_sizes
    from toolkit.pipeline.targets import targets
    from toolkit.store import Store

_HOMES = {
    "toolkit.artifact": ("Artifact", "Manifest", "Signature", "TensorSpec"),
    "toolkit.config": ("Project", "Recipe", "Target"),
    "toolkit.contents": ("Contents",),
    "toolkit.dataset": ("Dataset",),
    "toolkit.errors": ("ToolkitError",),
    "toolkit.evidence": ("Benchmark", "Envelope", "Evaluation", "Profile", "Report", "Row", "Verdict"),
    "toolkit.figures": ("Change", "Latency", "Metric"),
    "toolkit.limits": ("Budgets",),
    "toolkit.pipeline.audit": ("Audit", "audit_model"),
    "toolkit.pipeline.baseline": ("load_baseline", "update_baseline"),
    "toolkit.pipeline.calibrate": ("Calibration", "calibrate"),
    "toolkit.pipeline.doctor": ("Diagnosis", "doctor"),
    "toolkit.pipeline.envelope": ("envelope",),
    "toolkit.pipeline.export": ("export",),
    "toolkit.pipeline.finetune": ("Finetuned", "Tuned", "finetune"),
    "toolkit.pipeline.golden": ("check_golden", "make_golden"),
    "toolkit.pipeline.init": ("init",),
    "toolkit.pipeline.inspect": ("inspect",),
    "toolkit.pipeline.measure": ("benchmark", "check", "evaluate"),
    "toolkit.pipeline.plan": ("Plan",),
    "toolkit.pipeline.profile": ("profile",),
    "toolkit.pipeline.quantize": ("quantize",),
    "toolkit.pipeline.run": ("Run", "check_project", "exit_code", "run", "plan_project", "write_reports"),
    "toolkit.pipeline.size": ("check_sizes",),
    "toolkit.pipeline.targets": ("targets",),
    "toolkit.store": ("Store",),
}
_ALIASES = {"plan": "plan_project"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Artifact",
    "Audit",
    "Benchmark",
    "Budgets",
    "Calibration",
    "Change",
    "Contents",
    "Dataset",
    "Diagnosis",
    "Envelope",
    "Evaluation",
    "Finetuned",
    "Latency",
    "Manifest",
    "Metric",
    "Plan",
    "Profile",
    "Project",
    "Recipe",
    "Report",
    "Row",
    "Run",
    "Signature",
    "Store",
    "Target",
    "TensorSpec",
    "ToolkitError",
    "Tuned",
    "Verdict",
    "audit_model",
    "benchmark",
    "calibrate",
    "check",
    "check_golden",
    "check_project",
    "check_sizes",
    "doctor",
    "envelope",
    "evaluate",
    "exit_code",
    "export",
    "finetune",
    "init",
    "inspect",
    "load_baseline",
    "make_golden",
    "plan",
    "profile",
    "quantize",
    "run",
    "targets",
    "update_baseline",
    "write_reports",
]


def __getattr__(name: str) -> Any:
    """Loads a public name from its home (PEP 562)."""
    origin = _ALIASES.get(name, name)
    if name not in __all__ or origin not in _HOME_OF:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[origin]), origin)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
