"""What a bad dataset is, and the rows that the tables of them are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

BOM = b"\xef\xbb\xbf"
PAIR = {"prompt": "a", "completion": "b"}
PREFERENCE = {"prompt": "a", "chosen": "b", "rejected": "c"}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
OTHER = {"role": "assistant", "content": "Go away."}
RESULT = {"role": "tool", "content": "2"}
CALLING: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
}


@dataclass(frozen=True)
class Case:
    """A dataset that must be refused.

    Parameters
    ----------
    name
        What is wrong with it.
    content
        Of its only file.
    message
        The whole message of the failure; `DIR` stands for the file's directory.
    row
        The row that the failure names.
    code
        The export's exit code.
    """

    name: str
    content: bytes
    message: str
    file: str = "train.jsonl"
    flags: tuple[str, ...] = ()
    row: int | None = None
    code: int = 3


def rows(*values: Any) -> bytes:
    """Return values as JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def chat(*turns: Any, **fields: Any) -> bytes:
    """Return one row with messages, and with further fields."""
    return rows({"messages": list(turns), **fields})


def zstd(content: bytes) -> bytes:
    """Return a content compressed with zstd."""
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    compressed: bytes = buffer.getvalue().to_pybytes()
    return compressed
