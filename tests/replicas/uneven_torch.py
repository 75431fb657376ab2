"""Calls the layers with something else on the last process of PyTorch.

Prints a line for each case: its name, the error and its last sentence. A
process that waits for another that has already refused would run into the
timeout, and print that.
"""

import torch

import inbatch_neg

ROWS = 8
SHARED = {"cross_replica": True, "batch_size": "any"}


def vectors(rows):
    return torch.ones((rows, 4))


def ids(rows):
    return torch.arange(rows)


def memory_of_other_arguments(other):
    memory = inbatch_neg.CrossBatchMemory(32)
    memory(vectors(ROWS), training=True)
    given = {"candidate_ids": ids(ROWS)} if other else {}
    memory(vectors(ROWS), training=True, **given)


def softmax(query, candidate, num_negatives=None, **given):
    layer = inbatch_neg.InBatchNegativeSoftmax(num_negatives, **SHARED)
    return layer(query, candidate, training=True, **given)


def batches(rows=24, size=4, source=None, **arguments):
    data = source or torch.arange(rows)
    return inbatch_neg.full_batches(
        data, size, shard="auto", batched=source is not None, **arguments
    )


def generator():
    yield torch.arange(20)


def pairs():
    yield {"a": torch.arange(20), "b": torch.arange(20)}


# Each takes whether this process is the one that differs. What differs would
# be refused there alone, before any communication of the layer.
CASES = {
    "other rows": lambda other: batches(28 if other else 24),
    "too few rows": lambda other: batches(3 if other else 24),
    "another size": lambda other: batches(size=5 if other else 4),
    "other padding": lambda other: batches(
        remainder="pad" if other else "drop"
    ),
    "another seed of a generator": lambda other: batches(
        source=generator, shuffle=True, seed=int(other)
    ),
    "another first epoch": lambda other: batches(first_epoch=int(other)),
    "other columns": lambda other: batches(
        source=pairs, columns=["a", "b"] if other else ["a"]
    ),
    "too few rows to rotate": lambda other: softmax(
        vectors(5 if other else ROWS), vectors(5 if other else ROWS), 11
    ),
    "too few candidates": lambda other: softmax(
        vectors(ROWS), vectors(6 if other else ROWS)
    ),
    "one row": lambda other: softmax(
        vectors(1 if other else ROWS), vectors(1 if other else ROWS)
    ),
    "other dimensions": lambda other: softmax(
        vectors(ROWS), vectors(ROWS)[:, : 3 if other else 4]
    ),
    "another rank": lambda other: softmax(
        vectors(ROWS),
        vectors(ROWS),
        candidate_ids=ids(ROWS)[:, None] if other else ids(ROWS),
    ),
    "a scalar": lambda other: softmax(
        vectors(ROWS),
        vectors(ROWS),
        query_ids=ids(ROWS)[0] if other else ids(ROWS),
    ),
    "no ids": lambda other: softmax(
        vectors(ROWS),
        vectors(ROWS),
        candidate_ids=None if other else ids(ROWS),
    ),
    "float ids": lambda other: softmax(
        vectors(ROWS),
        vectors(ROWS),
        candidate_ids=ids(ROWS).float() if other else ids(ROWS),
    ),
    "memory too small": lambda other: inbatch_neg.CrossBatchMemory(16)(
        vectors(9 if other else ROWS), training=True
    ),
    "memory of other arguments": memory_of_other_arguments,
    "ids to count": lambda other: inbatch_neg.StreamingSamplingProbability(8)(
        ids(6 if other else ROWS), training=True
    ),
    # Of integers that gloo does not send as they are.
    "the same rows": lambda other: print(batches()[1].tolist()),
    "nothing": lambda other: softmax(
        vectors(ROWS), vectors(ROWS), candidate_ids=ids(ROWS).short()
    ),
}


def show(rank, count):
    for name, call in CASES.items():
        try:
            call(rank == count - 1)
        except (ValueError, TypeError, RuntimeError) as error:
            said = str(error).split("Received: ")[-1]
            print(f"{name}: {type(error).__name__}: {said}", flush=True)
        else:
            print(f"{name}: passed", flush=True)
