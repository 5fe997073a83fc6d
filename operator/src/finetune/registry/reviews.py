"""Three questions to the Kubernetes API: whose token is this, may they do that, does this pod exist.

Only positive answers are remembered, for ten seconds; so a revoked right or a deleted pod loses its access within that
time, and a new one has it at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from .cache import ShortCache
from .errors import Unauthorized, Unavailable

if TYPE_CHECKING:
    from kubernetes.aio import client

TIMEOUT_SECONDS = 10.0

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
    """Something that RBAC can allow: `verb` on `resource` of group finetune.dev."""

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
        self._cache = cache if cache is not None else ShortCache()

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def user_of(self, token: str, audiences: tuple[str, ...]) -> User:
        """Whose token it is, when it is good for one of the audiences. Raises `Unauthorized`, `Unavailable`."""
        # The token itself is not kept in memory for longer than its request.
        key = ("user", hashlib.sha256(token.encode()).digest(), audiences)
        return await self._cache.get(key, lambda: self._review_token(token, audiences))

    async def may(self, user: User, question: Question) -> bool:
        """Whether the cluster's RBAC lets a user do something. Raises `Unavailable`."""
        key = ("may", user.name, user.groups, question)
        try:
            return await self._cache.get(key, lambda: self._review_access(user, question))
        except _RefusedError:
            return False

    async def pod_exists(self, *, namespace: str, name: str, uid: str, labels: Mapping[str, str]) -> bool:
        """Whether this very pod exists and bears the labels. Raises `Unavailable`."""
        key = ("pod", namespace, name, uid, tuple(sorted(labels.items())))
        try:
            return await self._cache.get(key, lambda: self._find_pod(namespace, name, uid, labels))
        except _RefusedError:
            return False

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
            raise Unauthorized(
                f"the API server does not accept the token: {status.get('error') or 'unknown token'}",
                hint=f"send a token of audience {' or '.join(audiences)} that has not expired",
            )
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
                        "resource": question.resource,
                        "namespace": question.namespace,
                        "name": question.name,
                    },
                },
            },
        )
        if not (review.get("status") or {}).get("allowed"):
            raise _RefusedError
        return True

    async def _find_pod(self, namespace: str, name: str, uid: str, labels: Mapping[str, str]) -> bool:
        pod = await self._request("GET", f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}")
        metadata = pod.get("metadata") or {}
        has = metadata.get("labels") or {}
        if metadata.get("uid") != uid or any(has.get(key) != value for key, value in labels.items()):
            raise _RefusedError
        return True

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._request("POST", path, body)

    async def _request(self, verb: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call; 404 raises `_RefusedError`, every other failure `Unavailable`: it is ours, not the caller's."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        parameters = await self._api.param_serialize(
            verb, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = await self._api.call_api(*parameters, _request_timeout=self._timeout)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unavailable(
                f"the Kubernetes API does not answer: {str(error) or 'timed out'}", hint="try again"
            ) from error
        if response.status == 404:
            raise _RefusedError
        if response.status >= 300:
            raise Unavailable(
                f"the Kubernetes API answered HTTP {response.status} to {verb} {path}",
                hint="may the registry's service account create tokenreviews and subjectaccessreviews and get pods?",
            )
        document: dict[str, Any] = json.loads(data)
        return document


class _RefusedError(Exception):
    """A negative answer, as an exception so that the cache forgets it."""
