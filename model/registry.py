"""Client of the registry for a run's own pod: its dataset, its progress, its result."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from model import exits
from model.exits import FailureError

CONNECT_TIMEOUT_SECONDS = 10.0
SEND_TIMEOUT_SECONDS = 60.0
"""How long the registry may take for the next bytes of a file, or to put the last ones on its disk."""
RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Waits between attempts: a registry that restarts is back within them, one that is gone is reported soon."""

CA_VARIABLE = "FINETUNE_REGISTRY_CA"
"""Variable with the certificate authorities of a registry that speaks HTTPS, as PEM text; without it: the system's."""

T = TypeVar("T")


class RegistryUnavailableError(Exception):
    """The registry gave no usable answer for the moment; another attempt may succeed."""


class RegistryRefusedError(Exception):
    """The registry answered with an error that another attempt will not change.

    Parameters
    ----------
    status
        HTTP status, 4xx.
    message
        The registry's own explanation.
    reason
        Its word for it, such as `NotFound`; empty when it was not the registry that answered.
    """

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason


@dataclass(frozen=True)
class RunRegistry:
    """The part of the registry that belongs to one run.

    Parameters
    ----------
    url
        Base URL of the registry's service.
    namespace
        The run's namespace.
    run_uid
        The run's uid.
    token_file
        File with the bearer token; read for each request because Kubernetes renews it. None: no token.
    """

    url: str
    namespace: str
    run_uid: str
    token_file: Path | None = None

    def dataset(self) -> dict[str, Any]:
        """Return the metadata of the dataset version recorded for the run."""
        with self._open("GET", "dataset") as response:
            document: dict[str, Any] = json.load(response)
            return document

    def dataset_rows(self) -> Iterator[bytes]:
        """Yield the dataset's lines as stored; a broken connection raises `RegistryUnavailableError`."""
        with self._open("GET", "dataset/rows") as response:
            yield from response

    def post_status(self, document: dict[str, Any]) -> None:
        """Post a trainerStatus document once, without another attempt."""
        with self._open("POST", "status", document):
            return

    def put_result(self, document: dict[str, Any]) -> None:
        """Put the training_config.json document once, without another attempt."""
        with self._open("PUT", "result", document):
            return

    def announce_files(self, files: list[dict[str, Any]]) -> list[str]:
        """Announce the files (path, bytes, sha256) of the run's adapter; return the digests that are to be sent."""
        return self._announce("files", {"files": files})

    def announce_interim(self, step: int, document: dict[str, Any]) -> list[str]:
        """Announce the adapter of a step (losses, attempt, files); return the digests that are to be sent."""
        return self._announce(f"steps/{step}/adapter", document)

    def _announce(self, path: str, document: dict[str, Any]) -> list[str]:
        with self._open("PUT", path, document) as response:
            answer = response.read()
        try:
            return [str(digest) for digest in json.loads(answer)["missing"]]
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryRefusedError(response.status, f"its answer is not understood: {answer[:100]!r}") from error

    def send_file(self, path: Path, *, sha256: str, size: int) -> None:
        """Send the bytes of an announced file once, without another attempt."""
        request = self._request("PUT", f"blobs/{sha256}", None)
        with path.open("rb") as file:
            request.data = file
            request.add_header("Content-Type", "application/octet-stream")
            request.add_header("Content-Length", str(size))
            with self._answer(request, timeout=SEND_TIMEOUT_SECONDS):
                return

    @contextmanager
    def _open(
        self, method: str, path: str, document: dict[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        with self._answer(self._request(method, path, document), timeout=CONNECT_TIMEOUT_SECONDS) as response:
            yield response

    @contextmanager
    def _answer(self, request: urllib.request.Request, *, timeout: float) -> Iterator[http.client.HTTPResponse]:
        method = request.get_method()
        try:
            with _opener(os.environ.get(CA_VARIABLE)).open(request, timeout=timeout) as response:
                yield response
        except urllib.error.HTTPError as error:
            message, reason = _error_words(error)
            if error.code >= 500 or error.code in (408, 429):
                raise RegistryUnavailableError(f"{method} {request.full_url}: {error.code} {message}") from error
            raise RegistryRefusedError(error.code, message, reason) from error
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            cause = getattr(error, "reason", error)
            raise RegistryUnavailableError(f"{method} {request.full_url}: {cause}") from error

    def _request(self, method: str, path: str, document: dict[str, Any] | None) -> urllib.request.Request:
        namespace = urllib.parse.quote(self.namespace, safe="")
        url = f"{self.url.rstrip('/')}/api/v1/namespaces/{namespace}/runs/{self.run_uid}/{path}"
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise FailureError(
                exits.INVALID_CONFIGURATION,
                "InvalidSpec",
                f"--registry-url={self.url}: must start with http:// or https://",
            )
        request = urllib.request.Request(url, method=method)  # noqa: S310 - the scheme was checked above
        if document is not None:
            request.data = json.dumps(document, allow_nan=False).encode()
            request.add_header("Content-Type", "application/json")
        if self.token_file is not None:
            request.add_header("Authorization", f"Bearer {_read_token(self.token_file)}")
        return request


@cache
def _opener(authorities: str | None) -> urllib.request.OpenerDirector:
    """The registry is a service of the cluster: the proxy that a pod is given for a hub is not for it."""
    context = ssl.create_default_context(cadata=authorities) if authorities else None
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))


def retry(call: Callable[[], T], *, warn: Callable[[str], None]) -> T:
    """Call until the registry answers, with a pause after each failed attempt; then let the last error out.

    Raises
    ------
    RegistryUnavailableError
        When no attempt got an answer.
    RegistryRefusedError
        At once, when the answer is a refusal.
    """
    for delay in RETRY_DELAYS_SECONDS:
        try:
            return call()
        except RegistryUnavailableError as error:
            warn(f"the registry is unavailable, next attempt in {delay} s: {error}")
        time.sleep(delay)
    return call()


def _read_token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise RegistryRefusedError(401, f"no token to show: cannot read {path}: {error.strerror}") from error


def _error_words(error: urllib.error.HTTPError) -> tuple[str, str]:
    try:
        words = json.load(error)["error"]
        return str(words["message"]), str(words["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason), ""
