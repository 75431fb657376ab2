"""The loss as a share of small training steps on PyTorch.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.torch_steps

A step of Keras' `fit`, and of a plain loop with PyTorch's modules and Adam,
with towers of as many ids as MovieLens-100K has, alone and with two dense
layers. Milliseconds, the least of 60.
"""

import os
import time

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch

import inbatch_neg

USERS, ITEMS, REPEATS, TEMPERATURE = 943, 1682, 60, 0.2


def keras_tower(count, dense):
    layers = [keras.layers.Embedding(count, 64)]
    if dense:
        layers.append(keras.layers.Dense(128, activation="relu"))
        layers.append(keras.layers.Dense(64))
    return keras.Sequential([*layers, keras.layers.UnitNormalization()])


def torch_tower(count, dense):
    layers = [torch.nn.Embedding(count, 64)]
    if dense:
        layers.append(torch.nn.Linear(64, 128))
        layers += [torch.nn.ReLU(), torch.nn.Linear(128, 64)]
    return torch.nn.Sequential(*layers)


def unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1)


def ours(query, item):
    return inbatch_neg.ops.in_batch_softmax_loss(
        query, item, temperature=TEMPERATURE
    ).mean()


def plain(query, item):
    labels = torch.arange(len(query))
    scores = query @ item.T / TEMPERATURE
    return torch.nn.functional.cross_entropy(scores, labels)


def least(step):
    """Returns milliseconds."""
    times = []
    for _ in range(3 + REPEATS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[3:])


def measure(rows, dense):
    random = np.random.default_rng(0)
    ids = [random.integers(0, count, rows) for count in (USERS, ITEMS)]
    softmax = inbatch_neg.InBatchNegativeSoftmax(temperature=TEMPERATURE)
    symbols = [keras.Input((), dtype="int32") for _ in ids]
    vectors = [
        keras_tower(count, dense)(symbol)
        for count, symbol in zip((USERS, ITEMS), symbols)
    ]
    model = keras.Model(symbols, softmax(*vectors))
    model.compile("adam", loss=inbatch_neg.InBatchNegativeLoss())
    found = {"fit": least(lambda: model.train_on_batch(ids, np.zeros(rows)))}

    towers = [torch_tower(count, dense) for count in (USERS, ITEMS)]
    weights = [w for tower in towers for w in tower.parameters()]
    optimizer = torch.optim.Adam(weights, 1e-3)
    batch = [torch.tensor(one) for one in ids]

    def embedded():
        return [unit(tower(one)) for tower, one in zip(towers, batch)]

    def loop(loss):
        optimizer.zero_grad()
        loss(*embedded()).backward()
        optimizer.step()

    query, item = (v.detach().requires_grad_() for v in embedded())

    def layer(query, item):
        return softmax(query, item, training=True).mean()

    for loss in (ours, plain):
        found[f"loop, {loss.__name__}"] = least(lambda loss=loss: loop(loss))
    for loss in (layer, ours, plain):
        found[loss.__name__] = least(
            lambda loss=loss: torch.autograd.grad(
                loss(query, item), [query, item]
            )
        )
    return found


if __name__ == "__main__":
    for dense in (False, True):
        for rows in (64, 256, 1024):
            found = measure(rows, dense)
            kind = "dense" if dense else "ids"
            print(f"{kind}, B = {rows}:", end=" ")
            print(", ".join(f"{k} {v:.2f}" for k, v in found.items()))
