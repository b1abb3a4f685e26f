"""One story from its start to its end: workers, what befalls them, and what is left to check."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from thinwire.cli.chaos_books import Told, again, measured
from thinwire.cli.chaos_calm import calm
from thinwire.cli.chaos_net import Hosts
from thinwire.cli.chaos_nursery import TICK, Nursery
from thinwire.cli.chaos_plan import DEADLINE, LINK, Event, N, Story
from thinwire.cli.chaos_worker import STOPPED, Job, run
from thinwire.cli.demo_train import Digits
from thinwire.errors import ThinwireError

LIMIT = 120.0
"""Seconds after which a story has not ended."""
RESTARTS = 8
FATAL = ("kill", "exit", "flip", "short")


def play(nursery: Nursery, story: Story, data: str, folder: Path) -> dict[str, Any]:
    """Runs one story and returns its result.

    Args:
        nursery: forks its workers.
        story: what befalls them.
        data: file of the digits.
        folder: where it may make its own.
    """
    began = time.monotonic()
    with Hosts(N) if story.hosts else nullcontext() as hosts:
        told = Told(story, folder / f"story-{story.number}", hosts)
        told.folder.mkdir()
        try:
            (_play_elastic if story.kind == "elastic" else _play_gang)(nursery, told, data)
        finally:
            nursery.end(set(nursery.alive))
    seconds = time.monotonic() - began
    expected = nursery.aside(lambda: calm(story, data), told.folder)
    result = {
        "story": story.number,
        "seed": story.seed,
        "ended": told.ended,
        "seconds": round(seconds, 2),
        "accuracy": None,
        "calm_accuracy": expected["accuracy"],
        "conservation_error": None,
        "kind": story.kind,
        "form": story.form,
        "events": [vars(event) for event in story.events],
        "hosts": story.hosts,
        "starts": sum(told.lives.values()),
        "why": told.why,
    }
    if told.ended:
        result |= _measured(nursery, told, data, expected)
    left = nursery.left_over()
    result["left_over"] = left
    if told.ended and not left:
        shutil.rmtree(told.folder)
    return result


def _measured(nursery: Nursery, told: Told, data: str, expected: dict[str, Any]) -> dict[str, Any]:
    there = expected
    if told.story.kind == "elastic":
        try:
            there = nursery.aside(lambda: again(told, data), told.folder)
        except ThinwireError as error:
            told.fail(f"no calm run can be made of who was there when: {error}")
            return {"ended": told.ended, "why": told.why}
    return measured(told, Digits(data, 0, N, told.story.seed), expected, there)


def _start(nursery: Nursery, told: Told, rank: int, data: str, address: str) -> int:
    life = told.lives.get(rank, 0)
    told.lives[rank] = life + 1
    hosts = told.hosts
    host = "127.0.0.1" if hosts is None else hosts.address(rank)
    job = Job(told.story, rank, life, told.folder, data, address, host)

    def work() -> int:
        if hosts is not None:
            hosts.enter(rank)
        return run(job)

    return nursery.fork(work, told.folder / f"worker-{rank}.log")


def _play_gang(nursery: Nursery, told: Told, data: str) -> None:
    until, spoilt = time.monotonic() + LIMIT, set[Event]()
    for attempt in range(RESTARTS):
        address = str(told.folder / f"group-{attempt}")
        ranks = {_start(nursery, told, rank, data, address): rank for rank in range(N)}
        codes = _watch_gang(nursery, told, ranks, until)
        if codes is None:
            return told.fail(f"it had not ended after {LIMIT:.0f} s")
        if all(code == 0 for code in codes):
            return None
        if not told.story.events or not any(told.struck(rank) for rank in range(N)):
            return told.fail(f"its workers ended with {codes}, and nothing had happened")
        for event in itertools.chain.from_iterable(told.struck(rank) for rank in range(N)):
            if event.what in ("flip", "short") and event not in spoilt:
                spoilt.add(event)
                _spoil(told.folder / "snapshots", event)
    return told.fail(f"it was started {RESTARTS} times")


def _watch_gang(
    nursery: Nursery, told: Told, ranks: dict[int, int], until: float
) -> list[int] | None:
    """Returns how all ended, or None; as torchrun does, ends all where one has failed."""
    codes: dict[int, int] = {}
    wake: dict[int, float] = {}
    while len(codes) < len(ranks):
        if time.monotonic() > until:
            return None
        for pid, code in nursery.look().items():
            codes[ranks[pid]] = code
        if any(code not in (0, STOPPED) for code in codes.values()):
            nursery.end(set(ranks))
            return [codes.get(rank, -9) for rank in range(N)]
        _wake(nursery, told, ranks, wake)
        _links(told)
        time.sleep(TICK)
    return [codes[rank] for rank in range(N)]


def _wake(nursery: Nursery, told: Told, ranks: dict[int, int], wake: dict[int, float]) -> None:
    now = time.monotonic()
    for pid in nursery.stopped & ranks.keys():
        stops = [e for e in told.struck(ranks[pid]) if e.what == "stop"]
        wake.setdefault(pid, now + stops[-1].seconds)
        if now >= wake[pid]:
            del wake[pid]
            nursery.wake(pid)
            return


def _links(told: Told) -> None:
    """Slows, cuts and mends the links of hosts, as the workers' notes say that it is time to."""
    if told.hosts is None:
        return
    for event in (e for rank in range(N) for e in told.struck(rank) if e.what in LINK):
        if event not in told.links:
            told.links[event] = time.monotonic() + event.seconds
            (told.hosts.slow if event.what == "slow" else told.hosts.cut)(event.who)
        elif 0 < told.links[event] <= time.monotonic():
            told.links[event] = 0.0
            told.hosts.mend(event.who)


def _play_elastic(nursery: Nursery, told: Told, data: str) -> None:
    lighthouse = told.folder / "lighthouse"
    host = "127.0.0.1" if told.hosts is None else told.hosts.address(-1)
    keeper = nursery.fork(lambda: _keep(lighthouse, host), told.folder / "lighthouse.log")
    until = time.monotonic() + LIMIT
    while not lighthouse.exists():
        nursery.look()
        time.sleep(TICK)
        if keeper not in nursery.alive:
            return told.fail("the lighthouse did not start")
    address = lighthouse.read_text()
    ranks = {_start(nursery, told, rank, data, address): rank for rank in range(N)}
    back: dict[int, float] = {}
    wake: dict[int, float] = {}
    while ranks or back:
        now = time.monotonic()
        if len(ranks) + len(back) < N // 2 + 1 and any(told.folder.glob("ended-*.pt")):
            # The others have ended their run: who slept for so long waits for a quorum for good.
            nursery.end(set(ranks))
            return None
        if now > until:
            return told.fail(f"it had not ended after {LIMIT:.0f} s")
        for pid, code in nursery.look().items():
            rank = ranks.pop(pid, None)
            if rank is None:
                return told.fail("the lighthouse ended")
            if code == 0:
                continue
            fatal = [e for e in told.struck(rank) if e.what in FATAL]
            if len(fatal) < told.lives[rank]:
                return told.fail(f"worker {rank} ended with {code} by itself")
            if fatal[-1].what == "flip":
                _spoil(told.folder / f"w{rank}", fatal[-1])
            if fatal[-1].seconds:
                back[rank] = now + fatal[-1].seconds
        for rank in [rank for rank, when in back.items() if now >= when]:
            del back[rank]
            ranks[_start(nursery, told, rank, data, address)] = rank
        _wake(nursery, told, ranks, wake)
        _links(told)
        time.sleep(TICK)
    return None


def _keep(file: Path, host: str) -> int:
    from thinwire.elastic import Lighthouse

    with Lighthouse(N // 2 + 1, wait=DEADLINE, bind=f"{host}:0") as lighthouse:
        part = file.with_suffix(".part")
        # It names itself by its host's name, which other hosts may not know.
        part.write_text(f"http://{host}:{lighthouse.address.rpartition(':')[2]}")
        part.replace(file)
        while True:
            time.sleep(60)


def _spoil(folder: Path, event: Event) -> None:
    """Alters one byte of a worker's newest snapshot, or cuts the file short."""
    files = sorted(folder.glob("snapshot-*.tws"))
    mine = [f for f in files if f"-rank-{event.who}-of" in f.name or f.parent.name != "snapshots"]
    if not mine:
        return
    with mine[-1].open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        at = size * (1 + event.turn) // 8
        if event.what == "short":
            file.truncate(at)
        else:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
