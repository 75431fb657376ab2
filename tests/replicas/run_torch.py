"""Trains every case on PyTorch: alone, or as one process of several.

Arguments: output file, rank, number of processes, port.
"""

import sys

import keras
import numpy as np
import torch
from torch import distributed

import inbatch_neg
from tests.replicas import groups, problem

LEARNING_RATE = 0.5


def loop(towers, case, rank, count):
    """Plain SGD on this process' rows of every global batch."""
    arguments = problem.fit_arguments(case)
    rows, weight = arguments[0], arguments[2:]
    module = towers
    if count > 1:
        module = torch.nn.parallel.DistributedDataParallel(towers)
    loss_of = inbatch_neg.InBatchNegativeLoss()
    optimizer = torch.optim.SGD(towers.parameters(), lr=LEARNING_RATE)
    local = problem.GLOBAL_ROWS // count
    losses = []
    for step in range(problem.STEPS):
        start = step * problem.GLOBAL_ROWS + rank * local
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
        if count > 1:
            distributed.all_reduce(reported)
        losses.append(float(reported) / count)
    return losses


def main(output, rank, count, port):
    rank, count = int(rank), int(count)
    torch.set_num_threads(1)
    keras.config.disable_traceback_filtering()
    if count > 1:
        groups.join(rank, count, port)
    results = {}
    for case in problem.CASES:
        if case == "sparse":  # refused
            continue
        towers = problem.model(case, cross_replica=count > 1)
        towers.built = True  # Every layer of it is.
        np.random.seed(rank)
        losses = loop(towers, case, rank, count)
        results[case] = problem.result(towers, losses)
    problem.save(output, results)
    if count > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
