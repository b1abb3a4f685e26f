"""Both sides cut a frame alike, though the receiver does not know at first how long it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinwire.transport.messages import LEAST, SPAN, Cutting, Window

cuttings = st.builds(Cutting, st.integers(1, 50), st.integers(1, 50), st.integers(1, 9))
lengths = st.tuples(st.integers(0, 400), st.integers(0, 400)).map(sorted)


@given(cuttings, lengths)
def test_the_messages_of_a_frame_are_its_bytes_in_order(
    cutting: Cutting, lengths: list[int]
) -> None:
    n, bound = lengths
    frame = bytes(i % 251 for i in range(n))
    cuts = list(cutting.cuts(n, bound))
    assert len(cuts) == cutting.count(n, bound)
    assert b"".join(frame[cut] for cut in cuts) == frame


@given(cuttings, lengths)
def test_a_receiver_has_room_for_each_and_asks_for_as_many(
    cutting: Cutting, lengths: list[int]
) -> None:
    n, bound = lengths
    sent = list(cutting.cuts(n, bound))
    # What may be asked for before the frame's length is known: no more than are sent.
    unread = min(cutting.unread, cutting.count(cutting.first, bound))
    assert unread <= len(sent)
    for number, cut in enumerate(sent):
        room = cutting.cut(number, bound if number < unread else n)
        assert room.start == cut.start or cut.start == cut.stop
        assert room.stop - room.start >= cut.stop - cut.start


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_window_holds_what_comes_in_its_span_and_never_less_than_the_least() -> None:
    clock = _Clock()
    window = Window(clock)
    assert window.open
    piece = LEAST // 4
    window.ask(piece)
    for rate in (1e9, 1e3, 2e8):
        # Twice: what began at the old rate is not measured at the new one.
        for _ in range(2 * 4 * max(LEAST, int(1e9 * SPAN)) // piece):
            window.ask(piece)  # Something is always on its way.
            clock.now += piece / rate
            window.came(piece)
        assert abs(window.bytes - max(LEAST, rate * SPAN)) <= 1
    while window.open:
        window.ask(piece)
    assert window.bytes <= window.asked < window.bytes + piece


def test_time_in_which_nothing_was_asked_for_does_not_count() -> None:
    clock = _Clock()
    window = Window(clock)
    for _ in range(4):
        clock.now += 3600
        window.ask(LEAST)
        clock.now += LEAST / 1e9
        window.came(LEAST)
    assert window.bytes == LEAST, "each stretch began anew, so none was long enough to measure by"


def test_what_is_larger_than_a_window_is_asked_for_alone() -> None:
    window = Window(_Clock())
    window.ask(100 * LEAST)
    assert not window.open
    window.came(100 * LEAST)
    assert window.open
