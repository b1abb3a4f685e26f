"""Why a hub refuses, one reason each, in a sentence a person understands."""

from __future__ import annotations

from enum import Enum

from thinwire.errors import ThinwireError

LONGEST = 500
"""Characters of a sentence that leave the hub: its caller may have chosen some of them."""


class Why(Enum):
    """The reasons; each is one gRPC status code on the wire."""

    VERSION = "UNIMPLEMENTED"
    """The caller speaks another protocol version."""
    TOKEN = "UNAUTHENTICATED"
    """No token, or a wrong one."""
    CERTIFICATE = "PERMISSION_DENIED"
    """Its certificate is sound, but of nobody who may enter."""
    SETTINGS = "INVALID_ARGUMENT"
    """It asks for other settings than the hub's."""
    MODEL = "FAILED_PRECONDITION"
    """Its tensors are not the hub's."""
    RUN = "NOT_FOUND"
    """A frame of another run."""
    REPLAY = "ALREADY_EXISTS"
    """A sequence number that was applied before, with other content."""
    NONFINITE = "OUT_OF_RANGE"
    """A NaN or an infinity."""
    FRAME = "DATA_LOSS"
    """Bytes that are no frame: truncated, altered, or of the wrong kind."""
    ORDER = "ABORTED"
    """A message that does not come now: a sequence number left out, a speaker not joined."""
    LIMIT = "RESOURCE_EXHAUSTED"
    """Too large, too many, too fast."""
    AGAIN = "UNAVAILABLE"
    """The hub goes down, or has not heard the worker for too long; it comes back by itself."""


class Refused(ThinwireError):
    """A hub refuses; nothing of its state has changed.

    Args:
        why: the reason.
        sentence: what a person is told.
    """

    def __init__(self, why: Why, sentence: str) -> None:
        self.why = why
        self.sentence = sentence
        super().__init__(sentence)


def one_line(said: str) -> str:
    r"""Returns a sentence as one line of at most `LONGEST` characters, all of them printable.

    Example:
        >>> print(one_line("H\nis \ud800"), len(one_line("x" * 9000)))
        H\nis \ud800 500
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said[:LONGEST])
    if len(said) <= LONGEST and len(shown) <= LONGEST:
        return shown
    return shown[: LONGEST - 3] + "..."
