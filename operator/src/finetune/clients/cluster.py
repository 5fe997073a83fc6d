"""What people's commands ask the Kubernetes API, with the rights of the person who calls.

async with Cluster(load(os.environ)) as cluster:
    run = await cluster.get(f"{RUNS.format('ml')}/support-1")
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp

from finetune.api import API_VERSION, PLURAL

from .kubeconfig import Connection, KubeconfigError
from .kubernetes_errors import Asked, Document, KubernetesError, document_of, error_of, no_answer

__all__ = ["Cluster", "KubeconfigError", "KubernetesError", "runs_path"]

GROUP = API_VERSION.partition("/")[0]
PAGE_SIZE = 500
RUN_LABEL, UID_LABEL = f"{GROUP}/run", f"{GROUP}/run-uid"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

_TYPES = {"PATCH": "application/merge-patch+json"}


def runs_path(namespace: str | None, name: str = "") -> str:
    """Where the TrainingRuns of a namespace, or of all, are served."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API_VERSION}{scope}/{PLURAL}" + (f"/{name}" if name else "")


class Cluster:
    """Calls to one API server. Every method raises KubernetesError, and KubeconfigError for lost credentials."""

    def __init__(self, connection: Connection, *, timeout_seconds: float = 30.0) -> None:
        self.connection = connection
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=10)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, **query: str) -> Document:
        """One document. Raises NotFoundError where the object is not there."""
        return await self.call("GET", path, query=query)

    async def items(self, path: str, **query: str) -> list[Document]:
        """All objects of a collection, page by page."""
        found: list[Document] = []
        token = ""
        while True:
            page = await self.call("GET", path, query={**query, "limit": str(PAGE_SIZE), "continue": token})
            found += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return found

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> Document:
        """Create an object, or ask a review or a subresource."""
        return await self.call("POST", path, body=body, query=query)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Document:
        """Merge a patch into an object."""
        return await self.call("PATCH", path, body=body)

    async def delete(self, path: str) -> Document:
        """Delete an object and, in the background, what it owns."""
        return await self.call("DELETE", path, body={"propagationPolicy": "Background"})

    async def may(self, verb: str, group: str, resource: str, *, namespace: str = "", name: str = "") -> bool:
        """Whether the person who calls may do that."""
        plural, _, subresource = resource.partition("/")
        asked = {"verb": verb, "group": group, "resource": plural, "namespace": namespace, "name": name}
        if subresource:
            asked["subresource"] = subresource
        answer = await self.create(REVIEWS, {"spec": {"resourceAttributes": asked}})
        return bool((answer.get("status") or {}).get("allowed"))

    async def log(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail: int | None = None, since: str = ""
    ) -> AsyncIterator[str]:
        """The lines of a container's log, until it ends where they are followed: then each begins with its time.

        `since` is such a time; the server gives the lines from the beginning of that second on.
        """
        query = {"container": container, "tailLines": str(tail or ""), "sinceTime": since}
        query |= {"follow": "true", "timestamps": "true"} if follow else {}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        asked = _asked("GET", path)
        try:
            async with self.open("GET", path, query=query, streaming=True) as response:
                rest = b""
                async for block in response.content.iter_any():
                    *lines, rest = (rest + block).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
                if rest:
                    yield rest.decode(errors="replace")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise no_answer(asked, error) from error

    async def call(
        self, verb: str, path: str, *, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Document:
        """One request and its document."""
        asked = _asked(verb, path)
        try:
            async with self.open(verb, path, body=body, query=query) as response:
                return document_of(asked, "", response.status, await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise no_answer(asked, error) from error

    @asynccontextmanager
    async def open(
        self,
        verb: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        streaming: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and yield the answer if it is a success."""
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        connection = self.connection
        headers = {**connection.credentials(), "Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = _TYPES.get(verb, "application/json")
        async with self._session.request(
            verb,
            connection.server + path,
            params={key: value for key, value in (query or {}).items() if value},
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
            ssl=connection.tls or True,
            server_hostname=connection.server_hostname,
            proxy=connection.proxy,
            timeout=aiohttp.ClientTimeout(total=None, connect=10) if streaming else self._timeout,
            allow_redirects=False,
        ) as response:
            if response.status >= 300:
                raise error_of(_asked(verb, path, body), response.status, await response.read(), response.headers)
            yield response


def _asked(verb: str, path: str, body: Mapping[str, Any] | None = None) -> Asked:
    """What is asked for, so that a 404 or 409 of the very object is told from one of something else."""
    parts = [part for part in path.split("/") if part]
    group = parts[1] if parts[0] == "apis" else ""
    rest = parts[3:] if parts[0] == "apis" else parts[2:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    resource, name = [*rest, "", ""][:2]
    if not name and body is not None:
        name = str((body.get("metadata") or {}).get("name") or "")
    return Asked(verb, path, resource, group, name)
