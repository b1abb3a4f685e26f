"""The symmetric weights that mix a given graph fastest, to a certified distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thinwire.topology.base import Matrix

MOST_FASTEST = 64
"""Workers up to which the weights are solved for."""

MOST_EDGES = 1024
"""Edges up to which they are: a Newton step is O(edges^3), about ten seconds in all here."""

DISTANCE = 1e-4
"""How far |lambda_2| may be from the optimum."""

GRID = 1 << 20


def fastest(N: int, edges: Sequence[tuple[int, int]]) -> list[float]:
    """Returns the edge weights w that make |lambda_2| of W = I - sum_l w_l a_l a_l^T smallest.

    Minimize s with -sI <= W - J <= sI, w >= 0 and no worker's weights above 1, by Newton steps
    along the central path of the logarithmic barrier

        phi = t s - log det(sI - M) - log det(sI + M) - sum log w - sum log r,   M = W - J,

    where r is what each worker's edges leave to itself. At t its point is at most
    (2N + edges + N)/t from the optimum. That point is unique, so that ranks find the same one
    whatever their linear algebra library: over shuffled ranks and edges, it moved by less than
    1e-11. Weights are rounded down to a grid of 2^-20, which drops that, and makes rows sum to 1
    exactly.

    Args:
        N: workers, at most 64.
        edges: pairs of distinct ranks that connect all workers.

    Source: Boyd, Diaconis, Xiao, "Fastest mixing Markov chain on a graph" (2004).
    Differs: they go down a subgradient, which stalls near 1e-2 and, where eigenvalues coincide,
        depends on the eigenvectors that the library happens to return.
    """
    A = np.zeros((len(edges), N))  # a_l = e_i - e_j
    for number, (i, j) in enumerate(edges):
        A[number, i], A[number, j] = 1.0, -1.0
    touches = np.abs(A)
    degree = touches.sum(0)
    s, w = 1.0, 1 / (1 + np.maximum(*(degree[list(ends)] for ends in zip(*edges, strict=True))))
    t, t_end = 1.0, (3 * N + len(edges)) / DISTANCE
    while True:
        s, w = _center(s, w, t, A, touches)
        if t >= t_end:
            return [float(v) for v in np.floor(w * GRID) / GRID]
        t = min(8 * t, t_end)


def _center(s: float, w: Matrix, t: float, A: Matrix, touches: Matrix) -> tuple[float, Matrix]:
    E, N = A.shape
    for _ in range(100):
        M = _spread(w, A)
        P, Q = (np.linalg.inv(s * np.eye(N) + sign * M) for sign in (-1, 1))
        r = 1 - w @ touches
        AP, AQ = A @ P, A @ Q
        down = np.empty(1 + E)
        down[0] = t - np.trace(P) - np.trace(Q)
        down[1:] = ((AQ - AP) * A).sum(1) - 1 / w + touches @ (1 / r)
        H = np.empty((1 + E, 1 + E))
        H[0, 0] = (P * P).sum() + (Q * Q).sum()
        H[0, 1:] = H[1:, 0] = (AP * AP).sum(1) - (AQ * AQ).sum(1)
        H[1:, 1:] = (AP @ A.T) ** 2 + (AQ @ A.T) ** 2 + (touches / r**2) @ touches.T
        H[1:, 1:] += np.diag(1 / w**2)
        step = -np.linalg.solve(H, down)
        decrement = float(-down @ step)
        if decrement < 1e-12:
            break
        # Damped Newton: inside the domain for sure, and full where the decrement is small.
        size = 1.0 if decrement < 0.0625 else 1 / (1 + decrement**0.5)
        s, w = s + size * float(step[0]), w + size * step[1:]
    return s, w


def _spread(w: Matrix, A: Matrix) -> Matrix:
    N = A.shape[1]
    return np.asarray(np.eye(N) - (A.T * w) @ A - 1 / N)
