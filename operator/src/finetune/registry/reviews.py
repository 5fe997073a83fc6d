"""Questions to the Kubernetes API: whose token is this, may they do that, whose is this pod, what is said of a run.

Answers are remembered for ten seconds, whose a token is for a minute, refusals for two seconds: a revoked right or a
deleted pod loses its access within that time, a new one has it within two seconds. Equal questions share one call, and
at most `CALLS_AT_ONCE` are under way, whoever asks: strangers with invented tokens must not take the API server's time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from finetune.api import API_VERSION, PLURAL
from finetune.api.conditions import Condition

from .cache import ShortCache
from .errors import Unauthorized, Unavailable

if TYPE_CHECKING:
    from kubernetes.aio import client

TIMEOUT_SECONDS = 10.0
CALLS_AT_ONCE = 16
TURN_SECONDS = 5.0
"""How long a question waits for one of these to end."""
TOKEN_SECONDS = 60.0
"""How long it is remembered whose a token is: what that user may do is asked more often."""
CONDITION_SECONDS = 2.0
MAX_TOKEN_LENGTH = 8192
TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Three parts in base64: every token that is made for an audience."""

RUN_LABEL = "finetune.dev/run-uid"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, kw_only=True)
class User:
    """Who a token belongs to, as the API server says."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]
    audiences: tuple[str, ...]

    def single(self, key: str) -> str | None:
        """The only value of an extra field, or None."""
        values = self.extra.get(key, ())
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Something that RBAC can allow: `verb` on `resource`, or `resource/subresource`, of group finetune.dev."""

    verb: str
    resource: str
    namespace: str
    name: str = ""


class KubernetesReviews:
    """The Kubernetes API, seen from an HTTP service that other people's tokens come to."""

    def __init__(self, configuration: client.Configuration, *, cache: ShortCache | None = None) -> None:
        from kubernetes.aio import client  # a second to import, for nothing when there is no cluster

        self._api = client.ApiClient(configuration)
        self._timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        self._cache = cache if cache is not None else ShortCache(refusals=REFUSALS)
        self._turns = asyncio.Semaphore(CALLS_AT_ONCE)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def user_of(self, token: str, audiences: tuple[str, ...]) -> User:
        """Whose token it is, when it is good for one of the audiences. Raises `Unauthorized`, `Unavailable`."""
        if len(token) > MAX_TOKEN_LENGTH or not TOKEN.fullmatch(token):
            raise _not_accepted("it is not one that an API server makes", audiences)
        # The token itself is not kept in memory for longer than its request.
        key = ("user", hashlib.sha256(token.encode()).digest(), audiences)
        return await self._cache.get(key, lambda: self._review_token(token, audiences), seconds=TOKEN_SECONDS)

    async def may(self, user: User, question: Question) -> bool:
        """Whether the cluster's RBAC lets a user do something. Raises `Unavailable`."""
        extra = tuple(sorted(user.extra.items()))
        key = ("may", user.name, user.uid, user.groups, extra, question)
        try:
            return await self._cache.get(key, lambda: self._review_access(user, question))
        except _RefusedError:
            return False

    async def pod_is_of_run(self, *, namespace: str, name: str, uid: str, run_uid: str) -> bool:
        """Whether this very pod exists, has not ended, and its Job is one of the run's. Raises `Unavailable`."""
        key = ("pod", namespace, name, uid, run_uid)
        try:
            return await self._cache.get(key, lambda: self._find_pod(namespace, name, uid, run_uid))
        except _RefusedError:
            return False

    async def namespace_uid(self, namespace: str) -> str | None:
        """The uid of the namespace; None where there is none. Raises `Unavailable`."""
        try:
            return await self._cache.get(("namespace", namespace), lambda: self._find_namespace(namespace))
        except _RefusedError:
            return None

    async def conditions(self, *, namespace: str, name: str, uid: str) -> tuple[Condition, ...]:
        """The conditions of a TrainingRun as they are now; none where the object is gone. Raises `Unavailable`."""
        key = ("conditions", namespace, name, uid)
        try:
            return await self._cache.get(
                key, lambda: self._find_conditions(namespace, name, uid), seconds=CONDITION_SECONDS
            )
        except _RefusedError:
            return ()

    async def _review_token(self, token: str, audiences: tuple[str, ...]) -> User:
        review = await self._post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": list(audiences)},
            },
        )
        status = review.get("status") or {}
        good_for = tuple(audience for audience in status.get("audiences") or () if audience in audiences)
        if not status.get("authenticated") or not good_for:
            raise _not_accepted(status.get("error") or "unknown token", audiences)
        user = status.get("user") or {}
        return User(
            name=user.get("username", ""),
            uid=user.get("uid", ""),
            groups=tuple(user.get("groups") or ()),
            extra={key: tuple(values) for key, values in (user.get("extra") or {}).items()},
            audiences=good_for,
        )

    async def _review_access(self, user: User, question: Question) -> bool:
        review = await self._post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": user.name,
                    "uid": user.uid,
                    "groups": list(user.groups),
                    "extra": {key: list(values) for key, values in user.extra.items()},
                    "resourceAttributes": {
                        "group": "finetune.dev",
                        "version": "*",
                        "verb": question.verb,
                        "resource": question.resource.partition("/")[0],
                        "subresource": question.resource.partition("/")[2],
                        "namespace": question.namespace,
                        "name": question.name,
                    },
                },
            },
        )
        if not (review.get("status") or {}).get("allowed"):
            raise _RefusedError
        return True

    async def _find_pod(self, namespace: str, name: str, uid: str, run_uid: str) -> bool:
        """Follow the owners: the pod's Job by its uid, the Job's run by its uid. A label alone anybody can write."""
        pod = await self._request("GET", f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}")
        metadata = pod.get("metadata") or {}
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        labelled = (metadata.get("labels") or {}).get(RUN_LABEL) == run_uid
        owner = _controller(metadata, "Job")
        if metadata.get("uid") != uid or ended or not labelled or owner is None or not is_job_name(owner[0], run_uid):
            raise _RefusedError
        job = await self._request("GET", f"/apis/batch/v1/namespaces/{quote(namespace)}/jobs/{quote(owner[0])}")
        metadata = job.get("metadata") or {}
        run = _controller(metadata, "TrainingRun")
        if metadata.get("uid") != owner[1] or run is None or run[1] != run_uid:
            raise _RefusedError
        return True

    async def _find_namespace(self, namespace: str) -> str:
        found = await self._request("GET", f"/api/v1/namespaces/{quote(namespace)}")
        return str(found["metadata"]["uid"])

    async def _find_conditions(self, namespace: str, name: str, uid: str) -> tuple[Condition, ...]:
        run = await self._request("GET", f"/apis/{API_VERSION}/namespaces/{quote(namespace)}/{PLURAL}/{quote(name)}")
        if run["metadata"].get("uid") != uid:
            raise _RefusedError
        told = (run.get("status") or {}).get("conditions") or ()
        return tuple(Condition.model_validate(each) for each in told)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._request("POST", path, body)

    async def _request(self, verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call. 404 for an object raises `_RefusedError`, every other failure is ours: `Unavailable`."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        parameters = await self._api.param_serialize(
            verb, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Unavailable("the Kubernetes API does not answer fast enough", hint="try again") from error
        try:
            response = await self._api.call_api(*parameters, _request_timeout=self._timeout)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(
                f"the Kubernetes API does not answer: {str(error) or 'timed out'}", hint="try again"
            ) from error
        finally:
            self._turns.release()
        if response.status == 404 and verb == "GET":
            raise _RefusedError
        if response.status >= 300:
            raise Unavailable(
                f"the Kubernetes API answered HTTP {response.status} to {verb} {path}",
                hint="may the registry's service account create tokenreviews and subjectaccessreviews, and get pods, "
                "jobs, namespaces and trainingruns?",
            )
        document: dict[str, Any] = json.loads(data)
        return document


class _RefusedError(Exception):
    """A negative answer, as an exception so that the cache does not take it for one that stays."""


REFUSALS = (_RefusedError, Unauthorized)
"""What a cache of these answers takes for a refusal."""


def is_job_name(name: str, run_uid: str) -> bool:
    """Whether the operator calls a run's Jobs so; see docs/contract.md, Names."""
    return name.startswith("t-") and name.removesuffix("-collect").removesuffix("-send").endswith(
        f"-{hashlib.sha256(run_uid.encode()).hexdigest()[:8]}"
    )


def _controller(metadata: Mapping[str, Any], kind: str) -> tuple[str, str] | None:
    """Name and uid of the object that controls another one, if it is of that kind."""
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == kind:
            return owner.get("name", ""), owner.get("uid", "")
    return None


def _not_accepted(why: str, audiences: tuple[str, ...]) -> Unauthorized:
    return Unauthorized(
        f"the API server does not accept the token: {why[:300]}",
        hint=f"send a token of audience {' or '.join(audiences)} that has not expired",
    )
