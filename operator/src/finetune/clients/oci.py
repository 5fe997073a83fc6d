"""Pushing to an OCI registry by the distribution API: blobs, then the manifest that names them.

async with OciClient("registry.example.com", "team/support", credentials=None) as registry:
    await registry.push_file("sha256:...", Path("adapter_model.safetensors"))
    digest = await registry.push_manifest("v1", manifest, media_type="application/vnd.oci.image.manifest.v1+json")
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from .docker_config import DOCKER_HUB, Credentials

BLOCK_BYTES = 1024 * 1024
CONNECT_SECONDS = 30
SILENT_SECONDS = 300
"""How long a registry may say nothing: it stores what it has got before it answers."""
_PARAMETER = re.compile(r'([A-Za-z]+)="([^"]*)"')

Body = Callable[[], AsyncIterator[bytes]]
"""Gives the body anew each time: a request is sent again once a token has been fetched."""


class OciError(Exception):
    """A registry refused, or did not answer.

    Attributes: `hint`, what to do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class OciClient:
    """One repository of a registry. Every method raises OciError.

    `plain_http` speaks HTTP instead of HTTPS, also to the server of tokens.
    """

    def __init__(
        self, host: str, repository: str, *, credentials: Credentials | None, plain_http: bool = False
    ) -> None:
        self._host = "registry-1.docker.io" if host == DOCKER_HUB else host
        self._root = URL(f"{'http' if plain_http else 'https'}://{self._host}/v2/{repository}/")
        self._repository = repository
        self._credentials = credentials
        self._plain_http = plain_http
        self._authorization = ""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        self._http = aiohttp.ClientSession(timeout=timeout, raise_for_status=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def push_file(self, digest: str, path: Path) -> bool:
        """Send a file unless the repository has it; returns whether it was sent."""

        async def blocks() -> AsyncIterator[bytes]:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block

        return await self._push_blob(digest, blocks, path.stat().st_size)  # noqa: ASYNC240 - one call, a local file

    async def push_bytes(self, digest: str, content: bytes) -> bool:
        """Send a blob unless the repository has it; returns whether it was sent."""

        async def blocks() -> AsyncIterator[bytes]:
            yield content

        return await self._push_blob(digest, blocks, len(content))

    async def push_manifest(self, tag: str, content: bytes, *, media_type: str) -> str:
        """Give a tag to a manifest whose blobs were pushed; returns its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"

        async def body() -> AsyncIterator[bytes]:
            yield content

        headers = {"Content-Type": media_type, "Content-Length": str(len(content))}
        async with self._request("PUT", self._root / "manifests" / tag, headers=headers, body=body) as answer:
            given = answer.headers.get("Docker-Content-Digest", digest)
        if given != digest:
            raise OciError(f"{self._host} has stored the manifest as {given}, and it is {digest}")
        return digest

    async def _push_blob(self, digest: str, body: Body, size: int) -> bool:
        async with self._request("HEAD", self._root / "blobs" / digest, missing=True) as answer:
            if answer.status != 404:  # also a redirect, to where the blob is
                return False
        async with self._request(
            "POST", self._root / "blobs" / "uploads" / "", headers={"Content-Length": "0"}
        ) as answer:
            location = answer.headers.get("Location")
        if not location:
            raise OciError(f"{self._host} does not say where to upload to", hint="is it an OCI registry?")
        # The rest of the address is the registry's own, signed perhaps: it is left as it came.
        url = self._root.join(URL(f"{location}{'&' if '?' in location else '?'}digest={digest}", encoded=True))
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        async with self._request("PUT", url, headers=headers, body=body):
            return True

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        missing: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, again with what the registry asks for when it asks who calls; yields a success.

        `missing` lets a 404 through. Credentials go to the registry itself only, not where it redirects to.
        """
        for challenged in (False, True):
            own = url.host == self._root.host and url.port == self._root.port
            sent = {
                **(headers or {}),
                **({"Authorization": self._authorization} if self._authorization and own else {}),
            }
            async with self._sent(method, url, sent, body) as answer:
                if answer.status == 401 and own and not challenged:
                    self._authorization = await self._answer(answer.headers.getall("WWW-Authenticate", []))
                    continue
                if answer.status >= 400 and not (missing and answer.status == 404):
                    raise self._refusal(method, url, answer.status, await answer.text(errors="replace"))
                yield answer
                return

    @asynccontextmanager
    async def _sent(
        self, method: str, url: URL, headers: Mapping[str, str], body: Body | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = None if body is None else body()
        try:
            async with self._http.request(method, url, headers=headers, data=data, allow_redirects=False) as answer:
                yield answer
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            why = str(error) or type(error).__name__
            hint = "is the address right? A registry without TLS needs --plain-http"
            raise OciError(f"{url.origin()} does not answer: {why}", hint=hint) from error

    async def _answer(self, challenges: list[str]) -> str:
        """The Authorization that answers a 401."""
        known = {each.partition(" ")[0].lower(): each for each in challenges}
        if "bearer" in known:
            return f"Bearer {await self._token(dict(_PARAMETER.findall(known['bearer'])))}"
        if self._credentials is None or "basic" not in known:
            raise OciError(
                f"{self._host} asks who you are" + ("" if "basic" in known else ", in a way that is not known here"),
                hint=f"`docker login {self._host}`, or give --username and --password-file",
            )
        return _basic(self._credentials)

    async def _token(self, parameters: Mapping[str, str]) -> str:
        """A token of the server that a challenge names, with the right to push."""
        realm = URL(parameters.get("realm", ""))
        if realm.scheme != "https" and not (self._plain_http and realm.scheme == "http"):
            raise OciError(f"{self._host} wants a token of {str(realm)!r}, which is not HTTPS")
        asked = {"scope": f"repository:{self._repository}:pull,push"}
        if "service" in parameters:
            asked["service"] = parameters["service"]
        known = self._credentials
        if known is not None and known.identity_token:
            form = {
                **asked,
                "grant_type": "refresh_token",
                "client_id": "finetune",
                "refresh_token": known.identity_token,
            }
            call: dict[str, Any] = {"method": "POST", "url": realm, "data": form}
        else:
            headers = {"Authorization": _basic(known)} if known is not None else {}
            call = {"method": "GET", "url": realm.update_query(asked), "headers": headers}
        try:
            async with self._http.request(**call, allow_redirects=False) as answer:
                text = await answer.text(errors="replace")
                if answer.status != 200:
                    raise self._refusal(call["method"], realm, answer.status, text)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise OciError(f"{realm} gives no token: {str(error) or type(error).__name__}") from error
        try:
            found = json.loads(text)
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token:
            raise OciError(f"{realm} gives no token: its answer has none")
        return token

    def _refusal(self, method: str, url: URL, status: int, text: str) -> OciError:
        hint = ""
        if status in {401, 403}:
            who = (
                f"as {self._credentials.username}" if self._credentials and self._credentials.username else "as you are"
            )
            hint = f"{who} you may not push to {self._repository}: `docker login {self._host}`, or give --username"
        elif status == 404:
            hint = f"is {self._host} an OCI registry, and is there a repository {self._repository}?"
        return OciError(f"{method} {url.origin()}{url.raw_path}: {status} {said(text)}".rstrip(), hint=hint)


def said(text: str) -> str:
    """The sentences of a registry's refusal, else the beginning of what it sent."""
    try:
        errors = json.loads(text)["errors"]
        return "; ".join(f"{each.get('code', '')} {each.get('message', '')}".strip() for each in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        return " ".join(text.split())[:200]


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
