"""Runs as files: JSON lines of what a run did, other loggers beside them, and reading them back.

No torch is imported here, so that the command line answers at once; `measure` needs it.
"""

from thinwire.runs.log import RunLog, Sink
from thinwire.runs.machine import cores, machine, ran_on
from thinwire.runs.read import Run, read_runs
from thinwire.runs.sinks import TensorBoard, WeightsAndBiases

__all__ = [
    "Run",
    "RunLog",
    "Sink",
    "TensorBoard",
    "WeightsAndBiases",
    "cores",
    "machine",
    "ran_on",
    "read_runs",
]
