"""Points: no step is lost or told twice, attempts rewind, long runs stay small, and curves keep their spikes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from finetune.api.registry import RunRequest, StatusPost
from finetune.registry.database import Database, parse_url
from finetune.registry.errors import AttemptOver, TooManyRequests
from finetune.registry.limits import BURST, PostLimits
from finetune.registry.schema import metric_points
from finetune.registry.store.points import MAX_POINTS, PointStore, Position, move, remaining_seconds
from finetune.registry.store.runs import RunStore
from finetune.registry.thinning import Point, thin
from tests.support.registry import run_document

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(parse_url(database_url))
    yield database
    await database.close()


def post(*steps: int, loss: float = 2.0, attempt: int = 1, start: int = 0, **numbers: float) -> StatusPost:
    points = [{"step": step, "values": {"loss": loss, **numbers}} for step in steps]
    metrics = [{"name": "step", "value": str(steps[-1])}, {"name": "totalSteps", "value": "9999"}] if steps else []
    return StatusPost.model_validate(
        {"trainerStatus": {"metrics": metrics}, "attempt": attempt, "startStep": start, "points": points}
    )


async def curve(store: PointStore, uid: str, metric: str = "loss", *, points: int = 2000) -> dict[int, float]:
    items = (await store.series("ml", [uid], [metric], points=points)).items
    return dict(zip(items[0].steps, items[0].values, strict=True)) if items else {}


async def recorded(database: Database, uid: str) -> PointStore:
    request = RunRequest(name="r", experiment="e", method="SFT", spec={})
    await RunStore(database).put("ml", uid, request, actor="operator")
    return PointStore(database)


async def test_every_step_is_there_once(database: Database, uid: str) -> None:
    store = await recorded(database, uid)
    assert await store.add("ml", uid, post(1, 2, 3)) == 3
    assert await store.add("ml", uid, post(1, 2, 3)) == 3  # an answer that did not arrive
    assert await store.add("ml", uid, post(4, loss=1.5, evaluationLoss=1.75)) == 4
    assert await curve(store, uid) == {1: 2.0, 2: 2.0, 3: 2.0, 4: 1.5}
    assert await curve(store, uid, "evaluationLoss") == {4: 1.75}
    assert await curve(store, uid, "step") == {}


async def test_a_resumed_attempt_takes_back_what_it_makes_again(database: Database, uid: str) -> None:
    store = await recorded(database, uid)
    await store.add("ml", uid, post(1, 2, 3, 4, 5, evaluationLoss=9.0))
    assert await store.add("ml", uid, post(4, loss=1.0, attempt=2, start=3)) == 4
    assert await curve(store, uid) == {1: 2.0, 2: 2.0, 3: 2.0, 4: 1.0}
    assert await curve(store, uid, "evaluationLoss") == {1: 9.0, 2: 9.0, 3: 9.0}
    with pytest.raises(AttemptOver, match=r"attempt 1 of run 'r' is over: attempt 2 has begun"):
        await store.add("ml", uid, post(6))
    (series,) = (await store.series("ml", [uid], ["loss"], points=100)).items
    assert series.attempts == [1, 1, 1, 2]


async def test_a_long_run_stays_small_and_keeps_its_ends_and_its_spikes(database: Database, uid: str) -> None:
    store = await recorded(database, uid)
    spikes = {777: 50.0, 4321: -7.0}
    for start in range(1, 10_001, 250):
        steps = range(start, start + 250)
        points = [{"step": step, "values": {"loss": spikes.get(step, 2 + step % 7 / 10)}} for step in steps]
        await store.add("ml", uid, StatusPost.model_validate({"trainerStatus": {}, "attempt": 1, "points": points}))
        async with database.reading() as connection:
            stored = (await connection.execute(select(func.count()).select_from(metric_points))).scalar_one()
        assert stored <= MAX_POINTS
    found = await curve(store, uid)
    assert (min(found), max(found)) == (1, 10_000)
    assert {step: found[step] for step in spikes} == spikes
    few = await curve(store, uid, points=20)
    assert len(few) <= 20
    assert {**spikes, 1: found[1], 10_000: found[10_000]}.items() <= few.items()
    gaps = sorted(found)
    assert max(later - step for step, later in pairwise(gaps)) < 60, "evenly spread"


def test_thinning_keeps_what_matters() -> None:
    points = [Point(step, float(step % 10), step, 1) for step in range(1, 101)]
    assert thin(points, 100) == points
    kept = thin(points, 22)
    assert len(kept) <= 22
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {point.value for point in kept} >= {0.0, 9.0}
    assert kept == sorted(kept)
    assert thin([], 4) == []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_posts_as_often_as_it_may() -> None:
    clock = Clock()
    limits = PostLimits(clock)
    for _ in range(BURST):
        limits.take("a")
    with pytest.raises(TooManyRequests) as caught:
        limits.take("a")
    assert (caught.value.status, caught.value.retry_seconds) == (429, 1)
    limits.take("b")
    clock.now = 1.0
    limits.take("a")
    with pytest.raises(TooManyRequests):
        limits.take("a")
    for number in range(5000):
        limits.take(f"run-{number}")
    assert len(limits._buckets) <= 4096


def test_the_time_left_is_of_this_attempt_by_our_clock() -> None:
    """Whatever the trainer's clock says, and however many steps an earlier attempt has made."""
    position = Position(attempt=1, step=900)
    resumed = StatusPost.model_validate({"trainerStatus": {"progressPercentage": 0}})
    position, rewound = move(position, resumed, None, NOON, "r")
    assert (position.attempt, position.attempt_step, rewound) == (2, None, None)
    assert remaining_seconds(position, 1000, NOON) is None
    told = StatusPost.model_validate({"trainerStatus": {"progressPercentage": 80}})
    position, rewound = move(position, told, 801, NOON, "r")
    assert (position.attempt_step, rewound) == (801, 800)
    assert remaining_seconds(position, 1000, NOON) is None
    position, rewound = move(position, told, 811, NOON + timedelta(seconds=20), "r")
    assert rewound is None
    assert remaining_seconds(position, 1000, NOON + timedelta(seconds=20)) == 378  # 2 s a step, 189 steps


def callback_status(percent: int, remaining: int | None, **metrics: object) -> dict[str, Any]:
    status: dict[str, Any] = {"lastUpdatedTime": "2026-01-01T00:00:00+00:00", "progressPercentage": percent}
    if remaining is not None:
        status["estimatedRemainingSeconds"] = remaining
    if metrics:
        status["metrics"] = [{"name": name, "value": str(value)} for name, value in metrics.items()]
    return {"trainerStatus": status}


async def test_what_transformers_callback_says_is_understood(registry_url: str, namespace: str) -> None:
    """Its names, its posts from the beginning to the end, and those of a second attempt."""
    uid = str(uuid.uuid4())
    async with httpx.AsyncClient(base_url=f"{registry_url}/api/v1/namespaces/{namespace}/", timeout=60) as http:
        assert (await http.put(f"runs/{uid}", json=run_document())).status_code == 201
        said = [
            callback_status(0, None, total_steps=40),
            callback_status(25, 30, loss=2.5, learning_rate=1e-4, grad_norm=0.5, current_step=10, total_steps=40),
            callback_status(50, 20, loss=2.0, eval_loss=2.25, current_step=20, total_steps=40, current_epoch=0.5),
            callback_status(52, 19, loss=1.9, eval_loss=2.25, current_step=21, total_steps=40),
            callback_status(0, None, total_steps=40),  # the node was lost
            callback_status(45, 1, loss=2.1, current_step=18, total_steps=40),
        ]
        for each in said:
            assert (await http.post(f"runs/{uid}/status", json=each)).status_code == 200
        run = (await http.get(f"runs/{uid}")).json()
        series = (await http.get("series", params={"runs": "run-1", "metric": "loss,evaluationLoss"})).json()["items"]
        for each in (callback_status(99, 1, loss=1.5, current_step=39, total_steps=40), callback_status(100, 0)):
            assert (await http.post(f"runs/{uid}/status", json=each)).status_code == 200
        end = (await http.get(f"runs/{uid}")).json()["trainerStatus"]
    told = {each["name"]: each["value"] for each in run["trainerStatus"]["metrics"]}
    assert told == {"loss": "2.1", "step": "18", "totalSteps": "40"}
    assert run["trainerStatus"]["progressPercentage"] == 45
    assert run["trainerStatus"].get("estimatedRemainingSeconds") is None, "its own divides by steps of another attempt"
    assert run["metrics"] == ["evaluationLoss", "gradientNorm", "learningRate", "loss"]
    curves = {each["metric"]: dict(zip(each["steps"], each["values"], strict=True)) for each in series}
    assert curves["loss"] == {10: 2.5, 18: 2.1}
    assert "evaluationLoss" not in curves, "that of step 20 was taken back"
    assert (end["progressPercentage"], end["estimatedRemainingSeconds"]) == (100, 0)
