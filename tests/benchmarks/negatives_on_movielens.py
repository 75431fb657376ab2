"""What the estimator and the memory do to recall on MovieLens-100K.

    python -m tests.benchmarks.negatives_on_movielens [NAME ...]

Trains the recipe of `docs/examples/movielens.py` (which finds the data) with
other probabilities, and with a memory; three seeds each, the epoch chosen on
the validation items, results on the test items.
"""

import argparse
import pathlib
import sys

import keras
import numpy as np

import inbatch_neg

_EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"


def softmax(pairs, **candidates):
    layer = inbatch_neg.InBatchNegativeSoftmax(temperature=0.2)
    return layer(pairs.user, query_ids=pairs.user_id, **candidates)


def uncorrected(pairs):
    return softmax(pairs, candidate=pairs.item, candidate_ids=pairs.item_id)


def exact(pairs):
    return softmax(
        pairs,
        candidate=pairs.item,
        candidate_ids=pairs.item_id,
        candidate_sampling_probability=pairs.probability,
    )


def estimated(buckets, **options):
    def losses(pairs):
        layer = inbatch_neg.StreamingSamplingProbability(buckets, **options)
        return exact(pairs._replace(probability=layer(pairs.item_id)))

    return losses


def remembered(capacity, warmup_steps):
    def losses(pairs):
        memory = inbatch_neg.CrossBatchMemory(
            capacity, warmup_steps=warmup_steps
        )
        return softmax(
            pairs,
            **memory(
                pairs.item,
                candidate_ids=pairs.item_id,
                candidate_sampling_probability=pairs.probability,
            ),
        )

    return losses


# Name: rows of a batch, losses. An epoch has 96 steps of 1024, 383 of 256.
SETTINGS = {
    "uncorrected": (1024, uncorrected),
    "exact": (1024, exact),
    "estimated": (1024, estimated(10_000, num_hashes=4)),
    "estimated-1": (1024, estimated(10_000)),
    "estimated-small": (1024, estimated(2_048, num_hashes=4)),
    "memory": (1024, remembered(4_096, 96)),
    "memory-1": (1024, remembered(1_024, 96)),
    "small": (256, exact),
    "small-memory": (256, remembered(768, 383)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--examples", default=_EXAMPLES)
    parser.add_argument("--data", help="folder with u.data")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    sys.path.insert(0, str(options.examples))
    import movielens

    split = movielens.split_last_two(movielens.load_ratings(options.data))
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    print("name, rows: epochs; Recall@10 by seed, mean; NDCG@10 by seed, mean")
    for name in options.names or SETTINGS:
        rows, losses = SETTINGS[name]
        recipe = movielens.Recipe(name, losses)
        found = []
        for seed in range(options.seeds):
            result = movielens.train(recipe, split, batch_size=rows, seed=seed)
            best = result.best_epoch
            found.append((best + 1, *result.test[best]))
        epochs, recall, ndcg = np.array(found).T
        print(
            f"{name}, {rows}: {epochs.astype(int).tolist()}; "
            f"{recall.round(3).tolist()}, {recall.mean():.4f}; "
            f"{ndcg.round(3).tolist()}, {ndcg.mean():.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
