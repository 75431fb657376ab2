"""Negatives from every process, on PyTorch with a loop of one's own.

    python replicas_towers.py  # writes the rows
    torchrun --nproc-per-node 2 replicas_torch.py

Each process uses its own GPU if there are enough, else the CPU. If one process
dies, `torchrun` ends the others. Start it again, and training goes on after the
last complete epoch.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras  # noqa: E402
import torch  # noqa: E402
from replicas_towers import (  # noqa: E402
    GLOBAL_BATCH,
    LEARNING_RATE,
    batches,
    options,
    read,
    report,
    towers,
)
from torch import distributed  # noqa: E402

import inbatch_neg  # noqa: E402


def train(module, optimizer, rows):
    """Trains for an epoch; returns the mean loss of all processes."""
    mean = inbatch_neg.InBatchNegativeLoss()
    losses = []
    for batch in rows:
        loss = mean(None, module(batch, training=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    loss = torch.stack(losses).mean()
    distributed.all_reduce(loss)
    return float(loss) / distributed.get_world_size()


def main():
    """Trains, and prints what was learned."""
    given = options()
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    if rank == 0:
        print(f"{count} processes with {GLOBAL_BATCH // count} rows each")

    split = read(given.data)
    keras.utils.set_random_seed(0)
    device = f"cuda:{local_rank}" if on_gpu else "cpu"
    with keras.device(device):
        model = towers(split)
        # Gives everyone the first process' weights, and averages gradients.
        module = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
        saved, first = given.folder / "checkpoint.pt", 0
        if saved.exists():
            state = torch.load(saved, map_location=device)
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["epochs"]
        # Every process reads its own part of each global batch.
        rows = batches(given.folder, count, first_epoch=first)
        for epoch in range(first, given.epochs):
            loss = train(module, optimizer, rows)
            if rank == 0:
                print(f"epoch {epoch + 1}: loss {loss:.4f}", flush=True)
                state = {
                    "module": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epochs": epoch + 1,
                }
                # Never half a file, whenever the process dies.
                torch.save(state, saved.with_suffix(".new"))
                saved.with_suffix(".new").replace(saved)
        if rank == 0:  # the others wait for it
            report(model, split)
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
