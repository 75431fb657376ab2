"""What one of two processes of PyTorch does, with gloo.

Arguments: folder for the results, and the names of parts (see `PARTS`). The
process has the variables that `torchrun` sets.
"""

import contextlib
import datetime
import os
import pathlib
import sys

import numpy as np
import torch
from torch import distributed

import inbatch_neg
from tests.replicas import columns, faults_torch, parts, problem, uneven_torch

FOLDER = pathlib.Path(sys.argv[1])
RANK, COUNT = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def group(part, timeout=60):
    """The process group of a part; some parts break theirs."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{FOLDER}/group of {part}".replace(" ", "_"),
        rank=RANK,
        world_size=COUNT,
        timeout=datetime.timedelta(seconds=timeout),
    )
    assert distributed.get_world_size() == COUNT
    try:
        yield
    finally:
        distributed.destroy_process_group()


def loop(case):
    """Plain SGD on this process' rows of every global batch."""
    towers = problem.model(case, cross_replica=True)
    towers.built = True  # Every layer of it is.
    np.random.seed(RANK)
    arguments = problem.fit_arguments(case)
    rows, weight = arguments[0], arguments[2:]
    module = torch.nn.parallel.DistributedDataParallel(towers)
    loss_of = inbatch_neg.InBatchNegativeLoss()
    optimizer = torch.optim.SGD(towers.parameters(), lr=problem.LEARNING_RATE)
    local = problem.GLOBAL_ROWS // COUNT
    losses = []
    for step in range(problem.STEPS):
        start = step * problem.GLOBAL_ROWS + RANK * local
        batch = {
            name: torch.as_tensor(value[start : start + local])
            for name, value in rows.items()
        }
        output = module(batch, training=True)
        loss = loss_of(
            None, output, *(w[start : start + local] for w in weight)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reported = loss.detach()
        distributed.all_reduce(reported)
        losses.append(float(reported) / COUNT)
    return problem.result(towers, losses)


def fit():
    """Trains every case."""
    with group("fit"):
        results = {case: loop(case) for case in problem.CASES}
    problem.save(FOLDER / f"fit{RANK}.npz", results)


def show_columns():
    with group("show_columns"):
        found = columns.on_torch(RANK, COUNT)
    np.savez(FOLDER / f"columns{RANK}.npz", **found)


def uneven():
    with group("uneven", 20):
        uneven_torch.show(RANK, COUNT)
        distributed.barrier()


def faulty(event):
    """Trains until something goes wrong."""
    return faults_torch.train(FOLDER / event, RANK, COUNT, event)


def unequal():
    """Has other rows in one process, while it trains."""
    with group("unequal", 20):
        try:
            faulty("unequal")
        except inbatch_neg.PartialBatchError as error:
            print(error)


def ends_with_an_error(function):
    """Prints the error of the engine, and how long it took."""
    parts.ends_with_an_error(function, RuntimeError)


def waits(name, first, last):
    """Process 0 waits for the last one, which lives, until the timeout.

    Args:
        name: Of the case.
        first: What process 0 does.
        last: What the last process does.
    """
    with group(name, 6):
        done = FOLDER / f"{name} ended"
        if RANK:
            last()
            parts.wait_for(done)
        else:
            ends_with_an_error(first)
            done.touch()


def nothing():
    """Does not do what the other process does."""


def refused(call):
    """Calls what raises an error in this process alone."""
    try:
        call()
    except (TypeError, ValueError, AttributeError) as error:
        print(f"alone: {type(error).__name__}")
    else:
        raise AssertionError("no error")


def full_batches(data):
    return inbatch_neg.full_batches(data, 4, shard="auto")


def count_ids(ids):
    estimate = inbatch_neg.StreamingSamplingProbability(64)
    return estimate(ids, training=True)


def look_up_and_count(ids):
    estimate = inbatch_neg.StreamingSamplingProbability(64)
    estimate(ids, training=False)  # in which no process waits
    return estimate(ids, training=True)


def killed():
    """The last process is killed; the other one ends with 4."""
    with group("killed", 20):
        ends_with_an_error(lambda: faulty("kill"))
        sys.stdout.flush()
        os._exit(4)


def resumed():
    """Goes on where `killed` ended."""
    with group("resumed"):
        result = faults_torch.train(FOLDER / "kill", RANK, COUNT)
    problem.save(FOLDER / f"resumed{RANK}.npz", {"resumed": result})


PARTS = {
    "fit": fit,
    "columns": show_columns,
    "uneven": uneven,
    "unequal": unequal,
    "more batches": lambda: waits(
        "more batches", lambda: faulty("more"), lambda: faulty("more")
    ),
    "no full_batches": lambda: waits(
        "no full_batches", lambda: full_batches(np.arange(24)), nothing
    ),
    "unreadable data": lambda: waits(
        "unreadable data",
        lambda: full_batches(np.arange(24)),
        lambda: refused(lambda: full_batches(5)),
    ),
    "unreadable input": lambda: waits(
        "unreadable input",
        lambda: count_ids(torch.arange(4)),
        lambda: refused(lambda: count_ids(None)),
    ),
    "unreadable in inference": lambda: waits(
        "unreadable in inference",
        lambda: look_up_and_count(torch.arange(4)),
        lambda: refused(lambda: look_up_and_count(None)),
    ),
    "a layer alone": lambda: waits(
        "a layer alone", lambda: count_ids(torch.arange(4)), nothing
    ),
    "killed": killed,
    "resumed": resumed,
    "example": lambda: parts.run_example("torch", FOLDER),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    parts.run(PARTS, sys.argv[2:])
