"""Numbers taken for what their bits are in another type."""

from __future__ import annotations

import numpy as np

from toolkit.convert.tfl.graph import Tensor
from toolkit.convert.tfl.lower import Call, carried, either, operator
from toolkit.convert.tfl.program import Unsupported

# What is not carried as it is has other bits; of whole numbers of up to 32 bits it can be had back.
_WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "bool")


@operator("BitCast", rule=either, limits="no numbers of 64 bits, nor floating point numbers of 16")
def _bit_cast(call: Call) -> Tensor:
    graph, value = call.graph, call.x(0)
    source, wanted = call.type(0).dtype, call.result().dtype
    for one in (source, wanted):
        if one != np.float32 and one.name not in _WHOLE:
            raise Unsupported(f"takes the bits of {source} for those of {wanted}, which are not computed in that type")
    made = graph.cast(value, source)
    if source != wanted:
        made = graph.unary("BITCAST", made, wanted)
    return graph.cast(made, carried(wanted))
