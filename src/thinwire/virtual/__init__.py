"""Virtual time: the same rounds over modelled links, by 1 to 10,000 workers of one process."""

from thinwire.virtual.compute import Busy, Compute, Cores
from thinwire.virtual.engine import Program, VirtualTime
from thinwire.virtual.fast import speak_fast
from thinwire.virtual.programs import speaks, trains
from thinwire.virtual.run import Method, check_frames, run_sizes, run_training
from thinwire.virtual.sizes import Sizes
from thinwire.virtual.spoken import Spoken
from thinwire.virtual.talks import Place, sized_round
from thinwire.virtual.timeline import Timeline

__all__ = [
    "Busy",
    "Compute",
    "Cores",
    "Method",
    "Place",
    "Program",
    "Sizes",
    "Spoken",
    "Timeline",
    "VirtualTime",
    "check_frames",
    "run_sizes",
    "run_training",
    "sized_round",
    "speak_fast",
    "speaks",
    "trains",
]
