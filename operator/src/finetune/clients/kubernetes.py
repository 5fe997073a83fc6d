"""The operator's few calls to the Kubernetes API, as plain JSON documents.

`kubernetes.aio` brings configuration, TLS, token refresh and connection pooling; its generated models are left aside,
because manifests here are dicts and a TrainingRun has no generated model. Every call raises KubernetesError and nothing
else, see `kubernetes_errors`.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version
from typing import NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import OpenApiException
from kubernetes.aio.config.config_exception import ConfigException

from .kubernetes_errors import (
    INVALID_ANSWER,
    AlreadyExistsError,
    Asked,
    Cause,
    ConflictError,
    Document,
    ForbiddenError,
    KubernetesError,
    NotFoundError,
    NotServedError,
    document_of,
    error_of,
    no_answer,
)

__all__ = [
    "AlreadyExistsError",
    "Cause",
    "ConflictError",
    "ForbiddenError",
    "KubernetesClient",
    "KubernetesError",
    "NotFoundError",
    "NotServedError",
    "load_configuration",
]

MERGE_PATCH = "application/merge-patch+json"
PAGE_SIZE = 200
UNFINISHED = "status.phase!=Succeeded,status.phase!=Failed"
UNSELECTABLE_SECONDS = 300.0
"""How long it is remembered that the API server cannot select by phase: its CRD may be upgraded."""
KUEUE_GROUP = "kueue.x-k8s.io"
KUEUE_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
KUEUE_VERSION_SECONDS = 300.0
"""How long the version that Kueue serves is remembered."""
NO_KUEUE_SECONDS = 10.0
"""How long it is remembered that there is no Kueue: one that is installed now must not be fought with for long."""
USER_AGENT = f"finetune-operator/{version('finetune-operator')}"
"""Names us in audit logs; what stands before the slash is the manager of the fields that we write."""


class _Resource(NamedTuple):
    """A kind of object and where it is served."""

    group: str
    version: str
    plural: str
    kind: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = ["namespaces", quote(namespace)] if namespace else []
        return "/".join([root, *scope, self.plural, *(part for part in (quote(name), subresource) if part)])


_RUNS = _Resource("finetune.dev", "v1alpha1", "trainingruns", "TrainingRun")
_JOBS = _Resource("batch", "v1", "jobs", "Job")
_PODS = _Resource("", "v1", "pods", "Pod")
_CLAIMS = _Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
_EVENTS = _Resource("", "v1", "events", "Event")


async def load_configuration() -> client.Configuration:
    """Configuration from KUBECONFIG when it is set, from the pod's service account otherwise."""
    configuration = client.Configuration()
    file = os.environ.get("KUBECONFIG") or None  # the library reads the variable when it is imported, and never again
    if file or "KUBERNETES_SERVICE_HOST" not in os.environ:
        await config.load_kube_config(config_file=file, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    configuration.proxy = configuration.proxy or _proxy_to(configuration.host)
    # Left to itself, aiohttp reads the environment and ~/.netrc for every request, in a thread.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def _proxy_to(server: str) -> str | None:
    """The proxy that the environment names for this server, by `HTTPS_PROXY` and `NO_PROXY` in either case."""
    url = urlsplit(server)
    return None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)


class KubernetesClient:
    """Calls on TrainingRuns, Jobs, pods, claims, Events and Kueue's Workloads.

    Parameters
    ----------
    configuration: where the API server is and who we are, see `load_configuration`.
    timeout_seconds: for one call, connection included.
    on_written: told of every object as it is after a write of ours.
    on_answered: told of every request: its status, 0 without an answer, and how many seconds it took.
    """

    def __init__(
        self,
        *,
        configuration: client.Configuration,
        timeout_seconds: float = 30.0,
        on_written: Callable[[Document], None] | None = None,
        on_answered: Callable[[Asked, int, float], None] | None = None,
    ) -> None:
        self.on_written = on_written
        self.on_answered = on_answered
        self._api = client.ApiClient(configuration)
        self._api.user_agent = USER_AGENT
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=10)
        self._selects_from = 0.0
        self._kueue: tuple[float, str | None] | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def answers(self) -> bool:
        """Whether the API server answers at all; a refusal or an error in its own words is an answer, too."""
        try:
            return "gitVersion" in await self._request(Asked("GET", "/version"))
        except KubernetesError as error:
            return error.status > 0 and error.reason != INVALID_ANSWER

    # TrainingRuns

    async def get_run(self, namespace: str, name: str) -> Document:
        """One TrainingRun. Raises NotFoundError."""
        return await self._get(_RUNS, namespace, name)

    async def list_unfinished_runs(self, namespace: str | None) -> AsyncIterator[list[Document]]:
        """The TrainingRuns of a namespace, or of all, that have not ended, page by page, for memory's sake.

        Ended ones are among them where the API server cannot select by phase: Kubernetes before 1.31.
        """
        if time.monotonic() >= self._selects_from:
            try:
                async for page in self._pages(_RUNS, namespace, {"fieldSelector": UNFINISHED}):
                    yield page
            except KubernetesError as error:
                if error.status != 400:
                    raise
                self._selects_from = time.monotonic() + UNSELECTABLE_SECONDS
            else:
                return
        async for page in self.list_runs(namespace):
            yield page

    async def list_runs_with_output(self, namespace: str, claim: str) -> AsyncIterator[list[Document]]:
        """The TrainingRuns of a namespace that name this claim for their output, page by page.

        All of them are read where the API server cannot select by that.
        """
        try:
            async for page in self._pages(_RUNS, namespace, {"fieldSelector": f"spec.output.claimName={claim}"}):
                yield page
        except KubernetesError as error:
            if error.status != 400:
                raise
        else:
            return
        async for page in self.list_runs(namespace):
            yield [run for run in page if run["spec"].get("output", {}).get("claimName") == claim]

    async def list_runs(self, namespace: str | None) -> AsyncIterator[list[Document]]:
        """All TrainingRuns of a namespace, or of all, page by page."""
        async for page in self._pages(_RUNS, namespace):
            yield page

    async def replace_run_status(self, run: Document) -> Document:
        """Write the status of a run as it was read and changed; spec and metadata are not written.

        Raises ConflictError when somebody wrote the run since it was read, or when it is another one by now.
        """
        metadata = run["metadata"]
        return await self._write("PUT", _RUNS, metadata["namespace"], metadata["name"], run, subresource="status")

    async def annotate_run(
        self,
        namespace: str,
        name: str,
        annotations: Mapping[str, str | None],
        *,
        uid: str,
        resource_version: str | None = None,
    ) -> Document:
        """Set annotations of a run (None removes one).

        Raises ConflictError when the run of that name has another uid by now, or another `resource_version` if given.
        """
        metadata: Document = {"uid": uid, "annotations": dict(annotations)}
        if resource_version is not None:
            metadata["resourceVersion"] = resource_version
        return await self._write("PATCH", _RUNS, namespace, name, {"metadata": metadata})

    # Jobs and pods

    async def get_job(self, namespace: str, name: str) -> Document | None:
        """One Job, read live; None when it does not exist."""
        return await self._get_or_none(_JOBS, namespace, name)

    async def create_job(self, namespace: str, job: Document) -> Document:
        """Create a Job. Raises AlreadyExistsError."""
        return await self._create(_JOBS, namespace, job)

    async def patch_job(self, namespace: str, name: str, patch: Document) -> Document:
        """Merge a patch into a Job. Raises NotFoundError, and ConflictError when the patch names another uid."""
        return await self._write("PATCH", _JOBS, namespace, name, patch)

    async def patch_job_status(self, namespace: str, name: str, patch: Document) -> Document:
        """Merge a patch into a Job's status. Raises NotFoundError."""
        return await self._write("PATCH", _JOBS, namespace, name, patch, subresource="status")

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete a Job and, in the background, its pods (the API's own default would orphan them).

        Another Job of that name is left alone.
        """
        await self._delete(_JOBS, namespace, name, uid, {"propagationPolicy": "Background"})

    async def list_pods(self, namespace: str, selector: str) -> list[Document]:
        """The pods that match a label selector."""
        return await self._list(_PODS, namespace, {"labelSelector": selector})

    async def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Delete a pod, with its own grace period; another pod of that name is left alone."""
        await self._delete(_PODS, namespace, name, uid, {})

    # Claims and Events

    async def get_claim(self, namespace: str, name: str) -> Document | None:
        """One PersistentVolumeClaim; None when it does not exist."""
        return await self._get_or_none(_CLAIMS, namespace, name)

    async def create_claim(self, namespace: str, claim: Document) -> Document:
        """Create a PersistentVolumeClaim. Raises AlreadyExistsError."""
        return await self._create(_CLAIMS, namespace, claim)

    async def delete_claim(self, namespace: str, name: str, uid: str) -> None:
        """Delete a PersistentVolumeClaim, which goes once no pod uses it; another claim of that name is left alone."""
        await self._delete(_CLAIMS, namespace, name, uid, {})

    async def list_events(self, namespace: str, uid: str) -> list[Document]:
        """The Events about the object with this uid."""
        return await self._list(_EVENTS, namespace, {"fieldSelector": f"involvedObject.uid={uid}"})

    async def create_event(self, namespace: str, event: Document) -> None:
        """Create an Event; one of that name that exists already is the same event."""
        try:
            await self._create(_EVENTS, namespace, event)
        except AlreadyExistsError:
            return

    # Kueue

    async def list_workloads(self, namespace: str, job_uid: str) -> list[Document]:
        """The Workloads of a Job; none where Kueue is not installed. Raises ForbiddenError where we may not look."""
        workloads = await self._workloads()
        if workloads is None:
            return []
        try:
            return await self._list(workloads, namespace, {"labelSelector": f"{KUEUE_JOB_UID_LABEL}={job_uid}"})
        except NotServedError:
            self._kueue = None  # Kueue was upgraded or removed: look again next time
            raise

    async def patch_workload(self, namespace: str, name: str, patch: Document) -> Document:
        """Merge a patch into a Workload. Raises NotFoundError; NotServedError where Kueue is not installed."""
        workloads = await self._workloads()
        if workloads is None:
            raise NotServedError(
                verb="PATCH",
                path=f"/apis/{KUEUE_GROUP}",
                status=404,
                reason="NotFound",
                message="Kueue is not installed",
            )
        return await self._write("PATCH", workloads, namespace, name, patch)

    async def _workloads(self) -> _Resource | None:
        """Workloads in the version that Kueue prefers; None when there is no Kueue."""
        now = time.monotonic()
        if self._kueue is None or now > self._kueue[0]:
            found = await self._preferred_version(KUEUE_GROUP)
            self._kueue = (now + (NO_KUEUE_SECONDS if found is None else KUEUE_VERSION_SECONDS), found)
        served = self._kueue[1]
        return None if served is None else _Resource(KUEUE_GROUP, served, "workloads", "Workload")

    async def _preferred_version(self, group: str) -> str | None:
        try:
            document = await self._request(Asked("GET", f"/apis/{group}"), kind="APIGroup")
        except NotServedError:
            return None
        preferred = document.get("preferredVersion") or {}
        return str(preferred.get("version") or "") or None

    # How it is asked

    async def _get(self, resource: _Resource, namespace: str, name: str) -> Document:
        return await self._request(_asked("GET", resource, namespace, name), kind=resource.kind)

    async def _get_or_none(self, resource: _Resource, namespace: str, name: str) -> Document | None:
        try:
            return await self._get(resource, namespace, name)
        except NotFoundError:
            return None

    async def _list(self, resource: _Resource, namespace: str, query: Mapping[str, str]) -> list[Document]:
        return [item async for page in self._pages(resource, namespace, query) for item in page]

    async def _pages(
        self, resource: _Resource, namespace: str | None, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[list[Document]]:
        asked = Asked("GET", resource.path(namespace), resource.plural, resource.group)
        token: str | None = ""
        while token is not None:
            wanted = {**(query or {}), "limit": str(PAGE_SIZE), "continue": token}
            page = await self._request(asked, kind=f"{resource.kind}List", query=wanted)
            token = (page.get("metadata") or {}).get("continue") or None
            yield page.get("items") or []

    async def _create(self, resource: _Resource, namespace: str, body: Document) -> Document:
        asked = Asked(
            "POST", resource.path(namespace), resource.plural, resource.group, body["metadata"]["name"], resource.kind
        )
        return await self._send(asked, resource, body)

    async def _write(
        self, verb: str, resource: _Resource, namespace: str, name: str, body: Document, *, subresource: str = ""
    ) -> Document:
        return await self._send(_asked(verb, resource, namespace, name, subresource), resource, body)

    async def _send(self, asked: Asked, resource: _Resource, body: Document) -> Document:
        written = await self._request(asked, kind=resource.kind, body=body)
        if self.on_written is not None:
            self.on_written(written)
        return written

    async def _delete(
        self, resource: _Resource, namespace: str, name: str, uid: str, options: Mapping[str, str]
    ) -> None:
        body: Document = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}, **options}
        try:
            await self._request(_asked("DELETE", resource, namespace, name), body=body)
        except (NotFoundError, ConflictError):  # it is gone; what has its name now is another one
            return

    async def _request(
        self, asked: Asked, *, kind: str = "", query: Mapping[str, str] | None = None, body: Document | None = None
    ) -> Document:
        """Send one request. Raises KubernetesError, whatever goes wrong on the way."""
        started, status = time.monotonic(), 0
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH if asked.verb == "PATCH" else "application/json"
        try:
            parameters = await self._api.param_serialize(
                asked.verb,
                asked.path,
                query_params=[(key, value) for key, value in (query or {}).items() if value],
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*parameters, _request_timeout=self._timeout)
            data = await response.read()
            status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, OpenApiException, ConfigException) as error:
            raise no_answer(asked, error) from error
        finally:
            if self.on_answered is not None:
                self.on_answered(asked, status, time.monotonic() - started)
        if response.status >= 300:
            raise error_of(asked, response.status, data, response.headers)
        return document_of(asked, kind, response.status, data)


def _asked(verb: str, resource: _Resource, namespace: str, name: str, subresource: str = "") -> Asked:
    path = resource.path(namespace, name, subresource)
    return Asked(verb, path, resource.plural, resource.group, name, resource.kind)
