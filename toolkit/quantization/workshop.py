"""Makes quantized files of one float model, and remembers what it has made: every rung of the ladder asks it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit import modelfile, plugins
from toolkit.dataset import Dataset
from toolkit.errors import ConfigError, InputRejected, StageFailed
from toolkit.quantization import ranges
from toolkit.quantization.network import Network, open_network
from toolkit.quantization.observe import observe
from toolkit.quantization.stability import Stability, of_ends
from toolkit.quantization.statistics import GROUPS, Statistics

MIN_MAX = "min_max"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class State:
    """What a quantized file is made of.

    Attributes:
        model: The float file, with whatever was repaired in its weights.
        scheme: The scheme.
        method: How ranges of activations are found.
        per_channel: A scale for every output channel of a weight, or one for the whole tensor.
        keep_float: Names of layers that stay float.
    """

    model: Path
    scheme: str
    method: str = MIN_MAX
    per_channel: bool = True
    keep_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """A file of statistics, and what they have."""

    path: Path
    histograms: bool
    channels: bool


@dataclass
class Workshop:
    """Quantizes and edits one float model.

    Attributes:
        format: The model's format.
        folder: Where files are put.
        calibration: Samples that ranges come from, as the model takes them; ``None`` where there are none.
        quantizer_name: Name of the only quantizer to use; by scheme where it is empty.
        progress: Callback ``(done, total, note)``.
        kept: Folder that outlives an interruption; ``None`` where nothing is kept.
        program: The captured program that the model was converted from, for quantizers that start from it.
    """

    format: str
    folder: Path
    calibration: Dataset | None
    quantizer_name: str
    progress: Progress
    kept: Path | None = None
    program: Path | None = None
    _made: dict[State, Path] = field(default_factory=dict)
    _told: dict[State, Mapping[str, Any]] = field(default_factory=dict)
    _statistics: dict[Path, _Seen] = field(default_factory=dict)
    _begun: int = 0
    _edited: int = 0
    _tried: int = 0

    def quantizer(self, scheme: str) -> Any:
        """The plugin that makes a scheme.

        Raises:
            ConfigError: The one that is asked for does not make it.
            MissingExtra: Its libraries are not installed.
            NoRoute: There is none.
        """
        found = plugins.get("quantizers", self.quantizer_name) if self.quantizer_name else plugins.quantizer(self.format, scheme)
        if scheme not in found.schemes:
            message = f"unknown scheme {scheme!r}; {found.name} makes {', '.join(found.schemes)}"
            raise ConfigError(message, where="scheme", hint="choose one of them")
        plugins.require(found)
        return found

    def make(self, state: State) -> Path:
        """Makes a file, once for each state.

        Raises:
            ConfigError: The method is not known, or samples are needed and missing.
            InputRejected: The model is damaged.
            StageFailed: The library cannot quantize it, or wrote nothing.
        """
        if state in self._made:
            return self._made[state]
        quantizer = self.quantizer(state.scheme)
        _check_method(quantizer, state.method)
        calibrated = state.scheme in quantizer.needs_calibration
        if calibrated and self.calibration is None and state.model not in self._statistics:
            message = f"scheme {state.scheme!r} needs calibration samples"
            raise ConfigError(message, where="calibration", hint="name a folder of samples")
        options: dict[str, Any] = {"method": state.method, "per_channel": state.per_channel, "keep_float": state.keep_float}
        options |= {"program": self.program} if self.program else {}
        if calibrated and getattr(quantizer, "takes_statistics", False):
            options["statistics"] = self.statistics(state.model, histograms=state.method not in ranges.ENDS)
        self._begun += 1  # a file that could not be made leaves its folder behind
        out = self.folder / f"made-{self._begun}" / f"model.{quantizer.format}"
        out.parent.mkdir(parents=True)
        told = quantizer.quantize(state.model, out, scheme=state.scheme, calibration=self.calibration if calibrated else None, options=options)
        if not modelfile.exists(out) or not modelfile.size_bytes(out):
            raise StageFailed("the quantizer wrote no file", where=quantizer.name, hint="report it to the quantizer's project")
        self._made[state], self._told[state] = out, told or {}
        return out

    def told(self, state: State) -> Mapping[str, Any]:
        """What the quantizer said of a file that was made: ``kept_float`` and ``why``."""
        return self._told.get(state, {})

    def statistics(self, model: Path, *, histograms: bool = False, channels: bool = False) -> Path:
        """File of a float model's statistics.

        Args:
            model: The float file.
            histograms: Whether they must have histograms, which most methods need.
            channels: Whether they must tell what each channel of a layer's input does, which is as dear as all the rest.

        Raises:
            ConfigError: There are no samples.
            InputRejected: The model or the samples are damaged.
        """
        known = self._statistics.get(model)
        if known and known.histograms >= histograms and known.channels >= channels:
            return known.path
        if self.calibration is None:
            raise ConfigError("there are no calibration samples", where="calibration", hint="name a folder of samples")
        histograms |= known.histograms if known else False
        inputs = tuple(dict.fromkeys(layer.input for layer in open_network(model).layers)) if channels else ()
        name = f"statistics-{len(self._statistics)}-{int(histograms)}{int(channels)}.npz"
        resume = self.kept / name if self.kept else None
        found = observe(model, self.calibration, histograms=histograms, channels=inputs, progress=self.progress, resume=resume)
        found.write(self.folder / name)
        self._statistics[model] = _Seen(self.folder / name, histograms, channels)
        return self.folder / name

    def adopt(self, model: Path, path: Path) -> None:
        """Takes a file of statistics that is there already, in place of a pass over the samples.

        Raises:
            InputRejected: It is damaged, or of another model.
        """
        found = Statistics.read(path)
        if found.model_sha256 != modelfile.sha256(model):
            hint = "collect them from the float file that is quantized: edgekit calibrate"
            raise InputRejected("are statistics of another model", where=str(path), hint=hint)
        self._statistics[model] = _Seen(path, all(one.counts is not None for one in found.tensors.values()), channels=False)

    def samples_seen(self, state: State) -> int:
        """How many samples a static file's ranges come from."""
        known = self._statistics.get(state.model)
        return Statistics.read(known.path).samples if known else len(self.calibration or ())

    def stability(self, model: Path) -> Stability | None:
        """How sure the ranges are that a file was made with; nothing where none were needed."""
        if model not in self._statistics:
            return None
        found = Statistics.read(self._statistics[model].path)
        seen = min(found.samples, GROUPS)
        lows = {name: one.group_low[:seen] for name, one in found.tensors.items() if one.group_low is not None}
        highs = {name: one.group_high[:seen] for name, one in found.tensors.items() if one.group_high is not None}
        return of_ends(lows, highs, found.samples)

    def read_statistics(self, model: Path) -> Statistics:
        """A float model's statistics with those of its layers' inputs, channel by channel."""
        return Statistics.read(self.statistics(model, channels=True))

    def edit(self, model: Path, change: Callable[[Network], list[str]]) -> tuple[Path, list[str]]:
        """Changes a float model's weights in a copy.

        Args:
            model: The float file.
            change: Edits the network; says what it did, and nothing where there was nothing to do.

        Returns:
            The new file, or the same where nothing was done; and what was done.
        """
        network = open_network(model)
        done = change(network)
        if not done:
            return model, []
        self._edited += 1
        out = self.folder / f"edited-{self._edited}" / model.name
        out.parent.mkdir(parents=True)
        network.save(out)
        return out, done


def _check_method(quantizer: Any, method: str) -> None:
    methods = getattr(quantizer, "methods", (MIN_MAX,))
    if method not in methods:
        raise ConfigError(f"unknown method {method!r}; {quantizer.name} knows {', '.join(methods)}", where="method", hint="choose one of them")


def check_size(model: Path) -> None:
    """Refuses a model that libraries, which hold it in one buffer, would fail on after minutes.

    Raises:
        InputRejected: It is too large.
    """
    size_bytes = modelfile.size_bytes(model)
    if size_bytes > modelfile.BUFFER_BYTES:
        what = f"has {size_bytes / 1e9:.2f} GB, and quantizers take at most {modelfile.BUFFER_BYTES / 1e9:.2f} GB"
        raise InputRejected(what, where="model", hint="quantize a smaller model, or deliver this one in float32")
