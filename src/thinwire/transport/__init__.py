"""Ways to move frames between ranks; none knows a tensor, a round or an algorithm."""

from thinwire.transport.alone import Alone
from thinwire.transport.base import Answer, Ask, Post, Reduce, Take, Transport, Turn
from thinwire.transport.distributed import DistributedTransport

__all__ = [
    "Alone",
    "Answer",
    "Ask",
    "DistributedTransport",
    "Post",
    "Reduce",
    "Take",
    "Transport",
    "Turn",
]
