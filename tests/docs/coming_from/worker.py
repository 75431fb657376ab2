"""Compares with one library in this process, and prints JSON.

    python -m tests.docs.coming_from.worker tfrs

The parent process, `__main__.py`, sets the environment that it needs.
"""

import importlib
import json
import sys

import numpy as np

from tests.docs.coming_from import pages


def main(page):
    """Prints a list of what, theirs and ours."""
    module = page.replace("-", "_")
    peer = importlib.import_module(f"tests.docs.coming_from.{module}")
    rows = [
        (
            "the losses of the page's code",
            pages.losses(page, pages.BEFORE),
            pages.losses(page, pages.AFTER),
        )
    ]
    rows += peer.comparisons()
    for what, theirs, ours in rows:
        theirs, ours = (
            np.asarray(v, "float64").tolist() for v in (theirs, ours)
        )
        print(json.dumps({"what": what, "theirs": theirs, "ours": ours}))


if __name__ == "__main__":
    main(sys.argv[1])
