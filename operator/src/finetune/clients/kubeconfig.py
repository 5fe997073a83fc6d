"""Where a person's cluster is and who they are there, as kubectl finds it: KUBECONFIG, ~/.kube/config, a pod's account.

    connection = load(os.environ, context="prod")
    connection.server, connection.namespace, connection.credentials()

`kubernetes.aio` does this too, and takes half a second to import; people's commands answer sooner than that.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EXEC_SECONDS = 120.0
"""How long a credential plugin may take: it may open a browser."""
RENEW_BEFORE = timedelta(seconds=60)

Document = dict[str, Any]


class KubeconfigError(Exception):
    """There is no cluster to talk to, or its entry cannot be used; the text says what to do."""


@dataclass
class Connection:
    """One cluster, and who calls it."""

    server: str
    namespace: str
    context: str
    tls: ssl.SSLContext | None = None
    """None for plain HTTP."""
    server_hostname: str | None = None
    """The name that the server's certificate must have, where it is not the URL's."""
    proxy: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of every request: impersonation."""
    basic: str = ""
    token: str = ""
    token_file: Path | None = None
    plugin: Document | None = None
    """The `exec` entry: a program that gives a token."""
    _given: str = ""
    _until: datetime | None = None

    def credentials(self) -> dict[str, str]:
        """The headers that say who calls; a plugin is asked again when what it gave is about to end."""
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except OSError as error:
                raise KubeconfigError(f"cannot read the token {self.token_file}: {error.strerror}") from error
        elif self.plugin is not None:
            token = self._from_plugin()
        sent = dict(self.headers)
        if token:
            sent["Authorization"] = f"Bearer {token}"
        elif self.basic:
            sent["Authorization"] = f"Basic {self.basic}"
        return sent

    def _from_plugin(self) -> str:
        if not self._given or (self._until is not None and datetime.now(UTC) > self._until - RENEW_BEFORE):
            status = run_plugin(self.plugin or {}, self.server)
            self._given = str(status.get("token") or "")
            ends = status.get("expirationTimestamp")
            self._until = datetime.fromisoformat(ends) if ends else None
            if status.get("clientCertificateData") and self.tls is not None:
                _load_identity(
                    self.tls, status["clientCertificateData"].encode(), str(status["clientKeyData"]).encode()
                )
        return self._given


def load(
    environment: Mapping[str, str],
    *,
    file: Path | None = None,
    context: str | None = None,
    namespace: str | None = None,
    account: Path = ACCOUNT,
) -> Connection:
    """The cluster of the current context, or of `context`. Raises KubeconfigError.

    `file` stands instead of KUBECONFIG and ~/.kube/config, `namespace` instead of the context's; `account` is where a
    pod's own account is, which is used where there is no kubeconfig and no context was asked for.
    """
    paths = [file] if file else kubeconfig_paths(environment)
    found = [each for each in paths if each.is_file()]
    if not found and file is None and context is None and (account / "token").is_file():
        return _of_pod(environment, account, namespace)
    if not found:
        looked = ", ".join(str(each) for each in paths)
        raise KubeconfigError(f"no kubeconfig at {looked}: set KUBECONFIG or --kubeconfig, or give --registry-url")
    merged = _merge(found)
    name = context or merged["current-context"]
    if not name:
        raise KubeconfigError(f"{found[0]} has no current context: kubectl config use-context NAME, or --context NAME")
    entry = _entry(merged, "contexts", name, "context")
    cluster = _entry(merged, "clusters", str(entry.get("cluster")), "cluster")
    user = _entry(merged, "users", str(entry["user"]), "user") if entry.get("user") else {}
    return _connection(name, namespace or str(entry.get("namespace") or "default"), cluster, user)


def kubeconfig_paths(environment: Mapping[str, str]) -> list[Path]:
    """The files that kubectl would read, in its order."""
    listed = environment.get("KUBECONFIG") or ""
    named = [Path(each).expanduser() for each in listed.split(os.pathsep) if each]
    return named or [Path(environment.get("HOME") or Path.home()) / ".kube" / "config"]


def run_plugin(entry: Document, server: str) -> Document:
    """Run a credential plugin; the status of its ExecCredential. Raises KubeconfigError."""
    version = str(entry.get("apiVersion") or "client.authentication.k8s.io/v1")
    spec: Document = {"interactive": entry.get("interactiveMode") != "Never" and sys.stdin.isatty()}
    if entry.get("provideClusterInfo"):
        spec["cluster"] = {"server": server}
    request = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    given = {str(each["name"]): str(each["value"]) for each in entry.get("env") or []}
    argv = [str(entry.get("command")), *(str(each) for each in entry.get("args") or [])]
    hint = str(entry.get("installHint") or f"install {argv[0]}, which the kubeconfig asks for").strip()
    try:
        result = subprocess.run(  # noqa: S603 - the program that the person's own kubeconfig names
            argv,
            env={**os.environ, **given, "KUBERNETES_EXEC_INFO": json.dumps(request)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=EXEC_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise KubeconfigError(f"the credential plugin {argv[0]} is not there: {hint}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KubeconfigError(f"the credential plugin {argv[0]} did not answer: {error}") from error
    if result.returncode:
        raise KubeconfigError(f"the credential plugin {argv[0]} ended with {result.returncode}; what it says is above")
    try:
        return dict(json.loads(result.stdout)["status"])
    except (ValueError, KeyError, TypeError) as error:
        raise KubeconfigError(f"the credential plugin {argv[0]} printed no ExecCredential") from error


def _of_pod(environment: Mapping[str, str], account: Path, namespace: str | None) -> Connection:
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise KubeconfigError("no kubeconfig, and no API server in this pod's environment: set KUBECONFIG")
    return Connection(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace or (account / "namespace").read_text().strip(),
        context="this pod",
        tls=ssl.create_default_context(cafile=str(account / "ca.crt")),
        token_file=account / "token",
    )


def _merge(paths: list[Path]) -> Document:
    """All files as one: the first that says something of a name is believed, as kubectl does."""
    import yaml

    merged: Document = {"current-context": "", "contexts": {}, "clusters": {}, "users": {}}
    for path in paths:
        try:
            document = yaml.safe_load(path.read_text()) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise KubeconfigError(f"{path} is no kubeconfig: {error}") from error
        if not isinstance(document, dict):
            raise KubeconfigError(f"{path} is no kubeconfig: it holds no mapping")
        merged["current-context"] = merged["current-context"] or document.get("current-context") or ""
        for kind, inner in (("contexts", "context"), ("clusters", "cluster"), ("users", "user")):
            for each in document.get(kind) or []:
                value = _absolute(each.get(inner) or {}, path.parent)
                merged[kind].setdefault(str(each.get("name")), value)
    return merged


def _absolute(entry: Document, folder: Path) -> Document:
    """Files are named from where the kubeconfig is."""
    files = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
    return {key: str(folder / value) if key in files and value else value for key, value in entry.items()}


def _entry(merged: Document, kind: str, name: str, word: str) -> Document:
    known = merged[kind]
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise KubeconfigError(f"the kubeconfig has no {word} {name!r}; it has: {names}")
    return dict(known[name])


def _connection(context: str, namespace: str, cluster: Document, user: Document) -> Connection:
    server = str(cluster.get("server") or "").rstrip("/")
    url = urlsplit(server)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise KubeconfigError(f"the cluster of context {context!r} has no usable server: {server!r}")
    if user.get("auth-provider"):
        raise KubeconfigError(f"the user of context {context!r} has an auth-provider, which kubectl dropped: use exec")
    tls = _tls(cluster, user) if url.scheme == "https" else None
    basic = ""
    if user.get("username"):
        basic = base64.b64encode(f"{user['username']}:{user.get('password', '')}".encode()).decode()
    return Connection(
        server=server,
        namespace=namespace,
        context=context,
        tls=tls,
        server_hostname=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url") or (None if proxy_bypass(url.hostname) else getproxies().get(url.scheme)),
        headers=_impersonation(user),
        basic=basic,
        token=str(user.get("token") or ""),
        token_file=Path(user["tokenFile"]) if user.get("tokenFile") else None,
        plugin=user.get("exec"),
    )


def _impersonation(user: Document) -> dict[str, str]:
    sent = {"Impersonate-User": user.get("as"), "Impersonate-Uid": user.get("as-uid")}
    groups = user.get("as-groups") or []
    if len(groups) > 1:
        raise KubeconfigError("the kubeconfig impersonates several groups, which is not supported here")
    if groups:
        sent["Impersonate-Group"] = groups[0]
    return {key: str(value) for key, value in sent.items() if value}


def _tls(cluster: Document, user: Document) -> ssl.SSLContext:
    try:
        authority = _bytes(cluster, "certificate-authority")
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        certificate, key = _bytes(user, "client-certificate"), _bytes(user, "client-key")
        if certificate and key:
            _load_identity(context, certificate, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise KubeconfigError(f"the kubeconfig's certificates cannot be used: {error}") from error
    return context


def _bytes(entry: Document, name: str) -> bytes | None:
    if entry.get(f"{name}-data"):
        return base64.b64decode(entry[f"{name}-data"])
    return Path(entry[name]).read_bytes() if entry.get(name) else None


def _load_identity(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL reads a client's certificate from files only."""
    with _file(certificate) as first, _file(key) as second:
        context.load_cert_chain(first, second)


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:  # made with mode 0600
        file.write(content)
        file.flush()
        yield file.name
