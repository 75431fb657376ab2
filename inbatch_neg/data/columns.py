"""Converts a column to a NumPy array, or raises an error that names a fix."""

import datetime
import re
from typing import Any, NoReturn

import numpy as np

from inbatch_neg.data.nests import is_instance
from inbatch_neg.data.training_backend import uses_tensorflow


def as_array(column: Any, name: str) -> np.ndarray:
    """Returns the column as an array of numbers, bools or strings.

    A NaN among floats is a value; a null, of any type, is a missing value.

    Args:
        column: Anything with one entry per row.
        name: Its name in error messages, such as `data['user']`.

    Raises:
        TypeError: if it is not a column, or a tensor cannot hold its values.
        ValueError: if it has no rows, missing values or rows of unequal length.
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
        if str(column.dtype) == "torch.bfloat16":  # which NumPy does not have
            column = column.float()
        array = column.detach().cpu().numpy()
    elif isinstance(column, list):
        array = _from_list(column, name)
    elif isinstance(column, np.ma.MaskedArray):
        what = f"masked {column.dtype}"
        _refuse_missing(name, np.ma.getmaskarray(column).any(), what)
        array = np.asarray(column.data)
    elif hasattr(column, "shape") and hasattr(column, "__array__"):
        array = np.asarray(column)
    else:
        raise TypeError(
            f"`{name.split('[')[0]}` must be arrays, tables, a dataset or "
            "parquet files; with `batched=True`, an iterable of batches. "
            f"Received: {name} of type {type(column).__name__}"
        )
    if array.ndim == 0:
        raise ValueError(
            f"`{name}` must be an array of rows. Received: a scalar"
        )
    return _checked(array, name)


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    kind = array.dtype.kind
    if kind in "Mm":
        _refuse_missing(name, np.isnat(array).any(), array.dtype)
        _refuse_dates(name, array.dtype)
    if kind in "OT":  # T: NumPy's strings of any length
        array = _from_objects(array.astype(object, copy=False), name)
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
    if not array.dtype.isnative:  # such as big-endian, in files
        array = array.astype(array.dtype.newbyteorder("="))
    return array


UNEQUAL = "rows of unequal length"
PAD = (
    "Pad the rows to one length, with keras.utils.pad_sequences, or stack "
    "them to one array with numpy.stack"
)
_FILL = (
    "Fill them, ids with a separate id and floats with NaN, or drop those "
    "rows (docs/data.md#missing-values)"
)
_ENCODE = "Encode them as numbers of one type and at most 64 bits"
_CAST = "Encode them as seconds or days (casts: docs/data.md#dates-and-times)"


def refusal(name: str, what: str, remedy: str = PAD) -> str:
    """Returns the message for a column that no batch can hold."""
    if _SELECTABLE.fullmatch(name):
        remedy += ", or leave the column out with `columns=`"
    return f"`{name}` holds {what}. {remedy}."


def _refuse(
    name: str, what: str, remedy: str, error: type[Exception] = TypeError
) -> NoReturn:
    raise error(refusal(name, what, remedy))


# A named column of the data, or of the `x` of a tuple.
_SELECTABLE = re.compile(r"""data(\[0\])?\[('[^']*'|"[^"]*")\]""")


def _refuse_dates(name: str, what: Any) -> NoReturn:
    _refuse(name, f"dates or times ({what})", _CAST)


def _refuse_missing(name: str, missing: Any, what: Any) -> None:
    if missing:
        _refuse(name, f"missing values ({what})", _FILL, ValueError)


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
            _refuse(name, "a nested tensor", PAD)
        if str(column.layout) != "torch.strided":
            _refuse(name, "a sparse tensor", "Pass `tensor.to_dense()`")


def _from_pandas(column: Any, name: str) -> np.ndarray:
    dtype = str(column.dtype)
    # NaN in NumPy's float dtypes is a value. A missing value in another dtype
    # would turn integers into floats, in which large ids become equal.
    # `_from_objects` looks at objects.
    if column.dtype.kind not in "fO" or not isinstance(column.dtype, np.dtype):
        _refuse_missing(name, column.isna().any(), dtype)
    if column.dtype.kind in "Mm" or dtype.startswith(
        ("date", "time", "period")
    ):
        _refuse_dates(name, dtype)
    return np.asarray(column.to_numpy())


def _from_polars(column: Any, name: str) -> np.ndarray:
    dtype = column.dtype
    kind = dtype.base_type().__name__
    _refuse_missing(name, column.null_count(), dtype)
    if dtype.is_temporal():
        _refuse_dates(name, dtype)
    if kind == "Struct":
        remedy = "Pass its fields as columns, as in `frame.unnest(name)`"
        _refuse(name, f"{dtype} values", remedy)
    if kind in ("Int128", "UInt128"):
        _refuse(name, f"{dtype} values", _ENCODE)
    if kind == "Array":
        column, kind = column.arr.to_list(), "List"
    if kind == "List":
        return _stacked(column.list.len(), column.explode(), name)
    if kind in ("Categorical", "Enum"):
        column = column.cast(str)
    return np.asarray(column.to_numpy())


def _from_arrow(column: Any, name: str) -> np.ndarray:
    import pyarrow
    from pyarrow import compute

    kind = column.type
    _refuse_missing(name, column.null_count, kind)
    check_arrow_type(kind, name)
    if pyarrow.types.is_dictionary(kind):
        # A value of the dictionary may be missing, too.
        return _from_arrow(column.cast(kind.value_type), name)
    if isinstance(column, pyarrow.ChunkedArray):
        chunks = column.chunks or [pyarrow.array([], kind)]
        column = (
            chunks[0] if len(chunks) == 1 else pyarrow.concat_arrays(chunks)
        )
    if _is_list(kind):
        lengths = compute.list_value_length(column)
        return _stacked(lengths, column.flatten(), name)
    if hasattr(column, "to_numpy_ndarray"):  # tensors of one shape
        return np.asarray(column.to_numpy_ndarray())
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _is_list(kind: Any) -> bool:
    """Returns whether an Arrow type is a list, of one of its five kinds."""
    return hasattr(kind, "value_field")


def check_arrow_type(kind: Any, name: str) -> None:
    """Refuses an Arrow type other than numbers, bools, strings and lists."""
    from pyarrow import types

    while _is_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_temporal(kind):
        _refuse_dates(name, kind)
    if types.is_null(kind):
        _refuse(name, "only missing values", _FILL, ValueError)
    if types.is_nested(kind) or types.is_decimal(kind):
        _refuse(name, f"{kind} values", _ENCODE)


def _stacked(lengths: Any, values: Any, name: str) -> np.ndarray:
    """Returns the values of lists as an array, (rows, length, ...)."""
    sizes = np.unique(np.asarray(lengths))
    if len(sizes) > 1:
        _refuse(name, UNEQUAL, PAD, ValueError)
    array = as_array(values, name)
    return array.reshape(len(lengths), sizes.max(initial=0), *array.shape[1:])


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
        _refuse(name, UNEQUAL, PAD, ValueError)
    if array.dtype.kind == "f" and np.any(np.abs(array) >= _EXACT):
        _refuse_rounded(column, name)
    # NumPy converts numbers to strings in a list that also holds strings.
    if array.dtype.kind in "SU" and array.ndim == 1:
        array = np.fromiter(column, object, len(column))
    return array


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Returns strings, or the numbers in an array of objects."""
    values = array.ravel()
    kinds = set(map(type, values))
    missing = any(
        kind.__name__ in ("NoneType", "NAType", "NaTType") for kind in kinds
    ) or (
        # Among other objects, NaN is what pandas makes of a missing value.
        len(kinds) > 1
        and any(isinstance(v, (float, np.floating)) and v != v for v in values)
    )
    _refuse_missing(name, missing, "objects")

    def all_are(*types: type) -> bool:
        return all(issubclass(kind, types) for kind in kinds)

    def some_are(*types: type) -> bool:
        return any(issubclass(kind, types) for kind in kinds)

    if all_are(str, bytes):
        return array
    if all_are(list, tuple, np.ndarray):
        rows = as_array(list(values), name)
        return rows.reshape(*array.shape, *rows.shape[1:])
    if some_are(datetime.date, datetime.time, datetime.timedelta) or some_are(
        np.datetime64, np.timedelta64
    ):
        _refuse_dates(name, "objects")
    if some_are(list, tuple, set, dict, np.ndarray):
        _refuse(name, "lists or arrays (objects)", PAD)
    if some_are(str, bytes):
        what = "strings and values of another type"
        _refuse(name, what, "Make all of them strings, or none")
    numbers = np.array(values.tolist()).reshape(array.shape)
    if numbers.dtype.kind not in "biuf" or (
        # Among floats, integers above 2**53 would be rounded.
        numbers.dtype.kind == "f" and not all_are(float, np.floating)
    ):
        names = sorted(kind.__name__ for kind in kinds)
        _refuse(name, f"objects of type {', '.join(names)}", _ENCODE)
    return numbers
