"""An S3 server in memory that checks signatures, built once from its pinned Go module."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.cluster.go_build import Program, build

SOURCES = Path(__file__).parent / "go"
SERVER = Program("s3", "s3", ".")
REGION = "us-east-1"


class S3:
    """A running server with one access key.

    Parameters
    ----------
    endpoint
        Its URL.
    process
        The server itself.
    """

    access_key = "test-access-key"
    secret_key = "test/secret+key"

    def __init__(self, endpoint: str, process: subprocess.Popen[str]) -> None:
        self.endpoint = endpoint
        self.process = process

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client shows who it is."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    @property
    def store_environment(self) -> dict[str, str]:
        """The variables by which a store of files is pointed to this server."""
        return {
            **self.environment,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": REGION,
        }

    def create_bucket(self, bucket: str) -> None:
        """Create an empty bucket."""
        self._put(f"/{bucket}", b"")

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store an object, in place of one of that name."""
        self._put(f"/{bucket}/{urllib.parse.quote(key)}", content)

    def _put(self, path: str, content: bytes) -> None:
        """Send a request with a signature of AWS's version 4."""
        host = self.endpoint.removeprefix("http://")
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(content).hexdigest()
        headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
        signed = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        canonical = f"PUT\n{path}\n\n{lines}\n{signed}\n{digest}"
        scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        credential = f"Credential={self.access_key}/{scope}"
        authorization = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={signed}, Signature={signature}"
        request = urllib.request.Request(self.endpoint + path, data=content, method="PUT")
        for name, value in {**headers, "authorization": authorization}.items():
            request.add_header(name, value)
        with urllib.request.urlopen(request, timeout=10):
            pass


@contextmanager
def s3(host: str = "127.0.0.1") -> Iterator[S3]:
    """A server for the time of the block, at one of this machine's addresses."""
    program = build((SERVER,), sources=SOURCES) / SERVER.name
    keys = {"AWS_ACCESS_KEY_ID": S3.access_key, "AWS_SECRET_ACCESS_KEY": S3.secret_key}
    environment = {**os.environ, **keys, "S3_HOST": host}
    with subprocess.Popen([program], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield S3(process.stdout.readline().strip(), process)
        finally:
            process.kill()
