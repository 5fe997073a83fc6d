"""The operator's few calls to the Kubernetes API, as plain JSON documents.

`kubernetes.aio` brings configuration, TLS, token refresh and connection pooling; its generated models are left aside,
because manifests here are dicts and a TrainingRun has no generated model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

Document = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"


class KubernetesError(Exception):
    """The API server refused a request or could not be reached.

    Attributes
    ----------
    status: HTTP status; 0 when there was no answer.
    reason: the `reason` of the Status object, such as `AlreadyExists`, or the error's class name.
    """

    def __init__(self, *, verb: str, path: str, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(f"{verb} {path}: {status or 'no answer'} {reason}: {message}")


class NotFoundError(KubernetesError):
    """HTTP 404."""


class AlreadyExistsError(KubernetesError):
    """HTTP 409 on create: the name is taken."""


class ConflictError(KubernetesError):
    """HTTP 409 on an update: the object changed since it was read."""


class ForbiddenError(KubernetesError):
    """No permission, or admission or quota refused the object: HTTP 403, from an admission policy 422."""


async def load_configuration() -> client.Configuration:
    """Configuration from KUBECONFIG when it is set, from the pod's service account otherwise."""
    configuration = client.Configuration()
    if os.environ.get("KUBECONFIG") or "KUBERNETES_SERVICE_HOST" not in os.environ:
        await config.load_kube_config(client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    return configuration


class KubernetesClient:
    """Calls on TrainingRuns, Jobs, pods, claims and Events.

    Parameters
    ----------
    configuration: where the API server is and who we are, see `load_configuration`.
    timeout_seconds: for one call, connection included.
    """

    def __init__(self, *, configuration: client.Configuration, timeout_seconds: float = 30.0) -> None:
        self._api = client.ApiClient(configuration)
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=10)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def get_run(self, namespace: str, name: str) -> Document:
        """One TrainingRun. Raises NotFoundError."""
        return await self._request("GET", _runs(namespace, name))

    async def list_runs(self, namespace: str | None) -> list[Document]:
        """All TrainingRuns of a namespace, or of all namespaces, in pages."""
        return await self._list(_runs(namespace))

    async def replace_run_status(self, run: Document) -> Document:
        """Write the status of a run as it was read and changed; spec and metadata are not written.

        Raises ConflictError when somebody wrote the run since it was read.
        """
        metadata = run["metadata"]
        return await self._request("PUT", f"{_runs(metadata['namespace'], metadata['name'])}/status", body=run)

    async def get_job(self, namespace: str, name: str) -> Document | None:
        """One Job, read live; None when it does not exist."""
        return await self._get_or_none(f"/apis/batch/v1/namespaces/{namespace}/jobs/{quote(name)}")

    async def list_jobs(self, namespace: str, selector: str) -> list[Document]:
        """The Jobs that match a label selector."""
        return await self._list(f"/apis/batch/v1/namespaces/{namespace}/jobs", {"labelSelector": selector})

    async def create_job(self, namespace: str, job: Document) -> Document:
        """Create a Job. Raises AlreadyExistsError, ForbiddenError."""
        return await self._request("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs", body=job)

    async def patch_job(self, namespace: str, name: str, patch: Document) -> Document:
        """Merge a patch into a Job."""
        return await self._request("PATCH", f"/apis/batch/v1/namespaces/{namespace}/jobs/{quote(name)}", body=patch)

    async def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job and, in the background, its pods (the API's own default would orphan them)."""
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/{quote(name)}"
        try:
            await self._request("DELETE", path, query={"propagationPolicy": "Background"})
        except NotFoundError:
            return

    async def list_pods(self, namespace: str, selector: str) -> list[Document]:
        """The pods that match a label selector."""
        return await self._list(f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": selector})

    async def get_claim(self, namespace: str, name: str) -> Document | None:
        """One PersistentVolumeClaim; None when it does not exist."""
        return await self._get_or_none(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{quote(name)}")

    async def create_claim(self, namespace: str, claim: Document) -> Document:
        """Create a PersistentVolumeClaim. Raises AlreadyExistsError, ForbiddenError."""
        return await self._request("POST", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", body=claim)

    async def list_events(self, namespace: str, uid: str) -> list[Document]:
        """The Events about the object with this uid."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        return await self._list(f"/api/v1/namespaces/{namespace}/events", query)

    async def create_event(self, namespace: str, event: Document) -> None:
        """Create an Event; one of that name that exists already is the same event."""
        try:
            await self._request("POST", f"/api/v1/namespaces/{namespace}/events", body=event)
        except AlreadyExistsError:
            return

    async def _get_or_none(self, path: str) -> Document | None:
        try:
            return await self._request("GET", path)
        except NotFoundError:
            return None

    async def _list(self, path: str, query: Mapping[str, str] | None = None) -> list[Document]:
        items: list[Document] = []
        token: str | None = ""
        while token is not None:
            page = await self._request("GET", path, query={**(query or {}), "limit": "500", "continue": token})
            items.extend(page.get("items") or [])
            token = page.get("metadata", {}).get("continue") or None
        return items

    async def _request(
        self, verb: str, path: str, *, query: Mapping[str, str] | None = None, body: Document | None = None
    ) -> Document:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH if verb == "PATCH" else "application/json"
        parameters = await self._api.param_serialize(
            verb,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._api.call_api(*parameters, _request_timeout=self._timeout)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KubernetesError(
                verb=verb, path=path, status=0, reason=type(error).__name__, message=str(error) or "timed out"
            ) from error
        if response.status >= 300:
            raise _error_of(verb, path, response.status, data)
        document: Document = json.loads(data)
        return document


def _runs(namespace: str | None, name: str | None = None) -> str:
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/finetune.dev/v1alpha1{scope}/trainingruns" + (f"/{quote(name)}" if name else "")


def _error_of(verb: str, path: str, status: int, data: bytes) -> KubernetesError:
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    reason = str(body.get("reason") or "Unknown")
    message = str(body.get("message") or data[:200].decode(errors="replace"))
    kinds: dict[int, type[KubernetesError]] = {404: NotFoundError, 403: ForbiddenError, 409: ConflictError}
    kind = AlreadyExistsError if reason == "AlreadyExists" else kinds.get(status, KubernetesError)
    if status == 422 and "denied request:" in message:  # a ValidatingAdmissionPolicy, unless it says otherwise
        kind = ForbiddenError
    return kind(verb=verb, path=path, status=status, reason=reason, message=message)
