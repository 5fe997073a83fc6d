"""The JSON documents that export and trainer leave behind: termination messages and training_config.json.

They come from a container, so nothing in them is trusted to be there or to have the right type: a document that does
not fit is kept as plain text, and the run goes on by its exit codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

MAXIMUM_TEXT = 1024
"""Characters of a container's last words that are kept in the status."""


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class FailureMessage(_Document):
    """Why a container gave up."""

    reason: str = Field(max_length=64)
    message: str
    row: int | None = None


class AdapterFile(_Document):
    """One file of the adapter directory."""

    path: str
    bytes: int
    sha256: str


class AdapterMessage(_Document):
    """The adapter on the claim."""

    sha256: str
    bytes: int
    files: tuple[AdapterFile, ...] = ()


class InterruptedMessage(_Document):
    """Where an interrupted trainer stopped."""

    step: int


class ResultMessage(_Document):
    """What a finished training came to; losses are decimal strings."""

    run_uid: str
    final_loss: str
    evaluation_loss: str | None = None
    base_evaluation_loss: str | None = None
    steps: int
    tokens: int
    resumed_from_step: int = 0
    adapter: AdapterMessage


class DatasetMessage(_Document):
    """What export and trainer counted in the dataset."""

    version: int | None = None
    rows: int | None = None
    evaluation_rows: int | None = None
    dropped: int | None = None
    truncated: int | None = None
    tokens: int | None = None
    bytes: int | None = None
    sha256: str | None = None


class TimingsMessage(_Document):
    """When the trainer started, had its model, and had made its first step (RFC 3339)."""

    start_time: str | None = None
    model_loaded_time: str | None = None
    first_step_time: str | None = None


class BaseModelMessage(_Document):
    """What the trainer trained on; `revision` is a commit or a digest of the files."""

    name: str
    revision: str | None = None


class LossPoint(_Document):
    """One point of the loss curve."""

    step: int
    loss: str


class Message(_Document):
    """A termination message; every part is optional."""

    failure: FailureMessage | None = None
    interrupted: InterruptedMessage | None = None
    result: ResultMessage | None = None
    dataset: DatasetMessage | None = None
    base_model: BaseModelMessage | None = None
    timings: TimingsMessage | None = None
    loss_history: tuple[LossPoint, ...] = ()
    text: str = ""
    """The last words of a container that did not end with such a document."""


def parse_message(text: str | None) -> Message:
    """The document in a termination message; anything else is kept in `text`, cut to its last 1024 characters."""
    if not text:
        return Message()
    try:
        return message_of(json.loads(text))
    except (ValueError, ValidationError, TypeError):
        return Message(text=text.strip()[-MAXIMUM_TEXT:])


def message_of(document: Mapping[str, Any]) -> Message:
    """A training_config.json document as Message. Raises pydantic.ValidationError."""
    return Message.model_validate({key: value for key, value in document.items() if key != "text"})
