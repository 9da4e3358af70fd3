"""One operator of each kind is tried: what it finds is what the split program has, and the program stays as it is."""

import pytest

torch = pytest.importorskip("torch")

from toolkit.convert import torch_programs, torch_trial  # noqa: E402


class Net(torch.nn.Module):
    """Layers that are split, in-place operators, and an attention, which is split twice."""

    def __init__(self, last=torch.tanh):
        super().__init__()
        self.convolution, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
        self.head, self.last = torch.nn.Linear(4, 4), last

    def forward(self, x):
        seen = torch.nn.functional.relu(self.norm(self.convolution(x)), inplace=True).flatten(2).transpose(1, 2)
        return self.last(self.head(torch.nn.functional.scaled_dot_product_attention(seen, seen, seen)).to(torch.float64))


def captured(*, free=False, **arguments):
    sizes = {"x": {0: torch.export.Dim("batch", max=8)}} if free else None
    return torch.export.export(Net(**arguments).eval(), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=sizes)


def basics(program):
    """What a program is split into, and a buffer of batch norm that nobody reads, which the split program does without."""
    return {torch_programs.base_name(node.target) for node in torch_programs.calls(program.run_decompositions())} | {"empty"}


def found(program, known, whole=(), splits=None):
    """What has no kernel where ``known`` have one; ``splits`` gets the programs that were split for it."""
    table = torch.export.default_decompositions()

    def split(one):
        if splits is not None:
            splits.append(one)
        return one.run_decompositions(table)

    return torch_trial.obstacles(program, split, table, lambda operator: torch_programs.base_name(operator) in known, "lacks", whole=whole)


def settled(program, known):
    return not found(program, known)


@pytest.mark.parametrize("free", [False, True])
def test_it_agrees_with_the_split_program_about_every_operator(free):
    program = captured(free=free)
    before, ranges, known = str(program.graph), dict(program.range_constraints), basics(program) | {"sym_size"}
    assert settled(program, known)
    for missing in ("convolution", "_native_batch_norm_legit_no_training", "relu", "bmm", "_to_copy", "tanh", "addmm"):
        assert missing in known
        assert not settled(program, known - {missing}), missing
    assert (str(program.graph), dict(program.range_constraints)) == (before, ranges)


@pytest.mark.parametrize("last", [torch.special.bessel_j0, lambda x: torch.linalg.inv(x.mT @ x), lambda x: torch.sort(x)[0].sort(0)[0]])
def test_what_it_finds_is_what_the_split_program_has(last):
    program = captured(last=last)
    known, splits = basics(captured()), []
    whole = torch_programs.obstacles(program.run_decompositions(), lambda operator: torch_programs.base_name(operator) in known, "lacks")
    assert whole and found(program, known, splits=splits) == whole
    assert splits and program not in splits, "one operator was split, not the program"


def test_what_cannot_be_tried_alone_is_left_to_the_split():
    program = captured(last=lambda x: torch.unique(x.sum()) + 1)  # its sizes depend on values
    splits = []
    assert [one.operator for one in found(program, basics(captured()) - {"_unique2"}, splits=splits)]
    assert splits


def test_an_operator_that_a_route_takes_whole_is_not_tried():
    program = captured()
    known = basics(program) - {"convolution"}
    assert not settled(program, known)
    whole = [torch.ops.aten.conv2d.default]
    assert not found(program, known, whole)


def test_notes_of_the_capture_are_no_operators():
    class Noted(torch.nn.Module):
        def forward(self, x):
            torch.ops.aten._assert_tensor_metadata.default(x, dtype=torch.float32)
            return torch.tanh(x)

    program = torch.export.export(Noted(), (torch.zeros(2),))
    assert any("_assert_tensor_metadata" in str(node.target) for node in program.graph.nodes)
    assert settled(program, {"tanh"})
