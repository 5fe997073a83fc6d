"""The JSON documents that export and trainer leave behind: termination messages and training_config.json.

They come from a container, so nothing in them is trusted to be there or to have the right type: a document that does
not fit is kept as plain text, and the run goes on by its exit codes. There is one model for each document: what becomes
part of the status is read by the status' own (`DatasetStatus`, `LossPoint`), what the registry is told by its own
(`RunResult`, `BaseModelReference`). So what fits here fits there, and nothing that a container writes holds up its run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune.api.registry import BaseModelReference, RunResult
from finetune.api.status import Count, DatasetStatus, LossPoint

MAXIMUM_TEXT = 1024
"""Characters of a container's last words that are kept in the status."""


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class FailureMessage(_Document):
    """Why a container gave up."""

    reason: str = Field(max_length=64)
    message: Annotated[str, AfterValidator(_without_surrogates)]
    """What happened; half of a surrogate pair, which JSON may escape and a status cannot hold, is a question mark."""
    row: Count | None = None


class InterruptedMessage(_Document):
    """Where an interrupted trainer stopped."""

    step: Count


class TimingsMessage(_Document):
    """When the trainer started, had its model, and had made its first step (RFC 3339)."""

    start_time: AwareDatetime | None = None
    model_loaded_time: AwareDatetime | None = None
    first_step_time: AwareDatetime | None = None


class Message(_Document):
    """A termination message; every part is optional."""

    failure: FailureMessage | None = None
    interrupted: InterruptedMessage | None = None
    result: RunResult | None = None
    dataset: DatasetStatus | None = None
    base_model: BaseModelReference | None = None
    timings: TimingsMessage | None = None
    loss_history: tuple[LossPoint, ...] = ()
    text: str = ""
    """The last words of a container that did not end with such a document."""


def parse_message(text: str | None) -> Message:
    """The document in a termination message; anything else is kept in `text`, cut to its last 1024 characters.

    The text may be the end of the log, which Kubernetes takes when a failed container left no message: JSON as well.
    """
    if not text:
        return Message()
    try:
        document = json.loads(text)
        message = message_of(document) if isinstance(document, dict) else Message()
    except (ValueError, RecursionError):
        message = Message()
    return message if message != Message() else Message(text=text.strip()[-MAXIMUM_TEXT:])


def message_of(document: Mapping[str, Any]) -> Message:
    """A training_config.json document as Message. Raises pydantic.ValidationError."""
    return Message.model_validate({key: value for key, value in document.items() if key != "text"})


def message_or_none(document: Mapping[str, Any]) -> Message | None:
    """The same, or None for a document that does not fit."""
    try:
        return message_of(document)
    except ValidationError:
        return None
