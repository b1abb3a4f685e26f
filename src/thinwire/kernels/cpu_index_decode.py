"""The decoder of `thinwire.kernels.reference`'s index codec in Numba: same answers, same refusals.

Pieces of long streams are read side by side, as if each were the first of its domain; what was
before them is added after. Where anything is wrong, all is read once more in order: what is said
of it is what the first wrong bit deserves.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import reference
from thinwire.kernels.checks import check_counts, check_domains, check_typed
from thinwire.kernels.cpu_bits import padded_words
from thinwire.kernels.cpu_index_read import read_piece
from thinwire.kernels.cpu_index_sections import add, outside, read_index
from thinwire.kernels.numba_support import Array, Number, array, kernel
from thinwire.kernels.parallel import each_share, stretches

# Numba freezes module globals into the compiled code, so these names cost nothing.
_FINE = reference.FINE
_PIECE = reference.PIECE


@kernel
def _read_pieces(
    words: Array, domains: Array, pieces: Array, first: Number, last: Number, out: Array,
    fine: Array,
) -> None:  # fmt: skip
    for p in range(first, last):
        at, end, low, high, b, s = pieces[p]
        length = domains[s + 1] - domains[s]
        status, _, _ = read_piece(words, at, end, length, b, np.int64(-1), out[low:high])
        fine[p] = status == _FINE


@kernel
def _find_bases(domains: Array, pieces: Array, out: Array, bases: Array) -> Number:
    """Finds what each piece's positions are counted from; returns whether all stay inside."""
    inside = True
    for p in range(bases.size):
        s = pieces[p, 5]
        if p == 0 or pieces[p - 1, 5] != s:
            bases[p] = domains[s]
        else:
            bases[p] = bases[p - 1] + out[pieces[p - 1, 3] - 1] + 1
        inside &= bases[p] + out[pieces[p, 3] - 1] < domains[s + 1]
    return inside


@kernel
def _add_bases(pieces: Array, bases: Array, first: Number, last: Number, out: Array) -> None:
    for p in range(first, last):
        add(out[pieces[p, 2] : pieces[p, 3]], bases[p])


@kernel
def _all_inside(counts: Array, starts: Array, out: Array) -> Number:
    upto = 0
    for c in range(counts.size):
        if outside(out[upto : upto + counts[c]], starts[c], starts[c + 1]) >= 0:
            return False
        upto += counts[c]
    return True


def read_side_by_side(
    words: Array, size: int, counts: Array, starts: Array, domains: Array, out: Array
) -> int:
    """Reads all with the threads there are; returns the bytes read, or -1 where any is wrong."""
    pieces = np.empty((out.size // _PIECE + domains.size, 6), np.int64)
    given = words[None], np.array([size]), counts, starts, domains
    used = np.empty(1, np.int64)
    status, _, _, left = read_index(*given, True, pieces, out[None], used)
    if status != _FINE:
        return -1
    fine, bases = np.empty(left, np.bool_), np.empty(left, np.int64)
    each_share(out.size, left, lambda i, j: _read_pieces(words, domains, pieces, i, j, out, fine))
    if not fine.all() or not _find_bases(domains, pieces, out, bases):
        return -1
    each_share(out.size, left, lambda i, j: _add_bases(pieces, bases, i, j, out))
    return int(used[0]) if _all_inside(counts, starts, out) else -1


def decode_index(
    data: torch.Tensor,
    counts: torch.Tensor,
    starts: torch.Tensor,
    domains: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, int, str]:
    """Agrees bit for bit with `reference.decode_index`, problems included."""
    check_counts(counts, starts)
    check_domains(domains, starts)
    check_typed(data, torch.uint8)
    cut = array(counts), array(starts), array(starts if domains is None else domains)
    out = host.empty(int(counts.sum()), torch.int64)
    index, words, size = out.numpy(), padded_words(data), data.numel()
    if len(stretches(index.size)) > 1:
        side_by_side = read_side_by_side(words, size, *cut, index)
        if side_by_side >= 0:
            return out, side_by_side, ""
    none, used = np.empty((0, 6), np.int64), np.empty(1, np.int64)
    given = words[None], np.array([size]), *cut
    status, a, b, _ = read_index(*given, False, none, index[None], used)
    if status != _FINE:
        return None, 0, reference.explain(int(status), int(a), int(b))
    return out, int(used[0]), ""
