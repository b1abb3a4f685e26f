"""The first paper's convex experiments as a list: every operator, every H, both clocks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256

from thinwire.cli.mnist_setting import D, K, Setting

STEP_SIZES = (0.3, 0.75, 1.0, 1.5)
TOPK_KS = (10, 20, 80, 160)
HS = (1, 2, 4, 8)
VALUES = {"exact": "TopK", "scaled": "QTopK scaled", "unscaled": "QTopK unscaled",
          "sign": "SignTopK"}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """One row of the tables: a name and the setting it stands for, but for step size and seed."""

    name: str
    setting: Setting


def _scheme(values: str, H: int, own: bool = False) -> Scheme:
    preset = "qsparse_async" if own else "qsparse_local_sgd"
    gaps = f"gaps in [1, {H}]" if own else f"H={H}"
    return Scheme(f"{VALUES[values]}, {gaps}", Setting(preset=preset, values=values, H=H))


SGD, TOPK = "SGD", "TopK, H=1"
SYNCHRONOUS = [
    Scheme(SGD, Setting(preset="vanilla", H=1)),
    *(Scheme(f"Local SGD, H={H}", Setting(preset="local_sgd", H=H)) for H in HS[1:]),
    *(Scheme(f"EF-Sign, H={H}", Setting(preset="ef_sign_sgd", H=H)) for H in HS),
    *(_scheme(values, H) for values in VALUES for H in HS),
]
ASYNCHRONOUS = [_scheme(values, H, own=True) for values in VALUES for H in HS[1:]]
LONGER = [_scheme("sign", H) for H in (16, 32)] + [_scheme("sign", 32, own=True)]
OTHER_K = [Scheme(f"TopK k={k}, H=1", Setting(preset="topk_sgd", H=1, k=k)) for k in TOPK_KS]
WITHOUT = [Scheme("SignTopK, H=4, no feedback", Setting(H=4, feedback=False))]
SCHEMES = [*SYNCHRONOUS, *ASYNCHRONOUS, *LONGER, *OTHER_K, *WITHOUT]

FIGURES: dict[str, tuple[str, ...]] = {
    "operators": (SGD, "EF-Sign, H=1", *(f"{name}, H=1" for name in VALUES.values())),
    "local-steps-signtopk": (SGD, TOPK, *(f"SignTopK, H={H}" for H in HS)),
    "local-steps-topk": (SGD, *(f"TopK, H={H}" for H in HS)),
    "local-steps-qtopk": (SGD, TOPK, *(f"QTopK scaled, H={H}" for H in HS)),
    "asynchronous": (
        TOPK,
        *(f"SignTopK, {gaps}" for H in HS[1:] for gaps in (f"H={H}", f"gaps in [1, {H}]")),
    ),
    "feedback": (SGD, "SignTopK, H=4", "SignTopK, H=4, no feedback"),
}
"""Which schemes stand together in a figure, all at the one shared step size."""
DRAWN = [s for s in SCHEMES if any(s.name in names for names in FIGURES.values())]
"""Schemes of any figure: there their runs go on to the last step."""


Protocol = Callable[[Scheme], list[Setting]]


def protocol_a(scheme: Scheme) -> list[Setting]:
    """One shared step size: c = 0.3 with a = d H / k at H = 8, for every scheme."""
    return [replace(scheme.setting, step_size=0.3, step_decay=8 * D / K)]


def protocol_b(scheme: Scheme) -> list[Setting]:
    """Every scheme's own best c, and its own a = d H / k."""
    a = scheme.setting.H * D / K
    return [replace(scheme.setting, step_size=c, step_decay=a) for c in STEP_SIZES]


def runs_of(
    protocol: Protocol, schemes: Sequence[Scheme], seeds: range, steps: int
) -> Iterator[tuple[str, Setting]]:
    """Yields each run of a protocol with its scheme's name; it gives up after so many steps."""
    for scheme in schemes:
        for setting in protocol(scheme):
            for seed in seeds:
                yield scheme.name, replace(setting, seed=seed, max_steps=steps)


def file_of(setting: Setting) -> str:
    """Returns the name of a run's log, which its settings decide."""
    said = json.dumps(asdict(setting), sort_keys=True)
    return f"{setting.preset}-H{setting.H}-{sha256(said.encode()).hexdigest()[:12]}.jsonl"
