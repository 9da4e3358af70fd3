"""The files that people write: ``edgekit.toml``, ``targets/*.toml`` and ``calibration/*.toml``.

Every model here is strict: an unknown key is an error that names the nearest known one, never ignored.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from toolkit import sizes
from toolkit.artifact import Frozen
from toolkit.data_origin import Data
from toolkit.errors import ConfigError
from toolkit.limits import NUMBER_PATTERN, WITH_TWIN, Budgets, Count, Fraction, Number, Positive
from toolkit.metrics import CLASSIFICATION, TASKS, scale
from toolkit.mistakes import NAME_PATTERN, FactoryName, explain
from toolkit.training import Finetune

PROJECT_FILE = "edgekit.toml"
BASELINE_FILE = "edgekit-baseline.json"
Task = Literal[
    "image-classification",
    "text-classification",
    "audio-classification",
    "image-segmentation",
    "token-classification",
    "text-generation",
    "automatic-speech-recognition",
]
Method = Literal["min_max", "moving_average", "percentile", "entropy", "mse"]
Rung = Literal["range_method", "per_channel", "equalization", "bias_correction", "smooth_quant", "adaround", "keep_float", "qat"]
Scheme = Literal[
    "float32",
    "float16",
    "dynamic_wi8",
    "weight_only_wi8",
    "weight_only_wi4",
    "static_wi8_ai8",
    "static_wi8_ai16",
    "static_wi4_ai8",
]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
AUTO = "auto"
Asked = Literal["auto"] | Scheme

Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
FreeSize = Annotated[str, AfterValidator(lambda text: str(sizes.read(text)))]


class Target(Frozen):
    """A kind of device, described as data.

    Attributes:
        name: The file's name without suffix.
        description: One line for people.
        runtime: Runtime plugin that executes models there.
        stand_in: What executes them here instead; every figure carries it.
        threads: Threads of one inference.
        cpus: CPUs of this machine that an inference is pinned to while it is timed, by number; empty for no pinning.
        memory_mb: Memory an inference may use on top of the interpreter, in MB (10^6 bytes); ``None`` for no cap.
        instruction_set: The device's instruction set, for the record.
        schemes: Number formats that the runtime executes well there.
        budgets: Default budgets; a project's own come first.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Name
    description: str = ""
    runtime: str
    stand_in: str = "host cpu"
    threads: Count = 1
    cpus: tuple[Annotated[int, Field(ge=0, strict=True)], ...] = ()
    memory_mb: Count | None = None
    instruction_set: str = ""
    schemes: tuple[Scheme, ...] = Field(default=SCHEMES, min_length=1)
    budgets: Budgets = Budgets()


class Recipe(Frozen):
    """How calibration samples are chosen and turned into ranges.

    Attributes:
        name: The file's name without suffix.
        description: One line for people.
        task: The task it is meant for.
        samples: How many calibration samples to take from the training split.
        min_samples: Fewer than this many is refused.
        selection: ``stratified`` takes every class in its share, ``random`` ignores labels.
        method: How activation ranges are computed.
        per_channel: One scale per output channel of a weight instead of one for all.
        value_range: Values outside of it are refused; ``None`` accepts any finite value.
        allow_noise: Whether random samples are accepted, for models that take noise.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Name
    description: str = ""
    task: Task
    samples: Count = 128
    min_samples: Count = 8
    selection: Literal["stratified", "random"] = "stratified"
    method: Method = "min_max"
    per_channel: Flag = True
    value_range: tuple[Number, Number] | None = None
    allow_noise: Flag = False


class Model(Frozen):
    """Where the model comes from: a factory in the project, or a file.

    Attributes:
        factory: ``module:function`` returning the model.
        framework: Framework of the model that the factory returns: ``torch``, ``keras``, ``tensorflow``, ``jax``, or a plugin's.
        name: A model of a collection, such as ``torchvision:mobilenet_v2``, or a folder of a transformers model.
        task: What a named model shall do, where its name leaves that open; the project's task by default.
        weights: ``.safetensors`` file to start from, or the collection's name of its weights; with ``[finetune]`` also a pickle of tensors.
        file: A model file to use as it is, of any format that ``edgekit doctor`` lists.
        outputs: Names for the model's outputs, in order; the first holds the class scores. For a file, which of its outputs do.
    """

    factory: FactoryName | None = None
    framework: Name = "torch"
    name: str | None = None
    task: str | None = None
    weights: Path | None = None
    file: Path | None = None
    outputs: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if sum(map(bool, (self.factory, self.name, self.file))) != 1:
            raise ValueError("give one of factory, name and file")
        if self.task and not self.name:
            raise ValueError("task goes with name")
        if "framework" in self.model_fields_set and not self.factory:
            raise ValueError("framework goes with factory")
        if self.file and self.weights:
            raise ValueError("weights go with factory or name; a model file carries its own")
        return self


class Calibration(Frozen):
    """Which recipe calibrates, and what this project changes of it.

    Attributes:
        recipe: Name of a shipped recipe, or a path to a ``.toml`` file.
        samples: Overrides the recipe's number of samples.
    """

    recipe: str | None = None
    samples: Count | None = None


class Quantization(Frozen):
    """How quantized files are repaired, and what their scheme is chosen on.

    Attributes:
        repair: Whether a file that loses more than ``budgets.max_drop`` is repaired, rung by rung; without a budget what ``auto`` chose.
        rungs: What may be tried, always in this order.
        search: Samples that repairs and ``auto`` are chosen on; rows of the training split that calibration does not use by default.
        search_samples: How many of them.
    """

    repair: Flag = True
    rungs: tuple[Rung, ...] = get_args(Rung)
    search: Path | None = None
    search_samples: Count = 512


class Parity(Frozen):
    """How close a converted model must be to its source.

    Attributes:
        samples: Real samples to compare on.
        min_sqnr_db: Lowest signal-to-quantization-noise ratio of any output, in dB. Float routes measure 100 dB and
            more; a wrong one is far below 60.
    """

    samples: Count = 64
    min_sqnr_db: Number = 60.0


class Conversion(Frozen):
    """How a model is converted. What nobody asks for is left to the route.

    Attributes:
        route: Name of the only route to take; ``auto`` tries all that lead to the format, the most trusted first, and takes the
            first whose file computes what the source computes.
        opset: ONNX operator set; the newest that the exporter writes by default.
        dynamic: Sizes that stay free, by input and axis: ``{"input_ids": {0: "batch<=8", 1: "16<=sequence<=128"}}``. Equal names are
            equal sizes and have equal bounds; a name alone has none.
        layout: ``channels_last`` gives four-dimensional image inputs as ``[n x h x w x c]``.
        batch_sizes: Batch sizes that one file shall take, each as a signature of its own.
        rewrites: Names of the rewrites that may be applied to what the target cannot execute; see ``edgekit doctor``.
        clean_up: Whether the graph is simplified where that changes no output.
    """

    route: str = "auto"
    opset: Annotated[int, Field(ge=7, strict=True)] | None = None
    dynamic: dict[str, dict[Annotated[int, Field(ge=0)], FreeSize]] = Field(default_factory=dict)
    layout: Literal["channels_last"] | None = None
    batch_sizes: tuple[Count, ...] = ()
    rewrites: tuple[str, ...] = ()
    clean_up: Flag = True

    @model_validator(mode="after")
    def _free_sizes_agree(self) -> Conversion:
        sizes.check_together(self.dynamic)
        return self

    def asked(self) -> dict[str, Any]:
        """Returns what a route must know of this to follow it: all that differs from the default, but for ``route`` and ``dynamic``."""
        return {name: value for name, value in self.model_dump(exclude_defaults=True).items() if name not in ("route", "dynamic")}


class Metrics(Frozen):
    """What is measured on the evaluation split.

    Attributes:
        primary: The metric that ``max_drop`` limits; the first of the task's by default.
        positive: The class that matters where one class stands against the rest: its index or its name. By default class 1
            of two classes; with more than two, average precision and sensitivity are left out.
        specificity: The specificity at which sensitivity is measured.
    """

    primary: str | None = None
    positive: Annotated[int, Field(ge=0, strict=True)] | str | None = None
    specificity: Fraction = 0.95


class Timing(Frozen):
    """How long to measure and how long to wait.

    Attributes:
        seconds: Timed seconds for each artifact.
        max_noise: Above this difference of a model from itself (A/A), no latency verdict is given.
        stage_timeout_seconds: A stage that runs longer is ended.
    """

    seconds: Positive = 1.0
    max_noise: Fraction = 0.1
    stage_timeout_seconds: Positive = 3600.0


class Project(Frozen):
    """One ``edgekit.toml``.

    Attributes:
        name: Name of the model; files are called after it.
        task: What the model does.
        seed: Seed of everything random.
        targets: Names of shipped targets, or paths to ``.toml`` files.
        schemes: Number formats to make; ``float32`` is the twin that others are compared with, ``auto`` chooses one.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Name
    task: Task
    seed: Annotated[int, Field(strict=True)] = 0
    targets: tuple[str, ...] = Field(min_length=1)
    schemes: tuple[Asked, ...] = Field(default=("float32", "static_wi8_ai8"), min_length=1)
    data: Data
    model: Model
    finetune: Finetune | None = None
    calibration: Calibration = Calibration()
    quantize: Quantization = Quantization()
    convert: Conversion = Conversion()
    parity: Parity = Parity()
    metrics: Metrics = Metrics()
    timing: Timing = Timing()
    budgets: Budgets = Budgets()

    @model_validator(mode="after")
    def _consistent(self) -> Project:
        if self.finetune and (self.model.file or self.model.framework not in ("torch", "keras")):
            raise ValueError("finetune needs model.name, or model.factory of a PyTorch or Keras model; all others are used as they are")
        for name in WITH_TWIN:
            if getattr(self.budgets, name) is not None and self.schemes == ("float32",):
                raise ValueError(f"budgets.{name} compares with the float twin, and schemes has nothing else: it could never fail")
        check_metrics(self.task, self.metrics, self.budgets)
        if self.finetune and self.task not in CLASSIFICATION:
            raise ValueError(f"finetune knows {', '.join(CLASSIFICATION)}; the task is {self.task}")
        if len(set(self.targets)) < len(self.targets) or len(set(self.schemes)) < len(self.schemes):
            raise ValueError("targets and schemes must not repeat")
        needs_train = self.finetune is not None or any(scheme.startswith("static") or scheme == AUTO for scheme in self.schemes)
        if needs_train and self.data.eval and not self.data.train:
            raise ValueError("finetune, auto and static schemes need data.train: calibration never touches the evaluation split")
        return self


def check_metrics(task: str, metrics: Metrics, budgets: Budgets) -> None:
    """Holds the names of metrics against the task, and the loss margin against the primary metric's scale.

    Raises:
        ValueError: One does not fit.
    """
    known = TASKS[task]
    primary = metrics.primary or known[0]
    for key, name in [("metrics.primary", primary), *((f"budgets.metrics.{name}", name) for name in budgets.metrics)]:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is not measured for {task}; known: {', '.join(known)}")
    if budgets.min_accuracy is not None and "top1_accuracy" not in known:
        raise ValueError(f"budgets.min_accuracy limits top-1 accuracy, which {task} has not; write [budgets.metrics.{known[0]}]")
    if budgets.max_drop is not None and scale(primary).better == "lower":
        raise ValueError(f"budgets.max_drop does not limit {primary}, of which lower is better; write [budgets.metrics.{primary}] max_rise")


Document = TypeVar("Document", bound=BaseModel)


def parse(kind: type[Document], text: str, where: str, **given: Any) -> Document:
    """Reads one TOML document.

    Args:
        kind: The model to read it as.
        text: The document.
        where: File name for messages.
        **given: Fields that the caller knows, such as the name from the file name.

    Raises:
        ConfigError: It is not TOML, has an unknown key, or a value does not fit.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        what, hint = (
            ("", f"mend line {line[1]}") if line else ("the last value is not closed: ", "mend the end: a value, quote or bracket is missing")
        )
        raise ConfigError(f"is not valid TOML: {what}{error}", where=where, hint=hint) from error
    try:
        return kind.model_validate({**document, **given})
    except ValidationError as error:
        raise explain(kind, error, where) from error


def read_text(path: Path, what: str) -> str:
    """Reads a configuration file.

    Raises:
        ConfigError: It does not exist or is not readable text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = {"project file": "edgekit init writes a project", "target file": "run: edgekit targets"}.get(what, "see docs/calibration.md")
        raise ConfigError(f"{what} does not exist", where=str(path), hint=f"check the path; {known}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} cannot be read: {error}", where=str(path), hint="check that it is a UTF-8 text file") from error


def load_project(path: Path) -> tuple[Project, Path]:
    """Reads a project from its folder or its ``edgekit.toml``.

    Returns:
        The project and its folder.

    Raises:
        ConfigError: There is none, or it is wrong.
    """
    file = path / PROJECT_FILE if path.is_dir() else path
    return parse(Project, read_text(file, "project file"), str(file)), file.resolve().parent


def make_budgets(given: dict[str, Any]) -> Budgets:
    """Makes budgets of values as people type them on a command line.

    Raises:
        ConfigError: A value does not fit.
    """
    numbers = {name: float(value) if isinstance(value, str) and re.fullmatch(NUMBER_PATTERN, value) else value for name, value in given.items()}
    try:
        return Budgets.model_validate(numbers)
    except ValidationError as error:
        raise explain(Budgets, error, "budgets") from error
