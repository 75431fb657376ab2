"""PyTorch: `torch.distributed` with gloo."""

import pytest

from tests.replicas import launch

ENGINE = "torch"


def train(folder, number):
    """Starts `number` processes that train together."""
    (port,) = launch.free_ports(1)
    return [
        launch.start(
            "run_torch.py",
            folder / f"{rank}.npz",
            rank,
            number,
            port,
            engine=ENGINE,
            log=folder / f"{rank}.log",
        )
        for rank in range(number)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with the global batch."""
    folder = tmp_path_factory.mktemp("alone")
    launch.finish(train(folder, 1))
    return folder / "0.npz"


@pytest.mark.parametrize("number", [2, 4])
def test_processes_equal_one_process(alone, tmp_path, number):
    launch.finish(train(tmp_path, number))
    for rank in range(number):
        launch.assert_equal_results(alone, tmp_path / f"{rank}.npz")
