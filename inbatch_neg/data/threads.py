"""Runs code in a thread of Python's own."""

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any


def in_python_thread(function: Callable[[], Any]) -> Any:
    """Returns `function()`, called in a thread that Python started.

    tf.data reads in a thread that Python did not start. A process that is
    forked there ends with exit code 1, since `threading` finds no main thread.
    The thread of an executor does not do either: the process would wait for
    it at its exit.
    """
    result: futures.Future = futures.Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result.result()
