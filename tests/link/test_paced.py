"""A paced link costs what its model says, and changes no bit."""

import time

import pytest

from thinwire.cli.gang import Gang
from thinwire.errors import ThinwireError
from thinwire.link import Link
from thinwire.transport import Post, Take, Turn
from thinwire.transport.paced import PacedTransport

SLACK = 3.0
"""Seconds that busy cores may add to any of these: what is held is that none is sooner."""


def messages(N, job, **args):
    with Gang(N, job, args) as gang:
        return list(gang.messages())


@pytest.mark.network
def test_frames_share_the_receivers_downlink_and_wait_for_the_latency(jobs):
    link, n = "40mbit,30ms", 250_000
    said = messages(4, jobs("everybody_to_rank_0"), link=link, bytes=n, rounds=3)
    wanted = 3 * Link.parse(link).seconds(n) + 0.03
    assert all(all(m["whole"]) for m in said)
    assert min(m["seconds"] for m in said) >= wanted - 1e-3
    assert min(m["seconds"] for m in said) <= wanted + SLACK


@pytest.mark.network
def test_a_faster_downlink_takes_the_frames_of_several_at_once(jobs):
    link, n = "20mbit,0ms,down=200mbit", 2_500_000
    said = messages(3, jobs("everybody_to_rank_0"), link=link, bytes=n, rounds=3)
    wanted = Link.parse(link).seconds(n)
    # One after the other they would take twice as long.
    assert wanted - 1e-3 <= min(m["seconds"] for m in said) <= 1.8 * wanted


class Mail:
    """Stands for a process group: keeps what is posted, and hands out what is put in."""

    def __init__(self, rank: int, N: int) -> None:
        self.rank, self.size = rank, N
        self.posted: list[Post] = []
        self.comes: list[bytes] = []

    def turn(self, turn: Turn) -> list[bytes]:
        self.posted += turn.posts
        return self.comes


def test_what_all_say_to_all_in_one_turn_shares_each_line_once(monkeypatch):
    link, n, N = Link.parse("5mbit,10ms"), 100_000, 4
    waited: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    monkeypatch.setattr(time, "sleep", waited.append)
    mail = [Mail(rank, N) for rank in range(N)]
    wires = [PacedTransport(link, each) for each in mail]
    for rank, wire in enumerate(wires):
        wire.turn(Turn(tuple(Post(to, bytes(n), n) for to in range(N) if to != rank)))
    for rank, wire in enumerate(wires):
        mail[rank].comes = [p.frame for each in mail for p in each.posted if p.to == rank]
        wire.turn(Turn((), tuple(Take(r, n) for r in range(N) if r != rank)))
    # Of three frames that end together, none begins only when the first would have ended.
    assert waited == [pytest.approx((N - 1) * link.seconds(n) + 0.01)] * N


@pytest.mark.network
def test_a_reduce_takes_as_long_as_a_ring(jobs):
    said = messages(3, jobs("sums"), link="20mbit,10ms", d=100_000)
    wanted = Link.parse("20mbit,10ms").all_reduce(400_000, 3)
    assert all(m["right"] for m in said)
    assert wanted - 1e-3 <= min(m["seconds"] for m in said) <= wanted + SLACK


@pytest.mark.network
@pytest.mark.parametrize("preset", ["qsparse_local_sgd", "qprsgd_gossip", "vanilla"])
def test_a_link_with_jitter_and_loss_changes_no_bit_and_no_count(jobs, preset):
    said = messages(3, jobs("trains"), link="100mbit,1ms,jitter=3ms,loss=5%", preset=preset)
    for rank in range(3):
        plain, paced = [m for m in said if m["rank"] == rank]
        assert {**plain, "rank": 0} == {**paced, "rank": 0}


@pytest.mark.network
def test_a_frame_that_is_dropped_is_an_error_of_the_round_where_nothing_can_go_on(jobs):
    with pytest.raises(ThinwireError, match="0 bytes are no frame"):
        messages(
            2, jobs("trains"), link="100mbit,1ms,drop=90%,patience=50ms", preset="qsparse_local_sgd"
        )
