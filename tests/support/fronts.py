"""What stands before a server in a test: TLS, which it does not speak itself, or a proxy that notes who is asked."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

from tests.support.certificates import Certificate

Dial = Callable[[socket.socket], tuple[socket.socket, socket.socket]]
"""Takes a client's connection; gives what is read of it, and where that goes."""


@contextmanager
def listening(dial: Dial) -> Iterator[int]:
    """A server on a port of its own that passes on what comes, in both directions."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                near, far = dial(cast(socket.socket, self.request))
                with near, far:
                    threading.Thread(target=_pump, args=(near, far), daemon=True).start()
                    _pump(far, near)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, until one of both ends."""
    with suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def in_tls(certificate: Certificate, dial: Callable[[], socket.socket], *, postgresql: bool = False) -> Dial:
    """TLS in front of a server that speaks none; PostgreSQL's clients ask for it first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def taken(client: socket.socket) -> tuple[socket.socket, socket.socket]:
        if postgresql:
            assert len(client.recv(8)) == 8  # SSLRequest
            client.sendall(b"S")
        return context.wrap_socket(client, server_side=True), dial()

    return taken


def to_unix(path: str) -> socket.socket:
    """A connection to a socket of this machine."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


@contextmanager
def proxy(asked: list[str]) -> Iterator[str]:
    """A proxy that writes down whom it is asked for; every name means this machine."""

    def taken(client: socket.socket) -> tuple[socket.socket, socket.socket]:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        asked.append(head.split()[1].decode())
        there = socket.create_connection(("127.0.0.1", int(asked[-1].rpartition(":")[2])))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return client, there

    with listening(taken) as port:
        yield f"http://127.0.0.1:{port}"
