"""The few calls to an API server that starting a cluster takes; standard library only."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.base import ClusterError

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class KubeApi:
    """One API server and the credentials for it."""

    server: str
    context: ssl.SSLContext

    @classmethod
    def from_kubeconfig(cls, path: Path) -> KubeApi:
        """Use the only cluster and user of a kubeconfig with embedded certificates, as kubeadm writes it."""
        document = yaml.safe_load(path.read_text())
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        authority = b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        pair = path.with_suffix(".pem")  # the ssl module reads a client's key from a file only
        if not pair.exists():
            pair.touch(mode=0o600)
            pair.write_bytes(b64decode(user["client-certificate-data"]) + b64decode(user["client-key-data"]))
        context.load_cert_chain(pair)
        return cls(server=cluster["server"], context=context)

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """One call.

        Returns:
            The HTTP code and the decoded answer (text where it is not JSON); 0 and the reason where no answer came.
        """
        request = urllib.request.Request(
            f"{self.server}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": content_type, "Accept": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS, context=self.context) as answer:
                return answer.status, _decode(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _decode(error.read())
        except OSError as error:
            return 0, str(error)

    def is_ready(self) -> bool:
        """Whether the server says that all its parts are ready."""
        return self.request("GET", "/readyz")[0] == 200

    def get(self, path: str) -> Any:
        """An object, or None where it does not exist or the server does not answer."""
        code, answer = self.request("GET", path)
        return answer if code == 200 else None

    def apply(self, path: str, manifest: dict[str, Any]) -> None:
        """Make an object be as the manifest says (server-side apply)."""
        query = "?fieldManager=local-cluster&force=true"
        code, answer = self.request(
            "PATCH", f"{path}/{manifest['metadata']['name']}{query}", manifest, content_type=APPLY
        )
        if code not in {200, 201}:
            raise ClusterError(
                f"the API server refused {manifest['kind']} {manifest['metadata']['name']}: {code} {answer}"
            )


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
