"""Snapshots: what a run needs to go on, one file a rank, and the agreement on which to take up."""

from thinwire.snapshots.draws import Draws
from thinwire.snapshots.keeper import Resumed, Snapshots

__all__ = ["Draws", "Resumed", "Snapshots"]
