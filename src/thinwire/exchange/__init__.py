"""Conversations: who says what to whom, and what each then still owes. One file, one exchange."""

from thinwire.exchange.allreduce import AllReduce
from thinwire.exchange.asynchronous import Asynchronous
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.choco import Choco
from thinwire.exchange.d_psgd import DPSGD
from thinwire.exchange.deep_squeeze import DeepSqueeze
from thinwire.exchange.edge_gossip import EdgeGossip
from thinwire.exchange.feedback import Feedback, NoFeedback
from thinwire.exchange.gather import Gather
from thinwire.exchange.gossip import Gossip
from thinwire.exchange.hub import Hub
from thinwire.exchange.hub_rules import (
    ByWeight,
    Exact,
    FixedN,
    LiveCount,
    PerWorker,
    Staleness,
    Stream,
)
from thinwire.exchange.marsit import Marsit
from thinwire.exchange.ring import Ring
from thinwire.exchange.server import Server

__all__ = [
    "DPSGD",
    "AllReduce",
    "Asynchronous",
    "ByWeight",
    "Choco",
    "DeepSqueeze",
    "EdgeGossip",
    "Exact",
    "Exchange",
    "Feedback",
    "FixedN",
    "Gather",
    "Gossip",
    "Here",
    "Hub",
    "LiveCount",
    "Marsit",
    "Memory",
    "NoFeedback",
    "PerWorker",
    "Ring",
    "Server",
    "Staleness",
    "Stream",
    "Talk",
]
