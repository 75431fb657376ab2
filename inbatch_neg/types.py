"""Names of types, for annotations."""

from typing import Any, TypeAlias

# A tensor of whichever backend Keras runs on, eager or symbolic.
Tensor: TypeAlias = Any
# A Python int where the size is static, else a scalar tensor.
Size: TypeAlias = Any
