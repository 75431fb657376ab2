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
    Towers,
    pairs,
    report,
)
from torch import distributed  # noqa: E402

import inbatch_neg  # noqa: E402


def own_batches(data, epoch, rank, count):
    """Yields this process' rows of the global batches of an epoch."""
    rows = len(data["user"])
    # The same order everywhere, so that no row comes twice in an epoch.
    order = np.random.default_rng(epoch).permutation(rows)
    local = GLOBAL_BATCH // count
    for start in range(0, rows - GLOBAL_BATCH + 1, GLOBAL_BATCH):
        own = order[start + rank * local : start + (rank + 1) * local]
        yield {name: torch.as_tensor(x[own]) for name, x in data.items()}


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

    data = pairs()
    device = f"cuda:{local_rank}" if on_gpu else "cpu"
    keras.utils.set_random_seed(0)
    with keras.device(device):
        towers = Towers()
        # Keras makes the weights in the first call: every process with all
        # others, since it gathers their candidates too.
        towers(next(own_batches(data, 0, rank, count)))
        # Gives everyone the first process' weights, and averages gradients.
        module = torch.nn.parallel.DistributedDataParallel(towers)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        mean = inbatch_neg.InBatchNegativeLoss()
        for epoch in range(EPOCHS):
            losses = []
            for batch in own_batches(data, epoch, rank, count):
                loss = mean(None, module(batch, training=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            loss = torch.stack(losses).mean()
            distributed.all_reduce(loss)
            if rank == 0:
                print(f"epoch {epoch + 1}: loss {float(loss) / count:.4f}")
    if rank == 0:
        report(towers)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
