"""What is left of operators that do something else in training, and of optional values, once it is known that they are there."""

from __future__ import annotations

import numpy as np

from toolkit.convert.tfl.graph import Tensor
from toolkit.convert.tfl.lower import Call, either, operator
from toolkit.convert.tfl.program import Unsupported


@operator("Dropout", rule=either, limits="not while training, unless nothing is dropped")
def _dropout(call: Call) -> list[Tensor]:
    """Its mask says what is kept: everything."""
    if call.has(2) and (not call.is_constant(2) or (call.constant(2).any() and call.number(1, "ratio", 0.5) != 0)):
        raise Unsupported("drops numbers at random, or may do so")
    value = call.x(0)
    if len(call.node.outputs) < 2 or not call.node.outputs[1]:
        return [value]
    return [value, call.graph.constant(np.ones(call.known(call.shape(1), "the size of its mask"), np.bool_))]


@operator("OptionalHasElement")
def _has_element(call: Call) -> Tensor:
    """A tensor always is one."""
    return call.graph.constant(np.array(call.has(0)))
