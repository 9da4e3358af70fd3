"""The stage that collects statistics of a float model's activations, of all calibration samples or of one worker's share of them."""

from __future__ import annotations

from toolkit import dataset, plugins
from toolkit.columns import check_columns
from toolkit.job import Facts, Job
from toolkit.quantization.observe import observe
from toolkit.quantization.vocabulary import check_vocabulary

FILE = "statistics.npz"


def run(job: Job) -> Facts:
    """Writes ``statistics.npz``.

    Args:
        job: Inputs ``model`` and ``calibration``, a folder of columns. Options ``format``, the model's, and ``shard``, ``[number, of]`` with
            numbers from 1 on: every so-manieth sample, beginning with that one.

    Returns:
        ``samples``, how many were seen, and ``tensors``, how many.

    Raises:
        InputRejected: The model is damaged, or the samples do not fit it.
        NoRoute: Nothing observes models of this format.
        StageFailed: The model cannot be run.
    """
    model = job.inputs["model"]
    contents = plugins.reader(job.options["format"]).read(model)
    number, of = job.options["shard"]
    samples = dataset.load(job.inputs["calibration"]).take(slice(number - 1, None, of))
    check_columns(samples, contents.signature)
    check_vocabulary(samples, model, contents.format)
    resume = job.kept / FILE if job.kept else None
    found = observe(model, samples, histograms=True, progress=job.progress, resume=resume)
    found.write(job.out / FILE)
    return {"samples": found.samples, "tensors": len(found.tensors)}
