"""Negatives from every process, on PyTorch with a loop of one's own.

    torchrun --nproc-per-node 2 replicas_torch.py

Each process uses its own GPU if there are enough, else the CPU.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from replicas_towers import (  # noqa: E402
    EPOCHS,
    GLOBAL_BATCH,
    ITEMS,
    Towers,
    pairs,
    report,
)
from torch import distributed  # noqa: E402

import inbatch_neg  # noqa: E402


def evaluate(towers):
    """Prints the recall on pairs of the same users, which were held out."""
    held_out = pairs(2_000, seed=1)
    evaluation = inbatch_neg.RetrievalEvaluation(
        keras.Sequential([towers.users, towers.unit_length]),
        keras.Sequential([towers.items, towers.unit_length]),
        held_out["user"],
        held_out["item"],
        np.arange(ITEMS),
        k=10,
    )
    print({name: round(value, 3) for name, value in evaluation().items()})


def main():
    """Trains, and prints what was learned."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    if rank == 0:
        print(f"{count} processes with {GLOBAL_BATCH // count} rows each")

    # Every process reads its own part of each global batch.
    batches = inbatch_neg.full_batches(
        pairs(), GLOBAL_BATCH // count, shuffle=True, seed=0, shard="auto"
    )
    device = f"cuda:{local_rank}" if on_gpu else "cpu"
    keras.utils.set_random_seed(0)
    with keras.device(device):
        towers = Towers()
        # Keras makes the weights in the first call: every process with all
        # others, since it gathers their candidates too.
        towers(batches[0])
        # Gives everyone the first process' weights, and averages gradients.
        module = torch.nn.parallel.DistributedDataParallel(towers)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        mean = inbatch_neg.InBatchNegativeLoss()
        for epoch in range(EPOCHS):
            losses = []
            for batch in batches:
                loss = mean(None, module(batch, training=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            loss = torch.stack(losses).mean()
            distributed.all_reduce(loss)
            if rank == 0:
                print(f"epoch {epoch + 1}: loss {float(loss) / count:.4f}")
        if rank == 0:  # the towers alone do not communicate
            report(towers)
            evaluate(towers)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
