"""What a plugin must be: one protocol for each kind, and the small records that they exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from toolkit.artifact import Signature
    from toolkit.dataset import Dataset

Arrays = Mapping[str, "np.ndarray"]


@runtime_checkable
class Plugin(Protocol):
    """What every plugin says about itself.

    Attributes:
        name: Unique in its group.
        version: Raised whenever the same inputs may give another output; part of every cache key.
        modules: Import names that must be present, for example ``("torch", "onnxscript")``.
        distributions: Their distributions, whose versions are part of every cache key.
        extra: What to install when one is missing, for example ``edgekit[torch,onnx]``.

    A plugin whose framework takes seconds to import may also have ``preload``, a tuple of modules that a server imports
    once for all stages of that framework. Importing them must leave no threads behind that do not survive a fork (NumPy's
    OpenBLAS does: it ends its threads before a fork and starts them again when they are needed). On top of those, ``warm`` may
    name what its own work imports: the server does so while an earlier step runs.
    """

    name: str
    version: int
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str


class Source(Plugin, Protocol):
    """Captures a live framework object as a program file.

    Attributes:
        format: Format of the file it writes, for example ``pt2``.
        framework: Top-level import name of the framework whose objects it takes.

    A source may also have ``prepare(model, weights)``, which returns the model in inference mode, with the ``.safetensors``
    file ``weights`` loaded unless that is ``None``. Without it, a factory must return a model that is ready, and a project
    must not name weights. ``build(model, examples)``, which gives a model its weights where it makes them when it is first called; it
    comes before ``prepare``. ``input_names(model)``, the names of its inputs in order, for examples that are given by position; without
    it they are ``input_0`` and so on. ``notes(model)``, what its user should know of a model, a sentence each. ``options``: with
    ``dynamic`` in it, ``capture`` gets the sizes that stay free by input and axis, and ``runner`` runs batches of any size; with
    ``bounds``, those sizes may have bounds, see :mod:`toolkit.sizes`.
    """

    format: str
    framework: str

    def accepts(self, model: object) -> bool:
        """Whether this source can capture ``model``."""

    def capture(self, model: Any, examples: Arrays, out: Path, *, outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Writes the program to ``out`` and returns the live model's outputs for all of ``examples``.

        Args:
            model: The live object, already in inference mode.
            examples: Named inputs with samples along the first axis. The program is captured for one sample
                (first axis of size 1), under these input names.
            out: The file to write.
            outputs: Names for the outputs, in order; the model's own names, or ``output_0`` and so on, when empty.
        """


@dataclass(frozen=True)
class Obstacle:
    """Something in a program that a route cannot convert.

    Attributes:
        operator: The operator, in the program's own words.
        layer: Path of the layer in the user's model that it belongs to; empty where nothing tells.
        reason: What is wrong with it, as a part of a sentence: ``has no TFLite kernel``.
        hint: The known rewrite, or what else to do; empty when there is nothing to add.
    """

    operator: str
    layer: str
    reason: str
    hint: str = ""


class Route(Plugin, Protocol):
    """Converts a program file of one format into another.

    Attributes:
        source: Format it reads.
        format: Format it writes.

    A route may also have ``trust``, 0..1: the share of ``benchmarks/coverage`` that it converts right, or an estimate of it; of the routes
    to one format those of higher trust are tried first (0.5 without it). ``options``, a tuple of names of fields of
    :class:`toolkit.config.Conversion` that it follows: a route is passed over when the user asks for one that it does not know, and
    ``convert`` gets those that were asked for as keyword arguments; ``dynamic`` among them says that it takes signatures with free
    sizes. ``rewrites``, a mapping from the name of each rewrite that it can apply to one line on what that does (then ``rewrites`` is
    among the options). ``large``, true where the files that it writes may exceed what one Protocol Buffer or FlatBuffer holds, as an
    ONNX graph with its weights in a second file does. And ``preflight(program, signature) -> list[Obstacle]``, which looks in seconds
    for what ``convert`` would fail on in minutes; with ``rewrites=`` where the user declared some.
    """

    source: str
    format: str

    def convert(self, program: Path, out: Path, signature: Signature) -> Mapping[str, Sequence[str]] | None:
        """Reads ``program`` and writes ``out``, keeping the names of ``signature``.

        Args:
            program: The captured source.
            out: The file to write, or the folder where the format is one of ``toolkit.modelfile.FOLDERS``.
            signature: Inputs and outputs of the program; a string in a shape is a size that is free at run time.

        Returns:
            Where rewrites were asked for, the places that each of them changed, if the route can tell.
        """


@dataclass(frozen=True)
class Built:
    """A model that a collection built by its name.

    Attributes:
        model: The live model, in inference mode.
        examples: Plausible inputs to run it with where the user has none, ``[n x ...]`` by name.
        outputs: Names for its outputs, in order; empty where the model names them itself.
        task: What it does, one of :mod:`toolkit.metrics`' tasks or the collection's own word; empty where nothing tells.
        labels: Names of its classes; empty where nothing tells.
        notes: What its user should know of it, a sentence each: that its weights are random, that it is one part of a model.
        replaced: Tensors that began afresh for other classes: ``name``, and the shapes in ``file`` and ``model``, ``None`` where it is not.
    """

    model: Any
    examples: Mapping[str, np.ndarray]
    outputs: tuple[str, ...] = ()
    task: str = ""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    replaced: tuple[Mapping[str, Any], ...] = ()


class Collection(Plugin, Protocol):
    """Builds models by name: ``torchvision:mobilenet_v2``, where ``torchvision`` is the collection's name.

    Attributes:
        framework: Top-level import name of the framework whose models it builds.
    """

    framework: str

    def build(self, model: str, *, weights: str | None = None, task: str | None = None, classes: Sequence[str] = ()) -> Built:
        """Builds a model.

        Args:
            model: What stands after the colon.
            weights: Which weights to load: the collection's own name for them (``DEFAULT``), a ``.safetensors`` file, or ``None`` for
                random ones where the collection can do that.
            task: What the model shall do, where its name leaves that open.
            classes: Names of the classes to train it for. It then has one output for each, and a new head where that of its weights has
                another number; a file of weights may be a pickle of plain tensors. Given only where a model is fine-tuned.

        Raises:
            ConfigError: There is no such model, or it does not do that task; the message names the nearest known.
            InputRejected: The weights do not fit.
            SetupError: The weights would have to be downloaded and cannot be; the hint says the offline way.
        """


class Quantizer(Plugin, Protocol):
    """Makes a smaller model file of the same format.

    Attributes:
        format: Format it reads and writes.
        schemes: Schemes it can produce.
        needs_calibration: Those of them that need calibration samples.

    A quantizer may also have ``methods``, the calibration methods it knows; without it, ``min_max`` is the only one. ``keeps_float``, true
    where it follows the option ``keep_float``; ``takes_statistics``, true where it takes ranges from the option ``statistics``. ``source``,
    the format of the captured program that it starts from in place of the model, which the option ``program`` then names.
    """

    format: str
    schemes: tuple[str, ...]
    needs_calibration: tuple[str, ...]

    def quantize(self, model: Path, out: Path, *, scheme: str, calibration: Dataset | None, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Reads ``model`` and writes ``out``.

        Args:
            model: The float model.
            out: The file to write.
            scheme: One of ``schemes``.
            calibration: Samples named like the model's inputs; ``None`` when the scheme needs none.
            options: The calibration recipe's fields that steer a quantizer: ``method``, ``per_channel``. And ``keep_float``, names of
                layers that stay float; ``statistics``, a file of :class:`toolkit.quantization.statistics.Statistics`; ``program``.

        Returns:
            Perhaps ``kept_float``, names of all layers that stay float, and ``why`` those do that were not asked for.
        """


class Session(Protocol):
    """A loaded model, ready to run.

    Attributes:
        signature: Inputs and outputs of the loaded model.

    A session whose batch is free up to some size may have ``largest_batch``, which says it; more samples are then given in turns.
    """

    signature: Signature

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs one batch. The arrays' dtypes and shapes must fit the signature."""


@dataclass(frozen=True)
class Event:
    """One operator's time in one inference.

    Attributes:
        name: The operator's name as the runtime reports it.
        operator: Its kind, in the format's own words.
        kernel: What executed it; empty where the runtime does not say.
        ms: Time spent, in milliseconds.
        nodes: Names of the nodes, or of their output tensors, that it stands for in the file; empty where nothing tells.
    """

    name: str
    operator: str
    kernel: str
    ms: float
    nodes: tuple[str, ...] = ()


class BulkSession(Session, Protocol):
    """A session that runs many batches by one call. Any session may be one; a model of microseconds then waits less for Python."""

    def run_all(self, batches: Arrays, output: str, into: np.ndarray) -> None:
        """Runs batch after batch and keeps one output of each.

        Args:
            batches: For each input ``[k x ...]``: the arrays of ``k`` calls of ``run``.
            output: Name of the output to keep.
            into: Where to write it, ``[k x ...]``.
        """


class ProfiledSession(Session, Protocol):
    """A session that records the time of every operator."""

    def events(self) -> list[list[Event]]:
        """Ends the recording and returns the events of each ``run``, in order."""


class Runtime(Plugin, Protocol):
    """Loads and runs model files.

    Attributes:
        formats: Formats it executes.

    A runtime may also have ``open_profiled(model, *, threads)``, which returns a :class:`ProfiledSession`; and ``variants``,
    names of other ways to execute the same file (another optimisation level, another delegate), with
    ``open_variant(model, *, threads, variant)``, which opens a session that uses one of them; and ``peak_gmacs(threads)``, which
    measures the multiply-accumulates a second its best kernels reach here, in 10^9 by element type; and ``open_batch(model, *, threads,
    batch)``, which opens the signature for a batch size of a file that has several; and ``open_with(model, *, threads, examples)`` for
    files that do not say their inputs' sizes.
    """

    formats: tuple[str, ...]

    def open(self, model: Path, *, threads: int) -> Session:
        """Loads a model.

        Args:
            model: The model file.
            threads: Number of threads for one inference.

        Raises:
            InputRejected: The file is damaged or not of a format this runtime reads.
        """


class Reader(Plugin, Protocol):
    """Reads what a model file contains without executing it.

    Attributes:
        format: Format it reads.
    """

    format: str

    def read(self, model: Path) -> Any:
        """Returns the :class:`toolkit.contents.Contents` of a model file.

        Raises:
            InputRejected: The file is damaged.
        """
