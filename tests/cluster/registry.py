"""The image registry beside the cluster: what it has, and how to keep only the newest of it."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import host
from tests.cluster.base import ClusterError

MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class Registry:
    """A registry of this machine: its address (http), the configuration file that it was started with, its store."""

    url: str
    configuration: Path
    store: Path

    def image_id(self, name: str, tag: str) -> str | None:
        """The digest (hex) of an image's configuration; None where the registry does not have it."""
        answer = self._request("GET", f"/v2/{name}/manifests/{tag}")
        return None if answer is None else str(json.loads(answer.body)["config"]["digest"]).removeprefix("sha256:")

    def tags(self, name: str) -> list[str]:
        """All tags of an image's name."""
        answer = self._request("GET", f"/v2/{name}/tags/list")
        return [] if answer is None else list(json.loads(answer.body)["tags"] or [])

    def discard_uploads(self, name: str) -> None:
        """Remove what pushes that were broken off left behind; nobody pushes meanwhile."""
        uploads = self.store / "docker/registry/v2/repositories" / name / "_uploads"
        if uploads.is_dir():
            shutil.rmtree(uploads)

    def keep_only(self, name: str, tag: str) -> None:
        """Remove all other tags of this name, and the layers that only they used from the disk."""
        others = [other for other in self.tags(name) if other != tag]
        if not others:
            return
        for other in others:
            found = self._request("HEAD", f"/v2/{name}/manifests/{other}")
            if found is not None:
                self._request("DELETE", f"/v2/{name}/manifests/{found.headers['Docker-Content-Digest']}")
        host.run(["docker-registry", "garbage-collect", "--delete-untagged", self.configuration])

    def _request(self, method: str, path: str) -> _Answer | None:
        request = urllib.request.Request(f"{self.url}{path}", method=method, headers={"Accept": MANIFESTS})
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
                return _Answer(headers=answer.headers, body=answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise ClusterError(
                f"the image registry answered {method} {path} with {error.code}: {error.read()!r}"
            ) from error
        except OSError as error:
            raise ClusterError(
                f"the image registry at {self.url} does not answer: {error}; is the cluster up?"
            ) from error


@dataclass(frozen=True)
class _Answer:
    headers: Any
    body: bytes
