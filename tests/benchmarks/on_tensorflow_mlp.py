"""A whole step with perceptrons as towers; see `whole_step.py`."""

from tests.benchmarks import whole_step

_CONTENDERS = whole_step.Contenders(
    whole_step.perceptrons, users=100_000, items=50_000
)
ours = _CONTENDERS.ours
ours_xla = _CONTENDERS.ours_xla
tfrs = _CONTENDERS.tfrs
keras_rs = _CONTENDERS.keras_rs
