"""`full_batches`: any data to batches that all are full."""

from inbatch_neg.data.kinds import full_batches

__all__ = ["full_batches"]
