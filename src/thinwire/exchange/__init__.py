"""Conversations: who says what to whom, and what each then still owes. One file, one exchange."""

from thinwire.exchange.allreduce import AllReduce
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.feedback import Feedback, NoFeedback
from thinwire.exchange.gather import Gather
from thinwire.exchange.server import Server

__all__ = [
    "AllReduce",
    "Exchange",
    "Feedback",
    "Gather",
    "Here",
    "Memory",
    "NoFeedback",
    "Server",
    "Talk",
]
