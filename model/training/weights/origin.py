"""Where a base model comes from, a directory or the hub, and every way in which that fails put into words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import exits
from model.exits import FailureError
from model.flags import suggest


def check(base_model: str) -> Path | None:
    """Return the base model's directory, None for a name on the hub.

    Raises
    ------
    FailureError
        When it is a path and there is no model.
    """
    path = Path(base_model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise missing(f"{path} holds no model: it has no config.json")
        return path
    if path.exists():
        raise missing(f"{path} is a file: name the directory with a model's config.json and weights")
    if path.is_absolute() or base_model.startswith((".", "~")) or base_model.count("/") > 1:
        raise missing(f"{path} does not exist{_neighbours(path)}")
    return None


def translated(base_model: str, revision: str | None, load: Callable[[], Any]) -> Any:
    """Return what `load` gives, with the errors of hub and libraries put into words.

    Raises
    ------
    FailureError
        When the model is not there, refused, out of reach or broken.
    """
    from huggingface_hub import errors

    where = f"{base_model} at revision {revision}" if revision else base_model
    try:
        return load()
    except Exception as error:
        chain = _chain(error)
        if any(isinstance(link, errors.GatedRepoError) for link in chain):
            text = f"{where}: access to it must be granted to the owner of the token first"
            raise FailureError(exits.ACCESS_DENIED, "AccessDenied", text) from error
        if isinstance(error, errors.RemoteEntryNotFoundError):
            raise missing(f"{where} on the hub is no model that can be trained: it has no config.json") from error
        if status := _http_status(chain):
            raise _refused(base_model, where, status) from error
        if any(isinstance(link, ConnectionError | TimeoutError) or _is_transport(link) for link in chain):
            text = (
                f"{where} cannot be downloaded, for the hub is out of reach, {_nowhere(base_model)}: try again when it "
                f"answers, or get it elsewhere (hf download {base_model} --local-dir DIRECTORY) and name the directory"
            )
            raise FailureError(exits.UNAVAILABLE, "BaseModelUnavailable", text) from error
        if known := exits.storage_failure(error):
            raise known from error
        if isinstance(error, ImportError):
            text = f"{where} needs a Python package that is not here: {str(error).strip()}"
            raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text) from error
        if isinstance(error, OSError | ValueError | KeyError) or _is_broken_file(error):
            raise missing(f"{where} cannot be loaded: {error}") from error
        raise


def _is_broken_file(error: Exception) -> bool:
    from safetensors import SafetensorError

    return isinstance(error, SafetensorError)


def _is_transport(error: BaseException) -> bool:
    """Whether the hub's client could not get through."""
    from huggingface_hub import errors

    return isinstance(error, errors.LocalEntryNotFoundError) or (
        isinstance(error, errors.HTTPError) and not isinstance(error, errors.HfHubHTTPError)
    )


def _nowhere(base_model: str) -> str:
    """Return that there is no such directory, and the model's that may have been meant."""
    path = Path(base_model)
    models = {str(entry.parent): None for entry in path.parent.glob("*/config.json")}
    return f"and here is no directory of that name{suggest(str(path), models)}"


def _refused(base_model: str, where: str, status: int) -> FailureError:
    nowhere = _nowhere(base_model)
    if status in (401, 403):
        # The hub answers so for what does not exist, too, so as not to tell which private names exist.
        text = (
            f"{where}: the hub answered {status}: it is private, gated or does not exist; check the name and the "
            f"token; {nowhere.removeprefix('and ')}"
        )
        return FailureError(exits.ACCESS_DENIED, "AccessDenied", text)
    if status == 404:
        return missing(f"{where} does not exist on the hub, {nowhere}")
    text = f"{where}: the hub answered {status}: try again later"
    return FailureError(exits.UNAVAILABLE, "BaseModelUnavailable", text)


def _http_status(chain: list[BaseException]) -> int | None:
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _neighbours(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if not entry.name.startswith("."))
    except OSError:
        return ""
    return f"; {parent} holds {', '.join(names[:10]) or 'nothing'}"


def missing(text: str) -> FailureError:
    """Return the failure of a base model that is not there, or not whole."""
    return FailureError(exits.DOES_NOT_EXIST, "BaseModelUnavailable", text)
