"""Which changes of a status are a line in the log, and what the line says."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune.api import reasons
from finetune.api.status import EarlierWait, Failure, TrainingRunStatus, Waiting
from finetune.api.trainingrun import ObjectMeta
from finetune.controller.transitions import PHASES, log_transition, reason_of

CREATED = datetime(2026, 11, 24, 6, tzinfo=UTC)
RUN = ObjectMeta(name="support-1", namespace="ml", uid="u-1", creation_timestamp=CREATED)


def status(phase: str | None, **more: Any) -> TrainingRunStatus:
    return TrainingRunStatus.model_validate({"phase": phase, **more})


def waiting(reason: str, object_: str = "ConfigMap/rows", *earlier: str) -> Waiting:
    before = tuple(EarlierWait(reason=each, object=object_) for each in earlier)
    return Waiting(reason=reason, object=object_, message="select secret", since=CREATED, earlier=before)


def told(
    caplog: pytest.LogCaptureFixture, old: TrainingRunStatus, new: TrainingRunStatus, run: ObjectMeta = RUN
) -> dict[str, Any] | None:
    """The fields of the line, if there is one."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="finetune"):
        log_transition(run, old, new, CREATED + timedelta(seconds=14.4))
    lines = [getattr(record, "fields", {}) for record in caplog.records]
    assert len(lines) <= 1
    return lines[0] if lines else None


def test_another_phase_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    line = told(caplog, status("Exporting", attempts=1), status("Training", attempts=2))
    assert line == {
        "run": "support-1",
        "namespace": "ml",
        "uid": "u-1",
        "phase": "Training",
        "reason": "Training",
        "seconds": 14,
        "attempt": 2,
    }


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_every_phase_is_told_by_its_name(caplog: pytest.LogCaptureFixture, phase: str) -> None:
    line = told(caplog, status(None), status(phase))
    assert line is not None
    assert line["phase"] == phase


def test_what_begins_to_be_waited_for_and_the_end_of_it_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    free, held = status("Pending"), status("Pending", waiting=waiting("QuotaExceeded"))
    begun, ended = told(caplog, free, held), told(caplog, held, free)
    assert begun is not None
    assert (begun["phase"], begun["reason"]) == ("Pending", "QuotaExceeded")
    assert ended is not None
    assert (ended["phase"], ended["reason"]) == ("Pending", "Pending")
    assert told(caplog, held, held.model_copy(update={"attempts": 3})) is None


def test_troubles_that_take_turns_are_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    first = status("Pending", waiting=waiting("QuotaExceeded"))
    second = status("Pending", waiting=waiting("WebhookUnavailable", "ConfigMap/rows", "QuotaExceeded"))
    again = status("Pending", waiting=waiting("QuotaExceeded", "ConfigMap/rows", "WebhookUnavailable"))
    assert told(caplog, first, second) is not None
    assert told(caplog, second, again) is None


def test_progress_alone_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, status("Training"), status("Training", progress={"step": 4})) is None


def test_a_failure_is_told_by_its_reason_and_not_in_its_words(caplog: pytest.LogCaptureFixture) -> None:
    failure = Failure(reason=reasons.DIVERGED, message="row 7 is secret", hint="secret")
    line = told(caplog, status("Training"), status("Failed", failure=failure))
    assert line is not None
    assert (line["phase"], line["reason"]) == ("Failed", "Diverged")
    assert "secret" not in str(line)


def test_words_that_nobody_knows_are_other(caplog: pytest.LogCaptureFixture) -> None:
    new = status("Secretly\nforged", failure=Failure(reason="my secret", message="m", hint="h"))
    line = told(caplog, status("Training"), new)
    assert line is not None
    assert (line["phase"], line["reason"]) == ("other", "other")
    assert reason_of(status("Secret")) == "other"


def test_a_clock_that_is_behind_is_no_negative_time(caplog: pytest.LogCaptureFixture) -> None:
    ahead = RUN.model_copy(update={"creation_timestamp": CREATED + timedelta(hours=1)})
    line = told(caplog, status(None), status("Pending"), ahead)
    assert line is not None
    assert line["seconds"] == 0
