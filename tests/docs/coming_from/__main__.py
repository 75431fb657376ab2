"""The command line: `python -m tests.docs.coming_from --help`."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np

from tests.docs.coming_from import pages

TOLERANCE = 1e-5

# The backend, and the modules of each page's library.
_PEERS = {
    "tfrs": ("tensorflow", ("tensorflow_recommenders", "tf_keras")),
    "keras-rs": ("tensorflow", ("keras_rs",)),
    "sentence-transformers": ("torch", ("sentence_transformers",)),
    "pytorch-metric-learning": ("torch", ("pytorch_metric_learning",)),
    "deepmatch": ("tensorflow", ("deepmatch", "deepctr", "tf_keras")),
    "pasted-code": ("tensorflow", ()),
}
_ON_KERAS_2 = ("tfrs", "deepmatch")


def main():
    """Compares, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.docs.coming_from",
        description="Compares the losses of docs/coming-from with those of "
        "the other libraries.",
    )
    parser.add_argument("page", nargs="*", help=", ".join(_PEERS))
    wanted = parser.parse_args().page or list(_PEERS)
    if not set(wanted) <= set(_PEERS):
        parser.error(f"the pages are {', '.join(_PEERS)}")
    _require_installed(wanted)
    different = sum([_compare(page) for page in wanted])
    print(
        f"\n{different} of the comparisons differ." if different else "\nEqual."
    )
    return 1 if different else 0


def _require_installed(wanted):
    missing = [
        module
        for page in wanted
        for module in _PEERS[page][1]
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise SystemExit(
            f"Not installed: {', '.join(missing)}. "
            'pip install -e ".[benchmark,torch]"'
        )


def _compare(page):
    """Prints the comparisons of a page; returns how many differ."""
    environment = {**os.environ, "KERAS_BACKEND": _PEERS[page][0]}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    if page in _ON_KERAS_2:
        environment["TF_USE_LEGACY_KERAS"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.coming_from.worker", page],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{page}: exit code {done.returncode}")
    print(f"\n{page}", flush=True)
    found = [
        json.loads(line)
        for line in done.stdout.splitlines()
        if line.startswith("{")
    ]
    stated = {
        "what": "the losses that the page gives, to its digits",
        "theirs": np.round(found[0]["theirs"], 4).tolist(),
        "ours": pages.stated_losses(page),
    }
    return sum([_differs(**row) for row in [*found, stated]])


def _differs(what, theirs, ours):
    theirs, ours = np.array(theirs), np.array(ours)
    equal = theirs.shape == ours.shape and np.allclose(
        theirs, ours, rtol=TOLERANCE, atol=0
    )
    print(f"  {'equal' if equal else 'DIFFERS'}: {what}", flush=True)
    if not equal:
        print(f"    theirs {theirs}\n    ours   {ours}", flush=True)
    return not equal


if __name__ == "__main__":
    sys.exit(main())
