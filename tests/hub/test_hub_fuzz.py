"""Altered and random messages against a live hub: every one refused, nothing changed, no growth.

`bench/hub_fuzz.py` runs 100,000 of them.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_cases import same_state
from live_hub import SETTINGS, Entry, Live, Rude, join, live, train

import thinwire as tw
from thinwire.hub import rpc
from thinwire.hub.hub_pb2 import Beat, Hello, Piece, Up
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

TOKEN = "a long secret"


def resident() -> int:
    """Bytes of memory that this process, client and hub, holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def altered(data: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled or put in; never what it was."""
    while True:
        out = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = draw.randrange(len(out) + 1) if out else 0
            match draw.randrange(5):
                case 0 if out:
                    out[min(at, len(out) - 1)] ^= 1 << draw.randrange(8)
                case 1:
                    del out[at:]
                case 2:
                    out[at:at] = draw.randbytes(draw.randrange(1, 9))
                case 3:
                    out[at : at + draw.randrange(1, 9)] = b""
                case _ if out:
                    out[min(at, len(out) - 1)] = draw.randrange(256)
        if out != data:
            return bytes(out)


def streams(hub: Live, draw: random.Random) -> Iterator[list[Up | bytes]]:
    """Yields the words of streams that a hub must refuse."""
    member, d = hub.state.members["known"], hub.server.spans.d
    run, C = hub.server.core.run, SETTINGS.compressor
    body = pack(C.compress(torch.randn(d), tw.Key(0), hub.server.spans), C)
    text = json.dumps(hub.server.description)
    back = Up(hello=Hello(protocol=rpc.PROTOCOL, worker="known", weight=1.0, run=run))
    good = Address(run, member.sequence, member.number)
    frame = seal(Kind.SAID, good, body)

    def piece(data: bytes, **more) -> Up:
        return Up(piece=Piece(data=data, last=True, **more))

    def address() -> Address:
        fields = {
            "run": run ^ draw.choice((0, 1, 1 << 31)),
            "round": member.sequence + draw.choice((-1, 0, 1, 1 << 20)),
            "rank": member.number + draw.choice((0, 1, 40000)),
            "part": draw.choice((0, 1, 65535)),
        }
        fields["round"] = max(0, fields["round"])
        made = Address(**fields)
        return made if made != good else Address(run ^ 2, 0, 1)

    while True:
        match draw.randrange(8):
            case 0:
                yield [draw.randbytes(draw.randrange(200))]
            case 1:
                yield [back, draw.randbytes(draw.randrange(1, 200))]
            case 2 | 3 | 4:
                yield [back, piece(altered(frame, draw))]
            case 5:
                kind = draw.choice((Kind.SAID, Kind.SAID, Kind.ALARM, Kind.ANCHOR, Kind.HELLO))
                yield [back, Up(beat=Beat()), piece(seal(kind, address(), body))]
            case 6:
                cut = altered(text.encode(), draw).decode(errors="replace")
                if same_json(cut, text):
                    continue
                yield [
                    Up(hello=Hello(protocol=1, worker="new", weight=1.0, description=cut or "{"))
                ]
            case _:
                # Other bits of the same length would be another sound message.
                cut = body[: draw.randrange(len(body))]
                wrong = draw.choice((cut, body + draw.randbytes(draw.randrange(1, 30))))
                yield [back, piece(seal(Kind.SAID, good, wrong), base=draw.choice((0, 1 << 40)))]


def same_json(a: str, b: str) -> bool:
    try:
        mine, theirs = json.loads(a), json.loads(b)
        return all(mine[name] == theirs[name] for name in theirs)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def check_fuzz(folder: Path, count: int) -> tuple[Counter[str], int]:
    logging.getLogger("thinwire.hub").setLevel(logging.CRITICAL)
    draw, codes, before_memory = random.Random(7), Counter(), 0
    with live(folder, entry=Entry(token=TOKEN)) as hub:
        optimizer, model = join(hub, worker="known", token=TOKEN)
        train(optimizer, model, 3)
        optimizer.transport.close()
        before = copy.deepcopy(hub.state)
        rude = Rude(hub.address, (("authorization", f"Bearer {TOKEN}"),))
        words = streams(hub, draw)
        for number in range(count):
            said = next(words)
            code, sentence = rude.say(*said)
            assert code != "OK", f"taken: {said}"
            codes[code] += 1
            assert sentence, (code, said)
            assert code not in ("UNKNOWN", "INTERNAL"), (code, sentence, said)
            if number % 500 == 499:
                same_state(hub.state, before)
            if number == count // 5:
                before_memory = resident()
        same_state(hub.state, before)
        grown = resident() - before_memory
        assert grown < 40e6, f"memory grew by {grown} bytes"
        rude.close()
        again, model = join(hub, worker="known", token=TOKEN)
        train(again, model, 1)
        assert hub.state.applied == 4
        again.leave()
    return codes, grown


@pytest.mark.network
def test_five_hundred_altered_or_random_messages_are_refused_and_change_nothing(
    tmp_path: Path,
) -> None:
    codes, _ = check_fuzz(tmp_path, 500)
    assert {"DATA_LOSS", "ABORTED", "NOT_FOUND", "INVALID_ARGUMENT"} <= set(codes), codes
