"""The program's own random generators, as a part of a snapshot."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class Draws:
    """The global generators of Python, NumPy and torch, on the host and on every CUDA device.

    Thinwire itself draws from none of them. Hand it over where dropout, a data loader or an
    augmentation does: `snapshots.resume(model, optimizer, draws=tw.Draws())`.

    Example:
        >>> draws = Draws()
        >>> kept = draws.state_dict()
        >>> first = torch.rand(1)
        >>> draws.load_state_dict(kept)
        >>> torch.equal(torch.rand(1), first)
        True
    """

    def state_dict(self) -> dict[str, Any]:
        """Returns where each generator stands, as plain data and tensors."""
        kind, words, at, has_gauss, gauss = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(np.asarray(words, "int64")), at, has_gauss, gauss),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts each generator where it stood; CUDA's only where there are as many devices."""
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        kind, numbers, *rest = state["numpy"]
        np.random.set_state((kind, numbers.numpy().astype("uint32"), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
