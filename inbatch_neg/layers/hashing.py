"""Hashes ids to buckets, the same on every backend, in 32-bit arithmetic.

JAX has no 64-bit integers by default, and the oldest supported `keras.ops` has
no bitwise operations. An id must keep its bucket for ever, since buckets are
saved. So the hashes use int32 addition, multiplication and division modulo
2^32, which all backends have, and Python's operators, since some functions of
`keras.ops` turn int32 into floats.
"""

import keras
import numpy as np
from keras import ops

from inbatch_neg.backends import backend
from inbatch_neg.types import Tensor

_HALF = 2**16  # values of half a word


def buckets(ids: Tensor, num_buckets: int, num_hashes: int) -> Tensor:
    """Returns (num_hashes, n) int32 numbers below `num_buckets`.

    Equal ids have equal buckets; the hashes are independent of each other.
    All 64 bits of an id count. An id that fits into 32 bits has the same
    buckets in every integer dtype and on every backend.

    Args:
        ids: (n,) integers, or strings on TensorFlow.
        num_buckets: int, at least 1.
        num_hashes: int, at least 1.
    """
    low, high = _words(backend.hash_strings(ids))
    constants = _constants(num_hashes)  # (6, num_hashes, 1)
    mixed = low[None] + constants[0]
    mixed = _mix(_mix(mixed, constants[1]), constants[2])
    mixed = mixed + high[None] + constants[3]
    mixed = _mix(_mix(mixed, constants[4]), constants[5])
    return mixed % num_buckets  # not negative, the divisor is not


def _words(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the low and the high 32 bits of the ids, (n,) int32 each."""
    low = ops.cast(ids, "int32")  # modulo 2^32
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if dtype in ("int64", "uint64"):
        ids = ops.cast(ids, "int64")
        return low, ops.cast(ids // 2**32, "int32")
    if dtype.startswith("uint"):
        return low, ops.zeros_like(low)
    # The sign, as in the int64 of the same value: 0 or -1.
    return low, low // _HALF // (_HALF // 2)


def _mix(words: Tensor, constants: Tensor) -> Tensor:
    """Returns the words after a permutation that spreads every bit.

    x (2x + c) with an odd c is a permutation modulo 2^32 (Rivest et al. 1998,
    "The RC6 block cipher") in which the high bits depend on all lower ones.
    Swapping the halves moves these bits down for the next round.
    """
    words = words * (words + words + constants)
    high = words // _HALF % _HALF
    return words * _HALF + high


def _constants(num_hashes: int) -> Tensor:
    """Returns (6, num_hashes, 1) odd int32 constants, which never change."""
    # NumPy guarantees that the stream of RandomState stays the same.
    drawn = [
        np.random.RandomState(k).randint(2**32, size=6, dtype=np.uint32)
        for k in range(num_hashes)
    ]
    odd = (np.stack(drawn, axis=1) | np.uint32(1)).view(np.int32)
    return ops.convert_to_tensor(odd[:, :, None], dtype="int32")
