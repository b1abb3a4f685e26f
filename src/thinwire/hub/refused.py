"""Why a hub refuses, one reason each, in a sentence a person understands."""

from __future__ import annotations

from enum import Enum

from thinwire.errors import ThinwireError


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
    CLOSING = "UNAVAILABLE"
    """The hub is going down; a worker comes back when it is up."""


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
