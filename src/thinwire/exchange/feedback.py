"""Error feedback: what is said of u = delta + residual, and what is still owed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Codes, Compressor, Payload
from thinwire.errors import ConfigError
from thinwire.exchange.base import Here, Memory
from thinwire.flat import ALL, Spans, Vector
from thinwire.host import Bytes
from thinwire.kernels import Owed
from thinwire.value import Value, in_range, one_of
from thinwire.wire.body import in_pieces
from thinwire.wire.frame import HEADER, Kind

ALARM_BODY = 4


@dataclass(frozen=True)
class Saying:
    """One worker's message of one round, said but not yet answered.

    Args:
        frame: the bytes: a SAID, or an ALARM where u is not finite.
        payload: what the frame says; None where it is an ALARM.
        u: (d,) float32, what it was said of; None where feedback is off.
    """

    frame: Bytes
    payload: Payload | None = None
    u: Tensor | None = None

    def residual(self, here: Here) -> Tensor | None:
        """Returns m = u - said, what is still owed, in u's place: once. None without feedback.

        Nobody waits for it: the frame may be on its way before.
        """
        if self.u is not None and self.payload is not None:
            here.compressor.remove(self.u, self.payload)
        return self.u


@dataclass(frozen=True, repr=False)
class Feedback(Value):
    """Error feedback: what was not said is remembered and said later.

    u = delta + decay m; m' = u - C(u). It needs a contraction; without feedback the operator must
    be unbiased, since nothing makes up for what it leaves out.

    Args:
        decay: what is kept of the residual from one round to the next; the rest is forgotten.
        permit: "any" lets the operator be no contraction: feedback may then diverge.

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1, lines 8 to 10.
    Differs: decay (SparseLoCo, arXiv 2508.15706); the paper's is 1.
    """

    decay: float = 1.0
    permit: Literal["contraction", "any"] = "contraction"

    def __post_init__(self) -> None:
        in_range(self, "decay", self.decay, 0.0, 1.0)
        one_of(self, "permit", self.permit, ("contraction", "any"))

    def owed(self, delta: Vector, mem: Memory, at: slice = ALL) -> Tensor:
        """Returns u = delta + decay m, what is not yet said, there, as a vector of its own."""
        moved, m = delta[at], mem["residual"][at]
        kept = m if self.decay == 1 else m * host.float_(self.decay)
        return torch.add(moved, kept, out=host.like(m))


@dataclass(frozen=True, repr=False)
class NoFeedback(Value):
    """No memory: what was not said is lost, so the operator must be unbiased.

    Args:
        permit: "biased" lets it be biased, as experiments on error feedback need.
    """

    permit: Literal["unbiased", "biased"] = "unbiased"

    def __post_init__(self) -> None:
        one_of(self, "permit", self.permit, ("unbiased", "biased"))

    def owed(self, delta: Vector, mem: Memory, at: slice = ALL) -> Tensor:
        """Returns u = delta there: nothing else is remembered."""
        return delta[at]


def check_feedback(
    feedback: Feedback | NoFeedback, compressor: Compressor, spans: Spans, whose: str
) -> None:
    """Raises a ConfigError where feedback and operator would drift or diverge together."""
    if isinstance(feedback, NoFeedback):
        if compressor.biased and feedback.permit == "unbiased":
            raise ConfigError(
                f"{whose}: {compressor!r} is biased and feedback is off, so what it leaves out is "
                "lost for good. Turn feedback on (Feedback()), choose an unbiased operator "
                "(scale='none', RandK(rescale=True)), or ask for it: NoFeedback(permit='biased')"
            )
    elif compressor.contraction(spans) <= 0 and feedback.permit == "contraction":
        raise ConfigError(
            f"{whose}: {compressor!r} is no contraction over these tensors, so its residual may "
            "grow without bound. Use scale='fit' or 'beta', more levels or a smaller bucket, turn "
            "feedback off (NoFeedback()), or ask for it: Feedback(permit='any')"
        )


def said_bound(here: Here) -> int:
    """Returns the most bytes a worker's frame can have."""
    return HEADER + max(ALARM_BODY, here.compressor.nbytes(here.spans))


def say(delta: Vector, mem: Memory, here: Here, feedback: Feedback | NoFeedback) -> Saying:
    """Returns this worker's message: u = delta + m, say C(u); then m = u - said.

    Args:
        delta: (d,) float32.
        mem: holds "residual" where feedback is on.
        here: where this worker stands.
        feedback: whether and how the residual is kept.
    """
    u = feedback.owed(delta, mem)
    saying = say_owed(u, here)
    if saying.payload is None or isinstance(feedback, NoFeedback):
        return saying
    return replace(saying, u=u)


def say_owed(u: Tensor | Owed, here: Here) -> Saying:
    """Returns the message that says C(u), or the alarm that u is not finite; u is left alone.

    Args:
        u: (d,) float32, or what it is formed of.
        here: where this worker stands.
    """
    C = here.compressor
    broken = -1
    if not C.sparsifier.sees_nonfinite:
        u = kernels.active(here.device).owe(u) if isinstance(u, Owed) else u
        broken = kernels.active(here.device).first_nonfinite(u, here.spans.starts)
    kept = C.keep(u, here.key, here.spans) if broken < 0 else None
    payload = None
    if kept is not None and (C.sparsifier.sees_nonfinite or kept.values is not u):
        broken = first_broken(kept.index, kept.values, here)
    if kept is not None and broken < 0:
        payload = C.payload_of(kept)
        broken = broken_by_saying(payload, kept.values, here)
    if broken >= 0 or payload is None:
        return alarm(broken, here)
    return Saying(here.seal(Kind.SAID, *in_pieces(payload, C)), payload)


def broken_by_saying(payload: Payload, kept: Tensor, here: Here) -> int:
    """Returns the tensor of the first value that is not finite as it is said, -1 where all are.

    Finite values may be no more when they are rotated or rescaled.

    Args:
        payload: what is said.
        kept: (n,) float32, the finite values it says.
        here: where this worker stands.
    """
    C, said = here.compressor, payload.values
    if said is kept:
        return -1
    steps = C.quantizer.steps(said, payload.layout) if isinstance(said, Codes) else None
    if steps is not None and len(steps.lows):
        # What codes stand for lies between the first and the last: no need to look at each.
        ends = torch.stack([steps.lows, steps.lows + C.quantizer.top * steps.steps])
        if float(ends.abs().max()) < host.LARGEST:
            return -1
    return first_broken(payload.index, C.values(payload), here)


def first_broken(index: Tensor | None, values: Tensor, here: Here) -> int:
    """Returns the tensor of the first value that is not finite, -1 where all are.

    Args:
        index: (n,) int64 ascending positions, or None for every entry.
        values: (n,) float32.
        here: where this worker stands.
    """
    starts = here.spans.starts
    if index is not None:
        starts = host.bring(torch.searchsorted(index, host.send(starts, index.device)))
    return kernels.active(values.device).first_nonfinite(values, starts)


def alarm(tensor: int, here: Here) -> Saying:
    """Returns what is said in a message's place: that tensor is not finite."""
    return Saying(here.seal(Kind.ALARM, tensor.to_bytes(ALARM_BODY, "little")))


def first_residual(feedback: Feedback | NoFeedback, here: Here) -> Memory:
    """Returns the memory of a worker that owes nothing yet."""
    return {"residual": here.zeros()} if isinstance(feedback, Feedback) else {}


def keep(mem: Memory, residual: Tensor | None) -> Memory:
    """Returns the memory with the new residual in the old one's place."""
    return mem if residual is None else {**mem, "residual": residual}
