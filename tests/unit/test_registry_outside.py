"""What the registry asks outside of the cluster, with the variables that the chart gives it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import pytest

from tests.support.certificates import self_signed, signed
from tests.support.chart import render
from tests.support.fronts import in_tls, listening, proxy, to_unix
from tests.support.s3 import S3, s3
from tests.unit.test_chart_render import container_of, find, needs_helm

if TYPE_CHECKING:
    from tests.support.postgresql import PostgreSQL

REGISTRY = "finetune-finetune-operator-registry"
AUTHORITIES = "registry.caBundle.configMap=trusted"
OUTSIDE = "store.example"
READS = """
import asyncio, hashlib, sys
from finetune.registry.blobs import open_store

async def blocks():
    yield b"adapter"

async def main():
    store, name = open_store(sys.argv[1]), hashlib.sha256(b"adapter").hexdigest()
    await store.put(name, blocks(), size=7)
    print(b"".join([block async for block in await store.read(name)]).decode())

asyncio.run(main())
"""


def variables(*values: str, mounted: Path | None = None) -> dict[str, str]:
    """The variables of the registry's container, with the file of authorities where it is here."""
    flags = [word for value in values for word in ("--set", value)]
    container = container_of(find(render(*flags), "Deployment", REGISTRY))
    found = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    for mount in container["volumeMounts"]:
        if mount["name"] == "ca-bundle":
            found = {name: value.replace(mount["mountPath"], str(mounted)) for name, value in found.items()}
    # As the kubelet puts it in; the API server's Service has this address.
    return {name: value.replace("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1") for name, value in found.items()}


def run(*argv: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A program of the registry's, with the container's variables and no others of this machine's that matter."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, *argv], env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def store() -> Iterator[S3]:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    with s3() as running:
        running.create_bucket("adapters")
        yield running


@needs_helm
def test_a_bucket_with_a_certificate_of_ones_own_authority_is_reached_through_the_proxy(
    store: S3, tmp_path: Path
) -> None:
    authority, certificate = signed(tmp_path, host=OUTSIDE)
    authority.rename(tmp_path / "ca-certificates.crt")
    inner = urlsplit(store.endpoint)
    asked: list[str] = []
    tls = in_tls(certificate, lambda: socket.create_connection((str(inner.hostname), int(inner.port or 0))))
    with listening(tls) as port, proxy(asked) as address:
        keys = {**store.store_environment, "AWS_ENDPOINT_URL": f"https://{OUTSIDE}:{port}"}
        chosen = ("registry.store.url=s3://adapters/files", f"registry.proxy.https={address}")
        given = variables(*chosen, AUTHORITIES, mounted=tmp_path)
        done = run("-c", READS, "s3://adapters/files", environment={**given, **keys})
        assert done.stdout == "adapter\n", done.stderr
        assert set(asked) == {f"{OUTSIDE}:{port}"}
        without = run("-c", READS, "s3://adapters/files", environment={**variables(*chosen), **keys})
        assert without.returncode != 0
        assert "StoreUnavailable" in without.stderr

        asked.clear()
        keys["AWS_ENDPOINT_URL"] = f"https://127.0.0.1:{port}"
        inside = run("-c", READS, "s3://adapters/files", environment={**given, **keys})
        assert inside.stdout == "adapter\n", inside.stderr
        assert asked == []


@needs_helm
def test_postgresql_is_verified_by_ones_own_authority(postgresql_server: PostgreSQL, tmp_path: Path) -> None:
    url = urlsplit(postgresql_server.new_database())
    folder = url.query.removeprefix("host=")
    authority, certificate = signed(tmp_path)
    authority.rename(tmp_path / "ca-certificates.crt")
    (other := tmp_path / "other").mkdir()
    self_signed(other).certificate.rename(other / "ca-certificates.crt")
    with listening(in_tls(certificate, lambda: to_unix(f"{folder}/.s.PGSQL.5432"), postgresql=True)) as port:

        def migrate(host: str, mounted: Path) -> subprocess.CompletedProcess[str]:
            given = variables(AUTHORITIES, mounted=mounted)
            given["FINETUNE_DATABASE_URL"] = f"postgresql://finetune@{host}:{port}{url.path}?sslmode=verify-full"
            return run("-m", "finetune.cli.main", "registry", "migrate", environment=given)

        done = migrate("localhost", tmp_path)
        assert done.returncode == 0, done.stderr
        refused = migrate("localhost", other)
        assert refused.returncode == 1
        assert "certificate verify failed" in refused.stderr


@needs_helm
def test_the_api_server_and_services_are_never_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables("registry.proxy.https=http://proxy:3128", "registry.proxy.noProxy= minio").items():
        if name.endswith("_PROXY"):
            monkeypatch.setenv(name, value)
    hosts = ("10.96.0.1", "minio.storage.svc", "minio.storage.svc.cluster.local", "localhost", "127.0.0.1", "minio")
    assert [host for host in hosts if not proxy_bypass(host)] == []
    assert not proxy_bypass("s3.amazonaws.com")


@needs_helm
def test_without_a_proxy_and_a_bundle_nothing_is_said_of_either() -> None:
    assert not {"NO_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "PGSSLROOTCERT"} & variables("logFormat=text").keys()
    only = variables("registry.proxy.noProxy=minio")  # exceptions to nothing
    assert "NO_PROXY" not in only
