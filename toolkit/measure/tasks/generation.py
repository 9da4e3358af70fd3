"""The next token of a text."""

from __future__ import annotations

import numpy as np

from toolkit.dataset import Dataset, answers, release
from toolkit.errors import InputRejected, StageFailed
from toolkit.measure.tasks import estimates
from toolkit.measure.tasks.interface import Answer, Question
from toolkit.metrics import IGNORED
from toolkit.stats.resampling import Statistic

RIGHT, COUNTED, SURPRISE = range(3)
_SUM_TOLERANCE = 0.01


class Generation:
    """Logits ``[n x tokens x vocabulary]``, or their log-softmax, of a causal language model against token ids ``[n x tokens]``.

    The labels are the tokens of the text itself, usually the same as the input ids: the logits at one position are held against the
    label of the next one, so that the first label is never asked for and the last logits are never used. Positions labelled -100,
    such as padding or a prompt, do not count.

    A record holds the right tokens, the counted tokens, and the sum of their negative log likelihoods, ``[3] float64``.
    """

    axes: tuple[str, ...] = ("tokens", "vocabulary")
    file = "records.npy"

    def __init__(self, question: Question, data: Dataset) -> None:
        self._question = question
        self._label = answers(data, question.task)

    def check(self, shape: tuple[int, ...]) -> None:
        """Holds the number of tokens against the labels; see :meth:`interface.Task.check`."""
        self._question.check_count(shape[1], "token")
        if shape[0] != self._label.shape[1]:
            raise InputRejected(
                f"gives logits for {shape[0]} tokens per sample, expected {self._label.shape[1]}",
                where=self._question.model,
                hint="give one label for each token that the model takes; -100 for those that do not count",
            )

    def reduce(self, start: int, output: np.ndarray) -> np.ndarray:
        """Sums over the counted tokens of each sample; see :meth:`interface.Task.reduce`."""
        if not start:
            self._refuse_probabilities(output)
        labels = np.asarray(self._label[start : start + len(output)])
        # Sample by sample: what lies between is as large as the logits, and a vocabulary has a hundred thousand of them.
        records = np.array([self._record(start + row, logits[:-1], labels[row, 1:]) for row, logits in enumerate(output)])
        release(self._label)
        return records

    def _refuse_probabilities(self, output: np.ndarray) -> None:
        """Softmax of what is a softmax already would give a perplexity near the vocabulary's size, and no error."""
        if output.min() >= 0 and np.abs(output.sum(axis=2, dtype=np.float64) - 1).max() <= _SUM_TOLERANCE:
            found = "gives probabilities, which add up to 1 at every token, expected logits"
            raise InputRejected(found, where=self._question.model, hint="export the model without its softmax, or with a log-softmax")

    def _record(self, sample: int, logits: np.ndarray, label: np.ndarray) -> tuple[float, float, float]:
        counted = label != IGNORED
        logits, label = logits[counted], label[counted].astype(np.int64)
        if not len(label):
            return 0.0, 0.0, 0.0
        if int(label.max()) >= logits.shape[1]:
            found = f"label {label.max()} in sample {sample} is beyond the vocabulary of {logits.shape[1]}"
            raise InputRejected(found, where=self._question.data, hint="use the tokenizer that the model was trained with")
        peak = logits.max(axis=1, keepdims=True)
        own = logits[np.arange(len(label)), label].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            surprise = np.log(np.exp(logits - peak).sum(axis=1, dtype=np.float64)) + peak[:, 0] - own
        if not np.isfinite(surprise).all():
            found = f"gives the label of a token of sample {sample} no chance at all, so that its perplexity is infinite"
            raise StageFailed(found, where=self._question.model, hint="check that sample, and the model's weights")
        return float(np.count_nonzero(logits.argmax(axis=1) == label)), float(len(label)), float(surprise.sum())

    def answer(self, records: np.ndarray, reference: np.ndarray | None) -> Answer:
        """Returns the figures; see :meth:`interface.Task.answer`."""
        if not records[:, COUNTED].any():
            raise InputRejected(f"every token is labelled {IGNORED}", where=self._question.data, hint="label the tokens that are to count")
        n = len(records)
        measures = {
            "perplexity": lambda: estimates.resampled("perplexity", n, _perplexity, records, reference),
            "token_accuracy": lambda: estimates.resampled("token_accuracy", n, _accuracy, records, reference),
        }
        return Answer(self._question.order(measures, {}))


def _perplexity(records: np.ndarray) -> Statistic:
    """The exponential of the mean negative log likelihood of a token: Jelinek et al., J. Acoust. Soc. Am. 62:S63 (1977)."""
    return estimates.exponential(estimates.ratio(records[:, SURPRISE], records[:, COUNTED]))


def _accuracy(records: np.ndarray) -> Statistic:
    return estimates.ratio(records[:, RIGHT], records[:, COUNTED])
