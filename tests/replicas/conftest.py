"""What the tests of all engines share."""

import pytest

from tests.replicas import launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The place of all results, and the ratings that the examples read."""
    folder = tmp_path_factory.mktemp("replicas")
    launch.write_ratings(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """What one device finds, with the global batch."""
    return launch.results_alone(folder)
