"""Reads what an ExecuTorch program contains: methods, operators, what its delegates execute, and its weights. Nothing is run.

Field numbers are those of ``executorch/schema/program.fbs`` (ET12), which only ever appends. Reading it takes milliseconds, where
importing ExecuTorch's own deserializer takes seconds.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from struct import Struct

from toolkit import modelfile
from toolkit.artifact import Signature, TensorSpec
from toolkit.audit.damage import reading
from toolkit.audit.element_types import element_bits
from toolkit.audit.flat_tables import FlatTable
from toolkit.audit.xnnpack import Delegate, read_delegate
from toolkit.contents import Contents, Layer

_METHOD, _XNNPACK = "forward", "XnnpackBackend"
_TENSOR, _STRING, _KERNEL, _DELEGATE = 5, 6, 1, 2
# Numbers of c10::ScalarType.
_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool", 15: "bfloat16"}
_HEADER = Struct("<4sIQQQ")
_SEGMENT = 1


class ExecuTorchReader:
    """The reader behind ``edgekit inspect model.pte`` and the audit of ExecuTorch programs."""

    name = "executorch"
    version = 1
    modules: tuple[str, ...] = ("executorch",)
    distributions: tuple[str, ...] = ("executorch",)
    extra = "edgekit[executorch]"
    format = "pte"

    def read(self, model: Path) -> Contents:
        """Returns the contents of a ``.pte`` file.

        Raises:
            InputRejected: The file is damaged, or has no method ``forward``.
        """
        with reading(model, self.format, ValueError, IndexError, OverflowError):
            return _contents(model)


READER = ExecuTorchReader()


def _contents(path: Path) -> Contents:
    program = _Program(path.read_bytes())
    delegates = program.delegates()
    weight_bytes: Counter[str] = Counter()
    for size, dtype in {key: stored for one in delegates for key, stored in one.weights.items()}.values():
        weight_bytes[dtype] += size
    for dtype, size in program.constants().values():
        weight_bytes[dtype] += size
    kernels = program.kernels()
    layers: list[Layer] = [layer for one in delegates for layer in one.layers]
    return Contents(
        format="pte",
        size_bytes=modelfile.size_bytes(path),
        sha256=modelfile.sha256(path),
        signature=program.signature(),
        operators=dict(Counter([*kernels, *(f"XNNPACK {name}" for one in delegates for name in one.operators)])),
        weight_bytes=dict(weight_bytes),
        layers=tuple(layers),
        details=program.details(len(kernels), sum(len(one.operators) for one in delegates)),
    )


class _Program:
    """A parsed file: the program, and where its segments are."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._table = FlatTable.root(self._data)
        self._base = _HEADER.unpack_from(data, 8)[3] if data[8:12] == b"eh00" else 0
        self._plans = {plan.text(0): plan for plan in self._table.tables(1)}
        if _METHOD not in self._plans:
            raise ValueError(f"it has the methods {', '.join(self._plans) or 'none'}, expected {_METHOD!r}")
        self._plan = self._plans[_METHOD]
        self._values = self._plan.tables(2)

    def signature(self) -> Signature:
        sizes = self._told("get_input_sizes")
        inputs, outputs = self._plan.numbers(3, "i"), self._plan.numbers(4, "i")
        names = self._told("get_input_names") or [f"input_{place}" for place in range(len(inputs))]
        results = self._told("get_output_names") or [f"output_{place}" for place in range(len(outputs))]
        return Signature(
            inputs=tuple(self._spec(names[place], index, sizes[place] if sizes else "") for place, index in enumerate(inputs)),
            outputs=tuple(self._spec(results[place], index) for place, index in enumerate(outputs)),
        )

    def kernels(self) -> list[str]:
        """Operators that ExecuTorch's own kernels execute, in order."""
        operators = [f"{one.text(0)}.{one.text(1)}".rstrip(".") for one in self._plan.tables(6)]
        return [operators[call.number(0, "i")] for kind, call in self._calls() if kind == _KERNEL]

    def delegates(self) -> list[Delegate]:
        """What XNNPACK executes, in the order of the calls. Other delegates keep their graph in a form of their own."""
        found = self._plan.tables(7)
        numbers = [call.number(0, "i") for kind, call in self._calls() if kind == _DELEGATE]
        return [read_delegate(self._delegated(found[number]), place) for place, number in enumerate(numbers) if found[number].text(0) == _XNNPACK]

    def constants(self) -> dict[int, tuple[str, int]]:
        """Element type and size of every stored tensor of the program itself, by the place of its data."""
        found = {}
        for value in self._values:
            tensor = value.table(1) if value.number(0, "B") == _TENSOR else None
            if tensor is not None and tensor.number(5, "I") and tensor.table(6) is None:
                dtype = _DTYPES.get(tensor.number(0, "b"), "unknown")
                found[tensor.number(5, "I")] = dtype, prod(tensor.numbers(2, "i")) * element_bits(dtype) // 8
        return found

    def details(self, kernels: int, delegated: int) -> dict[str, str]:
        backends = Counter(one.text(0) for one in self._plan.tables(7))
        share = delegated / (kernels + delegated) if kernels + delegated else 0.0
        return {
            "methods": ", ".join(self._plans),
            "delegates": ", ".join(f"{name} {count}" for name, count in backends.items()) or "none",
            "delegated": f"{delegated} of {kernels + delegated} operators ({share:.0%})",
        }

    def _calls(self) -> list[tuple[int, FlatTable]]:
        entries = [entry for chain in self._plan.tables(5) for entry in chain.tables(2)]
        return [(entry.number(0, "B"), call) for entry in entries if (call := entry.table(1)) is not None]

    def _delegated(self, delegate: FlatTable) -> memoryview:
        place = delegate.table(1)
        if place is None:
            raise ValueError("a delegate has no data")
        index = place.number(1, "I")
        if place.number(0, "b") != _SEGMENT:
            return self._table.tables(3)[index].bytes(0)
        segment = self._table.tables(4)[index]
        start, size = self._base + segment.number(0, "Q"), segment.number(1, "Q")
        if start + size > len(self._data):
            raise ValueError(f"a segment ends at byte {start + size:,}, the file has {len(self._data):,}")
        return self._data[start : start + size]

    def _told(self, constant: str) -> list[str]:
        """Texts of a constant method, as :mod:`toolkit.convert.torch_executorch` writes them."""
        plan = self._plans.get(constant)
        values = plan.tables(2) if plan else []
        texts = [value.table(1) for value in values if value.number(0, "B") == _STRING]
        return [text.text(0) for text in texts if text is not None]

    def _spec(self, name: str, index: int, told: str = "") -> TensorSpec:
        value = self._values[index]
        tensor = value.table(1)
        if tensor is None or value.number(0, "B") != _TENSOR:
            raise ValueError(f"{name!r} is no tensor")
        shape: tuple[int | str, ...] = tuple(tensor.numbers(2, "i"))
        if told:
            shape = tuple(int(size) if size.isdigit() else size for size in told.split())
        return TensorSpec(name=name, dtype=_DTYPES.get(tensor.number(0, "b"), "unknown"), shape=shape)
