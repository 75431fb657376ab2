"""Runs several checks in one process, since each start imports an engine.

A part is a function that prints what it finds, or writes it to a file. One
that raises is reported, and the next ones run all the same.
"""

import pathlib
import runpy
import sys
import time
import traceback

from tests import internals

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"


def run(parts, names):
    """Runs the named ones of `parts`; `launch.said` reads what they print."""
    # The batches are small, and large ones are to be tested.
    internals.compute_in_chunks_from_now_on()
    for name in names:
        print(f"== {name}", flush=True)
        try:
            parts[name]()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print(f"== {name} failed", flush=True)
        else:
            print(f"== {name} ended", flush=True)


def run_example(name, folder, *arguments):
    """Runs `docs/examples/replicas_<name>.py` as its command line would."""
    before = sys.argv, sys.path
    path = EXAMPLES / f"replicas_{name}.py"
    shared = ("--data", folder, "--folder", folder, "--epochs", 16)
    sys.argv = [str(path), *map(str, (*shared, *arguments))]
    sys.path = [str(EXAMPLES), *sys.path]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv, sys.path = before


def ends_with_an_error(function, *errors):
    """Prints which of `errors` ends a function, and after how long."""
    began = time.monotonic()
    try:
        function()
    except errors as error:
        seconds = time.monotonic() - began
        print(f"after {seconds:.0f} s: {type(error).__name__}: {error}")
    else:
        raise AssertionError("no error")


def wait_for(path, seconds=60):
    """Waits until another process has made a file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)
