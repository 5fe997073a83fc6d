"""The way out of an object store's client: local addresses in no spelling, redirects, proxies of the environment."""

from __future__ import annotations

import base64
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import pytest

from model.data.sources import ObjectStoreSource, SourceInterruptedError
from model.data.sources.gate import Gate, is_local, proxy_to
from model.exits import FailureError
from tests.support.certificates import signed
from tests.support.fronts import in_tls, listening, proxy
from tests.support.s3 import s3

ROOT = Path(__file__).parents[2]


class Answers(BaseHTTPRequestHandler):
    """Writes down what is asked; answers with the body `here`, or with a redirect."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, dict[str, str]]]]
    location: ClassVar[str | None] = None

    def do_GET(self) -> None:
        self.asked.append((self.path, dict(self.headers)))
        body = b"" if self.location else b"here"
        self.send_response(307 if self.location else 200)
        if self.location:
            self.send_header("Location", self.location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET  # noqa: N815 - the name is the library's

    def do_CONNECT(self) -> None:
        self.asked.append((self.path, dict(self.headers)))
        self.send_response(502)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def server(location: str | None = None) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """A server's address, and what it was asked."""
    handler = type("Handler", (Answers,), {"asked": [], "location": location})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{running.server_port}", handler.asked  # type: ignore[attr-defined]
        running.shutdown()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Gate()
    yield made
    made.close()


def status(gate: Gate, request: str) -> int:
    """What the gate answers to the first line of a request; 0: it hangs up."""
    host, port = gate.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        said = connection.recv(4096)
    return int(said.split()[1]) if said else 0


def text(gate: Gate, url: str) -> str:
    with build_opener(ProxyHandler({"http": gate.url})).open(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "168.63.129.16"),
        *("fe80::1", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
        *("::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "::ffff:100.100.100.200"),
    ],
)
def test_where_credentials_are_handed_out(address: str) -> None:
    assert is_local(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "169.253.255.255", "169.255.0.0", "100.100.100.201", "168.63.129.17", "8.8.8.8"),
        *(
            "::1",
            "fd00:c1::1",
            "fd00:ec3::254",
            "2001:db8::1",
            "fec0::1",
            "::ffff:10.0.0.1",
            "64:ff9b::808:808",
            "64:ff9b::",
        ),
    ],
)
def test_every_other_address_is_open(address: str) -> None:
    assert not is_local(ip_address(address))


SPELLINGS = (
    *("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "0xa9.254.0251.254", "169.254.43518"),
    *("169.16689662", "[fe80::1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]"),
)


@pytest.mark.parametrize("host", SPELLINGS)
@pytest.mark.parametrize("proxied", [False, True])
def test_no_spelling_of_such_an_address_gets_through(
    gate: Gate, host: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as (through, asked):
        if proxied:
            monkeypatch.setenv("http_proxy", f"http://{through}")
            monkeypatch.setenv("https_proxy", f"http://{through}")
        assert status(gate, f"GET http://{host}/latest/meta-data/") == 403
        assert gate.refused is not None
        assert is_local(ip_address(gate.refused))
        assert status(gate, f"CONNECT {host}:443") == 403
        assert asked == []


def test_a_request_goes_on_as_it_came_with_its_path_alone(gate: Gate) -> None:
    with server() as (address, asked):
        assert text(gate, f"http://{address}/a%20b?list-type=2") == "here"
    [(path, headers)] = asked
    assert (path, headers["Host"], headers["Connection"]) == ("/a%20b?list-type=2", address, "close")
    assert gate.refused is gate.trouble is None


def test_a_proxy_of_the_environment_gets_what_leaves(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as (through, asked), server() as (inside, direct):
        monkeypatch.setenv("http_proxy", f"http://me:se%20cret@{through}")
        monkeypatch.setenv("https_proxy", f"http://{through}")
        monkeypatch.setenv("no_proxy", "127.0.0.1,.svc")
        assert text(gate, "http://store.example/bucket/key") == "here"
        assert status(gate, "CONNECT store.example:443") == 502  # the proxy's own answer
        assert text(gate, f"http://{inside}/") == "here"
    assert [path for path, _ in asked] == ["http://store.example/bucket/key", "store.example:443"]
    assert asked[0][1]["Proxy-Authorization"] == "Basic " + base64.b64encode(b"me:se cret").decode()
    assert "Proxy-Authorization" not in asked[1][1]
    assert [path for path, _ in direct] == ["/"]


@pytest.mark.parametrize(
    ("variables", "host", "expected"),
    [
        ({}, "s3.amazonaws.com", None),
        ({"https_proxy": "http://p:3128"}, "s3.amazonaws.com", "p"),
        ({"https_proxy": "p:3128"}, "s3.amazonaws.com", "p"),
        ({"https_proxy": "http://p", "no_proxy": "amazonaws.com"}, "s3.amazonaws.com", None),
        ({"https_proxy": "http://p", "no_proxy": ".svc"}, "minio.storage.svc", None),
        ({"http_proxy": "http://p"}, "s3.amazonaws.com", None),
    ],
)
def test_which_proxy_is_on_the_way(
    variables: dict[str, str], host: str, expected: str | None, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = proxy_to("https", host)
    assert (found and found.hostname) == expected
    assert gate.refused is None


def test_a_long_answer_is_not_cut_because_nothing_more_is_asked(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.sources.gate.SILENT_SECONDS", 1.5)
    letters = b"abcdefghij"

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            for letter in letters:
                connection.sendall(bytes([letter]))
                if select.select([connection], [], [], 0.25)[0]:  # the client has hung up
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        host, port = gate.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(f"CONNECT 127.0.0.1:{listening.getsockname()[1]} HTTP/1.1\r\n\r\n".encode())
            answers = connection.makefile("rb")
            assert answers.readline().startswith(b"HTTP/1.1 200")
            assert answers.readline() == b"\r\n"
            connection.sendall(b"?")
            assert answers.read() == letters


def test_what_cannot_be_reached_is_said(gate: Gate) -> None:
    assert status(gate, "GET http://127.0.0.1:9/") == 0
    assert gate.trouble == "cannot connect to 127.0.0.1:9: Connection refused"
    assert status(gate, "nonsense") == 0


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "0xa9fea9fe"])
def test_a_store_at_such_an_address_is_refused_with_what_to_do(host: str) -> None:
    with pytest.raises(FailureError) as caught:
        list(ObjectStoreSource("s3://data/a.jsonl", f"http://{host}", KEYS).records())
    assert (caught.value.code, caught.value.reason) == (2, "InvalidSpec")
    assert f"the endpoint http://{host} leads to 169.254.169.254" in caught.value.message
    assert "name the object store's own address" in caught.value.message


@pytest.mark.usefixtures("gate")
def test_a_store_that_sends_elsewhere_is_not_followed_to_such_an_address() -> None:
    to = "http://2852039166/latest/meta-data/iam/security-credentials/"
    with server(to) as (address, asked), pytest.raises(FailureError) as caught:
        list(ObjectStoreSource("s3://data/a.jsonl", f"http://{address}", KEYS).records())
    assert asked
    assert (caught.value.code, caught.value.reason) == (2, "InvalidSpec")
    assert "leads to 169.254.169.254" in caught.value.message


@pytest.mark.usefixtures("gate")
def test_a_store_outside_is_asked_through_the_proxy_and_one_inside_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    with s3() as store, server() as (through, asked):
        store.create_bucket("data")
        store.put("data", "a.jsonl", b'{"prompt": "a"}\n')
        monkeypatch.setenv("http_proxy", f"http://{through}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        inside = ObjectStoreSource("s3://data/a.jsonl", store.endpoint, store.environment)
        assert [record.value for record in inside.records()] == [{"prompt": "a"}]
        assert asked == []
        outside = ObjectStoreSource("s3://data/a.jsonl", "http://store.example:9000", store.environment)
        with suppress(FailureError, SourceInterruptedError):  # what this proxy answers is no object
            list(outside.records())
        assert asked[0][0] == "http://store.example:9000/data/a.jsonl"


READS = """
import sys
from model.data.sources import ObjectStoreSource
print([record.value for record in ObjectStoreSource("s3://data/a.jsonl", sys.argv[1]).records()])
"""


def test_a_store_with_a_certificate_of_ones_own_authority_is_reached_through_the_proxy(tmp_path: Path) -> None:
    """By the variables that a run's pod gets, which pyarrow and the C library read when they start."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    authority, certificate = signed(tmp_path, host="store.example")
    asked: list[str] = []
    with s3() as store:
        store.create_bucket("data")
        store.put("data", "a.jsonl", b'{"prompt": "a"}\n')
        inner = urlsplit(store.endpoint)
        tls = in_tls(certificate, lambda: socket.create_connection((str(inner.hostname), int(inner.port or 0))))
        with listening(tls) as port, proxy(asked) as address:
            given = {"SSL_CERT_FILE": str(authority), "HTTPS_PROXY": address, "PATH": os.environ["PATH"]}
            argv = [sys.executable, "-c", READS, f"https://store.example:{port}"]
            done = subprocess.run(
                argv, env={**given, **store.environment}, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.stdout == "[{'prompt': 'a'}]\n", done.stderr
    assert set(asked) == {f"store.example:{port}"}
