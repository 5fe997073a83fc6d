"""The API server as somebody else sees it, for tests of rights and of admission."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from tests.cluster.kube_api import MERGE, KubeApi


@dataclass(frozen=True)
class Account:
    """Somebody whose requests are tried and never stored, and whom the server's authorizer and admission see."""

    api: KubeApi
    user: str

    def __call__(self, method: str, path: str, body: object = None) -> str:
        """What the server objects to, unknown fields among it; empty when it would do it."""
        query = {"fieldValidation": "Strict", **({} if method == "GET" else {"dryRun": "All"})}
        request = urllib.request.Request(
            f"{self.api.server}{path}?{urllib.parse.urlencode(query)}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": MERGE if method == "PATCH" else "application/json", "Impersonate-User": self.user},
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.api.context):
                return ""
        except urllib.error.HTTPError as error:
            return error.read().decode()
