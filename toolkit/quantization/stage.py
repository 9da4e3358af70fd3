"""The stage that makes a float model file smaller, after making sure that the calibration samples fit it."""

from __future__ import annotations

from typing import Any

from toolkit import dataset, plugins
from toolkit.columns import check_columns
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, StageFailed
from toolkit.job import Facts, Job


def run(job: Job) -> Facts:
    """Quantizes ``job.inputs["model"]`` and writes ``model.<format>``.

    Args:
        job: Inputs ``model`` and, for schemes that need it, ``calibration`` (a folder of columns); options ``quantizer``,
            ``scheme``, ``method`` (how activation ranges are found) and ``per_channel``.

    Raises:
        ConfigError: There is no such quantizer, scheme or method, or calibration samples are needed and missing.
        InputRejected: The model is damaged, or the samples do not fit its inputs.
        MissingExtra: The quantizer's libraries are not installed.
        StageFailed: The library cannot quantize the model, or wrote nothing.
    """
    quantizer = plugins.get("quantizers", job.options["quantizer"])
    scheme, method = job.options["scheme"], job.options.get("method", "min_max")
    _check_options(quantizer, scheme, method)
    plugins.require(quantizer)
    calibration = _calibration(job, quantizer) if scheme in quantizer.needs_calibration else None
    model, out = job.inputs["model"], job.out / f"model.{quantizer.format}"
    options = {"method": method, "per_channel": bool(job.options.get("per_channel", True))}
    job.progress(0, 1, f"{scheme}, {len(calibration)} samples" if calibration else scheme)
    quantizer.quantize(model, out, scheme=scheme, calibration=calibration, options=options)
    if not out.is_file() or not out.stat().st_size:
        raise StageFailed("the quantizer wrote no file", where=quantizer.name, hint="report it to the quantizer's project")
    job.progress(1, 1, f"{out.stat().st_size:,} bytes")
    return {
        "made_by": quantizer.name,
        "versions": plugins.versions(quantizer),
        "scheme": scheme,
        "calibration": {"n": len(calibration), "method": method} if calibration else None,
        "ratio": out.stat().st_size / model.stat().st_size,
    }


def _check_options(quantizer: Any, scheme: str, method: str) -> None:
    if scheme not in quantizer.schemes:
        raise ConfigError(
            f"unknown scheme {scheme!r}; {quantizer.name} makes {', '.join(quantizer.schemes)}", where="scheme", hint="choose one of them"
        )
    methods = getattr(quantizer, "methods", ("min_max",))
    if method not in methods:
        raise ConfigError(f"unknown method {method!r}; {quantizer.name} knows {', '.join(methods)}", where="method", hint="choose one of them")


def _calibration(job: Job, quantizer: Any) -> Dataset:
    """Loads the samples and checks them here, because the libraries accept wrong shapes, NaN and Inf."""
    if "calibration" not in job.inputs:
        raise ConfigError(f"scheme {job.options['scheme']!r} needs calibration samples", where="calibration", hint="name a folder of samples")
    calibration = dataset.load(job.inputs["calibration"])
    check_columns(calibration, plugins.reader(quantizer.format).read(job.inputs["model"]).signature)
    return calibration
