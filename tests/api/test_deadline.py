"""The deadline of a run that is suspended and resumed, on the real Job controller.

Kubernetes starts the clock of a Job's deadline again when the Job is resumed; the operator counts what was before.
"""

from __future__ import annotations

import asyncio
import calendar
import time

import pytest

from tests.support.kubectl import is_true
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed
from tests.support.world import eventually

UNTIL_TOLD = Attempt(trainer=Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}}))


async def train_until_active_for(managed: Managed, seconds: float) -> None:
    """Until the Job has been active for so long, by the Job controller's own clock."""

    def active() -> bool:
        job = managed.world.job_of()
        started = ((job or {}).get("status") or {}).get("startTime")
        return bool(started) and time.time() - _seconds(started) >= seconds

    await managed.world.phase("Training")
    await eventually(f"{seconds} s of activity", active)


def _seconds(stamp: str) -> float:
    return calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


@pytest.mark.long
async def test_resumed_after_most_of_its_deadline_a_run_has_what_is_left(managed: Managed) -> None:
    managed.kubelet.script("support", UNTIL_TOLD, Attempt())
    managed.world.apply(activeDeadlineSeconds=24)
    await train_until_active_for(managed, 14)  # more than half: what is left is less than what was
    managed.world.apply(activeDeadlineSeconds=24, suspend=True)
    await managed.world.phase("Suspended")
    managed.world.apply(activeDeadlineSeconds=24)
    done = await managed.world.phase("Succeeded")
    assert 13 <= done["status"]["active"]["seconds"] < 24
    await managed.check(names=("support",))


async def test_a_suspension_longer_than_the_deadline_does_not_end_a_run(managed: Managed) -> None:
    managed.kubelet.script("support", UNTIL_TOLD, Attempt())
    managed.world.apply(activeDeadlineSeconds=6)
    await train_until_active_for(managed, 1)
    managed.world.apply(activeDeadlineSeconds=6, suspend=True)
    suspended = await managed.world.phase("Suspended")
    since = next(each for each in suspended["status"]["conditions"] if each["type"] == "Suspended")
    await eventually("a long suspension", lambda: time.time() - _seconds(since["lastTransitionTime"]) > 7)
    managed.world.apply(activeDeadlineSeconds=6)
    await managed.world.phase("Succeeded")


async def test_the_deadline_ends_a_run_that_is_over_it(managed: Managed) -> None:
    managed.kubelet.script("support", UNTIL_TOLD)
    managed.world.apply(activeDeadlineSeconds=24)
    await train_until_active_for(managed, 12)
    managed.world.apply(activeDeadlineSeconds=24, suspend=True)
    await managed.world.phase("Suspended")
    managed.world.apply(activeDeadlineSeconds=24)
    resumed = time.time()
    failed = await managed.world.phase("Failed")
    assert failed["status"]["failure"]["reason"] == "DeadlineExceeded"
    assert "resumeFrom" in failed["status"]["failure"]["hint"]
    # The twelve seconds before the suspension count: it has not had all 24 again.
    assert _seconds(failed["status"]["completionTime"]) - resumed < 24
    await eventually("no pod goes on", lambda: not managed.kubelet.of("support"))


@pytest.mark.long
async def test_active_time_counts_once_however_fast_somebody_toggles(managed: Managed) -> None:
    managed.kubelet.script("support", UNTIL_TOLD)
    managed.world.apply(activeDeadlineSeconds=1000)
    await train_until_active_for(managed, 3)
    for number in range(12):
        managed.world.apply(activeDeadlineSeconds=1000, suspend=number % 2 == 0)
        await asyncio.sleep(0.1)  # the toggling itself: sometimes faster than the controllers look, sometimes not
    managed.kubelet.script("support", Attempt())
    managed.world.apply(activeDeadlineSeconds=1000)
    managed.kubelet.tell("support")
    done = await managed.world.phase("Succeeded")
    life = _seconds(done["status"]["completionTime"]) - _seconds(done["metadata"]["creationTimestamp"])
    assert 3 <= done["status"]["active"]["seconds"] <= life + 1
    assert is_true(done, "Succeeded")
    job = managed.world.job_of()
    assert job is not None
    assert job["spec"]["activeDeadlineSeconds"] >= 1000 - life - 1
