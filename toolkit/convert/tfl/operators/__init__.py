"""The operators, one module for each family; importing this package registers them all."""

from toolkit.convert.tfl.operators import (  # noqa: F401  they register themselves
    activation,
    attention,
    comparison,
    control,
    convolution,
    elementwise,
    fused,
    indexing,
    matmul,
    normalization,
    pooling,
    products,
    quantized,
    recurrent,
    reduction,
    resizing,
    sampling,
    shaping,
)
