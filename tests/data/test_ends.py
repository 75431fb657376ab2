"""The end of an epoch reaches the source, once, also where `fit` stops there.

`fit` reads as many batches as it knows of and never asks for one more. What a
source does after its last batch, it does all the same.
"""

import keras
import numpy as np
import pytest

from inbatch_neg import full_batches
from tests.data.reading import BACKEND, column, epoch

ROWS = 20


class Counter(keras.callbacks.Callback):
    """Notes after every epoch how often each row has been trained on."""

    def __init__(self):
        super().__init__()
        self.visits = []

    def on_epoch_end(self, epoch, logs=None):
        table = self.model.get_layer("rows").get_weights()[0]
        self.visits.append(np.rint(-table[:, 0]).astype(int).tolist())


class Sum(keras.losses.Loss):
    """The sum of the outputs, so that a visit of a row subtracts 1."""

    def __init__(self):
        super().__init__(reduction="sum")

    def call(self, y_true, y_pred):
        return y_pred[:, 0]


def compiled(padded=False, **arguments):
    """Returns a model whose table counts the visits of each row."""
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    inputs = {"user": user, "item": item}
    if padded:
        name = "candidate_mask"
        inputs[name] = keras.Input((), dtype="bool", name=name)
    table = keras.layers.Embedding(
        ROWS, 1, embeddings_initializer="zeros", name="rows"
    )
    # Both columns, so that it shows if they come apart.
    right = keras.ops.cast(keras.ops.equal(user + item, ROWS - 1), "float32")
    model = keras.Model(inputs, table(user) * right[:, None])
    model.compile(keras.optimizers.SGD(1.0), loss=Sum(), **arguments)
    return model


def fit(dataset, model=None, **arguments):
    """Trains; returns the visits of each row after every epoch."""
    counter = Counter()
    arguments = {"shuffle": False, "verbose": 0, **arguments}
    callbacks = [*arguments.pop("callbacks", []), counter]
    (model or compiled()).fit(dataset, callbacks=callbacks, **arguments)
    return counter.visits


class Reshuffled(keras.utils.PyDataset):
    """Shuffles its rows in place after every epoch, and yields views of them.

    It logs what it hears.
    """

    def __init__(self, size=4, **arguments):
        super().__init__(**arguments)
        self.size = size
        self.log = []
        self.users = np.arange(ROWS, dtype="int32")
        self.items = self.users[::-1].copy()
        self.rng = np.random.default_rng(3)

    def __len__(self):
        return -(-ROWS // self.size)

    def __getitem__(self, index):
        part = slice(self.size * index, self.size * (index + 1))
        self.log.append(self.users[part].tolist())
        x = {"user": self.users[part], "item": self.items[part]}
        return x, np.zeros(len(x["user"]), "float32")

    def on_epoch_begin(self):
        self.log.append("begin")

    def on_epoch_end(self):
        self.log.append("end")
        order = self.rng.permutation(ROWS)
        self.users[:] = self.users[order]
        self.items[:] = self.items[order]

    def epochs(self):
        """Returns the rows that were read in each epoch, from begin to end."""
        found, log = [], list(self.log)
        while "begin" in log:
            start, end = log.index("begin"), log.index("end")
            assert start < end, self.log
            inside = log[start + 1 : end]
            assert "begin" not in inside, self.log
            found.append([row for batch in inside for row in batch])
            log = log[end + 1 :]
        assert "end" not in log, self.log
        return found


def check(source, epochs):
    """Asserts that so many epochs were read whole, each in a new order."""
    found = source.epochs()
    assert len(found) == epochs, source.log
    for rows in found:
        assert sorted(rows) == list(range(ROWS)), source.log
    assert len(set(map(tuple, found))) == epochs


WAYS = {
    "as it is": ({}, {}, {}),
    "larger batches": ({"size": 10}, {}, {}),
    "smaller batches": ({"size": 3}, {}, {}),
    "two batches": ({"size": 10}, {"batch_size": 10}, {}),
    "batches of one row": ({"size": 1}, {}, {}),
    "one batch": ({"size": ROWS}, {"batch_size": ROWS}, {}),
    "threads": ({"workers": 2}, {}, {}),
    "padded": ({}, {"remainder": "pad", "batch_size": 8}, {}),
    "padded, no rest": ({}, {"remainder": "pad"}, {}),
    "shuffled by row": ({}, {"shuffle": True, "seed": 1}, {}),
    "shuffled by Keras": ({}, {}, {"shuffle": True}),
    "two steps at a time": ({}, {}, {"steps_per_execution": 2}),
}
ON_TWO = pytest.param(
    "two steps at a time", marks=pytest.mark.backends("tensorflow", "jax")
)


@pytest.mark.parametrize(
    "way", [ON_TWO if "two steps" in way else way for way in WAYS]
)
def test_a_source_that_reshuffles(way):
    of_source, of_full_batches, of_fit = WAYS[way]
    source = Reshuffled(**of_source)
    options = {"batch_size": 4, "batched": True, **of_full_batches}
    dataset = full_batches(source, **options)
    of_fit = dict(of_fit)
    model = compiled(
        padded="remainder" in options,
        steps_per_execution=of_fit.pop("steps_per_execution", 1),
    )
    visits = fit(dataset, model, epochs=4, **of_fit)
    # Keras looks at a batch first. If there is one, this is a whole epoch.
    looks = int(way == "one batch" and BACKEND != "tensorflow")
    check(source, epochs=4 + looks)
    # Nor does the new order reach a batch that has been read before.
    assert visits == [[number] * ROWS for number in range(1, 5)]


def test_counting_is_no_epoch():
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True, remainder="pad")
    if BACKEND == "tensorflow":
        assert int(dataset.cardinality()) == 5
        assert source.log.count("begin") <= 1  # of the batch that was read
    else:
        assert len(dataset) == 5
        assert "begin" not in source.log
    assert "end" not in source.log


def test_every_loop_is_an_epoch():
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True)
    for _ in range(3):
        assert len(epoch(dataset)) == 5
    check(source, epochs=3)


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_evaluate_and_predict(name):
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True)
    model = compiled()
    for _ in range(3):
        getattr(model, name)(dataset, verbose=0)
    check(source, epochs=3)


def test_validation_data():
    source, held_out = Reshuffled(), Reshuffled()
    fit(
        full_batches(source, 4, batched=True),
        epochs=3,
        validation_data=full_batches(held_out, 4, batched=True),
    )
    check(source, epochs=3)
    check(held_out, epochs=3)


def test_two_calls_of_fit():
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True)
    model = compiled()
    fit(dataset, model, epochs=2)
    assert fit(dataset, model, epochs=2)[-1] == [4] * ROWS
    check(source, epochs=4)


def test_all_steps_of_an_epoch():
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True)
    fit(dataset, epochs=1, steps_per_epoch=5)
    check(source, epochs=1)


@pytest.mark.backends("jax", "torch")
def test_steps_per_epoch():
    """A pass goes on in the next epoch, and ends after its own last batch."""
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True)
    # Keras ends an epoch early where the data ends.
    visits = fit(dataset, epochs=6, steps_per_epoch=3)
    check(source, epochs=3)
    assert visits[1::2] == [[number] * ROWS for number in range(1, 4)]


@pytest.mark.backends("jax", "torch")
def test_a_single_step_a_call():
    """It is no look at the data to build the model: each call has new rows."""
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True, shuffle=True, seed=1)
    model = compiled()
    for _ in range(3):
        seen = fit(dataset, model, steps_per_epoch=1)[-1]
    assert len(source.epochs()) == 3
    assert sum(seen) == 12 and max(seen) < 3


class Stop(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.model.stop_training = True


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_an_epoch_that_stops_early(batch, tuned_iterators):
    source = Reshuffled()
    dataset = full_batches(source, 4, batched=True)
    model = compiled()
    fit(dataset, model, epochs=4, callbacks=[Stop(batch)])
    before = model.get_layer("rows").get_weights()[0]
    fit(dataset, model, epochs=2)
    after = model.get_layer("rows").get_weights()[0]
    np.testing.assert_allclose(before - after, 2)
    found = source.epochs()  # every begin has its end
    # After two batches, these come again: Keras might just have looked at them.
    resumes = batch == 1 and BACKEND != "tensorflow"
    assert len(found) == 3 - resumes
    assert [sorted(rows) for rows in found[-2:]] == [list(range(ROWS))] * 2


def test_early_stopping_at_the_end_of_an_epoch():
    source = Reshuffled()
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1)
    visits = fit(
        full_batches(source, 4, batched=True), epochs=9, callbacks=[stop]
    )
    check(source, epochs=len(visits))
    assert len(visits) < 9


class Function:
    """A generator function with something to do after its last batch."""

    def __init__(self):
        self.opened = self.ended = self.closed = 0
        self.orders = []

    def batches(self):
        order = np.random.default_rng(self.opened).permutation(ROWS)
        order = order.astype("int32")
        self.opened += 1
        self.orders.append([])
        try:
            for start in range(0, ROWS, 3):
                users = order[start : start + 3].copy()
                self.orders[-1] += users.tolist()
                x = {"user": users, "item": ROWS - 1 - users}
                yield x, np.zeros(len(users), "float32")
                users[:] = 0  # the array is used again
            self.ended += 1
        finally:
            self.closed += 1

    __call__ = __iter__ = batches


def loader_of(source):
    from torch.utils import data

    class Rows(data.IterableDataset):
        def __iter__(self):
            for x, y in source.batches():
                for place, label in enumerate(y):
                    row = {name: column[place] for name, column in x.items()}
                    yield row, label

    class Sized(Rows):
        def __len__(self):
            return ROWS

    return Rows, Sized, data.DataLoader


def loader(source, size=4, sized=False, **arguments):
    rows, sized_rows, kind = loader_of(source)
    dataset = (sized_rows if sized else rows)()
    return kind(dataset, size, drop_last=size == 4, **arguments)


def sampled(source):
    """A loader whose own sampler has something to do after its last row."""
    from torch.utils import data

    class Sampler(data.Sampler):
        def __init__(self):
            pass

        def __len__(self):
            return ROWS

        def __iter__(self):
            for x, _ in source.batches():
                yield from x["user"].tolist()

    class Rows(data.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, index):
            user = np.int32(index)
            x = {"user": user, "item": np.int32(ROWS - 1 - user)}
            return x, np.float32(0)

    return data.DataLoader(Rows(), 4, sampler=Sampler(), drop_last=True)


def own_loader(source):
    """A loader with something to do after its last batch."""
    from torch.utils import data

    plain = sampled(Function())

    class Loader(data.DataLoader):
        def __iter__(self):
            source.opened += 1
            source.orders.append(list(range(ROWS)))
            try:
                yield from super().__iter__()
                source.ended += 1
            finally:
                source.closed += 1

    return Loader(plain.dataset, 4, drop_last=True)


def grain_rows(source):
    import grain

    class Iterator(grain.DatasetIterator):
        def __init__(self):
            super().__init__()
            self.rows = (
                {name: column[place] for name, column in x.items()}
                for x, y in source.batches()
                for place in range(len(y))
            )

        def __next__(self):
            row = next(self.rows)
            return row, np.float32(0)

        def get_state(self):
            return {}

        def set_state(self, state):
            del state

    class Rows(grain.IterDataset):
        def __iter__(self):
            return Iterator()

    return Rows()


KINDS = {
    "function": (lambda source: source.batches, {"batched": True}),
    "callable": (lambda source: source, {"batched": True}),
    "function, shuffled": (
        lambda source: source.batches,
        {"batched": True, "shuffle": True},
    ),
    "function, padded": (
        lambda source: source.batches,
        {"batched": True, "remainder": "pad"},
    ),
    "loader, regrouped": (
        lambda source: loader(source, 3),
        {"batched": True},
    ),
    "loader": (loader, {}),
    "loader with a length": (lambda source: loader(source, sized=True), {}),
    "dataset": (lambda source: loader_of(source)[0](), {}),
    "dataset with a length": (lambda source: loader_of(source)[1](), {}),
    "sampler": (sampled, {}),
    "own loader": (own_loader, {}),
    "grain": (grain_rows, {}),
}


@pytest.mark.keras_at_least("3.15")
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_after_the_last_batch(kind):
    make, options = KINDS[kind]
    source = Function()
    dataset = full_batches(make(source), 4, **options)
    model = compiled(padded="remainder" in options)
    visits = fit(dataset, model, epochs=3)
    assert visits == [[number] * ROWS for number in range(1, 4)]
    # What was opened for a look at the first rows is closed.
    assert source.opened == source.closed
    assert source.ended >= 3
    whole = [order for order in source.orders if len(order) == ROWS]
    assert len(whole) >= 3


def test_a_generator_ends():
    source = Function()
    fit(full_batches(source.batches(), 4, batched=True))
    assert (source.opened, source.ended, source.closed) == (1, 1, 1)


def test_an_array_that_is_used_again():
    """Rows are copied before the source goes on."""
    for options in ({}, {"shuffle": True, "seed": 1}, {"remainder": "pad"}):
        for size in (1, 2, 4, 5):

            def batches(size=size):
                users = np.zeros(size, "int32")
                for start in range(0, ROWS, size):
                    users[:] = np.arange(start, start + size)
                    yield {"user": users}
                users[:] = -1

            dataset = full_batches(batches, 4, batched=True, **options)
            for _ in range(2):
                rows = column(epoch(dataset), "user").tolist()
                assert sorted(rows) == list(range(ROWS))
