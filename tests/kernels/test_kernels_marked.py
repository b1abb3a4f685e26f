"""Selection among marked entries: what a look at every entry would select, whatever changed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import same

from thinwire.kernels import BodyShape, Marked, cpu, index_bytes_bound, reference

CUTS = [[0, 5000], [0, 40, 40, 3000, 3064, 5000], [0, 1, 5000]]


def marks_hold(marked: Marked) -> None:
    """Every entry that reaches the limit of its group is marked."""
    group = torch.searchsorted(marked.starts, torch.arange(len(marked)), right=True) - 1
    reach = marked.x.abs() >= marked.limits[group]
    bits = marked.marks.repeat_interleave(8) >> torch.arange(8).repeat(len(marked.marks)) & 1
    assert bits[: len(marked)][reach & marked.limits[group].isfinite()].all()


def changed(marked: Marked, g: torch.Generator, many: int, scale: float, ties: bool) -> None:
    rows, d = 1 + many % 3, len(marked)
    starts, counts = torch.tensor([0, d]), torch.tensor([many])
    bodies = []
    for _ in range(rows):
        index = torch.randperm(d, generator=g)[:many].sort().values
        codes = torch.randint(0, 2 if ties else 256, (many,), generator=g)
        said = torch.tensor([scale]).float().view(torch.uint8)
        parts = cpu.encode_index(index, counts, starts), said, cpu.pack(codes, 8)
        bodies.append(torch.cat(parts))
    ends = torch.tensor([len(body) for body in bodies]).cumsum(0)
    bound = index_bytes_bound(counts, starts)
    units = torch.tensor([[-1.0, 2 if ties else 2 / 255]]).double()
    shape = BodyShape(counts, starts, starts, bound, units, 8, 255, torch.tensor([0, many]))
    given = torch.cat(bodies), ends, shape
    before = marked.x.clone()
    for table, x in ((cpu, marked), (reference, before)):
        sizes = table.subtract_bodies(x, *given, torch.full((rows,), 3.0), 1e30, None, 0)
        assert len(sizes) == rows
    same(marked.x, before)
    marks_hold(marked)


@pytest.mark.parametrize("cut", CUTS, ids=len)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_marks_select_what_a_look_at_all_would(cut: list[int], data) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    starts = torch.tensor(cut)
    k = data.draw(st.sampled_from([0, 1, 7, 60, 2000]))
    counts = starts.diff().clamp(max=k)
    marked = Marked.over(torch.randn(cut[-1], generator=g), starts)
    for _ in range(data.draw(st.integers(1, 6))):
        what = data.draw(st.sampled_from(["entries", "entries", "entries", "all", "none"]))
        if what == "entries":
            scale = data.draw(st.sampled_from([0.01, 1.0, 30.0]))
            changed(marked, g, data.draw(st.integers(1, 3000)), scale, data.draw(st.booleans()))
        elif what == "all":
            marked.x.mul_(data.draw(st.sampled_from([0.0, 0.5, -2.0])))
            marked.forget()
        defined = reference.pick_marked(marked, starts, counts)
        mine = cpu.pick_marked(marked, starts, counts)
        assert torch.equal(mine[0], defined[0])
        same(mine[1], defined[1])
        marks_hold(marked)
        # What was selected is said, and most of it is gone.
        marked.x[mine[0]] -= mine[1] * data.draw(st.sampled_from([1.0, 0.9, 1.5]))
        marks_hold(marked)


def test_a_limit_is_kept_from_one_selection_to_the_next() -> None:
    g, starts, counts = torch.Generator().manual_seed(1), torch.tensor([0, 5000]), torch.tensor([9])
    marked = Marked.over(torch.randn(5000, generator=g), starts)
    cpu.pick_marked(marked, starts, counts)
    limit = float(marked.limits[0])
    assert 0 < limit < 4
    for _ in range(3):
        index, values = cpu.pick_marked(marked, starts, counts)
        marked.x[index] -= values
        assert float(marked.limits[0]) == limit


def test_the_definition_keeps_marks_too() -> None:
    g, starts, counts = torch.Generator().manual_seed(2), torch.tensor([0, 5000]), torch.tensor([9])
    marked = Marked.over(torch.randn(5000, generator=g), starts)
    cpu.pick_marked(marked, starts, counts)
    index = torch.arange(0, 5000, 7)
    many = torch.tensor([len(index)])
    bound = index_bytes_bound(many, starts)
    units = torch.tensor([[-1.0, 0.04]]).double()
    shape = BodyShape(many, starts, starts, bound, units, 8, 255, torch.tensor([0, len(index)]))
    codes = torch.randint(0, 256, (len(index),), generator=g)
    said = torch.tensor([5.0]).view(torch.uint8)
    body = torch.cat([cpu.encode_index(index, many, starts), said, cpu.pack(codes, 8)])
    given = body, torch.tensor([len(body)]), shape, torch.ones(1)
    assert len(reference.subtract_bodies(marked, *given, 1e30, None, 0)) == 1
    marks_hold(marked)
    assert torch.equal(cpu.pick_marked(marked, starts, counts)[0],
                       reference.topk(marked.x, starts, counts))  # fmt: skip


def test_marks_of_another_vector_are_refused() -> None:
    starts, counts = torch.tensor([0, 64]), torch.tensor([2])
    marked = Marked.over(torch.ones(64), starts)
    for table in (cpu, reference):
        with pytest.raises(ValueError, match="other groups"):
            table.pick_marked(marked, torch.tensor([0, 2, 64]), torch.tensor([1, 1]))
        with pytest.raises(ValueError, match="another vector"):
            table.pick_marked(Marked(torch.ones(65), torch.tensor([0, 65]), marked.limits,
                                     marked.marks), torch.tensor([0, 65]), counts)  # fmt: skip
