"""A run stopped after any round and resumed from its files ends in the bits of a calm one."""

from __future__ import annotations

import pytest
from shell_cases import same_bits, whole_state
from snapshot_cases import Kept, in_memory

import thinwire as tw

STEPS = 5
PRESETS: dict[str, tw.Preset] = {
    "qsparse_local_sgd": tw.qsparse_local_sgd(H=2),
    "qsparse_async": tw.qsparse_async(H=tw.RandomGaps(3)),
    "topk_sgd": tw.topk_sgd(k=2),
    "ef_sign_sgd": tw.ef_sign_sgd(),
    "local_sgd": tw.local_sgd(H=2),
    "vanilla": tw.vanilla(),
    "qprsgd_ring": tw.qprsgd_ring(H=2),
    "qprsgd_gossip": tw.qprsgd_gossip(H=2),
    "choco_sgd": tw.choco_sgd(),
    "deep_squeeze": tw.deep_squeeze(),
    "d_psgd": tw.d_psgd(tw.RandomMatching()),
    "squarm_sgd": tw.squarm_sgd(H=2),
    "marsit": tw.marsit(K=2),
}
OUTERS = [tw.Average(), tw.Nesterov(), tw.DelayedNesterov(every=2)]


def arguments_of(name: str, outer: tw.Outer) -> dict | None:
    """The preset with that outer step, or None where it takes the plain one alone."""
    preset = PRESETS[name]
    if preset["exchange"].hands_anchor:
        return {**preset, "exchange": tw.Asynchronous(outer=outer)}
    if not preset["exchange"].replicates and outer != tw.Average():
        return None
    return {**preset, "outer": outer}


def test_every_preset_is_resumed_here() -> None:
    assert set(tw.PRESETS) == set(PRESETS)


@pytest.mark.parametrize("outer", OUTERS, ids=repr)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_and_outer_resumes_in_the_same_bits_from_any_snapshot(name, outer) -> None:
    arguments = arguments_of(name, outer)
    if arguments is None:
        with pytest.raises(tw.ConfigError, match="takes the plain outer step"):
            Kept(in_memory(), **{**PRESETS[name], "outer": outer})
        return
    calm = Kept(in_memory(), **arguments).steps(STEPS)
    end = whole_state(calm)
    calm.close()
    taken_up = set()
    for stop in range(1, STEPS):
        folder = in_memory()
        Kept(folder, **arguments).steps(stop).close()
        # It starts elsewhere, so that whatever a snapshot forgot shows.
        again = Kept(folder, start=1, **arguments)
        if again.resumed[0] is not None:
            assert again.resumed == [tw.Resumed(again.done, s.round, 2) for s in again.shells]
            taken_up.add(again.done)
            same_bits(whole_state(again.steps(STEPS - again.done)), end, f"stopped after {stop}")
        again.close()
    H = arguments["H"]
    assert taken_up == set(range(H, STEPS, H) if isinstance(H, int) else range(1, STEPS))
