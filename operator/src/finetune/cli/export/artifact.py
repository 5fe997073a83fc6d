"""An adapter as an OCI artifact: one layer a file, byte for byte as the registry recorded them, and lineage beside.

`oras pull` writes the files under their names, and `finetune adapters verify` finds them to be the adapter's. The same
version always makes the same manifest, so that pushing twice changes nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api.registry import AdapterFile, AdapterVersion

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.finetune.adapter.v1"
EMPTY = b"{}"
"""What an artifact without a configuration has for one, by the image specification."""
EMPTY_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
TYPES = {"json": "application/json", "md": "text/markdown", "txt": "text/plain", "jinja": "text/plain"}
OTHER_TYPE = "application/octet-stream"


def manifest_of(version: AdapterVersion) -> bytes:
    """Return the manifest, as the bytes that its digest is of."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": EMPTY_DIGEST, "size": len(EMPTY)},
        "layers": [_layer(file) for file in version.files],
        "annotations": _annotations(version),
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _layer(file: AdapterFile) -> dict[str, Any]:
    return {
        "mediaType": TYPES.get(file.path.rpartition(".")[2], OTHER_TYPE),
        "digest": f"sha256:{file.sha256}",
        "size": file.bytes,
        "annotations": {TITLE: file.path},
    }


def _annotations(version: AdapterVersion) -> dict[str, str]:
    parent, dataset = version.parent, version.dataset_name
    known = {
        TITLE: version.name,
        "org.opencontainers.image.version": str(version.version),
        "org.opencontainers.image.created": f"{version.created_time:%Y-%m-%dT%H:%M:%SZ}",
        "dev.finetune.adapter.sha256": version.sha256,
        "dev.finetune.base-model.name": version.base_model.name,
        "dev.finetune.base-model.revision": version.base_model.revision,
        "dev.finetune.parent": parent and f"{parent.name}@{parent.version} sha256:{parent.sha256}",
        "dev.finetune.dataset": dataset and f"{dataset}@{version.dataset.version}",
        "dev.finetune.dataset.sha256": version.dataset.sha256,
        "dev.finetune.method": version.method,
        "dev.finetune.run.name": version.run_name,
        "dev.finetune.run.uid": version.run_uid,
        "dev.finetune.evaluation-loss": version.evaluation_loss,
        "dev.finetune.base-evaluation-loss": version.base_evaluation_loss,
    }
    return {name: value for name, value in known.items() if value}
