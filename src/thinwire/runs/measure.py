"""Measured: a `round` line for each round of a worker, from the frames it really made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from thinwire.exchange.anchors import Head
from thinwire.host import Bytes
from thinwire.report import RoundReport
from thinwire.runs.log import RunLog
from thinwire.shell import LocalSGD
from thinwire.stats import UP, kind_of
from thinwire.wire.body import Reader
from thinwire.wire.frame import BUFFER_PART, HEADER, Kind, part_of
from thinwire.wire.sections import CLASSES, sections

PAYLOADS = (Kind.SAID.name, Kind.PLEA.name)


class Measured:
    """Writes a line a round: bytes by message class, and norms where they are asked for.

    A line has the `RoundReport`'s fields; `step`, the local steps so far; `header`, `index`,
    `scale` and `value`, the bytes of this worker's messages so far by class, which add up to its
    uplink; `staleness`, where a master or hub answers each worker by itself: how many updates of
    others it had missed when it spoke. With `norms`, `delta_norm` and `residual_norm`.

    Classes cost nothing but for messages with both an index and entropy-coded codes, whose index
    is decoded once more. Norms cost a pass over the parameters before a round and one over the
    residual after it: each about as long as copying d float32, and a vector of memory.

    Args:
        optimizer: the worker's; its `on_round` is called as before.
        log: where the lines go; None to be asked for `line` alone.
        norms: whether to measure ||delta|| and ||residual||.
        step: local steps done, where the run goes on.

    Example:
        >>> import tempfile, thinwire as tw
        >>> from pathlib import Path
        >>> model = torch.nn.Linear(40, 10)
        >>> inner = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> opt = tw.LocalSGD(model, inner, **tw.qsparse_local_sgd(H=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tw.RunLog("mine", 0, {}, Path(folder) / "run.jsonl") as log:
        ...         measured = tw.Measured(opt, log, norms=True)
        ...         _ = model(torch.ones(1, 40)).sum().backward()
        ...         opt.step()
        >>> sum(measured.line[c] for c in ("header", "index", "scale", "value")) == opt.stats.uplink
        True
        >>> measured.line["delta_norm"] > measured.line["residual_norm"] > 0
        True
    """

    def __init__(
        self,
        optimizer: LocalSGD,
        log: RunLog | None = None,
        *,
        norms: bool = False,
        step: int = 0,
    ) -> None:
        self.line: dict[str, Any] = {}
        self.classes: Counter[str] = Counter(dict.fromkeys(CLASSES, 0))
        self.step = step
        self._optimizer, self._log, self._norms = optimizer, log, norms
        self._next, self._delta, self._staleness = optimizer.on_round, 0.0, 0
        optimizer.on_round = self._after
        optimizer.stats.witness = self._saw
        if norms:
            optimizer.before_round = self._before

    def _before(self) -> None:
        anchor = self._optimizer.anchor
        self._delta = norm(self._optimizer.delta(anchor))

    def _saw(self, frame: Bytes, made: bool) -> None:
        kind = kind_of(frame)
        if made and kind in UP:
            self.classes.update(self._sections(frame, kind))
        if not made and kind == Kind.ANCHOR.name:
            head = Head.read(Reader(memoryview(frame)[HEADER:], "reply"))
            self._staleness = head.version - head.since - head.taken

    def _sections(self, frame: Bytes, kind: str) -> dict[str, int]:
        o, part = self._optimizer, part_of(frame)
        told = None
        if kind in PAYLOADS and part != BUFFER_PART:
            told = o.exchange.told(o.compressor, o.spans, o.place[1], part)
        if told is None:
            return {"header": HEADER, "value": len(frame) - HEADER}
        return sections(frame, o.compressor, told)

    def _after(self, report: RoundReport) -> None:
        self.step += report.local_steps
        sent = asdict(report)
        self.line = {"step": self.step, **sent, **self.classes}
        if self._optimizer.exchange.hands_anchor:
            self.line["staleness"] = self._staleness
        if self._norms:
            self.line["delta_norm"] = self._delta
            owed = self._optimizer.residual
            if owed is not None:
                self.line["residual_norm"] = norm(owed)
        if self._log is not None:
            self._log.write("round", **self.line)
        if self._next is not None:
            self._next(report)


def norm(vector: Tensor) -> float:
    """Returns ||vector||, summed in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def consensus_distance(models: Sequence[Tensor]) -> float:
    """Returns how far workers' models are apart: sqrt(mean ||x_i - x||^2) / ||x||, x their mean.

    Costs two passes over all models, which must lie in one process: those of a `LockStep`.

    Args:
        models: (d,) float32 each.

    Example:
        >>> consensus_distance([torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])])
        0.0
    """
    mean = torch.stack(list(models)).double().mean(0)
    apart = sum(norm(x - mean) ** 2 for x in models) / len(models)
    return float(apart**0.5 / max(norm(mean), 1e-300))
