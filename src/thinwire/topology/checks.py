"""What a mixing matrix must be, and the error that names the first place where it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from thinwire.errors import ConfigError

TOLERANCE = 1e-9
"""How far a sum of float64 weights may be from 1."""


def label(topology: object) -> str:
    """Returns how a message names a topology: its constructor, without most of a long list."""
    text = repr(topology)
    return text if len(text) <= 80 else f"{text[:72]}...)"


def check_rows(
    topology: object, rows: Sequence[dict[int, float]], round: int, symmetric: bool
) -> None:
    """Refuses rows that are not doubly stochastic or, if asked, not symmetric.

    Args:
        topology: whose rows they are, for the message.
        rows: one a worker, rank -> weight.
        round: the round they belong to, for the message.
        symmetric: whether W_ij must equal W_ji.

    Raises:
        ConfigError: naming the row, the column or the pair.
    """
    N, where = len(rows), f"{label(topology)}, N={len(rows)}, round {round}"
    columns: list[list[float]] = [[] for _ in rows]
    for i, row in enumerate(rows):
        for j, weight in row.items():
            if not 0 <= j < N:
                raise ConfigError(f"{where}: rank {i} hears rank {j}; there are 0 to {N - 1}")
            if not weight >= 0:
                raise ConfigError(f"{where}: W[{i}, {j}] is {weight:.6g}; no weight is negative")
            columns[j].append(weight)
        total = math.fsum(row.values())
        if not abs(total - 1) <= TOLERANCE:
            raise ConfigError(
                f"{where}: row {i} sums to {total:.6g}, not to 1, so rank {i} would shrink or "
                "grow what it mixes; a neighbour that is met twice counts once"
            )
    for i, row in enumerate(rows):
        for j, weight in row.items():
            back = rows[j].get(i, 0.0)
            if symmetric and abs(weight - back) > TOLERANCE:
                raise ConfigError(
                    f"{where}: not symmetric: W[{i}, {j}] is {weight:.6g} but W[{j}, {i}] is "
                    f"{back:.6g}; choose an undirected topology, like RingGraph() or Exponential()"
                )
    for j, column in enumerate(columns):
        total = math.fsum(column)
        if not abs(total - 1) <= TOLERANCE:
            raise ConfigError(
                f"{where}: column {j} sums to {total:.6g}, not to 1, so the mean over workers "
                f"would drift {'from' if total < 1 else 'towards'} rank {j}; "
                "weights='metropolis' never does"
            )


def check_connected(topology: object, linked: Sequence[set[int]]) -> None:
    """Refuses links over which some worker never learns of another.

    Args:
        topology: whose links they are, for the message.
        linked: the ranks linked with each rank, in either direction, in any round.

    Raises:
        ConfigError: naming a worker out of reach.
    """
    N = len(linked)
    if N > 1 and not any(linked):
        raise ConfigError(
            f"{label(topology)}: N={N} workers have only self-loops: none hears another; give "
            "edges between ranks"
        )
    reached, ahead = {0}, [0]
    while ahead:
        found = linked[ahead.pop()] - reached
        reached |= found
        ahead.extend(found)
    if len(reached) < N:
        lost = min(set(range(N)) - reached)
        raise ConfigError(
            f"{label(topology)}: not connected: {len(reached)} of {N} workers are within reach of "
            f"rank 0, and rank {lost} is not; add an edge between the two parts"
        )
