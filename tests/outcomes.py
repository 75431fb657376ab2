"""Compares what the tests did on the backends, by their JUnit files.

    python -m tests.outcomes tensorflow.xml jax.xml torch.xml

Fails if a backend has not seen the tests of another one, or if no backend has
run a test: it would have vanished behind its own marker.
"""

import pathlib
import sys
import xml.etree.ElementTree


def read(path):
    """Returns {test: whether it ran} of one backend."""
    root = xml.etree.ElementTree.parse(path).getroot()
    return {
        f"{case.get('classname')}::{case.get('name')}": (
            case.find("skipped") is None
        )
        for case in root.iter("testcase")
    }


def problems(by_backend):
    """Returns a line for each test that is missing or was run by nobody.

    Args:
        by_backend: {backend: {test: whether it ran}}.
    """
    everything = sorted(set().union(*by_backend.values()))
    found = []
    for test in everything:
        missing = [name for name, ran in by_backend.items() if test not in ran]
        if missing:
            found.append(f"{test}: not collected on {', '.join(missing)}")
        elif not any(ran[test] for ran in by_backend.values()):
            found.append(f"{test}: skipped everywhere")
    return found


def main(*paths):
    by_backend = {pathlib.Path(path).stem: read(path) for path in paths}
    for name, ran in by_backend.items():
        print(f"{name}: {len(ran)} tests, {sum(ran.values())} of them ran")
    found = problems(by_backend)
    if not any(by_backend.values()):
        found.append("no tests at all")
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
