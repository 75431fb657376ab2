"""Evaluates on several virtual devices, or on one; saves what it finds.

Arguments: output file, "none", "data" (parallel) or "model", number of devices.
"""

import contextlib
import os
import sys

_DEVICES = 1
if __name__ == "__main__":
    _DEVICES = int(sys.argv[3])
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + f" --xla_force_host_platform_device_count={_DEVICES}"
    )

import keras  # noqa: E402
import numpy as np  # noqa: E402

import inbatch_neg  # noqa: E402
from inbatch_neg import full_batches  # noqa: E402

USERS, ITEMS, TRAINED = 13, 11, 16


def set_distribution(kind):
    """Returns the scope to make models in."""
    if kind == "none":
        return contextlib.nullcontext()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * _DEVICES,
        )
        names = [f"CPU:{number}" for number in range(_DEVICES)]
        return tf.distribute.MirroredStrategy(names).scope()
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == _DEVICES
    if kind == "data":
        chosen = keras.distribution.DataParallel(devices=devices)
    else:
        mesh = keras.distribution.DeviceMesh(
            (2, _DEVICES // 2), ("batch", "model"), devices
        )
        layout = keras.distribution.LayoutMap(mesh)
        layout["dense/kernel"] = (None, "model")
        chosen = keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )
    keras.distribution.set_distribution(chosen)
    return contextlib.nullcontext()


def table(rows, seed, name):
    weights = np.random.default_rng(seed).normal(size=(rows, 8))
    start = keras.initializers.Constant(weights.astype("float32"))
    return keras.layers.Embedding(rows, 8, start, name=name)


class Towers:
    def __init__(self):
        user = keras.Input((), dtype="int32", name="user")
        age = keras.Input((), dtype="float32", name="age")
        item = keras.Input((), dtype="int32", name="item")
        kernel = np.random.default_rng(4).normal(size=(8, 8))
        dense = keras.layers.Dense(
            8,
            kernel_initializer=keras.initializers.Constant(kernel),
            name="dense",
        )
        # A product: in a sum with 8 rows, Keras 3.15 on TensorFlow takes the
        # column of ages for a bias of the 8 dimensions.
        of_user = dense(table(USERS, 0, "users")(user)) * (1 + age[:, None])
        of_item = table(ITEMS, 1, "items")(item)
        self.user = keras.Model({"user": user, "age": age}, of_user)
        self.users = keras.Model([user, age], of_user)
        self.several = keras.Model(
            {"user": user, "age": age},
            keras.ops.stack([of_user, of_user[:, ::-1]], axis=1),
        )
        self.item = keras.Model(item, of_item)
        losses = inbatch_neg.InBatchNegativeSoftmax(cross_replica=True)(
            of_user, of_item
        )
        self.trained = keras.Model([user, age, item], losses)
        self.trained.compile(
            keras.optimizers.SGD(0.1), inbatch_neg.InBatchNegativeLoss()
        )


class Batches(keras.utils.PyDataset):
    def __init__(self, columns, size):
        super().__init__()
        self.columns, self.size = columns, size

    def __len__(self):
        return -(-len(self.columns["user"]) // self.size)

    def __getitem__(self, index):
        part = slice(self.size * index, self.size * (index + 1))
        return {name: column[part] for name, column in self.columns.items()}


def tf_data(columns, size):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(columns).batch(size)


def some(users):
    rows = np.arange(users)
    return {"user": rows.astype("int32"), "age": rows.astype("float32") / 9}


FORMS = {
    "PyDataset": Batches,
    "tf.data": tf_data,
    "iterator": lambda columns, size: iter(list(Batches(columns, size))),
    "full_batches": lambda columns, size: full_batches(
        Batches(columns, size), 5, batched=True
    ),
}


def figures(*arguments, **options):
    evaluation = inbatch_neg.RetrievalEvaluation(
        *arguments, k=(1, 3), verbose=0, **options
    )
    found = evaluation()
    return [found[name] for name in sorted(found)]


def everything(towers):
    """Yields the name and the values of every case."""
    items = np.arange(ITEMS)
    targets = items[:, None].tolist() + [[0, 3], []]
    for users, size in ((1, 4096), (5, 3), (8, 4096), (USERS, 3)):
        arguments = some(users), targets[:users], items
        yield (
            f"arrays of {users} by {size}",
            figures(towers.user, towers.item, *arguments, batch_size=size),
        )
    yield (
        f"list of {users}",
        figures(towers.users, towers.item, *arguments),
    )
    yield (
        f"several of {users}",
        figures(towers.several, towers.item, *arguments, coverage=True),
    )
    for candidates in (1, 10):
        yield (
            f"catalogue of {candidates}",
            figures(
                towers.user,
                towers.item,
                some(5),
                [0] * 5,
                items[:candidates],
                seen=[[], [1], [], [2], [0]],
                similarity="cosine",
            ),
        )
    for name, form in FORMS.items():
        users = 10 if name == "full_batches" else USERS
        yield (
            name,
            figures(
                towers.user,
                towers.item,
                form(some(users), 5),
                targets[:users],
                items,
            ),
        )
    names = np.array([f"item {number}" for number in items])
    evaluation = inbatch_neg.RetrievalEvaluation(
        towers.user,
        towers.item,
        some(5),
        names[:5],
        items,
        candidate_ids=names,
        k=3,
        verbose=0,
    )
    for users in (1, 6):
        scores, ids = evaluation.top_k(some(users), 4)
        assert scores.shape == ids.shape == (users, 4)
        yield f"scores of {users}", scores
        yield f"ids of {users}", [int(one.split()[1]) for one in ids.flat]
    rows = np.arange(TRAINED)
    history = towers.trained.fit(
        [rows % USERS, rows / 9, rows % ITEMS],
        epochs=2,
        batch_size=8,
        shuffle=False,
        verbose=0,
        callbacks=[evaluation],
    )
    assert len(history.history["val_recall@3"]) == 2
    for name, values in history.history.items():
        yield f"fit {name}", values


def main(output, kind):
    """Saves what so many devices find: a test calls it for one."""
    with set_distribution(kind):
        towers = Towers()
    np.savez(output, **{k: np.array(v) for k, v in everything(towers)})


if __name__ == "__main__":
    main(*sys.argv[1:3])
