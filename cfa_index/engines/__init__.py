"""Where batches run. An engine is passed functions; it knows nothing of images or models."""

from cfa_index.engines.local import run_shards

__all__ = ["run_shards"]
