"""The stage that makes a float model file smaller, after making sure that the calibration samples fit it."""

from __future__ import annotations

from typing import Any

from toolkit import dataset, modelfile, plugins
from toolkit.columns import check_columns
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.job import Facts, Job


def run(job: Job) -> Facts:
    """Quantizes ``job.inputs["model"]`` and writes ``model.<format>``.

    Args:
        job: Inputs ``model`` and, for schemes that need it, ``calibration`` (a folder of columns); options ``quantizer``,
            ``scheme``, ``method`` (how activation ranges are found), ``per_channel`` and perhaps ``layout`` (the model's, where it is
            another than the samples').

    Raises:
        ConfigError: There is no such quantizer, scheme or method, or calibration samples are needed and missing.
        InputRejected: The model is damaged or too large, or the samples do not fit its inputs.
        MissingExtra: The quantizer's libraries are not installed.
        StageFailed: The library cannot quantize the model, or wrote nothing.
    """
    quantizer = plugins.get("quantizers", job.options["quantizer"])
    scheme, method = job.options["scheme"], job.options.get("method", "min_max")
    _check_options(quantizer, scheme, method)
    plugins.require(quantizer)
    _check_size(modelfile.size_bytes(job.inputs["model"]))
    calibration = _calibration(job, quantizer) if scheme in quantizer.needs_calibration else None
    model, out = job.inputs["model"], job.out / f"model.{quantizer.format}"
    options = {"method": method, "per_channel": bool(job.options.get("per_channel", True))}
    job.progress(0, 1, f"{scheme}, {len(calibration)} samples" if calibration else scheme)
    quantizer.quantize(model, out, scheme=scheme, calibration=calibration, options=options)
    if not out.is_file() or not out.stat().st_size:
        raise StageFailed("the quantizer wrote no file", where=quantizer.name, hint="report it to the quantizer's project")
    job.progress(1, 1, f"{out.stat().st_size:,} bytes")
    layout = {"layout": job.options["layout"]} if job.options.get("layout") else {}
    return layout | {
        "made_by": quantizer.name,
        "versions": plugins.versions(quantizer),
        "scheme": scheme,
        "calibration": {"n": len(calibration), "method": method} if calibration else None,
        "ratio": out.stat().st_size / modelfile.size_bytes(model),
    }


def _check_options(quantizer: Any, scheme: str, method: str) -> None:
    if scheme not in quantizer.schemes:
        raise ConfigError(
            f"unknown scheme {scheme!r}; {quantizer.name} makes {', '.join(quantizer.schemes)}", where="scheme", hint="choose one of them"
        )
    methods = getattr(quantizer, "methods", ("min_max",))
    if method not in methods:
        raise ConfigError(f"unknown method {method!r}; {quantizer.name} knows {', '.join(methods)}", where="method", hint="choose one of them")


def _check_size(size_bytes: int) -> None:
    """The libraries hold a model in one buffer, and some fail on a larger one only after minutes."""
    if size_bytes > modelfile.BUFFER_BYTES:
        what = f"has {size_bytes / 1e9:.2f} GB, and quantizers take at most {modelfile.BUFFER_BYTES / 1e9:.2f} GB"
        raise InputRejected(what, where="model", hint="quantize a smaller model, or deliver this one in float32")


def _calibration(job: Job, quantizer: Any) -> Dataset:
    """Loads the samples and checks them here, because the libraries accept wrong shapes, NaN and Inf."""
    if "calibration" not in job.inputs:
        raise ConfigError(f"scheme {job.options['scheme']!r} needs calibration samples", where="calibration", hint="name a folder of samples")
    calibration = dataset.load(job.inputs["calibration"]).laid_out(job.options.get("layout"))
    check_columns(calibration, plugins.reader(quantizer.format).read(job.inputs["model"]).signature)
    return calibration
