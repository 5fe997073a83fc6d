"""What goes with every request to the registry, and what its answers mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from finetune.api.registry import ErrorDocument

from .registry_errors import RegistryDenied, RegistryError, RegistryNotFound, RegistryRefused, RegistryUnavailable

_P = TypeVar("_P")
_JSON_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class FileToken:
    """A token in a file, read again only when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._token = ""

    def __call__(self) -> str:
        """The token. Raises `RegistryUnavailable` when there is none to read."""
        try:
            stat = self._path.stat()
            if (stat.st_ino, stat.st_mtime_ns) != self._seen:
                self._token = self._path.read_text().strip()
                self._seen = (stat.st_ino, stat.st_mtime_ns)
        except (OSError, ValueError) as error:
            message = f"cannot read the registry token {self._path}: {error}"
            raise RegistryUnavailable(message) from error
        return self._token


def parse(validate: Callable[[str], _P], text: str) -> _P:
    """The document that an answer is. Raises `RegistryUnavailable` for another one."""
    try:
        return validate(text)
    except ValidationError as error:
        raise RegistryUnavailable(
            f"the registry's answer is not understood: {first_problem(error)}; is the address right?"
        ) from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a document, and where in it."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def _first_words(text: str) -> str:
    """What a server that is no registry, or another version of it, said: it often names itself."""
    return repr(" ".join(text.split())[:150])


def _status_message(text: str) -> str | None:
    """What the API server says in the registry's place; None for everybody else's answer."""
    try:
        found = _JSON_OBJECT.validate_json(text)
    except ValidationError:
        return None
    return str(found.get("message") or "nothing") if found.get("kind") == "Status" else None


def failure_of(method: str, url: str, status: int, text: str) -> RegistryError:
    """The error that an answer which is no success stands for."""
    try:
        detail = ErrorDocument.model_validate_json(text).error
    except ValidationError:
        detail = None
    by_proxy = None if detail is not None else _status_message(text)
    if by_proxy is not None:
        kind = RegistryDenied if status in {401, 403} else RegistryUnavailable
        return kind(f"the API server, asked to pass a call on to the registry, says: {by_proxy}")
    if status >= 500 or status in {408, 425, 429}:
        said = detail.message if detail is not None else f"HTTP {status}: {_first_words(text)}"
        return RegistryUnavailable(f"{method} {url}: {said}")
    if detail is None:
        return RegistryUnavailable(
            f"{method} {url}: HTTP {status} and no error document but {_first_words(text)}; "
            "is this the registry's address, and a registry of this version?"
        )
    if status in {401, 403}:
        return RegistryDenied(f"{method} {url}: {detail.message} ({detail.hint})")
    refusal = RegistryNotFound if status == 404 else RegistryRefused
    return refusal(status=status, reason=detail.reason, message=detail.message, hint=detail.hint)
