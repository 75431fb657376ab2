"""Trains on PyTorch while something goes wrong.

Arguments: folder, rank, number of processes, port, what happens:
"nothing", "unequal" (the last process has two rows less in step 2) or "kill"
(the last process is killed in step 3). Every step is saved, and training goes
on from the last one saved, with the rows of the epoch that comes. Ends with 3
after `PartialBatchError`, with 4 after an error of the engine.
"""

import os
import pathlib
import signal
import sys

import torch

import inbatch_neg
from tests.replicas import groups, problem

CASE = "rotation"
STEPS = 6
ENGINE_TIMEOUT = 20


def train(folder, rank, count, event):
    towers = problem.model(CASE, cross_replica=count > 1)
    towers.built = True
    module = towers
    optimizer = torch.optim.SGD(towers.parameters(), lr=0.5)
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
    for step, batch in zip(range(first, STEPS), batches):
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


def main(folder, rank, count, port, event):
    folder, rank, count = pathlib.Path(folder), int(rank), int(count)
    torch.set_num_threads(1)
    if count > 1:
        groups.join(rank, count, port, timeout=ENGINE_TIMEOUT)
    try:
        result = train(folder, rank, count, event)
    except inbatch_neg.PartialBatchError as error:
        print(error, flush=True)
        os._exit(3)
    except RuntimeError as error:
        print(error, flush=True)
        os._exit(4)
    problem.save(folder / f"{rank}.npz", {CASE: result})


if __name__ == "__main__":
    main(*sys.argv[1:])
