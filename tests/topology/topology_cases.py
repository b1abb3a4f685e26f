"""The topologies that the laws run over, and the N each can have."""

from __future__ import annotations

import networkx

from thinwire.errors import ConfigError
from thinwire.topology import TOPOLOGIES, WEIGHTS, Graph, Static, Topology, Torus

SIZES = (1, 2, 3, 4, 5, 8, 13, 16)


def _settings() -> list[Topology]:
    named: list[Topology] = []
    for kind in TOPOLOGIES.values():
        if issubclass(kind, Static):
            named.extend(kind(weights=weights) for weights in WEIGHTS)
        else:
            named.append(kind())
    return [*named, Torus(rows=2), Torus(cols=1, weights="fastest"), Torus(2, 4), Torus(1, 8)]


def _graphs() -> list[tuple[Topology, int]]:
    shapes = [
        networkx.empty_graph(1),
        networkx.path_graph(2),
        networkx.path_graph(5),
        networkx.petersen_graph(),
        networkx.barbell_graph(4, 2),
        networkx.star_graph(7),
        networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(3, 4)),
        networkx.gnp_random_graph(16, 0.4, seed=3),
    ]
    return [(Graph.of(g, weights=w), len(g)) for g in shapes for w in WEIGHTS]


def _possible(topology: Topology, N: int) -> bool:
    try:
        topology.check_workers(N)
    except ConfigError:
        return False
    return True


CASES: list[tuple[Topology, int]] = [
    *((t, N) for t in _settings() for N in SIZES if _possible(t, N)),
    *_graphs(),
]
ROUNDS = range(6)


def identify(case: object) -> str:
    return repr(case)[:48]
