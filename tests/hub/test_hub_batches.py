"""Updates that come together end in the bits, answers and records of one after the other."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import pytest
import torch
from hub_cases import (
    PER_WORKER,
    RUN,
    SEED,
    SIGNTOPK,
    SPANS,
    STREAM,
    begun,
    core,
    first_model,
    same_state,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import thinwire as tw
from thinwire.hub.commits import Commits
from thinwire.hub.core import TOGETHER, Core
from thinwire.hub.journal import Journal, Record
from thinwire.hub.records import Joined
from thinwire.hub.refused import Refused, Why
from thinwire.hub.said import Said, Taken
from thinwire.hub.state import first_state
from thinwire.hub.turns import Turns
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

HUBS = [
    tw.Hub(downlink=tw.Exact()),
    tw.Hub(downlink=tw.Exact(memory=300), counting=tw.FixedN(7)),
    tw.Hub(downlink=STREAM),
    tw.Hub(downlink=STREAM, counting=tw.ByWeight(), staleness=tw.Staleness(2, "scale")),
    tw.Hub(downlink=tw.Exact(), staleness=tw.Staleness(3, "refuse")),
    tw.Hub(outer=tw.Nesterov(lr=0.3), downlink=tw.Exact()),
    tw.Hub(downlink=PER_WORKER, staleness=tw.Staleness(3, "refuse")),
]
OPERATORS = [
    SIGNTOPK,
    tw.TopK(k=3) >> tw.QSGD(bits=3, coding="fixed"),
    tw.TopK(density=1.0) >> tw.Sign(bucket=5),
    tw.TopK(k=2) >> tw.QSGD(bits=4),
    tw.TopK(k=4),
    tw.Sign(),
]
NAMES = "abcd"


def a_hub(exchange: tw.Hub, C: tw.Compressor) -> Core:
    hub = core(exchange, C)
    for n, name in enumerate(NAMES):
        hub.join(name, n + 1.5, 0.0)
    return hub


def body(C: tw.Compressor, size: float, seed: int) -> bytes:
    v = size * torch.randn(SPANS.d, generator=torch.Generator().manual_seed(seed))
    return pack(C.compress(v, tw.Key(SEED, 0, 1), SPANS), C)


HARM = ["none", "none", "none", "bit", "cut", "again", "early", "number", "run", "base", "huge"]


def drawn(data, hub: Core, C: tw.Compressor) -> list[Said]:
    """Draws a batch, in which each worker's numbers go on as if all before were taken."""
    batch = []
    ahead = {name: hub.state.members[name].sequence for name in NAMES}
    for seed in range(data.draw(st.integers(1, 9))):
        name, harm = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(HARM))
        number, sequence = hub.state.members[name].number, ahead[name]
        size = 1e37 if harm == "huge" else 1.0
        at = Address(
            RUN + (harm == "run"),
            max(0, sequence + {"again": -1, "early": 1}.get(harm, 0)),
            number + (harm == "number"),
        )
        frame = bytearray(seal(Kind.SAID, at, body(C, size, data.draw(st.integers(0, 5)) + seed)))
        if harm == "bit":
            place = data.draw(st.integers(0, 8 * len(frame) - 1))
            frame[place // 8] ^= 1 << place % 8
        elif harm == "cut":
            # Sealed anew, so that it is the body that is wrong.
            frame = bytearray(seal(Kind.SAID, at, bytes(frame[26:-1])))
        base = hub.state.version + (1000 if harm == "base" else 0)
        base = base if harm == "base" else data.draw(st.integers(0, hub.state.version))
        batch.append(Said(name, base, bytes(frame), 1.0))
        ahead[name] += harm == "none"
    return batch


def plain(answer: Taken | Refused) -> tuple:
    if isinstance(answer, Refused):
        return answer.why, answer.sentence
    record = answer.record and (answer.record.check, answer.record.content)
    return b"".join(answer.reply), record, answer.staleness


@pytest.mark.parametrize("exchange", HUBS, ids=repr)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_batch_is_one_after_the_other(exchange: tw.Hub, data) -> None:
    C = data.draw(st.sampled_from(OPERATORS))
    together, alone = a_hub(exchange, C), a_hub(exchange, C)
    members = together.state.members.items()
    records = [Joined(m.number, m.weight, name).record().content for name, m in members]
    for _ in range(data.draw(st.integers(1, 4))):
        batch = drawn(data, together, C)
        answers = together.updates(batch)
        for said, answer in zip(batch, answers, strict=True):
            (one,) = alone.updates([said])
            assert plain(answer) == plain(one)
        same_state(together.state, alone.state)
        records += [a.record.content for a in answers if isinstance(a, Taken) and a.record]
    again = Core(exchange, C, SPANS, SEED, RUN, first_state(exchange, first_model()))
    for record in records:
        again.replay(record)
    same_state(again.state, together.state)


def test_the_table_of_kernels_makes_no_difference() -> None:
    for exchange in HUBS[:3]:
        hubs = []
        for table in ("cpu", "reference"):
            with tw.kernels.use(table):
                hub = a_hub(exchange, SIGNTOPK)
                for sequence in range(3):
                    hub.updates(
                        [
                            Said(
                                name, hub.state.version,
                                seal(Kind.SAID, Address(RUN, sequence, n + 1),
                                     body(SIGNTOPK, 1.0, sequence + n)),
                                0.0,
                            )
                            for n, name in enumerate(NAMES)
                        ]
                    )  # fmt: skip
                hubs.append(hub)
        same_state(hubs[0].state, hubs[1].state)


def test_a_long_turn_is_taken_in_parts_and_one_bad_body_costs_no_more_than_its_part() -> None:
    exchange = tw.Hub(downlink=tw.Stream(SIGNTOPK))
    together, alone = (a_hub(exchange, SIGNTOPK) for _ in range(2))
    for hub in (together, alone):
        for n in range(TOGETHER + 20):
            hub.join(f"w{n}", 1.0, 0.0)
    read: list[int] = []
    take = together._steps.take

    def counting(x, frames, *rest):
        read.append(len(frames))
        return take(x, frames, *rest)

    together._steps.take = counting
    batch = []
    for n in range(TOGETHER + 20):
        number = together.state.members[f"w{n}"].number
        bytes_of = body(SIGNTOPK, 1.0, n) + (b"x" if n % 7 == 3 else b"")
        frame = seal(Kind.SAID, Address(RUN, 0, number), bytes_of)
        batch.append(Said(f"w{n}", 0, frame, 1.0))
    answers = together.updates(batch)
    assert [plain(a) for a in answers] == [plain(alone.updates([said])[0]) for said in batch]
    assert sum(isinstance(a, Refused) for a in answers) == 12
    assert max(read) == TOGETHER
    same_state(together.state, alone.state)


def test_a_model_that_would_overflow_is_refused_in_the_middle_of_a_batch() -> None:
    hub = a_hub(tw.Hub(downlink=tw.Exact(), counting=tw.FixedN(1)), SIGNTOPK)
    at = lambda n: Address(RUN, 0, n + 1)
    sizes = (1.0, 2e38, 1.0, 1.0)
    batch = [
        Said(name, 0, seal(Kind.SAID, at(n), body(SIGNTOPK, sizes[n], n)), 0.0)
        for n, name in enumerate(NAMES)
    ]
    answers = hub.updates(batch)
    assert [isinstance(a, Refused) for a in answers] == [False, True, False, False]
    assert answers[1].why is Why.NONFINITE
    assert hub.state.model.isfinite().all()
    assert hub.state.applied == 3


def full() -> None:
    raise Refused(Why.LIMIT, "the hub is full")


@pytest.mark.parametrize("aside", [True, False])
def test_turns_are_taken_in_order_and_answered_when_the_disk_has_them(
    tmp_path: Path, aside: bool
) -> None:
    hub = a_hub(HUBS[2], SIGNTOPK)
    before = copy.deepcopy(hub.state)
    journal = begun(tmp_path)
    told: list[int] = []

    async def main() -> None:
        turns = Turns(hub, Commits(journal, 0.0, lambda error: None), aside)

        async def say(n: int, sequence: int) -> None:
            frame = seal(Kind.SAID, Address(RUN, sequence, n + 1), body(SIGNTOPK, 1.0, n))
            taken = await turns.update(Said(NAMES[n], 0, frame, 0.0))
            # What is told is in the file.
            file = (tmp_path / f"journal-{0:016d}.twj").read_bytes()
            assert taken.record is not None
            assert taken.record.content in file
            told.append(n)

        for sequence in range(3):
            await asyncio.gather(*(say(n, sequence) for n in range(4)))
            assert await turns.do(lambda: (hub.state.applied, [Record.of(b"\x03\x01\x00")])) > 0
            hub.state.members["a"].live = True
        with pytest.raises(Refused, match="no frame"):
            await turns.update(Said("a", 0, b"hello", 0.0))
        with pytest.raises(Refused, match="full"):
            await turns.do(full)
        with pytest.raises(ZeroDivisionError):
            await turns.do(lambda: (1 // 0, ()), changes=False)
        assert await turns.do(lambda: (7, ())) == 7
        await turns.close()

    asyncio.run(main())
    journal.close()
    assert told == [0, 1, 2, 3] * 3
    again = Journal(tmp_path)
    replayed = Core(HUBS[2], SIGNTOPK, SPANS, SEED, RUN, before)
    for record in list(again.recover()[1]):
        if record[0] == 2:
            replayed.replay(record)
    again.close()
    same_state(replayed.state, hub.state)
