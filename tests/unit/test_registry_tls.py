"""The registry over HTTPS: who trusts its authority gets through, and the certificate is renewed."""

from __future__ import annotations

import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from finetune.clients.registry import RegistryClient, RegistryUnavailable
from finetune.controller.core.manifests import build_job
from finetune.controller.core.settings import Settings
from finetune.registry.database import parse_url
from finetune.registry.server import InvalidSettings
from finetune.registry.server import Settings as ServerSettings
from finetune.registry.service.app import create_app
from finetune.registry.tls import RenewingServer
from model import registry as model_registry
from model.registry import RegistryRefusedError, RegistryUnavailableError, RunRegistry
from tests.support import objects as o
from tests.support.certificates import Certificate, self_signed
from tests.support.registry import open_access
from tests.support.schema import provide_schema


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return self_signed(tmp_path)


@contextmanager
def serving(certificate: Certificate | None, tmp_path: Path, host: str = "127.0.0.1") -> Iterator[RenewingServer]:
    """The registry on a port of its own, served from a thread."""
    url = f"sqlite:///{tmp_path}/registry.db"
    provide_schema(url)
    app = create_app(database_url=parse_url(url), access=open_access)
    server = RenewingServer(
        uvicorn.Config(
            app,
            host=host,
            port=0,
            log_level="warning",
            lifespan="on",
            ssl_certfile=certificate.certificate if certificate else None,
            ssl_keyfile=certificate.key if certificate else None,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(timeout=0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()


def port_of(server: RenewingServer) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


def served_certificate(server: RenewingServer) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port_of(server)))


async def test_who_trusts_the_authority_gets_through_and_nobody_else(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(certificate, tmp_path) as server:
        url = f"https://127.0.0.1:{port_of(server)}"
        trusting = ssl.create_default_context(cafile=str(certificate.certificate))
        async with RegistryClient(base_url=url, ssl=trusting) as client:
            assert await client.list_runs("ml") == []
        async with RegistryClient(base_url=url) as client:
            with pytest.raises(RegistryUnavailable, match="certificate"):
                await client.list_runs("ml")
        run = RunRegistry(url=url, namespace="ml", run_uid=o.UID)
        with pytest.raises(RegistryUnavailableError, match="certificate"):
            run.dataset()
        monkeypatch.setenv(model_registry.CA_VARIABLE, certificate.certificate.read_text())
        with pytest.raises(RegistryRefusedError) as refused:
            run.dataset()
        assert refused.value.status == 404


def test_a_renewed_certificate_is_served_once_its_files_fit(certificate: Certificate, tmp_path: Path) -> None:
    with serving(certificate, tmp_path) as server:
        first = served_certificate(server)
        new = self_signed(tmp_path, "new")
        shutil.copy(new.certificate, certificate.certificate)  # and not yet the key
        server.renew()
        assert served_certificate(server) == first
        shutil.copy(new.key, certificate.key)
        server.renew()
        assert served_certificate(server) == new.certificate.read_text() != first


def test_an_empty_host_is_every_address_of_both_families(tmp_path: Path) -> None:
    with serving(None, tmp_path, host="") as server:
        listening = {sock.family.name for each in server.servers for sock in each.sockets}
    assert "AF_INET" in listening
    assert ("AF_INET6" in listening) is Path("/proc/net/if_inet6").exists()


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(InvalidSettings, match="belong together"):
        ServerSettings(database_url="sqlite:///x", tls_certificate=Path("tls.crt")).check()


def test_the_runs_pods_are_given_the_authority(certificate: Certificate) -> None:
    text = certificate.certificate.read_text()
    settings = Settings.from_environment(
        {
            "FINETUNE_REGISTRY_URL": "https://registry",
            "FINETUNE_TRAINER_IMAGE": "trainer:1",
            "FINETUNE_REGISTRY_CA_FILE": str(certificate.certificate),
        }
    )
    pod = build_job(o.run(), settings)["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {"name": model_registry.CA_VARIABLE, "value": text} in container["env"]
