"""The only way out for a client that asks wherever a tenant, a name or a redirect sends it.

pyarrow's client of object stores follows redirects to any host, and takes no proxy from the environment. This is a
proxy of our own on loopback. It looks at the address that each connection would go to, whatever its spelling and
whoever named it, and refuses those where a node or its cloud hands out credentials; then it connects to the very
address that it has looked at, or to the proxy of the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`).
"""

from __future__ import annotations

import base64
import re
import socket
import socketserver
import threading
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

CONNECT_SECONDS = 10
SILENT_SECONDS = 90
"""How long a connection may be silent; longer than its client waits."""
CLOSING_SECONDS = 0.05
"""How long `close` waits for the server at most."""
HEAD_BYTES = 1 << 16
BLOCK_BYTES = 1 << 18
PORTS = {"http": 80, "https": 443}
LOCAL = (
    ip_network("169.254.0.0/16"),
    ip_network("fe80::/10"),
    ip_network("100.100.100.200/32"),  # Alibaba's metadata
    ip_network("168.63.129.16/32"),  # Azure's agent of nodes
    ip_network("fd00:ec2::/32"),  # Amazon's, and its agent of pods' identities
    ip_network("fd20:ce::254/128"),  # Google's
    ip_network("fd00:c1::a9fe:a9fe/128"),  # Oracle's
    ip_network("fd00:42::42/128"),  # Scaleway's
)
"""Link-local addresses, and their like elsewhere."""
NAT64 = ip_network("64:ff9b::/96")

_ENDED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_OF_ONE_HOP = re.compile(rb"(?i)(proxy-[a-z-]+|connection|keep-alive):")


class AddressRefusedError(Exception):
    """An address where credentials are handed out; the text is the address."""


def is_local(address: IPv4Address | IPv6Address) -> bool:
    """Whether a node or its cloud may hand out credentials there, also by an address of IPv6 that stands for IPv4's."""
    return any(each in network for each in (address, *_held(address)) for network in LOCAL)


def _held(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    if isinstance(address, IPv4Address):
        return []
    translated = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
    return [each for each in (address.ipv4_mapped, address.sixtofour, translated) if each is not None]


def proxy_to(scheme: str, host: str) -> SplitResult | None:
    """The proxy that the environment names on the way to a host; None where it is reached directly."""
    found = getproxies().get(scheme)
    if not found or proxy_bypass(host):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


class Gate:
    """The proxy, listening at `url` until it is closed.

    Attributes
    ----------
    refused
        The first address that was refused; None as long as none was.
    trouble
        Why the last connection could not be made; None where it was.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self.trouble: str | None = None
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.gate = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(CLOSING_SECONDS,), name="gate", daemon=True).start()

    def close(self) -> None:
        """Listen no more; connections end with their clients."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    gate: Gate


class _Handler(socketserver.BaseRequestHandler):
    """One connection, and so one request, or one tunnel."""

    def handle(self) -> None:
        client = cast(socket.socket, self.request)
        gate = cast(_Server, self.server).gate
        client.settimeout(SILENT_SECONDS)
        with suppress(OSError, ValueError):
            head, rest = _read_head(client)
            method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split()
            scheme = "https" if method == "CONNECT" else "http"
            url = urlsplit(f"//{target}" if scheme == "https" else target)
            try:
                upstream, proxy = _connect(scheme, url.hostname or "", url.port or PORTS[scheme])
            except AddressRefusedError as error:
                gate.refused = gate.refused or str(error)
                client.sendall(_ENDED)
                return
            except OSError as error:
                gate.trouble = f"cannot connect to {url.netloc}: {error.strerror or error}"
                return
            gate.trouble = None
            with upstream:
                if scheme == "https" and proxy is None:
                    client.sendall(_CONNECTED)
                    upstream.sendall(rest)
                else:
                    upstream.sendall(_sent(head, url, proxy, tunnel=scheme == "https") + rest)
                client.settimeout(None)  # who waits for a long answer says nothing; the server's silence ends both
                threading.Thread(target=_pump, args=(client, upstream), daemon=True).start()
                _pump(upstream, client)
                client.shutdown(socket.SHUT_RDWR)  # wakes the other direction


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """The lines of a request, and what has come behind them. Raises ValueError for what is none."""
    read = b""
    while b"\r\n\r\n" not in read:
        block = client.recv(BLOCK_BYTES)
        read += block
        if not block or len(read) > HEAD_BYTES:
            raise ValueError("no request")
    head, _, rest = read.partition(b"\r\n\r\n")
    return head, rest


def _sent(head: bytes, url: SplitResult, proxy: SplitResult | None, *, tunnel: bool) -> bytes:
    """The request as it goes on: to a proxy as it came, to a server with the path alone; one for each connection."""
    first, *fields = head.split(b"\r\n")
    method, target, version = first.split(b" ")
    if proxy is None:
        target = (url.path or "/").encode() + (f"?{url.query}".encode() if url.query else b"")
    kept = [field for field in fields if not _OF_ONE_HOP.match(field)]
    if not tunnel:
        kept.append(b"Connection: close")
    if proxy is not None and proxy.username:
        said = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        kept.append(b"Proxy-Authorization: Basic " + base64.b64encode(said.encode()))
    return b"\r\n".join([b" ".join([method, target, version]), *kept]) + b"\r\n\r\n"


def _connect(scheme: str, host: str, port: int) -> tuple[socket.socket, SplitResult | None]:
    """A connection to a host or to the proxy on the way. Raises AddressRefusedError, OSError."""
    proxy = proxy_to(scheme, host)
    if proxy is None:
        return _dial(_places(host, port)), None
    with suppress(socket.gaierror):  # a name, which the proxy looks up
        _places(host, port, numeric=True)
    if proxy.scheme != "http":
        raise OSError(f"the proxy must be named by http://, not by {proxy.scheme}://")
    connection = socket.create_connection((proxy.hostname or "", proxy.port or PORTS["http"]), CONNECT_SECONDS)
    connection.settimeout(SILENT_SECONDS)
    return connection, proxy


def _places(host: str, port: int, *, numeric: bool = False) -> list[tuple[socket.AddressFamily, tuple[str | int, ...]]]:
    """Where a host is; none of it may be local. The C library reads all spellings: 0xa9fea9fe is 169.254.169.254."""
    flags = socket.AI_NUMERICHOST if numeric else 0
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    for *_, place in found:
        if is_local(ip_address(str(place[0]).partition("%")[0])):
            raise AddressRefusedError(str(place[0]))
    return [(family, cast("tuple[str | int, ...]", place)) for family, _, _, _, place in found]


def _dial(places: list[tuple[socket.AddressFamily, tuple[str | int, ...]]]) -> socket.socket:
    """A connection to the first of these that takes it. Raises OSError."""
    failure: OSError = OSError("the name has no address")
    for family, place in places:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(place)
        except OSError as error:
            connection.close()
            failure = error
        else:
            connection.settimeout(SILENT_SECONDS)
            return connection
    raise failure


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, until it ends."""
    with suppress(OSError):
        while block := source.recv(BLOCK_BYTES):
            target.sendall(block)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
