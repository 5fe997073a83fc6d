"""Setting conditions."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune.api.conditions import FINISHED, SUCCEEDED, Condition, set_condition
from finetune.api.fields import MAX_MESSAGE

EARLIER = datetime(2026, 11, 24, 6, 0, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 24, 7, 0, 0, tzinfo=UTC)


def one(conditions: tuple[Condition, ...]) -> Condition:
    (condition,) = conditions
    return condition


def test_the_time_of_transition_is_kept_while_the_status_is_the_same() -> None:
    first = set_condition((), SUCCEEDED, "Unknown", "Pending", "waiting", 1, EARLIER)
    second = one(set_condition(first, SUCCEEDED, "Unknown", "Training", "step 1", 2, LATER))
    assert second.last_transition_time == EARLIER
    assert (second.reason, second.message, second.observed_generation) == ("Training", "step 1", 2)


def test_the_time_of_transition_is_now_when_the_status_changes() -> None:
    first = set_condition((), SUCCEEDED, "Unknown", "Training", "", 1, EARLIER)
    assert one(set_condition(first, SUCCEEDED, "True", "AdapterRegistered", "", 1, LATER)).last_transition_time == LATER


def test_the_order_is_kept() -> None:
    conditions = set_condition((), SUCCEEDED, "Unknown", "Training", "", 1, EARLIER)
    conditions = set_condition(conditions, FINISHED, "False", "Training", "", 1, EARLIER)
    conditions = set_condition(conditions, SUCCEEDED, "True", "AdapterRegistered", "", 1, LATER)
    assert [condition.type for condition in conditions] == [SUCCEEDED, FINISHED]
    assert conditions[1].last_transition_time == EARLIER


def test_nothing_changes_when_nothing_changed() -> None:
    first = set_condition((), SUCCEEDED, "Unknown", "Training", "", 1, EARLIER)
    assert set_condition(first, SUCCEEDED, "Unknown", "Training", "", 1, LATER) == first


def test_a_message_fits_the_schema() -> None:
    condition = one(set_condition((), SUCCEEDED, "False", "InternalError", "x" * (2 * MAX_MESSAGE), 1, EARLIER))
    assert len(condition.message) == MAX_MESSAGE
