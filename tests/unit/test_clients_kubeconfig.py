"""Which cluster a person means, and who they are there."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.cli.logins import Login, Logins
from finetune.clients.kubeconfig import KubeconfigError, load

Config = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Writes a kubeconfig with one context, `main`."""

    def write(name: str = "config", *, user: Any = None, cluster: Any = None, context: Any = None, **top: Any) -> Path:
        document = {
            "current-context": "main",
            "clusters": [{"name": "c", "cluster": {"server": "http://api:6443/", **(cluster or {})}}],
            "users": [{"name": "u", "user": user or {}}],
            "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u", **(context or {})}}],
            **top,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_context_and_namespace_come_from_the_file_unless_they_are_given(config: Config) -> None:
    environment = {"KUBECONFIG": str(config(context={"namespace": "ml"}))}
    found = load(environment)
    assert (found.server, found.namespace, found.context, found.tls) == ("http://api:6443", "ml", "main", None)
    assert load(environment, namespace="other").namespace == "other"
    assert load({"KUBECONFIG": str(config())}).namespace == "default"


def test_several_files_are_one_and_the_first_is_believed(config: Config, tmp_path: Path) -> None:
    first = config("first", context={"namespace": "one"})
    second = config("second", context={"namespace": "two"}, **{"current-context": "other"})
    missing = tmp_path / "missing"
    found = load({"KUBECONFIG": f"{missing}:{first}:{second}"})
    assert (found.context, found.namespace) == ("main", "one")
    (tmp_path / ".kube").mkdir()
    first.rename(tmp_path / ".kube" / "config")
    assert load({"HOME": str(tmp_path)}).namespace == "one"


@pytest.mark.parametrize(
    ("user", "sent"),
    [
        ({}, {}),
        ({"token": "t"}, {"Authorization": "Bearer t"}),
        ({"username": "a", "password": "b"}, {"Authorization": f"Basic {base64.b64encode(b'a:b').decode()}"}),
        ({"token": "t", "as": "bob", "as-groups": ["g"]},
         {"Authorization": "Bearer t", "Impersonate-User": "bob", "Impersonate-Group": "g"}),
    ],
)  # fmt: skip
def test_who_calls(config: Config, user: dict[str, Any], sent: dict[str, str]) -> None:
    assert load({"KUBECONFIG": str(config(user=user))}).credentials() == sent


def test_a_token_in_a_file_is_read_each_time_and_found_beside_the_kubeconfig(config: Config, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    found = load({"KUBECONFIG": str(config(user={"tokenFile": "token"}))})
    assert found.credentials() == {"Authorization": "Bearer one"}
    (tmp_path / "token").write_text("two\n")
    assert found.credentials() == {"Authorization": "Bearer two"}
    (tmp_path / "token").unlink()
    with pytest.raises(KubeconfigError, match="cannot read the token"):
        found.credentials()


def test_a_credential_plugin_is_asked_once_until_its_token_ends(config: Config, tmp_path: Path) -> None:
    def plugin(ends: datetime) -> dict[str, Any]:
        status = {"token": "p", "expirationTimestamp": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        answer = json.dumps({"kind": "ExecCredential", "status": status})
        script = tmp_path / "plugin"
        script.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n[ \"$REGION\" = eu ] && echo '{answer}'\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return {"exec": {"command": str(script), "env": [{"name": "REGION", "value": "eu"}]}}

    now = datetime.now(UTC)
    found = load({"KUBECONFIG": str(config(user=plugin(now + timedelta(hours=1))))})
    assert [found.credentials() for _ in range(3)] == [{"Authorization": "Bearer p"}] * 3
    assert (tmp_path / "calls").read_text().count("called") == 1
    found = load({"KUBECONFIG": str(config(user=plugin(now)))})
    found.credentials()
    found.credentials()
    assert (tmp_path / "calls").read_text().count("called") == 3


def test_a_pod_uses_its_own_account(tmp_path: Path) -> None:
    import ssl

    (tmp_path / "token").write_text("pod")
    (tmp_path / "namespace").write_text("ml")
    authority = Path(ssl.get_default_verify_paths().cafile or "")
    if not authority.is_file():
        authority = next(Path("/etc/ssl").rglob("*.pem"))
    (tmp_path / "ca.crt").write_bytes(authority.read_bytes())
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "HOME": str(tmp_path)}
    found = load(environment, account=tmp_path)
    assert (found.server, found.namespace) == ("https://[fd00::1]:443", "ml")
    assert found.credentials() == {"Authorization": "Bearer pod"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"current-context": ""}, "no current context"),
        ({"current-context": "gone"}, "no context 'gone'; it has: main"),
        ({"context": {"cluster": "gone"}}, "no cluster 'gone'"),
        ({"context": {"user": "gone"}}, "no user 'gone'"),
        ({"cluster": {"server": "api"}}, "no usable server"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, "auth-provider"),
        ({"cluster": {"server": "https://a", "certificate-authority-data": "bm8="}}, "certificates cannot be used"),
        ({"cluster": {"server": "https://a", "certificate-authority": "/none"}}, "certificates cannot be used"),
        ({"user": {"exec": {"command": "/none/plugin", "installHint": "get it"}}}, "plugin is not there: get it"),
        ({"user": {"exec": {"command": "false"}}}, "ended with 1"),
        ({"user": {"exec": {"command": "true"}}}, "no ExecCredential"),
    ],
)
def test_what_is_wrong_is_said(config: Config, change: dict[str, Any], said: str) -> None:
    with pytest.raises(KubeconfigError, match=said):
        load({"KUBECONFIG": str(config(**change))}).credentials()


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for text in ("[1]", "{", "\x00"):
        (tmp_path / "config").write_text(text)
        with pytest.raises(KubeconfigError, match="config is no kubeconfig"):
            load({"KUBECONFIG": str(tmp_path / "config")})
    with pytest.raises(KubeconfigError, match=r"no kubeconfig at /nowhere: .*--registry-url"):
        load({"KUBECONFIG": "/nowhere"}, account=tmp_path)


def test_logins_are_kept_by_server_and_namespace(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    login = Login(account="ml/finetune", token="t", expires="2020-01-01T00:00:00Z")
    Logins.read(environment).keep("https://a", "ml", login, service="system/registry")
    known = Logins.read(environment)
    assert known.find("https://a", "ml") == login
    assert login.expired
    assert (known.find("https://a", "other"), known.find("https://b", "ml")) == (None, None)
    assert known.service("https://a") == "system/registry"
    assert known.forget("https://a", "ml")
    assert not Logins.read(environment).forget("https://a", "ml")
    (tmp_path / "finetune" / "logins.json").write_text("{broken")
    assert Logins.read(environment).find("https://a", "ml") is None
