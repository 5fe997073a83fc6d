"""The last words of containers: nothing that a container writes may hold up its run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.controller.core.messages import Message, parse_message
from tests.support import objects as o


@pytest.mark.parametrize("text", ["3", "null", "[1, 2]", '"words"', "{", "[" * 4000, "killed", '{"event": "start"}'])
def test_what_is_no_message_is_kept_as_text(text: str) -> None:
    assert parse_message(text) == Message(text=text[-1024:])


def test_no_words_are_no_message() -> None:
    assert parse_message(None) == parse_message("") == Message()


def change(path: str, value: Any) -> str:
    further = {"lossHistory": [{"step": 1, "loss": "2.9"}], "baseModel": {"name": "smollm2-135m"}}
    document = json.loads(json.dumps({**o.RESULT, **further}))
    *parents, last = path.split(".")
    part = document
    for parent in parents:
        part = part[int(parent)] if isinstance(part, list) else part[parent]
    part[last] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("result.finalLoss", "1" * 33),
        ("result.finalLoss", ""),
        ("result.steps", -1),
        ("result.tokens", 2**63),
        ("result.bestStep", -1),
        ("result.rewardAccuracy", 0.91),
        ("result.rewardMargin", "1" * 33),
        ("dataset.duplicates", "two"),
        ("dataset.rows", -1),
        ("dataset.sha256", "c" * 65),
        ("timings.firstStepTime", "soon"),
        ("timings.firstStepTime", "2026-11-24T06:00:20"),
        ("baseModel.name", "a\ud800"),
        ("baseModel.name", "a" * 513),
        ("baseModel.revision", "a\nb"),
        ("lossHistory.0.loss", "9" * 40),
        ("lossHistory.0.step", -1),
    ],
)
def test_a_result_that_the_status_could_not_hold_is_no_result(path: str, value: Any) -> None:
    assert parse_message(change("result.steps", 55)).result is not None
    assert parse_message(change(path, value)).result is None
