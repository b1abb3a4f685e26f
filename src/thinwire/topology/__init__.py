"""Who hears whom in a round, and how much each counts: graphs and mixing matrices."""

from thinwire.topology.base import Row, Topology
from thinwire.topology.changing import OnePeerExponential, RandomMatching
from thinwire.topology.graph import Graph
from thinwire.topology.static import WEIGHTS, Static, Uniform, Weights
from thinwire.topology.structured import Complete, Exponential, Hypercube, RingGraph, Star, Torus

TOPOLOGIES: dict[str, type[Topology]] = {
    "ring": RingGraph,
    "torus": Torus,
    "hypercube": Hypercube,
    "complete": Complete,
    "star": Star,
    "exponential": Exponential,
    "one-peer-exponential": OnePeerExponential,
    "random-matching": RandomMatching,
}
"""The topologies that take any N they can have without further settings, by name."""

__all__ = [
    "TOPOLOGIES",
    "WEIGHTS",
    "Complete",
    "Exponential",
    "Graph",
    "Hypercube",
    "OnePeerExponential",
    "RandomMatching",
    "RingGraph",
    "Row",
    "Star",
    "Static",
    "Topology",
    "Torus",
    "Uniform",
    "Weights",
]
