"""ExecuTorch programs: run, refused when damaged, and profiled by their own event trace."""

import numpy as np
import pytest

from toolkit.errors import InputRejected
from toolkit.runtimes.executorch import RUNTIME

pytest.importorskip("executorch")
pytestmark = pytest.mark.slow


def weights():
    random = np.random.default_rng(7)
    return random.normal(size=(5, 16)).astype(np.float32), random.normal(size=(50, 16)).astype(np.float32)


def expected(ids):
    linear, table = weights()
    return np.cumsum(table[ids].mean(axis=1) @ linear.T, axis=1)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Embedding and running sum on ExecuTorch's own kernels, a fully connected layer between them on XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear, table = map(torch.from_numpy, weights())
            self.table, self.linear = torch.nn.Embedding.from_pretrained(table), torch.nn.Linear(16, 5, bias=False)
            self.linear.weight.data = linear

        def forward(self, ids):
            return torch.cumsum(self.linear(self.table(ids).mean(1)), 1)

    exported = torch.export.export(Net().eval(), (torch.zeros(1, 8, dtype=torch.long),))
    path = tmp_path_factory.mktemp("program") / "net.pte"
    path.write_bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    return path


def given(seed):
    return np.random.default_rng(seed).integers(0, 50, (1, 8))


def test_a_program_computes_what_numpy_computes_and_keeps_earlier_outputs(program):
    session = RUNTIME.open(program, threads=1)
    assert [str(spec) for spec in (*session.signature.inputs, *session.signature.outputs)] == ["input_0 [1 x 8] int64", "output_0 [1 x 5] float32"]
    first = session.run({"input_0": given(0)})["output_0"]
    kept = first.copy()
    np.testing.assert_allclose(session.run({"input_0": given(1)})["output_0"], expected(given(1)), atol=1e-5)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(first, expected(given(0)), atol=1e-5)


def test_arrays_in_another_order_of_memory_and_read_only_ones_are_fed_right(program):
    session = RUNTIME.open(program, threads=1)
    scattered = np.repeat(given(0), 2, axis=1)[:, ::2]
    scattered.flags.writeable = False
    np.testing.assert_allclose(session.run({"input_0": scattered})["output_0"], expected(given(0)), atol=1e-5)


@pytest.mark.parametrize("wrong", [{}, {"ids": 1}, {"input_0": np.zeros((1, 8), np.int32)}, {"input_0": np.zeros((1, 9), np.int64)}])
def test_inputs_that_do_not_fit_are_refused(program, wrong):
    wrong = {name: value if isinstance(value, np.ndarray) else given(0) for name, value in wrong.items()}
    with pytest.raises(InputRejected):
        RUNTIME.open(program, threads=1).run(wrong)


def test_files_that_are_cut_short_or_no_programs_are_refused(program, tmp_path):
    data = program.read_bytes()
    for number, content in enumerate((b"", data[:7], data[: len(data) // 2], data[:-9], b"\0" * len(data), b"junk" * 500)):
        path = tmp_path / f"{number}.pte"
        path.write_bytes(content)
        with pytest.raises(InputRejected):
            RUNTIME.open(path, threads=1)
    with pytest.raises(InputRejected):
        RUNTIME.open(tmp_path / "missing.pte", threads=1)


def test_every_inference_tells_its_operators_once(program):
    session = RUNTIME.open_profiled(program, threads=1)
    for seed in range(3):
        np.testing.assert_allclose(session.run({"input_0": given(seed)})["output_0"], expected(given(seed)), atol=1e-5)
    runs = session.events()
    assert len(runs) == 3
    assert [event.operator for event in runs[0]] == ["embedding.out", "mean.out", "Fully Connected", "cumsum.out"]
    assert [[event.name for event in events] for events in runs] == [[event.name for event in runs[0]]] * 3
    assert all(event.ms >= 0 for events in runs for event in events)
