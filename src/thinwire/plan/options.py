"""Options: the methods that a plan compares, and what is known of what each costs in quality."""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.compress import QSGD, Identity, TopK
from thinwire.exchange import AllReduce, Feedback, Gather
from thinwire.outer import Average
from thinwire.presets import (
    Preset,
    choco_sgd,
    ef_sign_sgd,
    qprsgd_gossip,
    qprsgd_ring,
    qsparse_local_sgd,
    topk_sgd,
    vanilla,
)

MLP = "bench/RESULTS-mnist_mlp.md"
CONVEX = "recipes/mnist/RESULTS.md"
NOTHING = "not measured here"


@dataclass(frozen=True)
class Option:
    """One line of a plan's table.

    Args:
        name: as the table says it.
        code: that makes it, with H to be filled in where the method has a choice of it.
        preset: the method.
        quality: what is known of what it costs in quality, and where from.
    """

    name: str
    code: str
    preset: Preset
    quality: str

    @property
    def chooses_H(self) -> bool:
        """Whether its code takes an H; else the method takes one step a round."""
        return "{H}" in self.code


def options() -> tuple[Option, ...]:
    """Returns the methods that a plan compares."""
    four = TopK(density=0.01) >> QSGD(bits=4)
    everywhere = Preset(H=8, compressor=Identity(), exchange=AllReduce(), outer=Average())
    return (
        Option("vanilla, all-reduce", "tw.vanilla(delegate=True)", vanilla(True), "the baseline"),
        Option(
            "local SGD, all-reduce",
            "H={H}, exchange=tw.AllReduce()",
            everywhere,
            "digits MLP, H = 8: as vanilla (README)",
        ),
        Option("TopK-SGD 1 %", "tw.topk_sgd()", topk_sgd(), "digits MLP: as vanilla (README)"),
        Option("EF-SignSGD", "tw.ef_sign_sgd()", ef_sign_sgd(), NOTHING),
        Option(
            "SignTopK 1 %, server",
            "tw.qsparse_local_sgd(H={H})",
            qsparse_local_sgd(),
            f"MNIST softmax, H = 8: 2.2 times the steps of SGD to 10 % error ({CONVEX})",
        ),
        Option(
            "SignTopK 1 %, gather",
            "tw.qsparse_local_sgd(H={H}, exchange=tw.Gather())",
            qsparse_local_sgd(exchange=Gather(Feedback())),
            "as with a server, to the last bit",
        ),
        Option(
            "TopK 1 % 4 bit, gather",
            "tw.qsparse_local_sgd(H={H}, compressor=tw.TopK(density=0.01) >> tw.QSGD(bits=4), "
            "exchange=tw.Gather())",
            qsparse_local_sgd(compressor=four, exchange=Gather(Feedback())),
            "digits MLP, H = 8: as vanilla (README)",
        ),
        Option(
            "8-bit ring",
            "tw.qprsgd_ring(H={H})",
            qprsgd_ring(),
            f"MNIST MLP, H = 5: as vanilla, 0.3 points behind on sorted labels ({MLP})",
        ),
        Option(
            "8-bit gossip, ring",
            "tw.qprsgd_gossip(H={H})",
            qprsgd_gossip(),
            f"MNIST MLP, H = 5: as vanilla, 1.7 points behind on sorted labels ({MLP})",
        ),
        Option("CHOCO TopK 10 %", "tw.choco_sgd(H={H})", choco_sgd(), NOTHING),
    )
