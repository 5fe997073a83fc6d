"""Who somebody is to a container registry: what `docker login` has left in docker's config.json."""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HELPER_SECONDS = 30
IDENTITY = "<token>"
"""The user that a helper gives for an identity token."""
DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"


class DockerConfigError(Exception):
    """The configuration, or a helper that it names, gives no credentials; the text says why and what to do."""


@dataclass(frozen=True)
class Credentials:
    """A user with a password, or an identity token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find_credentials(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Return what docker would use for a registry; None where there was no login. Raises DockerConfigError."""
    folder = environment.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path(environment.get("HOME") or Path.home()) / ".docker") / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DockerConfigError(f"{path} cannot be read: {error}; mend it, or give --username") from error
    if not isinstance(config, dict):
        raise DockerConfigError(f"{path} holds no JSON object; mend it, or give --username")
    if helper := helper_of(config, host):
        return _ask(helper, host)
    return stored(config, host, path)


def helper_of(config: Mapping[str, Any], host: str) -> str | None:
    """The program that keeps a registry's credentials, without its `docker-credential-`."""
    helpers = config.get("credHelpers")
    named = helpers.get(host) if isinstance(helpers, dict) else None
    return named or config.get("credsStore") or None


def stored(config: Mapping[str, Any], host: str, path: Path) -> Credentials | None:
    """Return the credentials that the file itself holds for a host. Raises DockerConfigError."""
    entries = config.get("auths")
    for key, entry in (entries if isinstance(entries, dict) else {}).items():
        if not isinstance(entry, dict) or host_of(key) != host:
            continue
        username, password = entry.get("username", ""), entry.get("password", "")
        if entry.get("auth"):
            try:
                username, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            except (binascii.Error, ValueError, TypeError) as error:
                raise DockerConfigError(
                    f"{path}: auths[{key!r}].auth is no Base64 of USER:PASSWORD; log in again"
                ) from error
        found = Credentials(username, password.rstrip("\0"), entry.get("identitytoken") or "")
        if found != Credentials():
            return found
    return None


def host_of(key: str) -> str:
    """The registry that a key of `auths` is about: keys of old releases are URLs."""
    host = key.partition("://")[2] if "://" in key else key
    host = host.partition("/")[0]
    return DOCKER_HUB if host in {"index.docker.io", "registry-1.docker.io"} else host


def _ask(helper: str, host: str) -> Credentials | None:
    """What a helper says, by docker's protocol: the host on its input, JSON on its output."""
    program = f"docker-credential-{helper}"
    key = DOCKER_HUB_KEY if host == DOCKER_HUB else host
    try:
        said = subprocess.run(  # noqa: S603 - the program that the person's own configuration names
            [program, "get"], input=key, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DockerConfigError(f"{program}, which docker's config.json names, does not work: {error}") from error
    if said.returncode != 0:
        if "credentials not found" in said.stdout + said.stderr:
            return None
        raise DockerConfigError(f"{program} get: {(said.stderr or said.stdout).strip()}")
    try:
        answer = json.loads(said.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise DockerConfigError(f"{program} get: its answer is no JSON with Username and Secret") from error
    return Credentials(identity_token=secret) if username == IDENTITY else Credentials(username, secret)
