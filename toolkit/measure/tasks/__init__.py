"""What is measured for each family of tasks: how outputs become records, and records become figures."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.dataset import Dataset
from toolkit.measure.tasks.classification import Classification
from toolkit.measure.tasks.generation import Generation
from toolkit.measure.tasks.interface import Question, Task
from toolkit.measure.tasks.parts import Parts
from toolkit.measure.tasks.speech import Speech
from toolkit.metrics import CLASSIFICATION

_FAMILIES: dict[str, Callable[[Question, Dataset], Task]] = {
    **dict.fromkeys(CLASSIFICATION, Classification),
    "image-segmentation": Parts,
    "token-classification": Parts,
    "text-generation": Generation,
    "automatic-speech-recognition": Speech,
}


def prepare(question: Question, data: Dataset) -> Task:
    """Returns the task of a question, with the labels it is judged by.

    Raises:
        InputRejected: The labels are not of this kind of task.
        ConfigError: The task needs the names of the classes.
    """
    return _FAMILIES[question.task](question, data)
