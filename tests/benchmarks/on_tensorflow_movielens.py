"""A whole step with embeddings of MovieLens-100K's size; `whole_step.py`."""

from tests.benchmarks import whole_step

_CONTENDERS = whole_step.Contenders(
    whole_step.embeddings, users=943, items=1_682
)
ours = _CONTENDERS.ours
ours_xla = _CONTENDERS.ours_xla
tfrs = _CONTENDERS.tfrs
keras_rs = _CONTENDERS.keras_rs
