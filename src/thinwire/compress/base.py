"""The contract of every compressor: a sparsifier, then a quantizer, as one frozen value.

    u --select--> index --u[index]--> v --encode--> codes, scales        (compress)
    codes, scales --decode--> v --scatter at index--> C(u)               (decompress)

A sparsifier alone keeps its values exact; a quantizer alone keeps every entry. So everything a
message needs is written once, here, and an operator is one page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress.layout import Layout, Scope, cut, sums_within
from thinwire.compress.payload import Codes, Kept, Payload
from thinwire.errors import ConfigError
from thinwire.flat import Spans, starts_of
from thinwire.kernels import Marked, Owed
from thinwire.keys import Key
from thinwire.value import Value

if TYPE_CHECKING:
    from thinwire.compress.halves import Quantizer, Sparsifier

SELECTION, ROUNDING, ROTATION = range(3)
"""The draws a compressor may make of one key."""

_FLOAT32 = torch.float32


class Compressor(Value, ABC):
    """Says a vector in fewer bytes; a frozen value that composes as `sparsifier >> quantizer`.

    Facts every compressor states: `biased`, `additive`, `exact`, `contraction(spans)`,
    `nbytes(spans)`.
    """

    @property
    @abstractmethod
    def sparsifier(self) -> Sparsifier:
        """The first half: which entries are kept."""

    @property
    @abstractmethod
    def quantizer(self) -> Quantizer:
        """The second half: how a kept entry is said."""

    @property
    def biased(self) -> bool:
        """Whether E[C(u)] differs from u."""
        return self.sparsifier.drops_biased or self.quantizer.rounds_biased

    @property
    def additive(self) -> bool:
        """Whether payloads of one round can be summed entry by entry without decoding."""
        return self.quantizer.scales == 0 and not self.sparsifier.says_index

    @property
    def exact(self) -> bool:
        """Whether each body has the same bytes: no index is said, and codes have a fixed width."""
        return not self.sparsifier.says_index and self.quantizer.coding == "fixed"

    def layout(self, spans: Spans) -> Layout:
        """Returns how a message over these tensors is cut; computed once for each pair."""
        return _layout(self.sparsifier, self.quantizer, spans)

    def contraction(self, spans: Spans | int) -> float:
        """Returns a gamma with E||u - C(u)||^2 <= (1 - gamma) ||u||^2 for every u; 0 if none.

        Piecewise operators take the least over their groups (Qsparse-local-SGD, Corollary 1).

        Args:
            spans: the tensors, or d for one plain vector.
        """
        at = self.layout(spans if isinstance(spans, Spans) else Spans.of(spans))
        sizes = {
            (length, kept)
            for length, kept in zip(at.groups.diff().tolist(), at.counts.tolist(), strict=True)
            if length
        }
        gammas = [
            self.sparsifier.shrinks_group(kept, length, self.quantizer) for length, kept in sizes
        ]
        return max(0.0, min(gammas, default=1.0))

    def nbytes(self, spans: Spans | int) -> int:
        """Returns the most bytes a frame's body can have, and where `exact` just those.

        Args:
            spans: the tensors, or d for one plain vector.
        """
        at = self.layout(spans if isinstance(spans, Spans) else Spans.of(spans))
        index = at.index_bytes if self.sparsifier.says_index else 0
        return index + 4 * self.quantizer.scales * at.n_blocks + self._code_bytes(at)

    def fixed_width_bits(self, spans: Spans | int) -> int:
        """Returns the bits of a message in the paper's accounting.

        ceil(log2 L) for each index into a domain of L entries, the code width for each value
        (32 uncompressed), 32 for each scale (ALGORITHMS: fixed-width accounting).
        """
        at = self.layout(spans if isinstance(spans, Spans) else Spans.of(spans))
        index = 0
        if self.sparsifier.says_index:
            lengths = at.domains.diff().tolist()
            index = sum(
                k * max(0, length - 1).bit_length()
                for k, length in zip(at.domain_counts.tolist(), lengths, strict=True)
            )
        return index + at.n_codes * self.quantizer.width + 32 * self.quantizer.scales * at.n_blocks

    def compress(self, u: Tensor, key: Key, spans: Spans | None = None) -> Payload:
        """Returns what is said of u.

        Args:
            u: (d,) float32, finite.
            key: names the randomness; the rank in it is the speaker's.
            spans: the tensors; None for one plain vector.

        Raises:
            ConfigError: u has another length than the spans.
        """
        return self.payload_of(self.keep(u, key, spans))

    def keep(self, u: Tensor | Owed | Marked, key: Key, spans: Spans | None = None) -> Kept:
        """Returns what is kept of u, before it is quantized: the first half of `compress`.

        Args:
            u: (d,) float32, or what it is formed of, or with marks.
            key: names the randomness.
            spans: the tensors; None for one plain vector.
        """
        at = self.layout(Spans.of(len(u)) if spans is None else spans)
        if len(u) != at.d or (isinstance(u, Tensor) and (u.shape, u.dtype) != ((at.d,), _FLOAT32)):
            found = f"{u.dtype} {tuple(u.shape)}" if isinstance(u, Tensor) else f"of {len(u)}"
            raise ConfigError(f"u is {found}; expected float32 ({at.d},)")
        index, v = self.sparsifier.take(u, at, key)
        return Kept(at, index, v, key)

    def payload_of(self, kept: Kept) -> Payload:
        """Returns the payload of what is kept: the second half of `compress`."""
        at, key = kept.layout, kept.key
        v = self.sparsifier.weigh(kept.values, at)
        return Payload(at, kept.index, self.quantizer.encode(v, at, key), key)

    def decompress(self, payload: Payload) -> Tensor:
        """Returns C(u), dense.

        Returns:
            (d,) float32, exactly what every receiver of the frame decodes, where the payload is.
        """
        said = host.empty(payload.layout.d, device=payload.device)
        self.put(said, payload)
        return said

    def put(self, out: Tensor, payload: Payload) -> None:
        """Writes C(u) in the place of what stands in `out`; the same bits as `decompress(payload)`.

        Args:
            out: (d,) float32.
            payload: what was said.
        """
        if payload.index is None and not isinstance(payload.values, Codes):
            # A sum with +0 has no negative zero, as one that begins at +0 has none.
            torch.add(self.values(payload), 0.0, out=out)
        else:
            self.accumulate(out.zero_(), payload)

    def accumulate(self, total: Tensor, payload: Payload, weight: float = 1.0) -> None:
        """Adds weight C(u) to `total` in place; the same bits as with `decompress(payload)`.

        Args:
            total: (d,) float32 holding no negative zero, as any sum that began at +0 does not.
            payload: what was said.
            weight: what it counts.
        """
        said, table = payload.values, kernels.active(total.device)
        steps = self.quantizer.steps(said, payload.layout) if isinstance(said, Codes) else None
        if isinstance(said, Codes) and steps is not None:
            at = steps.blocks, steps.lows, steps.steps
            table.accumulate_codes(total, payload.index, said.packed, said.width, *at, weight)
        else:
            table.accumulate(total, payload.index, self.values(payload), weight)

    def remove(self, u: Tensor, payload: Payload) -> None:
        """Takes C(u) away from u in place, which leaves the residual u - C(u).

        Args:
            u: (d,) float32.
            payload: what was said of it.
        """
        self.accumulate(u, payload, -1.0)

    def values(self, payload: Payload) -> Tensor:
        """Returns the decoded values at the payload's index, (n,) float32."""
        return self.quantizer.decode(payload.values, payload.layout, payload.key)

    def __rshift__(self, other: Compressor) -> Compressor:
        """Chains a sparsifier with a quantizer: `TopK(density=0.01) >> QSGD(bits=4)`.

        Raises:
            ConfigError: the two do not chain; it says what would work.
        """
        raise ConfigError(
            f"{self!r} >> {other!r}: a chain is one sparsifier, then one quantizer; "
            "write TopK(density=0.01) >> QSGD(bits=4)"
        )

    def _code_bytes(self, at: Layout) -> int:
        if not self.quantizer.scales:
            return 4 * at.n_codes
        form = 1 if self.quantizer.coding == "smallest" else 0
        return form + kernels.packed_bytes(at.n_codes, self.quantizer.width)


@lru_cache(maxsize=256)
def _layout(sparsifier: Sparsifier, quantizer: Quantizer, spans: Spans) -> Layout:
    scope: Scope = quantizer.scope if sparsifier.scope is None else sparsifier.scope
    groups = cut(spans, scope, sparsifier.chunk)
    lengths = groups.diff().tolist()
    memo = {n: sparsifier.count(n, quantizer.width) for n in set(lengths)}
    counts = host.ints([memo[n] for n in lengths])
    domains = groups if scope != "chunk" else spans.starts
    domain_counts = counts if scope != "chunk" else sums_within(counts, groups, domains)
    block_lengths = quantizer.cut(counts.tolist())
    return Layout(
        spans=spans,
        groups=groups,
        counts=counts,
        domains=domains,
        domain_counts=domain_counts,
        blocks=starts_of(host.ints(block_lengths)),
        codes=starts_of(host.ints([quantizer.padded(n) for n in block_lengths])),
    )
