"""What was said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.dataset import Dataset, answers
from toolkit.errors import ConfigError, InputRejected
from toolkit.measure.tasks import estimates
from toolkit.measure.tasks.interface import Answer, Question
from toolkit.stats.resampling import Statistic

BLANKS = ("<pad>", "<blank>", "")
SEPARATOR = "|"
ERRORS, WORDS = range(2)


class Speech:
    """Logits ``[n x frames x symbols]`` of connectionist temporal classification (CTC) against the text of each sample.

    The symbols are the names of the classes. The blank is the first of ``<pad>``, ``<blank>`` and the empty name that is among
    them, else the symbol with index 0; ``|`` separates words as a space does. Decoding is greedy: the best symbol of each frame,
    repetitions collapsed, blanks dropped (Graves et al., "Connectionist temporal classification", ICML 2006, section 3.2). Words are
    compared as they are written, so that labels must be in the model's own case and without punctuation that it does not know.

    A record holds word errors and words of the label, ``[2] int64``.
    """

    axes: tuple[str, ...] = ("frames", "symbols")
    file = "records.npy"

    def __init__(self, question: Question, data: Dataset) -> None:
        if not question.names:
            message = "the names of the symbols are needed to turn the model's output into text"
            raise ConfigError(message, where="classes", hint="name every symbol in the order of the model's output")
        self._question = question
        self._label = answers(data, question.task)
        self._blank = next((question.names.index(name) for name in BLANKS if name in question.names), 0)

    def check(self, shape: tuple[int, ...]) -> None:
        """Holds the number of symbols against their names; see :meth:`interface.Task.check`."""
        self._question.check_count(shape[1], "frame")

    def reduce(self, start: int, output: np.ndarray) -> np.ndarray:
        """Counts word errors; see :meth:`interface.Task.reduce`."""
        records = []
        for best, text in zip(output.argmax(axis=2), self._label[start : start + len(output)].tolist(), strict=True):
            words = text.split()
            records.append((edits(words, self.decode(best).split()), len(words)))
        return np.array(records, dtype=np.int64)

    def decode(self, best: np.ndarray) -> str:
        """Returns the text of the best symbol of each frame, ``[frames] int``."""
        kept = best[np.append(True, best[1:] != best[:-1])]
        return "".join(self._question.names[one] for one in kept.tolist() if one != self._blank).replace(SEPARATOR, " ")

    def answer(self, records: np.ndarray, reference: np.ndarray | None) -> Answer:
        """Returns the figures; see :meth:`interface.Task.answer`."""
        if not records[:, WORDS].any():
            raise InputRejected("column 'label' holds no words", where=self._question.data, hint="give the text of every sample")
        return Answer(
            self._question.order({"word_error_rate": lambda: estimates.resampled("word_error_rate", len(records), _errors, records, reference)}, {})
        )


def _errors(records: np.ndarray) -> Statistic:
    return estimates.ratio(records[:, ERRORS], records[:, WORDS])


def edits(expected: Sequence[str], found: Sequence[str]) -> int:
    """Returns the fewest words to insert, delete or replace to make one sequence of the other (Levenshtein 1966)."""
    row = list(range(len(found) + 1))
    for count, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], count
        for place, other in enumerate(found, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (word != other))
    return row[-1]
