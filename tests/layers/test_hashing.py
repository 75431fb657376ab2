"""The buckets of the ids: pinned, by definition, and evenly used."""

import numpy as np
import pytest
from keras import ops

from inbatch_neg.layers import hashing
from tests.helpers import BACKEND, to_numpy


def buckets_of(ids, buckets, hashes, dtype="int32"):
    ids = ops.convert_to_tensor(np.asarray(ids).astype(dtype))
    return to_numpy(hashing.buckets(ids, buckets, hashes))


def test_buckets_are_the_same_for_ever():
    """A saved model must find its buckets again, on any backend."""
    ids = [0, 1, -1, 2**31 - 1, -(2**31)]
    assert buckets_of(ids, 10**6, 3).tolist() == PINNED


PINNED = [
    [497360, 367640, 36932, 649882, 137581],
    [188054, 511157, 484928, 876140, 803369],
    [442562, 572119, 377920, 718893, 519259],
]


def test_buckets_equal_the_definition():
    def expected(value, hash_number, buckets):
        c = np.random.RandomState(hash_number).randint(
            2**32, size=6, dtype=np.uint32
        )
        c = [int(x) | 1 for x in c]

        def mix(x, odd):
            x = x * (2 * x + odd) % 2**32
            return (x << 16 | x >> 16) % 2**32

        low, high = value % 2**32, (value >> 32) % 2**32
        x = mix(mix((low + c[0]) % 2**32, c[1]), c[2])
        x = mix(mix((x + high + c[3]) % 2**32, c[4]), c[5])
        return (x - 2**32 if x >= 2**31 else x) % buckets

    ids = [0, 3, -5, 123_456_789, -(2**31)]
    wide = [2**32 + 3, -(2**63), 2**63 - 1, 10**15, -(10**12)]
    kinds = [(ids, "int32"), (ids, "int64")]
    if BACKEND != "jax":  # where 64-bit ids are cut
        kinds.append((wide, "int64"))
    for values, dtype in kinds:
        assert buckets_of(values, 99_991, 2, dtype).tolist() == [
            [expected(value, k, 99_991) for value in values] for k in range(2)
        ]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_buckets_do_not_depend_on_the_dtype(dtype):
    ids = [0, 1, 100] + ([] if dtype.startswith("u") else [-1, -100])
    np.testing.assert_array_equal(
        buckets_of(ids, 99_991, 2, dtype), buckets_of(ids, 99_991, 2)
    )


@pytest.mark.parametrize("step", [1, 2, 1000, 2**16 + 1])
def test_regular_ids_spread_as_random_ones_would(step):
    buckets, ids = 4096, np.arange(30_000) * step
    places = buckets_of(ids, buckets, 4)
    mean = len(ids) / buckets
    for one in places:
        counts = np.bincount(one, minlength=buckets)
        spread = ((counts - mean) ** 2).mean() / mean
        # Chi squared of 4095 degrees: 1 with a deviation of 0.022.
        assert 0.9 < spread < 1.1
    # Of 4.5e8 pairs, one in 4096^2 shares the buckets of two hashes: 26.8.
    for one in (1, 3):
        pairs = places[0].astype(np.int64) * buckets + places[one]
        assert 5 < len(ids) - len(np.unique(pairs)) < 55
