"""Checks of the tensors of a batch: their shapes, their dtypes, some values.

Like those of `arguments`, they read static shapes and dtypes, so they run on
symbolic tensors, while tracing and on values alike. Values are read only
where that is cheap.
"""

import keras

from inbatch_neg.arguments import rank, to_tensor
from inbatch_neg.backends import Tensor, backend
from inbatch_neg.softmax.batch import Batch


def to_tensors(batch: Batch) -> Batch:
    """Returns the batch as tensors, of the dtypes that they came in."""
    return batch._replace(
        **{k: to_tensor(k, value) for k, value in batch._asdict().items()}
    )


def vectors(query: Tensor, candidate: Tensor, several: bool = False) -> None:
    """Refuses queries and candidates that do not fit.

    Args:
        query: (B, D).
        candidate: (C, D).
        several: Whether queries (B, P, D) fit too.
    """
    for name, tensor in (("query", query), ("candidate", candidate)):
        if several and name == "query" and _has_vectors(query):
            _vectors_a_row(query)
        else:
            rank(name, tensor, 2, "(rows, dimensions)")
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if not dtype.startswith(("float", "bfloat")):
            raise TypeError(
                f"`{name}` must hold floats. Received: dtype={dtype}"
            )
    rows, *_, dimensions = query.shape
    candidates, candidate_dimensions = candidate.shape
    if _differ(dimensions, candidate_dimensions):
        raise ValueError(
            "`query` and `candidate` must have the same number of "
            "dimensions (columns): give both towers the same output size. "
            f"Received: query.shape={_shape(query)}, "
            f"candidate.shape={_shape(candidate)}"
        )
    if _known(rows, candidates) and candidates < rows:
        raise ValueError(
            "`candidate` must have at least as many rows as `query`: row i "
            "is the positive of query i, further rows are extra negatives. "
            f"Received: query.shape={_shape(query)}, "
            f"candidate.shape={_shape(candidate)}"
        )


def ids(
    name: str,
    tensor: Tensor,
    rows: int | None,
    of: str,
) -> None:
    """Refuses ids that are not one integer (or string) per row of `of`.

    Args:
        name: Of the argument.
        tensor: The ids, or None.
        rows: How many there must be, None if unknown.
        of: The argument that has these rows.
    """
    if tensor is None:
        return
    rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in backend.id_dtypes:
        rule = f"`{name}` must hold integers"
        if "string" in backend.id_dtypes:
            rule += " or strings"
        raise TypeError(f"{rule}{_id_remedy(dtype)} Received: dtype={dtype}")
    _length(name, tensor, rows, of)


def _id_remedy(dtype: str) -> str:
    if dtype == "string":
        return (
            " on this backend. Fix: map the strings to integers in the input "
            "pipeline, with `keras.layers.StringLookup` or "
            "`keras.layers.Hashing`."
        )
    if dtype.startswith("uint"):
        return (
            " that this backend can sort. Fix: cast them to int64 where they "
            "are read, or number them from 0."
        )
    return (
        ", since floats merge large ids. Fix: cast them where they are read, "
        "before any float conversion."
    )


def probability(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    """Refuses probabilities that are not one float per row of `of`.

    Negative ones and NaN are refused where the values can be read.
    """
    if tensor is None:
        return
    rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(("float", "bfloat")):
        raise TypeError(
            f"`{name}` must hold floats, probabilities or counts and no "
            f'logarithms. Fix: `keras.ops.cast({name}, "float32")`. '
            f"Received: dtype={dtype}"
        )
    _length(name, tensor, rows, of)
    if backend.is_readable(tensor):
        _probability_values(name, tensor)


def _probability_values(name: str, values: Tensor) -> None:
    """Refuses values that are below 0 or NaN."""
    wrong = ~(keras.ops.convert_to_numpy(values) >= 0)
    if wrong.any():
        example = float(values[int(wrong.argmax())])
        raise ValueError(
            f"`{name}` must hold numbers of 0 or more: probabilities or "
            "counts themselves, not their logarithms. Fix: "
            f"`keras.ops.exp({name})` if these are logarithms. Received: "
            f"{wrong.sum()} of {len(wrong)} values below 0 or NaN, for example "
            f"{example:.6g}"
        )


def mask(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    """Refuses a mask that is not one bool per row of `of`."""
    if tensor is None:
        return
    rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype != "bool":
        raise TypeError(
            f"`{name}` must hold bools, True where the candidate may be a "
            f"negative. Received: dtype={dtype}"
        )
    _length(name, tensor, rows, of)


def query_mask(mask: Tensor, query: Tensor) -> None:
    """Refuses a mask that is not one bool per vector of `query`.

    A row without any vector is refused where the values can be read.
    """
    if mask is None:
        return
    if not _has_vectors(query):
        raise ValueError(
            "`query_mask` needs queries of shape (rows, vectors, dimensions), "
            "whose vectors it leaves out. Without several vectors a row leave "
            f"it out. Received: query.shape={_shape(query)}"
        )
    rank("query_mask", mask, 2, "(rows, vectors)")
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise TypeError(
            "`query_mask` must hold bools, True where a vector takes part. "
            f"Received: dtype={dtype}"
        )
    if any(map(_differ, mask.shape, query.shape)):
        raise ValueError(
            "`query_mask` must have one entry per vector of `query`. "
            f"Received: query_mask.shape={_shape(mask)}, "
            f"query.shape={_shape(query)}"
        )
    if backend.is_readable(mask):
        _query_mask_values(mask)


def _query_mask_values(values: Tensor) -> None:
    """Refuses a row without any vector."""
    empty = ~keras.ops.convert_to_numpy(values).any(axis=1)
    if empty.any():
        raise ValueError(
            "`query_mask` must leave every row at least one vector. Leave "
            "such rows out of the batch, or give them any vector and a weight "
            f"of 0. Received: row {int(empty.argmax())} without any"
        )


def weight(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    """Refuses weights that are not one number per row of `of`."""
    if tensor is None:
        return
    rank(name, tensor, 1, "(rows,)")
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise TypeError(f"`{name}` must hold numbers. Received: dtype={dtype}")
    _length(name, tensor, rows, of)


def check_batch(batch: Batch) -> None:
    """Refuses any tensor of a batch that does not fit the others.

    Args:
        batch: Symbolic tensors or values.
    """
    vectors(batch.query, batch.candidate, several=True)
    query_mask(batch.query_mask, batch.query)
    rows, candidates = batch.query.shape[0], batch.candidate.shape[0]
    check_candidate_fields(batch, candidates)
    ids("query_ids", batch.query_ids, rows, "query")
    weight("sample_weight", batch.sample_weight, rows, "query")


def check_candidate_fields(batch: Batch, candidates: int | None) -> None:
    """Refuses what belongs to candidates and has not one entry for each."""
    ids("candidate_ids", batch.candidate_ids, candidates, "candidate")
    probability(
        "candidate_sampling_probability",
        batch.candidate_sampling_probability,
        candidates,
        "candidate",
    )
    mask("candidate_mask", batch.candidate_mask, candidates, "candidate")


def _has_vectors(query: Tensor) -> bool:
    return len(getattr(query, "shape", ())) == 3


def _vectors_a_row(query: Tensor) -> None:
    """Refuses queries (B, P, D) without vectors, or with an unknown P."""
    if not query.shape[1]:
        raise ValueError(
            "`query` of shape (rows, vectors, dimensions) must have a static "
            "number of vectors, 1 or more. Pad rows that have fewer, and leave "
            "the padding out with `query_mask`. Received: "
            f"query.shape={_shape(query)}"
        )


def _length(name: str, tensor: Tensor, rows: int | None, of: str) -> None:
    if _differ(tensor.shape[0], rows):
        raise ValueError(
            f"`{name}` must have one entry per row of `{of}`, {rows}. "
            f"Received: {name}.shape={_shape(tensor)}"
        )


def _known(*sizes: int | None) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _differ(one: int | None, other: int | None) -> bool:
    return _known(one, other) and one != other


def _shape(tensor: Tensor) -> tuple[int | None, ...]:
    return tuple(tensor.shape)
