"""The faults of `faults.py` fit the tree: see there how to run them."""

import re

import pytest

from tests import faults

pytestmark = pytest.mark.once


def test_names():
    names = [fault.name for fault in faults.FAULTS]
    assert len(set(names)) == len(names) >= 30


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_the_text_is_there_once_and_its_tests_exist(fault):
    assert faults.occurrences(fault) == 1
    assert fault.old != fault.new
    for test in fault.tests:
        file, name = re.match(r"(.*)::(\w+)", test).groups()
        text = (faults.ROOT / "tests" / file).read_text()
        assert f"def {name}(" in text, test
