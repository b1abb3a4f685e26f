"""Ways to move frames between ranks; none knows a tensor, a round or an algorithm."""

from thinwire.transport.alone import Alone
from thinwire.transport.base import Answer, Ask, Post, Reduce, Take, Transport, Turn
from thinwire.transport.distributed import DistributedTransport
from thinwire.transport.paced import Paced, PacedTransport

__all__ = [
    "Alone",
    "Answer",
    "Ask",
    "DistributedTransport",
    "Paced",
    "PacedTransport",
    "Post",
    "Reduce",
    "Take",
    "Transport",
    "Turn",
]
