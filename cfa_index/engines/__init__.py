"""Where the work of a run is done; an engine is passed functions and knows nothing of images."""

from cfa_index.engines.workers import Lost, Workers

__all__ = ["Lost", "Workers"]
