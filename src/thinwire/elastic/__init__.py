"""Rounds over torchft: workers may die, return and join, and nothing is lost or counted twice."""

from thinwire.elastic.lighthouse import Lighthouse
from thinwire.elastic.member import Mean
from thinwire.elastic.quorum import Quorum
from thinwire.elastic.rounds import Elastic

__all__ = ["Elastic", "Lighthouse", "Mean", "Quorum"]
