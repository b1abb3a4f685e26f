"""A group of one: frames go to oneself and come back."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from thinwire.host import Bytes
from thinwire.transport.base import Turn


class Alone:
    """Answers a single worker's asks, so that the same program runs without a group."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._own: deque[Bytes] = deque()

    def turn(self, turn: Turn) -> list[Bytes]:
        """Returns what was posted to oneself."""
        self._own.extend(post.frame for post in turn.posts)
        return [self._own.popleft() for _ in turn.takes]

    def reduce(self, vector: Tensor) -> Tensor:
        """Returns the vector: it is the whole sum."""
        return vector.clone()

    def flush(self) -> None:
        """Does nothing: what is posted to oneself has arrived."""
