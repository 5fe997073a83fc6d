"""Adapters with bytes: small ones that a registry takes, and how they get there."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import httpx

from tests.support.registry import adapter_document, run_document, sha256


def safetensors(tensors: Mapping[str, int], *, salt: int = 0) -> bytes:
    """A file with vectors of that many numbers of 32 bits; another `salt` is other content."""
    header: dict[str, Any] = {}
    end = 0
    for name, count in tensors.items():
        header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [end, end + 4 * count]}
        end += 4 * count
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + struct.pack("<f", salt) * (end // 4)


def adapter_files(*, salt: int = 0, numbers: int = 1000) -> dict[str, bytes]:
    """The content of an adapter's files by path."""
    return {
        "README.md": b"# LoRA adapter\n",
        "adapter_config.json": json.dumps({"r": 16, "salt": salt}).encode(),
        "adapter_model.safetensors": safetensors({"a": numbers, "b": 8}, salt=salt),
    }


def listing(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Path, size and digest of each file, as a trainer lists them."""
    return [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(files.items())
    ]


def registered(uid: str, files: Mapping[str, bytes], *, name: str = "support") -> dict[str, Any]:
    """What the operator PUTs for a finished run with those files."""
    document = adapter_document(uid, name=name)
    items = listing(files)
    text = "".join(f"{item['sha256']}  {item['path']}\n" for item in items)
    document["result"]["adapter"] = {
        "sha256": sha256(text),
        "bytes": sum(item["bytes"] for item in items),
        "files": items,
    }
    return document


def announce(http: httpx.Client, uid: str, files: Mapping[str, bytes]) -> httpx.Response:
    """List the files of a run."""
    return http.put(f"runs/{uid}/files", json={"files": listing(files)})


def send(http: httpx.Client, uid: str, content: bytes, *, digest: str | None = None) -> httpx.Response:
    """Send one file of a run."""
    return http.put(f"runs/{uid}/blobs/{digest or hashlib.sha256(content).hexdigest()}", content=content)


def make_version(http: httpx.Client, uid: str, files: Mapping[str, bytes], *, name: str = "support") -> dict[str, Any]:
    """Record a run, send its files, register its adapter; gives the version."""
    assert http.put(f"runs/{uid}", json=run_document(name=f"run-{uid[:8]}")).status_code == 201
    assert announce(http, uid, files).status_code == 200
    for content in files.values():
        assert send(http, uid, content).status_code in {200, 201}
    answer = http.put(f"runs/{uid}/adapter", json=registered(uid, files, name=name))
    assert answer.status_code == 201, answer.text
    version: dict[str, Any] = answer.json()
    return version
