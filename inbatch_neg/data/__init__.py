"""`full_batches`: data of any kind in batches that are all full."""

from inbatch_neg.data.full_batches import full_batches

__all__ = ["full_batches"]
