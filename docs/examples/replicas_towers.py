"""The rows and the towers of `replicas_{jax,tensorflow,torch,workers}.py`.

    pip install "inbatch_neg[examples,parquet]"
    python replicas_towers.py

The command writes the training rows of MovieLens-100K to
`replicas/pairs.parquet`. Each process trains on its own part of them. The
recall on the test items is that of one process with the same global batch.
"""

import argparse
import pathlib

import keras
from keras import ops

import inbatch_neg

GLOBAL_BATCH = 1024
DIMENSIONS = 64
LEARNING_RATE = 1e-2


def options(**more):
    """Returns the arguments of the command line.

    Args:
        more: {name: default} of further integers.
    """
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--folder", type=pathlib.Path, default="replicas", help="of all files")
    add("--data", help="folder with u.data (else MovieLens-100K is loaded)")
    add("--epochs", type=int, default=8)
    for name, default in more.items():
        add(f"--{name}", type=int, default=default)
    return parser.parse_args()


def read(data):
    """Returns the `Split` of the ratings in a folder, None: MovieLens-100K."""
    from movielens_data import load_ratings, split_last_two

    return split_last_two(load_ratings(data))


def batches(folder, count, first_epoch=0, shard="auto"):
    """Returns this process's part of the global batches.

    Args:
        folder: With the rows.
        count: The number of replicas that share a global batch.
        first_epoch: Where their order begins, as in `full_batches`.
        shard: The part of this process, as in `full_batches`.
    """
    return inbatch_neg.full_batches(
        str(folder / "pairs.parquet"),
        GLOBAL_BATCH // count,
        shuffle=True,
        seed=0,  # the same in every process
        first_epoch=first_epoch,
        shard=shard,
    )


def towers(split):
    """Returns the model from a batch of pairs to its losses."""
    user_id = keras.Input((), dtype="int32", name="user")
    item_id = keras.Input((), dtype="int32", name="item")
    user = keras.layers.Embedding(split.num_users, DIMENSIONS, name="users")
    item = keras.layers.Embedding(split.num_items, DIMENSIONS, name="items")
    probability = inbatch_neg.StreamingSamplingProbability(10_000, num_hashes=4)
    # Everyone's candidates.
    softmax = inbatch_neg.InBatchNegativeSoftmax(
        temperature=0.2, cross_replica=True
    )
    losses = softmax(
        keras.layers.UnitNormalization()(user(user_id)),
        keras.layers.UnitNormalization()(item(item_id)),
        candidate_ids=item_id,
        query_ids=user_id,
        candidate_sampling_probability=probability(item_id),
    )
    return keras.Model({"user": user_id, "item": item_id}, losses)


def report(model, split):
    """Prints how well the towers find the test items. It sends nothing."""
    user, item = (
        ops.convert_to_numpy(ops.normalize(model.get_layer(name).embeddings))
        for name in ("users", "items")
    )
    had = [[*a, b] for a, b in zip(split.seen, split.validation)]
    found = inbatch_neg.RetrievalEvaluation(
        None, None, user, split.test, item, seen=had, k=10
    )()
    print(
        f"recall@10 {found['recall@10']:.3f}, ndcg@10 {found['ndcg@10']:.3f}, "
        f"by chance {10 / split.num_items:.3f}",
        flush=True,
    )


def main():
    """Writes the rows to train on."""
    import pandas

    given = options()
    split = read(given.data)
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "pairs.parquet"
    rows = {"user": split.users, "item": split.items}
    pandas.DataFrame(rows).to_parquet(path, row_group_size=8192)
    print(f"{len(split.users):,} rows in {path}")


if __name__ == "__main__":
    main()
