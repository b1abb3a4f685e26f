"""LocalSGD: the shell around the rounds that behaves like a `torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from thinwire import checkpoint, flat, host, kernels, parameters
from thinwire.company import Company, Tried
from thinwire.compress import Compressor, Identity
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange import AllReduce, Exchange, Here, Memory, NoFeedback, Server
from thinwire.exchange.agree import HELLO_BOUND, SHORT, Said, agree, broadcast, decide, hello
from thinwire.exchange.compare import compare
from thinwire.exchange.driver import drive
from thinwire.exchange.without import Without
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.lean import fits, lean_round, mean_round
from thinwire.ledger import Entry, Ledger, Watched
from thinwire.outer import Adopt, Average, Outer
from thinwire.parameters import Buffers, Given
from thinwire.refused import Refused, check_policy
from thinwire.report import RoundReport
from thinwire.round import RoundState, one_round
from thinwire.schedule import H_at, HSchedule, RandomGaps, check_schedule, schedule_json
from thinwire.seat import Group, Seat, place_of, transport_of
from thinwire.stats import Stats
from thinwire.transport import Alone, Answer, Ask, Transport
from thinwire.transport.watchdog import Watchdog
from thinwire.value import in_range, of_kind, one_of, whole
from thinwire.version import __version__
from thinwire.watch import Deadline, Watch
from thinwire.wire.frame import BUFFER_PART, WATCH_PART, Address

LOG = logging.getLogger("thinwire")
Closure = Callable[[], Any]
R = TypeVar("R")


class LocalSGD(torch.optim.Optimizer):
    """Takes H local steps with any `torch.optim` optimizer, then one compressed round.

    `step()` steps the inner optimizer; every H-th call also runs a round, after which all workers
    hold the same parameters to the last bit. Learning-rate schedulers, parameter groups,
    gradient accumulation and `GradScaler` work as with the inner optimizer.

    Args:
        model_or_params: a module (its parameters that require a gradient), or parameters, or
            (name, parameter) pairs. Tied weights count once; frozen ones are left alone. Any
            floating dtype; what is said and agreed is float32.
        optimizer: the inner optimizer over exactly those parameters. Its state stays local.
        H: local steps per round; or a schedule ((first round, H), ...) such as
            ((0, 1), (100, 8)); or a function of the round number, which the ranks compare at
            round 0 and the powers of two; or `RandomGaps`, where the exchange lets each worker
            speak at its own times.
        compressor: what is said of the pseudo-gradient.
        exchange: who says it to whom, and whether with feedback.
        outer: how the anchor moves along the mean; by default as the exchange has it.
        group: a process group; None for the default one (or, without one, a group of one); a
            `Seat` of a `LockStep`; `Paced`, a group behind a modelled link; a transport of one's
            own, as `join` makes; or a `thinwire.elastic.Quorum`, whose workers may die, return
            and join.
        seed: of the random choices; the same on all ranks.
        buffers: of the model, such as BN statistics: "local", "average" or "broadcast" (rank
            0's) at every round.
        clear_residual_at_drop: clears the residual when the learning rate has fallen to at most
            this fraction of what it was at the last round; None for never. The paper's ImageNet
            runs clear it at their drops by ten; 0.5 does that.
        watch: what becomes of a round that is not finite, how often replicas are compared, and
            when a round is late.
        due: is asked after each local step, with their number, whether to end the round before H
            steps are done; only where a worker waits for no other (`Hub`).
        on_round: is called with a `RoundReport` after each round.
        ledger: books every update, so that one can see that nothing is lost; see `Ledger`.

    Raises:
        ConfigError: settings disagree with each other or with another rank's; on every rank.

    Example:
        >>> import thinwire as tw
        >>> model = torch.nn.Linear(4, 1)
        >>> inner = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = tw.LocalSGD(model, inner, **tw.qsparse_local_sgd(H=2))
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        >>> optimizer.round
        1

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1.
    """

    # GradScaler then always calls step() and hands over what it found: a step it would skip on
    # one rank alone would leave the ranks' rounds out of step.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model_or_params: Given,
        optimizer: torch.optim.Optimizer,
        *,
        H: HSchedule = 1,
        compressor: Compressor | None = None,
        exchange: Exchange | None = None,
        outer: Outer | None = None,
        group: Group | Company = None,
        seed: int = 0,
        buffers: Buffers = "local",
        clear_residual_at_drop: float | None = None,
        watch: Watch | None = None,
        due: Callable[[int], bool] | None = None,
        on_round: Callable[[RoundReport], None] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.inner = optimizer
        self.H = H
        self.compressor = Identity() if compressor is None else compressor
        self.exchange = Server(NoFeedback()) if exchange is None else exchange
        handed = isinstance(self.exchange, Exchange) and self.exchange.hands_anchor
        self.outer: Outer = outer or (Adopt() if handed else Average())
        self.seed = seed
        self.buffers = buffers
        self.clear_residual_at_drop = clear_residual_at_drop
        self.watch = Watch() if watch is None else watch
        self.due = due
        self.on_round = on_round
        self.ledger = ledger
        self.before_round: Callable[[], None] | None = None
        self.stats = Stats()
        self._state: RoundState
        self._frozen_groups = False
        deadline = self.watch.deadline if isinstance(self.watch, Watch) else Deadline()
        self._company = group if isinstance(group, Company) else None
        # Of an elastic group each quorum says anew where this worker sits.
        seat: Group = Seat(0, 1) if isinstance(group, Company) else group
        self._transport = transport_of(seat, deadline.hard)
        self._rank, self._N = place_of(seat, self._transport)
        self._local = self._refused = 0
        awaited = partial(getattr, self._transport, "awaited", None)
        self._watchdog = Watchdog(self._rank, deadline, awaited)
        problem = None
        try:
            self._prepare(model_or_params)
        except ConfigError as error:
            problem = error
        except Exception as error:
            problem = ConfigError(f"LocalSGD could not be made: {type(error).__name__}: {error}")
            problem.__cause__ = error
        # A rank whose own settings are broken must still say so, or the others would wait.
        self._problem = problem
        if self._transport is not None:
            drive(self.join(), self._transport, self.stats)
        elif problem is not None:
            raise problem
        elif self._company is not None:
            self._company.join(self)

    @property
    def round(self) -> int:
        """Rounds done."""
        return self._state.round

    @property
    def transport(self) -> Transport | None:
        """What moves this worker's frames; None on a `Seat`."""
        return self._transport

    @property
    def place(self) -> tuple[int, int]:
        """This worker's rank and N."""
        return self._rank, self._N

    @property
    def anchor(self) -> Tensor:
        """The parameters all workers hold since the last round, (d,) float32; do not write.

        It lives on the parameters' CUDA device where they share one, and else on the CPU.
        """
        return self._state.anchor

    @property
    def notes(self) -> list[str]:
        """What the exchange decided by itself, and why; rank 0 logs it when the ranks join."""
        return self.exchange.notes(self.compressor)

    @property
    def agreed(self) -> Tensor:
        """The model this rank answers for, (d,) float32: a master's own, elsewhere the anchor."""
        return self.exchange.agreed(self._state.anchor, self._state.mem)

    @property
    def residual(self) -> Tensor | None:
        """What this worker has not yet said, (d,) float32, or None where feedback is off."""
        return self._state.mem.get("residual")

    def join(self) -> Generator[Ask, Answer, None]:
        """Agrees with all ranks on the settings and starts from rank 0's parameters."""
        if self._problem is not None and self._N == 1:
            raise self._problem
        self._run, equal = yield from agree(self.introduce(), self._rank, self._N)
        if not equal:
            start = yield from broadcast(self._state.anchor, self._run, 0, 0, self._rank, self._N)
            self._restart(host.send(start, self._device))
        if self._rank == 0:
            for note in self.notes:
                LOG.info(note)

    def step(self, closure: Closure | None = None) -> Any:
        """Takes one local step and, when H are done, one round; returns the closure's loss.

        Raises:
            NonFiniteError: a rank's message would hold a NaN or an infinity; on every rank,
                nothing applied.
            FrameError: a frame was truncated, altered, foreign or stale.
            PeerLost, RoundTimeout: a rank is gone or silent.
        """
        if self._company is None:
            return self.drive(self.steps(closure))
        loss, over = self._local_step(closure)
        if over:
            self._company.sync(self, called=False)
        return loss

    def sync(self) -> None:
        """Runs a round now, however few local steps are done; every rank must call it."""
        if self._company is None:
            self.drive(self.sync_talk())
        else:
            self._company.sync(self, called=True)

    def steps(self, closure: Closure | None = None) -> Generator[Ask, Answer, Any]:
        """The same as `step`, as a talk for whoever drives it."""
        loss, over = self._local_step(closure)
        if over:
            yield from self.sync_talk(called=False)
        elif self.exchange.pace == "own":
            state = self._state
            mem = yield from self.exchange.attend(state.anchor, state.mem, self._here())
            self._state = replace(state, mem=mem)
        return loss

    def _local_step(self, closure: Closure | None) -> tuple[Any, bool]:
        loss = self._inner_step(closure)
        # What a learning-rate scheduler looks at, which only wraps `step`.
        self._opt_called = True
        self._local += 1
        over = self.due is not None and self.due(self._local)
        return loss, over or self._local >= H_at(self.H, self.round, self._key())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the inner optimizer's parameters."""
        self.inner.zero_grad(set_to_none)

    def settings(self) -> dict[str, Any]:
        """Returns everything the ranks must agree on, as plain data."""
        return self._settings

    def tensors(self) -> list[list[str]]:
        """Returns name, shape, dtype and part of each tensor that the ranks agree on."""
        return self._described

    def drive(self, talk: Generator[Ask, Answer, R]) -> R:
        """Runs a talk of this worker over its transport and returns what it returns.

        A worker of an elastic group talks to others in rounds alone, and else to itself.

        Raises:
            ConfigError: it sits on a `Seat`; its `LockStep` runs its talks.
        """
        if self._company is not None:
            return drive(talk, Alone(), self.stats)
        if self._transport is None:
            talk.close()
            raise ConfigError("a worker on a Seat is stepped by its LockStep, not by itself")
        return drive(talk, self._transport, self.stats)

    def consult(
        self, own: Said, judge: Callable[[list[Said]], Said], when: int, long: bool = False
    ) -> Generator[Ask, Answer, Said]:
        """As a talk between rounds: says this to rank 0, returns what it makes of what all said.

        Args:
            own: what this worker says, as JSON of at most 4 KB.
            judge: rank 0's; see `thinwire.exchange.agree.decide`.
            when: a number that all ranks give alike.
            long: lets it be 64 MB.
        """
        at = Address(self._run, when, self._rank, WATCH_PART)
        return (yield from decide(own, judge, at, self._N, HELLO_BOUND if long else SHORT))

    def compare_talk(self) -> Generator[Ask, Answer, None]:
        """As a talk: raises a DivergedError unless the replicas that must agree do."""
        if self._N < 2 or self.exchange.pace != "common":
            return
        state, here = self._state, self._here()
        alike = self.exchange.alike(state.anchor, state.mem, here)
        if self.exchange.replicates:
            alike |= {f"{name} of the outer step": v for name, v in state.outer.items()}
        held = {name: (tensor, self.spans) for name, tensor in alike.items()}
        if self._buffers:
            held["shared buffers"] = (flat.read(self._buffers), self._buffer_spans)
        yield from compare(held, here)

    def state_dict(self) -> dict[str, Any]:
        """Returns all this rank needs to go on in the same bits: each rank saves its own.

        It holds the inner optimizer's state, the anchor, the residual, the outer state and the
        counters; the model's own `state_dict` is saved beside it as ever.
        """
        elastic = {} if self._company is None else {"elastic": self._company.save()}
        return checkpoint.save(
            self.inner,
            self._state,
            settings=self.settings(),
            tensors=self._described,
            rank=self._rank,
            local=self._local,
            lr=self._lr,
            **elastic,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a `state_dict`; load the model's own beside it.

        Raises:
            ConfigError: it was saved under other settings, for other tensors or by another rank;
                nothing is changed.
        """
        state = checkpoint.load(state_dict, self.state_dict(), ("settings", "tensors", "rank"))
        self.inner.load_state_dict(copy.deepcopy(state_dict["inner"]))
        self._adopt_inner()
        local = state_dict["local"]
        if self._company is not None:
            state, local = self._company.resume(self, state, state_dict["elastic"]), 0
        self._state, self._local, self._lr = state, local, state_dict["lr"]

    def write_anchor(self) -> None:
        """Puts the parameters where the round began, if no local step was done since."""
        if self._local == 0:
            flat.write(self._state.anchor, self._params)

    def sit(self, rank: int, N: int, run: int) -> None:
        """Takes another place among other workers, as an elastic group gives it."""
        self._rank, self._N, self._run = rank, N, run

    def stand(self, state: RoundState, buffers: Tensor) -> None:
        """Goes on from this state, which is of another's making; local steps begin anew.

        Args:
            state: of the rounds.
            buffers: (b,) float32, of the model; none where they are local.
        """
        flat.write(state.anchor, self._params)
        flat.write(buffers, self._buffers)
        self._state, self._local = state, 0

    def hold(self) -> tuple[RoundState, Tensor]:
        """Returns what `stand` takes."""
        return self._state, flat.read(self._buffers, device=self._device)

    def books(self) -> dict[str, Tensor]:
        """Returns this worker's books as they stand; see `Ledger`.

        Raises:
            ConfigError: it keeps none.
        """
        if self.ledger is None:
            raise ConfigError("this worker keeps no books; give LocalSGD a ledger=Ledger()")
        return self.ledger.closed(self.exchange, self._state.mem, self._N)

    def introduce(self) -> dict[str, Any]:
        """Returns what this worker says of itself before it is agreed with, as JSON."""
        if self._problem is not None:
            return {"problem": str(self._problem)}
        # What is watched may change from one start to the next, but not from rank to rank.
        settings = {**self._settings, "watch": self.watch.to_json()}
        return hello(__version__, settings, self._described, self._state.anchor)

    def begin_at(self, round: int, mem: Memory) -> None:
        """Goes on in that round, these memories in place of their first values.

        Args:
            round: what a worker that joins late, or again, is in.
            mem: by name, as the exchange keeps them.
        """
        own = {**self._state.mem, **mem}
        self._state = replace(self._state, round=round, mem=own)

    def leave(self) -> None:
        """Ends the run, where others need a word: a hub, or an elastic group; else does nothing."""
        if self._company is not None:
            self._company.leave(self)
        if callable(goodbye := getattr(self._transport, "leave", None)):
            goodbye()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses: all ranks have agreed on the tensors.

        Raises:
            ConfigError: always, once constructed.
        """
        if self._frozen_groups:
            raise ConfigError(
                "the tensors are agreed with all ranks; add the group to the inner optimizer "
                "before LocalSGD is made, or make a new one"
            )
        super().add_param_group(param_group)

    def __repr__(self) -> str:
        return (
            f"LocalSGD({type(self.inner).__name__}, H={self.H!r}, compressor={self.compressor!r}, "
            f"exchange={self.exchange!r}, outer={self.outer!r})"
        )

    def _prepare(self, model_or_params: Given) -> None:
        of_kind(self, "optimizer", self.inner, torch.optim.Optimizer)
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._adopt_inner()
        self._frozen_groups = True
        self._lr = self._learning_rate()
        one_of(self, "buffers", self.buffers, ("local", "average", "broadcast"))
        check_schedule(self.H)
        whole(self, "seed", self.seed, 0, (1 << 63) - 1)
        if self.clear_residual_at_drop is not None:
            in_range(self, "clear_residual_at_drop", self.clear_residual_at_drop, 0.0, 1.0)
        for name, kind in (("compressor", Compressor), ("exchange", Exchange), ("outer", Outer)):
            of_kind(self, name, getattr(self, name), kind)
        plain = Adopt() if self.exchange.hands_anchor else Average()
        if not self.exchange.replicates and self.outer != plain:
            raise ConfigError(
                f"{self.exchange!r} moves each worker by itself and takes the plain outer step: "
                f"outer={plain!r}, not {self.outer!r}"
            )
        if isinstance(self.H, RandomGaps) and self.exchange.pace == "common":
            raise ConfigError(
                f"{self.exchange!r} hears all workers in the same step, so H={self.H!r} would "
                "never meet; use Asynchronous(), or a number"
            )
        if self.due is not None and self.exchange.pace != "free":
            raise ConfigError(
                f"{self.exchange!r} needs all workers at agreed steps; due= is for exchange=Hub()"
            )
        if self.ledger is not None and self.exchange.hands_anchor:
            raise ConfigError(
                f"{self.exchange!r} hands back a model in which others' updates are, too, so one "
                "worker's books cannot balance; a Ledger is for exchanges that meet in rounds"
            )
        of_kind(self, "watch", self.watch, Watch)
        check_policy(self.watch, self.exchange)
        named = parameters.named_parameters(model_or_params)
        shared = parameters.named_buffers(model_or_params, self.buffers)
        parameters.check_same(named, self.inner)
        self._params = [p for _, p in named]
        self._buffers = [b for _, b in shared]
        self.spans, self._buffer_spans = Spans.of_tensors(named), Spans.of_tensors(shared)
        self._described = parameters.described(named, "parameter")
        self._described += parameters.described(shared, "buffer")
        self._settings = self._as_settings()
        self.exchange.check(self.compressor, self.spans)
        self._run = 0
        self._device = flat.home(self._params) if self.exchange.on_device else host.CPU
        # A device whose kernels cannot run is found now, not at the first round.
        kernels.active(self._device)
        self._restart(flat.read(self._params, device=self._device))

    def _as_settings(self) -> dict[str, Any]:
        return {
            "H": schedule_json(self.H),
            "compressor": self.compressor.to_json(),
            "exchange": self.exchange.to_json(),
            "outer": self.outer.to_json(),
            "seed": self.seed,
            "buffers": self.buffers,
            "clear_residual_at_drop": self.clear_residual_at_drop,
            "N": self._N,
        }

    def _restart(self, anchor: Tensor) -> None:
        flat.write(anchor, self._params)
        outer = self.outer.init(anchor)
        self._state = RoundState(anchor, {}, outer, 0)
        self._state = replace(self._state, mem=self.exchange.init(self._here()))

    def _here(self) -> Here:
        C, spans = self.compressor, self.spans
        seat = self._rank, self._N, self.round, self._key(), C, spans, self._run
        return Here(*seat, H=self.H, device=self._device)

    def _key(self) -> Key:
        return Key(self.seed, self.round, self._rank)

    def sync_talk(self, called: bool = True) -> Generator[Ask, Answer, None]:
        """The same as `sync`, as a talk for whoever drives it."""
        if self.before_round is not None:
            self.before_round()
        alone = self._transport is None or self._N < 2
        with nullcontext() if alone else self._watchdog.over(self.round):
            tried = yield from self.try_round(called)
            report = self.take_up(tried)
        self.report(report)
        if self.watch.compare and self.round % self.watch.compare == 0:
            yield from self.compare_talk()

    def try_round(
        self, called: bool = True, outer: Outer | None = None
    ) -> Generator[Ask, Answer, Tried]:
        """Runs a round and returns what comes of it, not yet taken up.

        Args:
            called: whether all ranks were called together, whatever their local steps.
            outer: in the place of the agreed outer step.
        """
        before = self._counted()
        began, cleared, lr = self._cleared_at_drop()
        dropped: tuple[int, ...] = ()
        shared, skipped, lean, unsaid = None, False, self._lean, None
        watched = Watched(self.exchange) if self.ledger is not None else None
        exchange = cast(Exchange, watched or self.exchange)
        try:
            shared = yield from self._shared_buffers()
            state = yield from self._round(began, called, exchange, outer or self.outer)
            self._refused = 0
        except NonFiniteError as error:
            self._refused += 1
            hold = None if shared is None else partial(self._without, began, called, exchange)
            refused = Refused(error, began, self._refused, self._here(), hold)
            unsaid = None if watched is None else self.delta(began.anchor)
            state, dropped = yield from refused.go_on(self.watch, self.inner, self._params)
            skipped, lean = not dropped, False
        entry = None
        if watched is not None:
            entry = Entry.nothing(len(began.anchor)) if skipped else watched.entry
            if unsaid is not None and (skipped or self._rank in dropped):
                entry = entry.with_unsaid(unsaid)
            entry = entry.after_reset(self._state.mem if cleared else {})
        return Tried(state, shared, before, cleared, lr, lean, entry, skipped, dropped)

    def take_up(self, tried: Tried) -> RoundReport:
        """Goes on from what a round came to, and returns what there is to report of it."""
        if not tried.in_place:
            flat.write(tried.state.anchor, self._params)
        if tried.shared is not None:
            flat.write(tried.shared, self._buffers)
        local_steps, round = self._local, self._state.round
        self._state, self._local, self._lr = tried.state, 0, tried.lr
        if self.ledger is not None and tried.entry is not None:
            self.ledger.book(tried.entry)
        uplink, sent, received, lost, repairs, mended = (
            b - a for a, b in zip(tried.before, self._counted(), strict=True)
        )
        return RoundReport(
            round, local_steps, uplink, sent, received, tried.cleared, lost, repairs > 0, mended,
            tried.skipped, tried.dropped,
        )  # fmt: skip

    def report(self, report: RoundReport) -> None:
        """Tells the log and whoever asked what a round did."""
        report.log(self._rank)
        if self.on_round is not None:
            self.on_round(report)

    def _round(
        self, began: RoundState, called: bool, exchange: Exchange, outer: Outer
    ) -> Generator[Ask, Answer, RoundState]:
        if self._lean:
            talk = lean_round(began, self._params, self.exchange, self.outer, self._here())
            return (yield from talk)
        if isinstance(self.exchange, AllReduce) and outer == Average() and self._float32:
            state = yield from mean_round(began, self._params, self.exchange, self._here())
            if isinstance(exchange, Watched):
                exchange.moved(self.delta(began.anchor), began.anchor - state.anchor)
            return state
        return (yield from self._dense_round(began, called, exchange, outer))

    def _without(
        self, began: RoundState, called: bool, exchange: Exchange, ranks: tuple[int, ...]
    ) -> Generator[Ask, Answer, RoundState]:
        held = Without(exchange, ranks)
        return (yield from self._dense_round(began, called, held, self.outer))

    def _counted(self) -> tuple[int, ...]:
        return *self.stats.totals(), *self.stats.mended()

    def _dense_round(
        self, began: RoundState, called: bool, exchange: Exchange, outer: Outer
    ) -> Generator[Ask, Answer, RoundState]:
        here = replace(self._here(), called=called)
        return (yield from one_round(began, self._params, exchange, outer, here))

    def delta(self, anchor: Tensor) -> Tensor:
        """Returns how far local steps have moved the parameters from the anchor, (d,) float32."""
        return flat.difference(anchor, self._params)

    @property
    def _lean(self) -> bool:
        fast = kernels.active(self._device).name == "cpu"
        # In place there is no way back, and no books.
        fast = fast and self._company is None and self.ledger is None
        return fast and fits(self.compressor, self.exchange, self.outer, self._params)

    @property
    def _float32(self) -> bool:
        return all(p.dtype == torch.float32 for p in self._params)

    def _shared_buffers(self) -> Generator[Ask, Answer, Tensor]:
        own = flat.read(self._buffers, device=self._device)
        if not self._buffers:
            return own
        if self.buffers == "broadcast":
            shared = yield from broadcast(
                own, self._run, self._state.round, BUFFER_PART, self._rank, self._N
            )
            return shared
        here = replace(
            self._here(), compressor=Identity(), spans=self._buffer_spans, part=BUFFER_PART
        )
        mean = Server(NoFeedback())
        shared, _ = yield from mean.round(torch.zeros_like(own), own, {}, here)
        return shared

    def _cleared_at_drop(self) -> tuple[RoundState, bool, float]:
        lr, before, fraction = self._learning_rate(), self._lr, self.clear_residual_at_drop
        dropped = fraction is not None and lr < before and lr <= fraction * before
        if not dropped or "residual" not in self._state.mem:
            return self._state, False, lr
        zero = torch.zeros_like(self._state.mem["residual"])
        return replace(self._state, mem={**self._state.mem, "residual": zero}), True, lr

    def _learning_rate(self) -> float:
        return max((float(g["lr"]) for g in self.param_groups if "lr" in g), default=0.0)

    def _inner_step(self, closure: Closure | None) -> Any:
        scale, found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found is not None and bool(found):
            return None
        if scale is not None:
            for p in self._params:
                if p.grad is not None:
                    p.grad.div_(scale.to(p.grad.device))
        return self.inner.step() if closure is None else self.inner.step(closure)

    def _adopt_inner(self) -> None:
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state
