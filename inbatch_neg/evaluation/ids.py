"""Lists of ids, one per query, and the catalogue in which they are looked up.

In NumPy, since ids may be strings or use all 64 bits, which not every backend
supports.
"""

from typing import Any, NamedTuple, NoReturn, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

# The forms of the targets and the seen ids, for errors.
_FORMS = "one id per query, id lists, a ragged tensor or a scipy sparse matrix"


class IdLists(NamedTuple):
    """Lists of ids, concatenated.

    Attributes:
        row: (N,), the query of each entry, in ascending order.
        ids: (N,) integers or strings.
        rows: The number of queries.
        are_places: Whether `ids` already are indices into the catalogue.
    """

    row: Array
    ids: Array
    rows: int
    are_places: bool = False


def parse(name: str, value: Any) -> IdLists:
    """Returns the argument called `name` as `IdLists`."""
    if hasattr(value, "tocsr"):
        matrix = value.tocsr(copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        return IdLists(
            row, matrix.indices.astype("int64"), matrix.shape[0], True
        )
    if hasattr(value, "row_splits"):
        if value.values.shape.rank != 1:
            _refuse_form(name, value)
        splits = to_numpy(value.row_splits)
        row = np.repeat(np.arange(len(splits) - 1), np.diff(splits))
        return IdLists(row, as_ids(name, value.values), len(splits) - 1)
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if _is_nested(value):
        for place, one in enumerate(value):
            if one is None or (isinstance(one, float) and np.isnan(one)):
                raise ValueError(
                    f"`{name}` must have a list for every query, [] for one "
                    f"without ids. Received: {one} for query {place}"
                )
        lists = [to_numpy(one).reshape(-1) for one in value]
        row = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
        filled = [one for one in lists if len(one)]
        ids = np.concatenate(filled) if filled else np.zeros(0, "int64")
        return IdLists(row, as_ids(name, ids), len(lists))
    array = to_numpy(value)
    if array.ndim not in (1, 2):
        _refuse_form(name, array)
    if array.ndim == 2 and array.shape[1] > 2 and _is_indicator(array):
        raise ValueError(
            f"`{name}` must hold ids, not zeros and ones of all candidates. "
            f"Fix: `scipy.sparse.csr_matrix({name})`. Received: {name}.shape="
            f"{array.shape}"
        )
    rows, length = len(array), array.size // max(len(array), 1)
    row = np.repeat(np.arange(rows), length)
    return IdLists(row, as_ids(name, array.reshape(-1)), rows)


def _is_indicator(array: Array) -> bool:
    """Returns whether rows of ids would hold 0 or 1 more than once."""
    if array.dtype.kind == "b":
        return True
    return array.dtype.kind in "iuf" and bool(
        np.all((array == 0) | (array == 1)) and np.any(array == 1)
    )


def _refuse_form(name: str, value: Any) -> NoReturn:
    raise ValueError(
        f"`{name}` must be {_FORMS}. Received: {name}.shape={value.shape}"
    )


class Catalogue:
    """The ids of the candidates, and the index of each.

    Args:
        ids: (C,) integers or strings, all different. `None`: 0..C-1.
        size: C.
    """

    def __init__(self, ids: Array | None, size: int) -> None:
        self.ids, self.size = ids, size
        if ids is not None:
            self._order = np.argsort(ids, kind="stable")
            self._sorted = ids[self._order]
            twice = self._sorted[1:][self._sorted[1:] == self._sorted[:-1]]
            if len(twice):
                raise ValueError(
                    "`candidate_ids` must all be different: keep the rows of "
                    "`np.unique(candidate_ids, return_index=True)[1]`. "
                    f"Received: {twice[0].item()!r} more than once"
                )

    def places(self, name: str, lists: IdLists) -> tuple[Array, Array]:
        """Returns `(row, place)` (N,), with place -1 for unknown ids.

        A place occurs once per row; sorted by row, then by place.
        """
        if lists.are_places or self.ids is None:
            if lists.ids.dtype.kind == "U":
                raise TypeError(
                    f"`{name}` must hold the integers 0..{self.size - 1} if "
                    "`candidate_ids` is None. Received: strings"
                )
            inside = (lists.ids >= 0) & (lists.ids < self.size)
            place = np.where(inside, lists.ids, -1).astype("int64")
        else:
            place = self._look_up(name, lists.ids)
        # Unknown ids may differ from each other, so all of them are kept.
        absent = place < 0
        different = np.unique(lists.row[~absent] * self.size + place[~absent])
        row = np.concatenate([different // self.size, lists.row[absent]])
        place = np.concatenate([different % self.size, place[absent]])
        order = np.argsort(row, kind="stable")
        return row[order], place[order]

    def _look_up(self, name: str, ids: Array) -> Array:
        text = self._sorted.dtype.kind == "U"
        if len(ids) == 0:
            return np.zeros(0, "int64")
        if text != (ids.dtype.kind == "U"):
            raise TypeError(
                f"`{name}` and `candidate_ids` must both hold integers or "
                f"both strings. Received: dtypes {ids.dtype} and "
                f"{self._sorted.dtype}"
            )
        known = np.ones(len(ids), bool)
        sorted_ids = self._sorted
        if not text and ids.dtype.kind != sorted_ids.dtype.kind:
            # NumPy would compare uint64 with int64 as floats, in which large
            # ids become equal. Ids of both kinds can be equal only below 2^63.
            known = ids <= 2**63 - 1
            ids = np.where(known, ids, 0).astype("int64")
            if sorted_ids.dtype.kind == "u":
                fits = sorted_ids <= 2**63 - 1
                sorted_ids = sorted_ids[fits].astype("int64")
                if not len(sorted_ids):
                    return np.full(len(ids), -1, "int64")
        at = np.searchsorted(sorted_ids, ids)
        at = np.minimum(at, len(sorted_ids) - 1)
        is_known = known & (sorted_ids[at] == ids)
        return np.where(is_known, self._order[at], -1)


def as_ids(name: str, values: Any) -> Array:
    """Returns (N,) integers or strings; refuses everything else."""
    array = to_numpy(values)
    if array.dtype.kind == "O" and len(array):
        one = array[0]
        if isinstance(one, bytes):
            array = array.astype("S")
        elif isinstance(one, str):
            array = array.astype("U")
        else:
            array = np.asarray(array.tolist())
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.size == 0:
        return array.astype("int64")
    if array.dtype.kind not in "iuU":
        raise TypeError(
            f"`{name}` must hold integers or strings, since large ids become "
            f"equal as floats. Received: dtype={array.dtype}"
        )
    return array


def _is_nested(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return False
    if not isinstance(value, (list, tuple, np.ndarray)):
        return False
    return any(
        isinstance(one, (list, tuple, set)) or getattr(one, "ndim", 0) == 1
        for one in value
    )


def to_numpy(value: Any) -> Array:
    """Returns an array, a tensor, a list or a set as an array."""
    if isinstance(value, set):
        value = sorted(value)
    if keras.ops.is_tensor(value):
        return np.asarray(keras.ops.convert_to_numpy(value))
    return np.asarray(value)
