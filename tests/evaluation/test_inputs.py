"""What the evaluation feeds its models with, and what survives an error."""

import collections

import datasets
import keras
import numpy as np
import pandas
import polars
import pyarrow
import pytest

import inbatch_neg
from tests.evaluation import oracle
from tests.helpers import BACKEND, assert_all_equal, weights_of

USERS = np.arange(12, dtype="int32")
COUNTRIES = USERS[::-1] % 5
# "age" comes before the inputs in the order of the names.
COLUMNS = {"age": USERS + 100, "country": COUNTRIES, "user": USERS}


def table(rows, seed):
    weights = np.random.default_rng(seed).normal(size=(rows, 4))
    return keras.layers.Embedding(
        rows, 4, keras.initializers.Constant(weights.astype("float32"))
    )


@pytest.fixture(scope="module")
def towers():
    """Towers by the form of their inputs, and the item tower."""
    user = keras.Input((), dtype="int32", name="user")
    country = keras.Input((), dtype="int32", name="country")
    users, items = table(12, 0), table(20, 1)
    both = users(user) + table(5, 2)(country)
    return {
        "dict": keras.Model({"user": user, "country": country}, both),
        "list": keras.Model([user, country], both),
        "one": keras.Model(user, users(user)),
        "one in a dict": keras.Model({"user": user}, users(user)),
        "item": keras.Sequential([keras.Input((), dtype="int32"), items]),
    }


def batched(columns, size=5):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(columns).batch(size)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(5 * index, 5 * index + 5)
        return {name: column[rows] for name, column in COLUMNS.items()}, None


FORMS = {
    "dict": lambda: COLUMNS,
    "dict of lists": lambda: {k: v.tolist() for k, v in COLUMNS.items()},
    "pandas": lambda: pandas.DataFrame(COLUMNS),
    "polars": lambda: polars.DataFrame(COLUMNS),
    "arrow": lambda: pyarrow.table(COLUMNS),
    "hugging face": lambda: datasets.Dataset.from_dict(COLUMNS),
    "mapping": lambda: collections.UserDict(COLUMNS),
    "reader": lambda: pyarrow.table(COLUMNS).to_reader(5),
    "tf.data": lambda: batched(COLUMNS),
    "tf.data with labels": lambda: batched((COLUMNS, USERS)),
    "list of batches": lambda: iter(
        [{k: v[at : at + 5] for k, v in COLUMNS.items()} for at in (0, 5, 10)]
    ),
    "PyDataset": lambda: Batches(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tower", ["dict", "list", "one", "one in a dict"])
def test_a_further_column_changes_nothing(towers, tower, form):
    by_hand = table(12, 0)(USERS)
    if tower in ("dict", "list"):
        by_hand = by_hand + table(5, 2)(COUNTRIES)
    items = keras.ops.convert_to_numpy(table(20, 1)(np.arange(20)))
    expected = oracle.evaluate(
        keras.ops.convert_to_numpy(by_hand),
        items,
        range(20),
        [[one] for one in USERS],
        [[]] * 12,
        (3,),
    )
    found = inbatch_neg.RetrievalEvaluation(
        towers[tower],
        towers["item"],
        FORMS[form](),
        USERS,
        np.arange(20),
        k=3,
        batch_size=5,
        verbose=0,
    )()
    assert found == pytest.approx(expected, abs=1e-9)


def evaluation(tower, queries, **changes):
    given = {"candidate_model": None, "candidates": np.eye(12, 4), **changes}
    return inbatch_neg.RetrievalEvaluation(
        tower,
        queries=queries,
        targets=USERS,
        k=3,
        batch_size=5,
        verbose=0,
        **given,
    )


@pytest.mark.parametrize("tower", ["dict", "list", "one", "one in a dict"])
@pytest.mark.parametrize("form", ["dict", "tf.data", "list of batches"])
def test_a_missing_column(towers, tower, form):
    queries = {"age": USERS, "item": USERS}
    if form == "tf.data":
        queries = batched(queries)
    if form == "list of batches":
        queries = iter([queries])
    message = r"`queries` must have a column.*'user'.*without \[.*'user'"
    with pytest.raises(ValueError, match=message):
        evaluation(towers[tower], queries)()


def test_the_only_column_of_another_name(towers):
    given = {"candidate_model": towers["item"], "verbose": 0}
    found = [
        inbatch_neg.RetrievalEvaluation(
            towers["one"], queries=queries, targets=USERS,
            candidates=candidates, k=3, **given,
        )()
        for queries, candidates in (
            (USERS, np.arange(20)),
            (pandas.DataFrame({"id": USERS}), {"id": np.arange(20)}),
            (USERS.tolist(), list(range(20))),
        )
    ]  # fmt: skip
    assert found[0] == found[1] == found[2]


VECTORS = np.random.default_rng(3).normal(size=(12, 4)).astype("float32")


VECTOR_FORMS = {
    "pandas": pandas.DataFrame,
    "polars": polars.DataFrame,
    "arrow": pyarrow.table,
    "tf.data": lambda columns: batched(VECTORS),
    "variable": lambda columns: keras.Variable(VECTORS),
    "list of vectors": lambda columns: list(VECTORS),
    "list of batches": lambda columns: [VECTORS[:7], VECTORS[7:]],
}


@pytest.mark.parametrize("form", VECTOR_FORMS)
def test_forms_of_vectors(form):
    # The order of the columns counts, not that of their names.
    vectors = VECTOR_FORMS[form](dict(zip("dcba", VECTORS.T)))
    assert evaluation(None, vectors)() == evaluation(None, VECTORS)()


@pytest.mark.parametrize("form", ["pandas", "polars", "arrow"])
def test_missing_values(towers, form):
    users = [1, None] * 6
    if form == "pandas":
        users = pandas.array(users, "Int64")
    queries = VECTOR_FORMS[form]({"user": users})
    with pytest.raises(ValueError, match="`queries` holds missing values"):
        evaluation(towers["one"], queries)()


def unbatched(form):
    if form == "generator":
        return (user for user in USERS)
    if form == "torch":
        import torch

        return torch.utils.data.DataLoader(torch.arange(12), batch_size=None)
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices(USERS)
    if form == "tf.data of dicts":
        return rows.map(lambda user: {"user": user})
    return rows


@pytest.mark.parametrize(
    "form",
    [
        "tf.data",
        "tf.data of dicts",
        "generator",
        pytest.param("torch", marks=pytest.mark.backends("torch")),
    ],
)
def test_an_unbatched_dataset(towers, form):
    before = weights_of(towers["one"])
    with pytest.raises(ValueError, match="`queries` must be a dataset of bat"):
        evaluation(towers["one"], unbatched(form))()
    assert_all_equal(weights_of(towers["one"]), before)


def test_a_generator_that_has_been_read(towers):
    once = evaluation(towers["one"], iter([{"user": USERS}]))
    once()
    with pytest.raises(ValueError, match="can be read once"):
        once()


class Fails(keras.layers.Layer):
    """Fails for a batch of another size, as any layer of the user's may."""

    def call(self, x):
        if x.shape[0] not in (None, 5):
            raise ArithmeticError("of the user's own")
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)


class Stopped(BaseException):
    """As a KeyboardInterrupt is."""


class Stream:
    """Three batches of 5, 5 and 2 rows; or an error after the first."""

    def __init__(self, broken):
        self.broken = broken

    def __iter__(self):
        yield USERS[:5]
        if self.broken:
            raise Stopped
        yield USERS[5:10]
        yield USERS[10:]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("case", ["first", "later", "data"])
def test_weights_survive_what_predict_raises(case, steps):
    if steps == 2 and BACKEND == "torch":
        steps = 1  # which has no other
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    users, items = table(12, 0), table(12, 1)
    tower = keras.Model(user, Fails()(users(user)))
    tower.compile(steps_per_execution=steps)
    softmax = inbatch_neg.InBatchNegativeSoftmax()
    model = keras.Model(
        {"user": user, "item": item}, softmax(users(user), items(item))
    )
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    pairs = inbatch_neg.full_batches({"user": USERS, "item": USERS}, 4)
    model.fit(pairs, verbose=0)
    before = weights_of(model)
    queries = Stream(broken=case == "data")
    if case == "first":
        queries = iter([USERS[:3]])
    # TensorFlow traces a batch of unknown size, and reports what data raises.
    if BACKEND == "tensorflow" and case != "first":
        if case == "data":
            return
        queries = iter([USERS[:5], USERS[:5, None, None]])
    expected = Stopped if case == "data" else Exception
    with pytest.raises(expected):
        evaluation(tower, queries)()
    assert_all_equal(weights_of(model), before)
    assert tower.predict(USERS[:5], verbose=0).shape == (5, 4)
    model.fit(pairs, verbose=0)
    assert np.isfinite(model.evaluate(pairs, verbose=0))


NAMES = np.array([f"user {i}" for i in USERS])
STRINGS = {
    "array": lambda: NAMES,
    "objects": lambda: NAMES.astype(object),
    "bytes": lambda: NAMES.astype("S"),
    "list": lambda: NAMES.tolist(),
    "pandas": lambda: pandas.DataFrame({"user": NAMES, "age": USERS}),
    "polars": lambda: polars.DataFrame({"user": NAMES}),
    "tf.data": lambda: batched({"user": NAMES}),
    "batches": lambda: iter([{"user": NAMES[:5]}, {"user": NAMES[5:]}]),
}


@pytest.mark.parametrize("form", STRINGS)
@pytest.mark.backends("tensorflow")
def test_strings(towers, form):
    look_up = keras.layers.StringLookup(vocabulary=NAMES, num_oov_indices=0)
    user = keras.Input((), dtype="string", name="user")
    tower = keras.Model(user, table(12, 0)(look_up(user)))
    expected = evaluation(towers["one"], USERS)()
    assert evaluation(tower, STRINGS[form]())() == expected


@pytest.mark.parametrize("form", STRINGS)
@pytest.mark.backends("jax", "torch")
def test_strings_where_no_model_takes_them(towers, form):
    with pytest.raises(TypeError, match="`queries.*strings.*StringLook"):
        evaluation(towers["one"], STRINGS[form]())()


def test_objects(towers):
    with pytest.raises(ValueError, match="`queries` holds missing values"):
        evaluation(towers["one"], np.array(["a", None] * 6, object))()
