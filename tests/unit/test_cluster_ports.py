"""Ports of the local Kubernetes: chosen free, and refused with their names where taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import astuple

import pytest

from tests.cluster.base import ClusterError
from tests.cluster.layout import LOOPBACK, Ports, is_taken


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_with_a_listener_is_taken(taken: int) -> None:
    assert is_taken(LOOPBACK, taken)


def test_a_port_is_free_again_when_its_listener_has_gone() -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = server.getsockname()[1]
    assert not is_taken(LOOPBACK, port)


def test_a_taken_port_is_named_with_what_it_is_for(taken: int) -> None:
    with pytest.raises(ClusterError, match=rf"{taken} \(etcd\)"):
        Ports(**{**_free(), "etcd": taken}).check_free()


def test_free_ports_are_all_different_and_free() -> None:
    ports = Ports.free()
    assert len(set(astuple(ports))) == len(astuple(ports))
    ports.check_free()


def _free() -> dict[str, int]:
    return dict(vars(Ports.free()))
