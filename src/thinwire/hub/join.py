"""`thinwire.join`: the same `LocalSGD`, whose rounds go to a hub."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from thinwire import host, parameters
from thinwire.checkpoint import residual_of
from thinwire.compress import Compressor
from thinwire.errors import ConfigError
from thinwire.exchange import Hub
from thinwire.exchange.hub_rules import check_weight
from thinwire.parameters import Given
from thinwire.report import RoundReport
from thinwire.schedule import HSchedule, schedule_json
from thinwire.shell import LocalSGD

if TYPE_CHECKING:
    from thinwire.hub.client import HubTransport

LOG = logging.getLogger("thinwire")


def join(
    address: str,
    model_or_params: Given,
    optimizer: torch.optim.Optimizer,
    *,
    worker: str | None = None,
    weight: float = 1.0,
    token: str | None = None,
    authority: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    patience: float = 300.0,
    resume: dict[str, Any] | None = None,
    H: HSchedule | None = None,
    compressor: Compressor | None = None,
    exchange: Hub | None = None,
    seed: int | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
) -> LocalSGD:
    """Joins a hub and returns the optimizer to train with; the parameters become the hub's.

    The hub owns the settings: what is left out is adopted, what is given must be the hub's.
    `optimizer.leave()` ends it with a word. When the connection breaks, or the hub is started
    again, `step` waits and sends the same update again; it is applied once.

    Args:
        address: "host:port" of the hub.
        model_or_params: as for `LocalSGD`.
        optimizer: as for `LocalSGD`.
        worker: its name on the hub, under which it may return; by default a new one.
        weight: what it counts by, where the hub counts by weight.
        token: the hub's secret.
        authority: file (PEM) of who signed the hub's certificate; TLS where given.
        certificate: file (PEM) of one's own, for mutual TLS.
        key: file of that.
        patience: seconds to go on trying while the hub cannot be reached.
        resume: a `state_dict` that this worker saved: its residual and its inner optimizer go on.
            The residual counts only if it is of the worker's last round on the hub.
        H: must be the hub's, if given.
        compressor: must be the hub's, if given.
        exchange: must be the hub's, if given.
        seed: must be the hub's, if given.
        on_round: as for `LocalSGD`.

    Raises:
        HubRefused: the hub says why, both sides named.
        TransportError: it cannot be reached.
        ConfigError: gRPC is not installed, or a setting is wrong here.

    Example:
        >>> import thinwire as tw
        >>> model = torch.nn.Linear(4, 1)
        >>> inner = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = tw.join("hub.example:7077", model, inner)  # doctest: +SKIP
    """
    try:
        from thinwire.hub.client import HubTransport
        from thinwire.hub.dial import Dial
        from thinwire.hub.entry import host_of, is_loopback
        from thinwire.hub.settings import HubSettings
    except ImportError as error:
        raise ConfigError(f"a hub needs gRPC ({error}): pip install 'thinwire[hub]'") from error
    check_weight(join, weight)
    pem = [_bytes(file) for file in (authority, certificate, key)]
    dial = Dial(address, token, pem[0], pem[1], pem[2], patience)
    if token is not None and authority is None and not is_loopback(host_of(address)):
        LOG.warning(
            "the token and the model travel in clear to %s; if that hub has TLS, give authority=",
            address,
        )
    theirs = dial.settings()
    settings = HubSettings.from_dict(theirs)
    given = {
        "H": None if H is None else schedule_json(H),
        "compressor": None if compressor is None else compressor.to_json(),
        "exchange": None if exchange is None else exchange.to_json(),
        "seed": seed,
    }
    own = {**theirs, **{name: value for name, value in given.items() if value is not None}}
    named = parameters.named_parameters(model_or_params)
    parameters.check_same(named, optimizer)
    description = {"settings": own, "tensors": parameters.described(named, "parameter")}
    name = f"worker-{os.urandom(6).hex()}" if worker is None else worker
    transport = HubTransport(dial, name, weight, description)
    try:
        shell = LocalSGD(
            list(named),
            optimizer,
            H=settings.H,
            compressor=settings.compressor,
            exchange=settings.exchange,
            group=transport,
            seed=settings.seed,
            due=None if settings.seconds is None else Budget(settings.seconds),
            on_round=on_round,
        )
        mem = {"version": host.ints([transport.version])}
        if resume is not None:
            inner, residual = residual_of(resume, shell.state_dict(), transport.sequence)
            shell.inner.load_state_dict(inner)
            mem |= residual
        shell.begin_at(transport.sequence, mem)
    except BaseException:
        transport.close()
        raise
    return shell


def transport_of(shell: LocalSGD) -> HubTransport:
    """Returns the connection of a shell that `join` made."""
    transport: Any = shell.transport
    return transport  # type: ignore[no-any-return]


@dataclass
class Budget:
    """Ends a round after so many seconds, so that a slow machine takes fewer steps.

    Args:
        seconds: of computing, about; a round has at least two local steps where H allows.
    """

    seconds: float
    _began: float = 0.0

    def __call__(self, local: int) -> bool:
        """Whether the round is due after this local step, its `local`-th."""
        now = time.monotonic()
        if local == 1:
            self._began = now
        # The first step's own time is not known; it took about as long as the others.
        elapsed = now - self._began
        return local > 1 and elapsed * local / (local - 1) >= self.seconds


def _bytes(file: str | Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
