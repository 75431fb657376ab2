"""Of the engines' tests, those of the backend that Keras runs on."""

import keras

_WANTED = keras.backend.backend()


def pytest_collection_modifyitems(config, items):
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
