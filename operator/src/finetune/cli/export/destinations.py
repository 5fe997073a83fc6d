"""The flags of exports, and where one goes: `hf:DIRECTORY`, `oci://HOST/REPOSITORY:TAG`, `mlflow:URI`.

Every `--help` reads this module: it imports nothing that takes time.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""Names and tags as the OCI distribution specification has them."""


class Folder(NamedTuple):
    """A new folder that Hugging Face's libraries read."""

    path: Path


class Artifact(NamedTuple):
    """A tag of a repository of an OCI registry."""

    host: str
    """With its port, where one was given."""
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine: then its calls may be plain HTTP."""
        return is_loopback(re.sub(r":[0-9]+$", "", self.host))


def add_adapter_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `finetune adapters export`."""
    parser.add_argument(
        "--to",
        type=adapter_destination,
        required=True,
        metavar="DESTINATION",
        help="hf:DIRECTORY, a new folder; or oci://HOST/REPOSITORY:TAG",
    )
    parser.add_argument("--username", help="at the OCI registry; default: of `docker login`")
    parser.add_argument("--password-file", metavar="FILE", help="the password of --username; - is standard input")
    parser.add_argument("--plain-http", action="store_true", help="without TLS, as is done on the loopback")


def add_registry_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `finetune registry export`."""
    parser.add_argument(
        "--to", type=mlflow_destination, required=True, metavar="mlflow:URI", help="a tracking URI of MLflow"
    )
    parser.add_argument("--experiment", metavar="NAME", help="only its runs")


def is_loopback(host: str) -> bool:
    """Whether a host without its port is this machine."""
    import ipaddress

    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def adapter_destination(text: str) -> Folder | Artifact:
    """Read where an adapter is to go."""
    kind, _, rest = text.partition(":")
    if kind == "hf" and rest:
        return Folder(Path(rest))
    if kind == "oci" and rest.startswith("//"):
        return _artifact(text, rest.removeprefix("//"))
    raise argparse.ArgumentTypeError(f"{text!r} is neither hf:DIRECTORY nor oci://HOST/REPOSITORY:TAG")


def mlflow_destination(text: str) -> str:
    """Read the tracking URI of an MLflow server or store."""
    kind, _, uri = text.partition(":")
    if kind != "mlflow" or not uri:
        raise argparse.ArgumentTypeError(f"{text!r} is not mlflow:URI, such as mlflow:http://mlflow.example.com:5000")
    return uri


def _artifact(text: str, rest: str) -> Artifact:
    host, _, path = rest.partition("/")
    repository, _, tag = path.partition(":")
    if not _HOST.fullmatch(host):
        problem = f"{host!r} is not a host, or HOST:PORT"
    elif not _REPOSITORY.fullmatch(repository):
        problem = (
            f"{repository!r} is not a repository: lower-case letters and digits, with '.', '_', '-' and '/' between"
        )
    elif "@" in path:
        problem = "a digest is made by the registry: give a tag"
    elif not tag:
        problem = "the tag is missing"
    elif not _TAG.fullmatch(tag):
        problem = f"{tag!r} is not a tag: letters, digits, '_', '.' and '-', at most 128"
    else:
        return Artifact(host, repository, tag)
    raise argparse.ArgumentTypeError(f"{text}: {problem}; write oci://HOST/REPOSITORY:TAG")
