"""The files that people write: ``edgekit.toml``, ``targets/*.toml`` and ``calibration/*.toml``.

Every model here is strict: an unknown key is an error that names the nearest known one, never ignored.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from toolkit.artifact import Frozen
from toolkit.errors import ConfigError

PROJECT_FILE = "edgekit.toml"
Task = Literal["image-classification", "text-classification"]
Scheme = Literal["float32", "float16", "dynamic_wi8", "weight_only_wi8", "static_wi8_ai8"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


def _fraction(value: Any) -> Any:
    """Reads ``0.01``, ``"1%"`` or ``"1pp"`` as a fraction."""
    if isinstance(value, str):
        match = re.fullmatch(rf"\s*({_NUMBER})\s*(pp|%)\s*", value)
        if not match:
            raise ValueError('write a fraction such as 0.01, or percentage points such as "1pp"')
        return float(match.group(1)) / 100
    return value


def _margin(value: Any) -> Any:
    """Refuses a margin that can never be exceeded: 1 is meant as one percentage point more often than as everything."""
    if value == 1 and not isinstance(value, bool | str):
        raise ValueError('1 would allow any loss; for one percentage point write "1pp" or 0.01')
    return _fraction(value)


_NUMBER = r"\d+\.?\d*|\.\d+"
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Fraction = Annotated[Number, BeforeValidator(_fraction), Field(ge=0, le=1)]
Margin = Annotated[Number, BeforeValidator(_margin), Field(ge=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
FACTORY_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
FactoryName = Annotated[str, Field(pattern=FACTORY_PATTERN)]
_PATTERNS = {
    NAME_PATTERN: "begin with a letter or digit; go on with letters, digits, dots, dashes and underscores",
    FACTORY_PATTERN: "write module:function, for example digits:build",
}


class Budgets(Frozen):
    """Limits that the evidence is held against; an absent one is not checked.

    Attributes:
        min_accuracy: Lowest accuracy, as a fraction.
        max_drop: Largest loss of accuracy against the float source, on the same samples; ``"1pp"`` or ``0.01``.
        max_size_bytes: Largest model file.
        max_size_ratio: Largest size of a quantized file over its float twin.
        max_latency_p90_ms: Largest 90th percentile of one inference, in milliseconds, on whatever stands in for the target.
    """

    min_accuracy: Fraction | None = None
    max_drop: Margin | None = None
    max_size_bytes: Count | None = None
    max_size_ratio: Positive | None = None
    max_latency_p90_ms: Positive | None = None

    def over(self, other: Budgets) -> Budgets:
        """Returns these budgets, with the other's where these say nothing."""
        return Budgets(**{**other.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


class Target(Frozen):
    """A kind of device, described as data.

    Attributes:
        name: The file's name without suffix.
        description: One line for people.
        runtime: Runtime plugin that executes models there.
        stand_in: What executes them here instead; every figure carries it.
        threads: Threads of one inference.
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
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Name
    description: str = ""
    task: Task
    samples: Count = 128
    min_samples: Count = 8
    selection: Literal["stratified", "random"] = "stratified"
    method: Literal["min_max"] = "min_max"
    per_channel: Flag = True
    value_range: tuple[Number, Number] | None = None


class Data(Frozen):
    """Where samples come from: a factory in the project, or two files.

    Attributes:
        factory: ``module:function`` returning ``{"train": columns, "eval": columns}``.
        train: ``.npz`` file or folder of ``.npy`` files with the training split.
        eval: Likewise with the held-out split.
        depends: Files and folders that the factory reads and that lie outside the project's folder, or that the model does
            not depend on. Everything else in the project's folder counts for the data and for the model alike.
        classes: Names of the classes, by index.
    """

    factory: FactoryName | None = None
    train: Path | None = None
    eval: Path | None = None
    depends: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if bool(self.factory) == bool(self.eval):
            raise ValueError("give either factory, or eval (and train) files")
        return self


class Model(Frozen):
    """Where the model comes from: a factory in the project, or a file.

    Attributes:
        factory: ``module:function`` returning the model.
        weights: ``.safetensors`` file to start from.
        file: A model file to use as it is: ``.pt2``, ``.onnx`` or ``.tflite``.
        outputs: Names for the model's outputs, in order; the first holds the class scores. For a file, which of its outputs do.
    """

    factory: FactoryName | None = None
    weights: Path | None = None
    file: Path | None = None
    outputs: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if bool(self.factory) == bool(self.file):
            raise ValueError("give either factory or file")
        if self.file and self.weights:
            raise ValueError("weights go with factory; a model file carries its own")
        return self


class Finetune(Frozen):
    """How the model is adapted to the training split.

    Attributes:
        epochs: Passes over the training split.
        batch_size: Samples of one step.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        warmup: Share of all steps in which the learning rate rises to its peak; a cosine brings it down after.
        label_smoothing: Mass moved from the right class to all of them.
        freeze: Glob patterns of parameter names that stay as they are.
        threads: CPU threads of one training step. Fixed, as another number may give other weights; for networks as small
            as a digit classifier, 1 is as fast as more, and does not suffer from neighbours.
        device: ``auto`` takes a GPU when there is one.
    """

    epochs: Count = 10
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    warmup: Fraction = 0.1
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    freeze: tuple[str, ...] = ()
    threads: Count = 2
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class Calibration(Frozen):
    """Which recipe calibrates, and what this project changes of it.

    Attributes:
        recipe: Name of a shipped recipe, or a path to a ``.toml`` file.
        samples: Overrides the recipe's number of samples.
    """

    recipe: str | None = None
    samples: Count | None = None


class Parity(Frozen):
    """How close a converted model must be to its source.

    Attributes:
        samples: Real samples to compare on.
        min_sqnr_db: Lowest signal-to-quantization-noise ratio of any output, in dB. Float routes measure 100 dB and
            more; a wrong one is far below 60.
    """

    samples: Count = 64
    min_sqnr_db: Number = 60.0


class Timing(Frozen):
    """How long to measure and how long to wait.

    Attributes:
        seconds: Timed seconds for each artifact.
        stage_timeout_seconds: A stage that runs longer is ended.
    """

    seconds: Positive = 1.0
    stage_timeout_seconds: Positive = 3600.0


class Project(Frozen):
    """One ``edgekit.toml``.

    Attributes:
        name: Name of the model; files are called after it.
        task: What the model does.
        seed: Seed of everything random.
        targets: Names of shipped targets, or paths to ``.toml`` files.
        schemes: Number formats to make; ``float32`` is the twin that others are compared with.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: Name
    task: Task
    seed: Annotated[int, Field(strict=True)] = 0
    targets: tuple[str, ...] = Field(min_length=1)
    schemes: tuple[Scheme, ...] = Field(default=("float32", "static_wi8_ai8"), min_length=1)
    data: Data
    model: Model
    finetune: Finetune | None = None
    calibration: Calibration = Calibration()
    parity: Parity = Parity()
    timing: Timing = Timing()
    budgets: Budgets = Budgets()

    @model_validator(mode="after")
    def _consistent(self) -> Project:
        if self.finetune and self.model.file:
            raise ValueError("finetune needs model.factory; a model file is used as it is")
        if len(set(self.targets)) < len(self.targets) or len(set(self.schemes)) < len(self.schemes):
            raise ValueError("targets and schemes must not repeat")
        needs_train = self.finetune is not None or any(scheme.startswith("static") for scheme in self.schemes)
        if needs_train and self.data.eval and not self.data.train:
            raise ValueError("finetune and static schemes need data.train: calibration never touches the evaluation split")
        return self


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
        raise _explain(kind, error, where) from error


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


def nearest(word: str, known: list[str]) -> str:
    """Suggests the known word that looks most like a wrong one."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def _explain(kind: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    """Turns one validation problem into one sentence; the rest are counted.

    An unknown key comes first: it is often the very reason why another one is missing.
    """
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {key!r}{more}", where=where, hint=nearest(path[-1], _keys_at(kind, path[:-1])))
    if first["type"] == "missing":
        return ConfigError(f"key {key!r} is missing{more}", where=where, hint="edgekit init writes a commented example")
    message = _PATTERNS.get(first.get("ctx", {}).get("pattern", ""), first["msg"].removeprefix("Value error, "))
    found = "" if isinstance(first["input"], dict) else f", found {first['input']!r}"
    return ConfigError(f"{key or 'document'}: {message}{found}{more}", where=where, hint=_remedy(first))


def _remedy(problem: Mapping[str, Any]) -> str:
    """What to write instead, where that can be guessed: a choice misspelt, or a percentage without its sign."""
    value, context = problem["input"], problem.get("ctx", {})
    if problem["type"] == "literal_error" and isinstance(value, str):
        return nearest(value, re.findall(r"'([^']*)'", context["expected"]))
    if 1 in (context.get("le"), context.get("lt")) and isinstance(value, float | int) and 1 < value < 100:
        return f'write {value / 100:g} or "{value:g}%"'
    return "see docs/configuration.md"


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Lists the keys that are known at a place in a document."""
    for part in path:
        field = kind.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return [field.alias or name for name, field in kind.model_fields.items()]


def make_budgets(given: dict[str, Any]) -> Budgets:
    """Makes budgets of values as people type them on a command line.

    Raises:
        ConfigError: A value does not fit.
    """
    numbers = {name: float(value) if isinstance(value, str) and re.fullmatch(_NUMBER, value) else value for name, value in given.items()}
    try:
        return Budgets.model_validate(numbers)
    except ValidationError as error:
        raise _explain(Budgets, error, "budgets") from error
