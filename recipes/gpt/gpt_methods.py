"""The methods that are compared, and the settings each is tuned over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import thinwire as tw

Grid = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Method:
    """One method with its settings; every one steps AdamW locally.

    Args:
        kind: "ddp", "diloco", "sparseloco", "qsparse" or "qprsgd".
        H: local steps per round.
        lr: AdamW's peak.
        density: kept fraction, where messages are sparse.
        decay: what a round leaves of the residual.
        outer_lr: of the outer step.
        momentum: of the outer step, Nesterov's.
        dense: first steps taken with the exact mean gradient, at 4 d bytes each.
    """

    kind: str
    H: int = 1
    lr: float = 3e-3
    density: float = 1.0
    decay: float = 1.0
    outer_lr: float = 1.0
    momentum: float = 0.0
    dense: int = 0

    @property
    def name(self) -> str:
        """What a reader sees."""
        said = {"ddp": "DDP", "diloco": "DiLoCo", "sparseloco": "SparseLoCo", "qsparse": "Qsparse"}
        name = said.get(self.kind, "QPRSGD")
        if self.kind == "ddp":
            return name
        kept = f" {100 * self.density:g} %" if self.density < 1 else ""
        return f"{name}{kept}, H={self.H}"

    @property
    def preset(self) -> tw.Preset:
        """The arguments of `LocalSGD`."""
        plain = (self.outer_lr, self.momentum) == (1.0, 0.0)
        outer = tw.Average() if plain else tw.Nesterov(self.outer_lr, self.momentum)
        compressor, exchange = self.says
        return tw.Preset(H=self.H, compressor=compressor, exchange=exchange, outer=outer)

    @property
    def says(self) -> tuple[tw.Compressor, tw.Exchange]:
        """What is said of a pseudo-gradient, and to whom."""
        if self.kind in ("ddp", "diloco"):
            return tw.Identity(), tw.Gather(tw.NoFeedback())
        if self.kind == "sparseloco":
            # Chunks of 4096 and two bits a value, as it has them.
            kept = tw.TopK(density=self.density, scope="chunk")
            return kept >> tw.TwoLevel(), tw.Gather(tw.Feedback(self.decay))
        if self.kind == "qsparse":
            return tw.TopK(density=self.density) >> tw.Sign(), tw.Server(tw.Feedback(self.decay))
        ring = tw.qprsgd_ring(H=self.H)
        return ring["compressor"], ring["exchange"]


METHODS = {
    "ddp": Method("ddp"),
    "diloco-h4": Method("diloco", H=4, outer_lr=0.7, momentum=0.6),
    "diloco-h15": Method("diloco", H=15, outer_lr=0.7, momentum=0.9),
    "sparseloco-h4": Method("sparseloco", H=4, density=0.03, decay=0.95),
    "sparseloco-h15": Method("sparseloco", H=15, density=0.03, decay=0.95),
    "qsparse-h4": Method("qsparse", H=4, density=0.03),
    "qsparse-h15": Method("qsparse", H=15, density=0.03),
    "qsparse-h4-wide": Method("qsparse", H=4, lr=4e-3, density=0.125, decay=0.95, dense=2),
    "qprsgd-h5": Method("qprsgd", H=5),
}
"""What is compared, as it stands before it is tuned. The wide one is not: it is what tuning chose
where it might say a hundredth of DDP's bytes, 12.5 % of entries among its choices."""

_LR = (2e-3, 4e-3, 8e-3)
GRIDS: dict[str, Grid] = {
    "ddp": {"lr": (1e-3, 2e-3, 4e-3, 8e-3)},
    "diloco": {"lr": _LR, "outer_lr": (0.7, 1.0), "momentum": (0.0, 0.6, 0.9)},
    "sparseloco": {
        "lr": _LR, "density": (0.03, 0.0625), "decay": (0.9, 0.95, 1.0), "outer_lr": (0.8, 1.0),
        "dense": (0, 1),
    },
    "qsparse": {
        "lr": _LR, "density": (0.03, 0.0625), "decay": (0.95, 1.0), "outer_lr": (0.8, 1.0),
        "dense": (0, 1),
    },
    "qprsgd": {"lr": _LR},
}  # fmt: skip
"""Levers by kind: tuning goes through them in this order, keeping the best so far (one seed).

Any of them leaves 200 times fewer bytes than DDP's, and so 50 times fewer than DiLoCo's at H = 4; a
dense step of 1220 is 1 / 1220 of DDP's.
"""


def grid(name: str) -> Grid:
    """Returns the levers of a method."""
    return {} if name.endswith("-wide") else GRIDS[METHODS[name].kind]


def variants(method: Method, lever: str) -> list[Method]:
    """Returns the method at each value of one lever.

    Example:
        >>> [m.lr for m in variants(METHODS["ddp"], "lr")]
        [0.001, 0.002, 0.004, 0.008]
    """
    values = GRIDS[method.kind][lever]
    return [replace(method, **{lever: v}) for v in values]  # type: ignore[arg-type]
