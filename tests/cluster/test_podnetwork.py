"""Addresses of pods: unlike any other session's, as many as wanted, each with a twin that leads back to it."""

from __future__ import annotations

import contextlib

from tests.cluster import podnetwork
from tests.cluster.podnetwork import Addresses


def test_two_sessions_share_no_address_however_many_they_take() -> None:
    with contextlib.closing(Addresses()) as one, contextlib.closing(Addresses()) as other:
        taken = [addresses.take() for _ in range(600) for addresses in (one, other)]
    assert len(set(taken)) == 1200


def test_an_address_that_was_given_back_comes_last() -> None:
    with contextlib.closing(Addresses()) as addresses:
        first = addresses.take()
        addresses.give_back(first)
        later = [addresses.take() for _ in range(253)]
    assert later[-1] == first
    assert first not in later[:-1]


def test_the_public_twin_leads_back() -> None:
    with contextlib.closing(Addresses()) as addresses:
        address = addresses.take()
    assert podnetwork.public(address).startswith(("198.18.", "198.19."))
    assert podnetwork.local(podnetwork.public(address)) == address
    assert podnetwork.local("127.0.0.1") == "127.0.0.1"
