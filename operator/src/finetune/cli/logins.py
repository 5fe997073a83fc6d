"""The tokens for the registry that `finetune login` keeps, by API server and namespace, in a file of the person's own.

A token is a service account's, of the registry's audience; one that has expired is made anew with the kubeconfig's
rights, so that one login is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from finetune.clients.cluster import Cluster

AUDIENCE = "finetune.dev/registry"
DEFAULT_SECONDS = 12 * 3600
MARGIN = timedelta(seconds=60)


@dataclass(frozen=True)
class Login:
    """A service account's token for the registry."""

    account: str
    """As NAMESPACE/NAME."""
    token: str
    expires: str
    """RFC 3339."""
    seconds: int = DEFAULT_SECONDS
    """For how long tokens are asked for."""

    @property
    def expired(self) -> bool:
        """The token is no good any more, or not for long."""
        return datetime.now(UTC) > datetime.fromisoformat(self.expires) - MARGIN


class Logins:
    """The file of logins."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path = path
        self._content = content

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """The logins of the person; none where the file is not there or is none of ours."""
        home = Path(environment.get("HOME") or Path.home())
        folder = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "finetune"
        path = folder / "logins.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            content = {}
        return cls(path, content if isinstance(content, dict) else {})

    def service(self, server: str) -> str | None:
        """The registry's Service that was logged in to on this API server."""
        return (self._content.get(server) or {}).get("service")

    def find(self, server: str, namespace: str) -> Login | None:
        """The login for a namespace."""
        kept = ((self._content.get(server) or {}).get("namespaces") or {}).get(namespace)
        try:
            return Login(**kept) if kept else None
        except TypeError:
            return None

    def keep(self, server: str, namespace: str, login: Login, *, service: str | None = None) -> None:
        """Write a login down, for this person's eyes only."""
        entry = self._content.setdefault(server, {})
        if service is not None:
            entry["service"] = service
        entry.setdefault("namespaces", {})[namespace] = asdict(login)
        self._write()

    def forget(self, server: str, namespace: str) -> bool:
        """Remove a login; whether there was one."""
        known = (self._content.get(server) or {}).get("namespaces") or {}
        if known.pop(namespace, None) is None:
            return False
        self._write()
        return True

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self._content, file, indent=2)
        temporary.replace(self._path)


async def request_token(cluster: Cluster, account: str, seconds: int) -> Login:
    """A token of a service account (NAMESPACE/NAME) for the registry. Raises KubernetesError."""
    namespace, name = account.split("/")
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    spec = {"audiences": [AUDIENCE], "expirationSeconds": seconds}
    answer = await cluster.create(
        path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    )
    status = answer["status"]
    return Login(account=account, token=status["token"], expires=status["expirationTimestamp"], seconds=seconds)


async def renewed(cluster: Cluster, login: Login) -> Login:
    """The same login with a token that is good again."""
    return await request_token(cluster, login.account, login.seconds)
