"""A plugin with routes that fail in every way, for tests of ``--route auto``. NumPy alone.

A model is ``y = x @ w``, stored as JSON: in a ``.lin`` file, or with the name of who wrote it in any of the target formats. The
environment variable ``RACE_LOG`` names a file that gets a line for every conversion and preflight.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from toolkit.artifact import Signature, TensorSpec
from toolkit.errors import InputRejected, StageFailed
from toolkit.plugins import Arrays, Built, Obstacle

WEIGHTS = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)


def write(path: Path, weights: np.ndarray, **more: Any) -> None:
    path.write_text(json.dumps({"w": weights.tolist(), **more}, sort_keys=True))


def read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return {**document, "w": np.asarray(document["w"], np.float32)}
    except (ValueError, KeyError, TypeError) as error:
        raise InputRejected(f"is not a model: {error}", where=path.name, hint="write it again") from error


def note(line: str) -> None:
    if "RACE_LOG" in os.environ:
        with Path(os.environ["RACE_LOG"]).open("a") as log:
            log.write(f"{line}\n")


class Plugin:
    version = 1
    modules: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ("numpy",)
    extra = "race"


class Route(Plugin):
    """Writes the model as it is, unless told to misbehave."""

    def __init__(self, name: str, format: str, trust: float, **more: Any) -> None:
        self.name, self.source, self.format, self.trust = name, "lin", format, trust
        for key, value in more.items():
            setattr(self, key, value)

    def convert(self, program: Path, out: Path, signature: Signature, **options: Any) -> None:
        note(f"convert {self.name}")
        weights = read(program)["w"]
        self.misbehave(out)
        write(out, -weights if self.name.endswith("wrong") else weights, by=self.name, options=options)

    def misbehave(self, out: Path) -> None:
        kind = self.name.rpartition("_")[2]
        if kind == "raises":
            raise StageFailed("cannot convert operator Foo", where="layer foo", hint="leave Foo out")
        if kind == "crashes":
            out.write_text("half")
            ctypes.string_at(0)


class Walled(Route):
    """Finds an obstacle unless the rewrite that removes it was declared."""

    options = ("rewrites",)
    rewrites: ClassVar = {"erf": "replaces Erfc by 1 - Erf"}

    def preflight(self, program: Path, signature: Signature, rewrites: tuple[str, ...] = ()) -> list[Obstacle]:
        note(f"preflight {self.name}")
        return [] if "erf" in rewrites else [Obstacle("Erfc", "head.gate", f"has no kernel in {self.format}", "declare the rewrite erf")]


class Runtime(Plugin):
    """Multiplies."""

    def __init__(self, name: str, *formats: str) -> None:
        self.name, self.formats = name, formats

    def open(self, model: Path, *, threads: int) -> Session:
        return Session(read(model)["w"], 1)

    def open_batch(self, model: Path, *, threads: int, batch: int) -> Session:
        return Session(read(model)["w"], batch)


class Session:
    def __init__(self, weights: np.ndarray, batch: int) -> None:
        self.weights = weights
        x, y = (TensorSpec(name=name, dtype="float32", shape=(batch, size)) for name, size in (("x", 4), ("y", 3)))
        self.signature = Signature(inputs=(x,), outputs=(y,))

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] @ self.weights}


class Linear:
    """A live model."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def forward(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights


class Source(Plugin):
    name = "linear"
    format = "lin"
    framework = "linear"

    def accepts(self, model: object) -> bool:
        return type(model).__name__ == "Linear"

    def capture(self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        write(out, model.weights)
        return {(outputs or ("y",))[0]: model.forward(examples["x"])}


class Collection(Plugin):
    name = "lines"
    framework = "linear"

    def build(self, model: str, *, weights: str | None = None, task: str | None = None) -> Built:
        note(f"build {model} weights={weights and Path(weights).name} task={task}")
        given = read(Path(weights))["w"] if weights and Path(weights).is_file() else WEIGHTS
        samples = np.random.default_rng(0).random((5, 4), np.float32)
        return Built(Linear(given), {"x": samples}, task=task or "regression", labels=("a", "b", "c"))


SOURCE, COLLECTION = Source(), Collection()
RUNTIME, MIXES, WALLS = Runtime("race", "lin", "good", "lost", "opted"), Runtime("mixes", "mixed"), Runtime("walls", "walled")
ROUTES = {
    one.name: one
    for one in (
        Route("good_only", "good", 0.5),
        Route("mixed_absent", "mixed", 0.95, modules=("no_such_framework",)),
        Walled("mixed_walled", "mixed", 0.9),
        Route("mixed_raises", "mixed", 0.8),
        Route("mixed_crashes", "mixed", 0.7),
        Route("mixed_wrong", "mixed", 0.6),
        Route("mixed_right", "mixed", 0.5),
        Route("mixed_spare", "mixed", 0.4),
        Route("lost_raises", "lost", 0.9),
        Route("lost_wrong", "lost", 0.5),
        Walled("walled_one", "walled", 0.9),
        Walled("walled_two", "walled", 0.5),
        Route("opted_plain", "opted", 0.9),
        Route("opted_knows", "opted", 0.5, options=("opset", "batch_sizes", "clean_up")),
        Route("held_only", "held", 0.5),
    )
}
GOOD_ONLY, MIXED_ABSENT, MIXED_WALLED = ROUTES["good_only"], ROUTES["mixed_absent"], ROUTES["mixed_walled"]
MIXED_RAISES, MIXED_CRASHES, MIXED_WRONG = ROUTES["mixed_raises"], ROUTES["mixed_crashes"], ROUTES["mixed_wrong"]
MIXED_RIGHT, MIXED_SPARE, HELD_ONLY = ROUTES["mixed_right"], ROUTES["mixed_spare"], ROUTES["held_only"]
LOST_RAISES, LOST_WRONG = ROUTES["lost_raises"], ROUTES["lost_wrong"]
WALLED_ONE, WALLED_TWO = ROUTES["walled_one"], ROUTES["walled_two"]
OPTED_PLAIN, OPTED_KNOWS = ROUTES["opted_plain"], ROUTES["opted_knows"]
