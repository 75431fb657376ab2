"""Under one backend, the tests of that engine; with none named, all."""

import os

_WANTED = os.environ.get("KERAS_BACKEND")


def pytest_collection_modifyitems(config, items):
    if not _WANTED:
        return
    engines = ("tensorflow", "jax", "torch")
    away = [
        item
        for item in items
        if item.path.parent.name == "replicas"
        and any(engine in item.path.name for engine in engines)
        and _WANTED not in item.path.name
    ]
    if away:
        config.hook.pytest_deselected(items=away)
        items[:] = [item for item in items if item not in away]
