"""thinwire: training over thin wires. H local steps, then what was learned in few bits.

Start with `LocalSGD` and a preset; read `thinwire.round` to see how it works.
"""

from thinwire.compress import (
    QSGD,
    Compressor,
    Identity,
    Levels,
    RandK,
    Rotated,
    Sign,
    Ternary,
    TopK,
)
from thinwire.errors import (
    ConfigError,
    DivergedError,
    FrameError,
    NonFiniteError,
    PeerLost,
    RoundTimeout,
    ThinwireError,
    TransportError,
)
from thinwire.exchange import AllReduce, Exchange, Feedback, Gather, NoFeedback, Server
from thinwire.keys import Key
from thinwire.outer import Average, Nesterov, Outer
from thinwire.presets import (
    PRESETS,
    Preset,
    ef_sign_sgd,
    local_sgd,
    qsparse_local_sgd,
    topk_sgd,
    vanilla,
)
from thinwire.shell import LocalSGD, RoundReport, Seat
from thinwire.simulate import LockStep
from thinwire.version import __version__

__all__ = [
    "PRESETS",
    "QSGD",
    "AllReduce",
    "Average",
    "Compressor",
    "ConfigError",
    "DivergedError",
    "Exchange",
    "Feedback",
    "FrameError",
    "Gather",
    "Identity",
    "Key",
    "Levels",
    "LocalSGD",
    "LockStep",
    "Nesterov",
    "NoFeedback",
    "NonFiniteError",
    "Outer",
    "PeerLost",
    "Preset",
    "RandK",
    "Rotated",
    "RoundReport",
    "RoundTimeout",
    "Seat",
    "Server",
    "Sign",
    "Ternary",
    "ThinwireError",
    "TopK",
    "TransportError",
    "__version__",
    "ef_sign_sgd",
    "local_sgd",
    "qsparse_local_sgd",
    "topk_sgd",
    "vanilla",
]
