"""Whether an update is what the hub awaits now; one reason for each way it may not be."""

from __future__ import annotations

from dataclasses import replace

from isal.isal_zlib import crc32
from torch import Tensor

from thinwire import kernels
from thinwire.errors import FrameError
from thinwire.exchange.base import Here
from thinwire.exchange.hear import listen
from thinwire.exchange.hub import decoded, largest
from thinwire.hub.refused import Refused, Why
from thinwire.hub.said import Said
from thinwire.hub.state import Member
from thinwire.wire.frame import CHECKED, HEADER, Address, Kind, address_of, checked_head


def awaited(said: Said, member: Member, run: int, version: int) -> int | None:
    """Returns the CRC-32 of a whole frame that is that member's next, or None for any other.

    Args:
        said: what arrived.
        member: who sent it.
        run: of this hub.
        version: of this hub's model.
    """
    start, n = said.frame[:HEADER], len(said.frame) - HEADER
    if n < 0 or said.base > version:
        return None
    head = checked_head(Kind.SAID, run, member.sequence, member.number, 0, n)
    if start[:CHECKED] != head:
        return None
    join = kernels.active().join_crc
    if join(crc32(head), said.check, n).to_bytes(4, "little") != start[CHECKED:]:
        return None
    return join(crc32(start), said.check, n)


def judge(
    frame: bytes, base: int, member: Member, name: str, run: int, version: int
) -> tuple[int, int]:
    """Returns (sequence number, CRC-32) of a frame that comes from that member in its turn.

    Args:
        frame: what arrived.
        base: the version it says it begins from.
        member: who sent it.
        name: of that worker.
        run: of this hub.
        version: of this hub's model.

    Raises:
        Refused: it is of another run, replayed, too early, or no frame.
    """
    try:
        at = address_of(frame)
    except FrameError as error:
        raise Refused(Why.FRAME, f"worker {name!r} sent no frame: {error}") from None
    where = f"update {at.round} of worker {name!r}"
    if at.run != run:
        raise Refused(
            Why.RUN, f"{where} is of run {at.run:#010x}; this hub is run {run:#010x}. Join again"
        )
    if at.rank != member.number or at.part:
        raise Refused(Why.ORDER, f"{where} is signed by worker number {at.rank}, part {at.part}")
    sequence, check = at.round, crc32(frame)
    if sequence > member.sequence:
        raise Refused(
            Why.ORDER, f"{where}: update {member.sequence} has not come, so this is too early"
        )
    again = sequence == member.sequence - 1 and check == member.check
    if sequence < member.sequence and not again:
        raise Refused(
            Why.REPLAY,
            f"{where} was applied before, with other content; the next is {member.sequence}",
        )
    if base > version:
        raise Refused(Why.ORDER, f"{where} begins from version {base}; the hub is at {version}")
    return sequence, check


def read_step(
    frame: bytes, where: Address, divisor: float, here: Here
) -> tuple[Tensor | None, Tensor, float]:
    """Returns (index, said / divisor, its largest magnitude) of a finite update.

    Args:
        frame: a SAID.
        where: whose it is.
        divisor: what it is divided by.
        here: the agreed operator, tensors and seed.

    Raises:
        Refused: its bytes are no such message, or hold a NaN or an infinity.
    """
    try:
        if frame[3] == Kind.ALARM:
            _, tensor = listen(frame, where.rank, replace(here, round=where.round))
            raise Refused(
                Why.NONFINITE,
                f"update {where.round} of worker number {where.rank} holds a NaN or an infinity "
                f"in tensor {tensor!r}; look at that worker's data and learning rate",
            )
        index, step = decoded(frame, where, divisor, here)
    except FrameError as error:
        why = Why.NONFINITE if "NaN" in str(error) or "finite" in str(error) else Why.FRAME
        raise Refused(why, f"{error}; nothing of it was applied") from None
    return index, step, largest(step)


def infinite(member: Member) -> Refused:
    """Returns the refusal of an update that would make the model infinite."""
    return Refused(
        Why.NONFINITE,
        f"update {member.sequence} of worker number {member.number} makes the model infinite; "
        "nothing of it was applied. Lower the learning rate",
    )
