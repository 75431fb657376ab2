"""Converts a column to a NumPy array, or raises an error that names a fix."""

import collections
import datetime
import re
from typing import Any, NoReturn

import numpy as np

from inbatch_neg.data.nests import is_instance
from inbatch_neg.data.training_backend import uses_tensorflow


def as_array(column: Any, name: str) -> np.ndarray:
    """Returns the column as an array of numbers, bools or strings.

    Args:
        column: Anything with one entry per row.
        name: Its name in error messages, such as `data['user']`.

    Raises:
        TypeError: if it is not a column, or a tensor cannot hold its values.
        ValueError: if it has no rows, missing values or rows of unequal size.
    """
    _refuse_sparse(column, name)
    if is_instance(column, "datasets", "arrow_dataset.Column"):
        column = column[:]
    if is_instance(
        column, "pandas", "Series", "Index", "api.extensions.ExtensionArray"
    ):
        array = _from_pandas(column, name)
    elif is_instance(column, "polars", "Series"):
        array = _from_polars(column, name)
    elif is_instance(column, "pyarrow", "Array", "ChunkedArray"):
        array = _from_arrow(column, name)
    elif is_instance(column, "torch", "Tensor"):
        array = column.detach().cpu().numpy()
    elif isinstance(column, list):
        array = _from_list(column, name)
    elif isinstance(column, np.ma.MaskedArray):
        array = _from_masked(column, name)
    elif hasattr(column, "shape") and hasattr(column, "__array__"):
        array = np.asarray(column)
    else:
        raise TypeError(
            "`data` must be arrays, tables, a dataset or parquet files; with "
            "`batched=True`, an iterable of batches. Received: "
            f"{name} of type {type(column).__name__}"
        )
    return _checked(array, name)


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 0:
        raise ValueError(
            f"The arrays in `data` must have rows. Received: {name}, a scalar"
        )
    kind = array.dtype.kind
    if kind == "O":
        array = _from_objects(array, name)
        kind = array.dtype.kind
    if kind in "Mm":
        _refuse_missing(name, array, _rows_with(np.isnat(array)), array.dtype)
        _refuse_dates(name, array.dtype)
    if kind == "T":  # NumPy's strings of any length
        array = _from_objects(array.astype(object), name)
        kind = array.dtype.kind
    if kind in "OSU" and not uses_tensorflow():
        _refuse(
            name,
            "strings, which Keras takes on TensorFlow only",
            "Encode them as integers, with keras.layers.StringLookup",
        )
    # The kind of JAX's small floats, such as bfloat16, is V.
    is_float = array.dtype.name.startswith(("bfloat", "float"))
    is_float &= array.dtype.itemsize <= 8
    if kind not in "biuOSU" and not is_float:
        _refuse(name, f"{array.dtype} values", _ENCODE)
    return array


def _rows_with(flags: np.ndarray) -> int:
    """Returns the number of rows in which a flag is set."""
    return int(flags.reshape(len(flags), -1).any(axis=1).sum())


_PAD = (
    "Pad the rows to one length, with keras.utils.pad_sequences, or stack "
    "them to one array with numpy.stack"
)
_FILL = "Fill them, for example with a separate id, or drop those rows"
_ENCODE = "Encode them as numbers of one type and at most 64 bits"
_CAST = "Encode them as seconds or days (casts: docs/data.md#dates-and-times)"


def _refuse(
    name: str, what: str, remedy: str, error: type[Exception] = TypeError
) -> NoReturn:
    if _SELECTABLE.fullmatch(name):
        remedy += ", or leave the column out with `columns=`"
    raise error(f"`{name}` holds {what}. {remedy}.")


# A named column of the data, or of the `x` of a tuple.
_SELECTABLE = re.compile(r"""data(\[0\])?\[('[^']*'|"[^"]*")\]""")


def _refuse_dates(name: str, what: Any) -> NoReturn:
    _refuse(name, f"dates or times ({what})", _CAST)


def refuse_type(name: str, what: str) -> NoReturn:
    """Raises for a column whose kind of tensor cannot be batched."""
    _refuse(name, what, _PAD)


def _refuse_missing(name: str, column: Any, missing: int, what: Any) -> None:
    if missing:
        what = f"missing values, in {missing} of {len(column)} rows ({what})"
        _refuse(name, what, _FILL, ValueError)


def _refuse_sparse(column: Any, name: str) -> None:
    if is_instance(column, "tensorflow", "RaggedTensor"):
        _refuse(name, "a ragged tensor", "Pad it: `ragged.to_tensor()`")
    if is_instance(column, "tensorflow", "SparseTensor"):
        _refuse(name, "a sparse tensor", "Pass `tf.sparse.to_dense(tensor)`")
    if is_instance(column, "scipy.sparse", "spmatrix", "sparray"):
        _refuse(name, "a sparse matrix", "Pass `matrix.toarray()`")
    if is_instance(column, "jax.experimental.sparse", "JAXSparse"):
        _refuse(name, "a sparse array", "Pass `array.todense()`")
    if is_instance(column, "torch", "Tensor"):
        if column.is_nested:
            _refuse(name, "a nested tensor", _PAD)
        if column.layout != _strided():
            _refuse(name, "a sparse tensor", "Pass `tensor.to_dense()`")
        if str(column.dtype) == "torch.bfloat16":
            _refuse(name, "bfloat16 values", "Pass `tensor.float()`")


def _strided() -> Any:
    import torch

    return torch.strided


def _from_masked(column: np.ma.MaskedArray, name: str) -> np.ndarray:
    if column.ndim:
        missing = _rows_with(np.ma.getmaskarray(column))
        _refuse_missing(name, column, missing, f"masked {column.dtype}")
    return np.asarray(column.data)


def _from_pandas(column: Any, name: str) -> np.ndarray:
    dtype = str(column.dtype)
    # NaN in NumPy's float dtypes is a value. A missing value in any other
    # dtype would turn integers into floats, in which large ids become equal.
    if column.dtype.kind != "f" or not isinstance(column.dtype, np.dtype):
        _refuse_missing(name, column, int(column.isna().sum()), dtype)
    if column.dtype.kind in "Mm" or dtype.startswith(
        ("date", "time", "period")
    ):
        _refuse_dates(name, dtype)
    return np.asarray(column.to_numpy())


def _from_polars(column: Any, name: str) -> np.ndarray:
    dtype = column.dtype
    kind = dtype.base_type().__name__
    _refuse_missing(name, column, column.null_count(), dtype)
    if dtype.is_temporal():
        _refuse_dates(name, dtype)
    if kind == "List":
        _refuse(name, f"lists ({dtype})", _PAD)
    if kind == "Struct":
        remedy = "Pass its fields as columns, as in `frame.unnest(name)`"
        _refuse(name, f"{dtype} values", remedy)
    if kind in ("Int128", "UInt128"):
        _refuse(name, f"{dtype} values", _ENCODE)
    if kind == "Array":
        values = _from_polars(column.explode(), name)
        return values.reshape(-1, dtype.size, *values.shape[1:])
    if kind in ("Categorical", "Enum"):
        column = column.cast(_polars_string())
    return np.asarray(column.to_numpy())


def _polars_string() -> Any:
    import polars

    return polars.String


def _from_arrow(column: Any, name: str) -> np.ndarray:
    import pyarrow

    types = pyarrow.types
    kind = column.type
    _refuse_missing(name, column, column.null_count, kind)
    check_arrow_type(kind, name)
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        # A value of the dictionary may be missing, too.
        _refuse_missing(name, column, column.null_count, kind)
    if isinstance(column, pyarrow.ChunkedArray):
        if column.num_chunks == 1:
            column = column.chunk(0)
        else:
            column = column.combine_chunks()
        if isinstance(column, pyarrow.ChunkedArray):  # older than 15, or empty
            column = pyarrow.concat_arrays(
                column.chunks or [pyarrow.array([], kind)]
            )
    sizes = []
    while types.is_fixed_size_list(column.type):
        sizes.append(column.type.list_size)
        column = column.flatten()
        _refuse_missing(name, column, column.null_count, "values of its lists")
    array = column.to_numpy(zero_copy_only=False)
    return array.reshape(-1, *sizes) if sizes else array


def check_arrow_type(kind: Any, name: str) -> None:
    """Refuses an Arrow type other than numbers, bools and strings."""
    import pyarrow

    types = pyarrow.types
    while types.is_fixed_size_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_temporal(kind):
        _refuse_dates(name, kind)
    if types.is_list(kind) or types.is_large_list(kind):
        _refuse(name, f"lists ({kind})", _PAD)
    if types.is_null(kind):
        _refuse(name, "only missing values", _FILL, ValueError)
    if types.is_nested(kind) or types.is_decimal(kind):
        _refuse(name, f"{kind} values", _ENCODE)


# Above this, not every integer is a float64.
_EXACT = 2.0**53


def _refuse_rounded(column: list, name: str) -> None:
    """Refuses integers in a list that NumPy has rounded to floats."""
    for value in np.array(column, dtype=object).ravel():
        if isinstance(value, (int, np.integer)) and abs(int(value)) > _EXACT:
            _refuse(
                name,
                "integers that floats would round, such as "
                f"{value}, among floats or integers of another sign",
                "Pass integers of one dtype, without NaN, or floats",
                ValueError,
            )


def _from_list(column: list, name: str) -> np.ndarray:
    try:
        array = np.asarray(column)
    except ValueError:  # NumPy's "inhomogeneous shape"
        _refuse(name, "rows of unequal length", _PAD, ValueError)
    if array.dtype.kind == "f" and np.any(np.abs(array) >= _EXACT):
        _refuse_rounded(column, name)
    # NumPy converts numbers to strings in a list that also holds strings.
    if array.dtype.kind in "SU" and array.ndim == 1:
        array = np.fromiter(column, object, len(column))
    return array


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Returns strings, or the numbers in an array of objects."""
    values = array.ravel()
    kinds = collections.Counter(map(type, values))
    missing = sum(
        number
        for kind, number in kinds.items()
        if kind is type(None) or kind.__name__ in ("NAType", "NaTType")
    )
    if float in kinds and len(kinds) > 1:
        missing += sum(
            1 for value in values if type(value) is float and value != value
        )
    _refuse_missing(name, array, missing, "objects")
    if all(issubclass(kind, (str, bytes)) for kind in kinds):
        return array

    def hold(*types: type) -> bool:
        return any(issubclass(kind, types) for kind in kinds)

    if hold(datetime.date, datetime.time, datetime.timedelta) or hold(
        np.datetime64, np.timedelta64
    ):
        _refuse_dates(name, "objects")
    if hold(list, tuple, set, dict, np.ndarray):
        _refuse(name, "lists or arrays (objects)", _PAD)
    if hold(str, bytes):
        what = "strings and values of another type"
        _refuse(name, what, "Make all of them strings, or none")
    numbers = np.array(values.tolist()).reshape(array.shape)
    if numbers.dtype.kind not in "biuf" or (
        # Among floats, integers above 2**53 would be rounded.
        numbers.dtype.kind == "f"
        and any(not issubclass(kind, (float, np.floating)) for kind in kinds)
    ):
        names = sorted(kind.__name__ for kind in kinds)
        _refuse(name, f"objects of type {', '.join(names)}", _ENCODE)
    return numbers
