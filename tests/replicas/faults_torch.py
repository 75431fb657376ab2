"""Trains on PyTorch while something goes wrong."""

import os
import signal

import keras
import torch

import inbatch_neg
from tests.replicas import problem

CASE = "rotation"
STEPS = 6


def train(folder, rank, count, event="nothing"):
    """Trains, and saves every step: goes on from the last one saved.

    Args:
        folder: Of the checkpoint.
        rank: The index of this process.
        count: The number of processes.
        event: "nothing", "unequal" (the last process has two rows less in step
            2), "more" (the last process has a batch less) or "kill" (the last
            process is killed in step 3).
    """
    keras.utils.clear_session()  # the names of layers are in `state_dict`
    folder.mkdir(exist_ok=True)
    towers = problem.model(CASE, cross_replica=count > 1)
    towers.built = True
    module = towers
    optimizer = torch.optim.SGD(towers.parameters(), lr=problem.LEARNING_RATE)
    saved, first = folder / "saved.pt", 0
    if saved.exists():
        state = torch.load(saved)
        first = state["step"]
        towers.load_state_dict(state["towers"])
        optimizer.load_state_dict(state["optimizer"])
    if count > 1:
        module = torch.nn.parallel.DistributedDataParallel(towers)
    loss_of = inbatch_neg.InBatchNegativeLoss()
    batches = problem.batches_from(first, count)
    losses = []
    last = STEPS - (event == "more" and rank == count - 1)
    for step, batch in zip(range(first, last), batches):
        unequal = event == "unequal" and rank == count - 1 and step == 2
        end = -2 if unequal else None
        batch = {k: torch.as_tensor(v[:end]) for k, v in batch.items()}
        loss = loss_of(None, module(batch, training=True))
        if event == "kill" and rank == count - 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if rank == 0:
            state = {
                "step": step + 1,
                "towers": towers.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, folder / "new.pt")
            os.replace(folder / "new.pt", saved)
    print("steps", first, STEPS, flush=True)
    return problem.result(towers, losses=[1.0])
