"""Where the work of a run is done; an engine is passed functions and knows nothing of images."""

from cfa_index.engines.ray import Payload, each_on_ray, run_on_ray
from cfa_index.engines.ray_cluster import RayCluster
from cfa_index.engines.workers import Lost, Workers

__all__ = ["Lost", "Payload", "RayCluster", "Workers", "each_on_ray", "run_on_ray"]
