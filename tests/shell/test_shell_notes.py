"""What an exchange decides by itself is said once, when the ranks join."""

from __future__ import annotations

import logging

import torch

import thinwire as tw


def join(caplog, **settings) -> list[str]:
    caplog.set_level(logging.INFO, "thinwire")
    nets = [torch.nn.Linear(3, 2) for _ in range(3)]
    shells = [
        tw.LocalSGD(
            net, torch.optim.SGD(net.parameters(), lr=0.1), group=tw.Seat(rank, 3), **settings
        )
        for rank, net in enumerate(nets)
    ]
    tw.LockStep(shells)
    told = [r.getMessage() for r in caplog.records if r.name == "thinwire"]
    assert told == shells[0].notes
    return told


def test_a_ring_says_once_which_form_it_takes_and_why(caplog) -> None:
    (told,) = join(caplog, **tw.qprsgd_ring())
    assert told.startswith("Ring takes the form 'two-phase': any rank reaches any other")


def test_a_form_that_was_asked_for_is_said_so(caplog) -> None:
    (told,) = join(caplog, **tw.qprsgd_ring(form="ring"))
    assert told == "Ring takes the form 'ring': it was asked for"


def test_an_exchange_that_decides_nothing_says_nothing(caplog) -> None:
    assert join(caplog, **tw.qsparse_local_sgd()) == []
