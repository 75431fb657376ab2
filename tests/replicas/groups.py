"""How a program of this folder becomes several replicas.

No engine is imported before it is asked for.
"""

import datetime


def mirrored(devices):
    """Returns a `MirroredStrategy` of logical CPU devices."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * devices
    )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(devices)]
    )


def join(rank, count, port, timeout=60):
    """Joins PyTorch's processes on this machine; `timeout` in seconds."""
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=timeout),
    )
    assert distributed.get_world_size() == count
