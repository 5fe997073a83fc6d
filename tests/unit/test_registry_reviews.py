"""What the registry asks of an API server, and how often; a small server stands in for it and counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from finetune.registry.errors import Unauthorized, Unavailable
from finetune.registry.reviews import CALLS_AT_ONCE, KubernetesReviews, Question, User, is_job_name

TOKEN = "e30.e30.c2ln"
QUESTION = Question(verb="get", resource="datasets", namespace="ml")


class Cluster:
    """Answers reviews; every call is counted by its kind."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.status = 200
        self.busy, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def answer(self, request: web.Request) -> web.Response:
        """One review."""
        kind = request.path.rpartition("/")[2]
        self.calls[kind] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.at_once == CALLS_AT_ONCE:
            self.busy.set()
        try:
            await self.go_on.wait()
        finally:
            self.at_once -= 1
        spec: dict[str, Any] = (await request.json())["spec"]
        if kind == "tokenreviews":
            status = {"authenticated": True, "audiences": spec["audiences"], "user": {"username": "alice"}}
        else:  # what OpenShift does with a token that is for something else
            status = {"allowed": spec["extra"] == {} and spec["uid"] == "1"}
        return web.json_response({"status": status}, status=self.status)


@pytest.fixture
async def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def reviews(cluster: Cluster) -> AsyncIterator[KubernetesReviews]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    reviews = KubernetesReviews(client.Configuration(host=f"http://{host}:{port}"))
    yield reviews
    await reviews.close()
    await runner.cleanup()


def user(uid: str = "1", **extra: tuple[str, ...]) -> User:
    return User(name="alice", uid=uid, groups=("a",), extra=extra, audiences=("x",))


async def test_a_permission_is_of_the_very_user_who_was_asked_for(reviews: KubernetesReviews, cluster: Cluster) -> None:
    """One name may stand for a token with fewer rights, or for an account that was made again."""
    assert await reviews.may(user(), QUESTION)
    assert not await reviews.may(user(scopes=("user:info",)), QUESTION)
    assert not await reviews.may(user("2"), QUESTION)
    assert cluster.calls == {"subjectaccessreviews": 3}
    assert await reviews.may(user(), QUESTION)
    assert not await reviews.may(user("2"), QUESTION)
    assert cluster.calls == {"subjectaccessreviews": 3}


@pytest.mark.parametrize(
    "token", ["abc", "a.b", "a.b.c.d", "a.b.c d", "a.b.\u00e4", "..", "a" * 9000 + ".b.c", "a.b.c\n"]
)
async def test_what_no_api_server_makes_is_not_asked_about(
    reviews: KubernetesReviews, cluster: Cluster, token: str
) -> None:
    with pytest.raises(Unauthorized, match="does not accept the token"):
        await reviews.user_of(token, ("x",))
    assert not cluster.calls


async def test_a_flood_of_strangers_is_a_few_calls_at_once(reviews: KubernetesReviews, cluster: Cluster) -> None:
    cluster.go_on.clear()
    asked = [asyncio.create_task(reviews.user_of(f"e30.e{number}.c2ln", ("x",))) for number in range(60)]
    await cluster.busy.wait()
    cluster.go_on.set()
    answers = await asyncio.gather(*asked)
    assert {each.name for each in answers} == {"alice"}
    assert cluster.most_at_once == CALLS_AT_ONCE


async def test_a_failure_is_the_api_servers_and_is_asked_about_again(
    reviews: KubernetesReviews, cluster: Cluster
) -> None:
    cluster.status = 500
    asked = (reviews.user_of(TOKEN, ("x",)) for _ in range(20))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in answers} == {Unavailable}
    assert cluster.calls == {"tokenreviews": 1}
    cluster.status = 200
    assert (await reviews.user_of(TOKEN, ("x",))).name == "alice"


async def test_a_cluster_without_reviews_lets_nobody_in(reviews: KubernetesReviews, cluster: Cluster) -> None:
    cluster.status = 404
    with pytest.raises(Unavailable, match="HTTP 404"):
        await reviews.user_of(TOKEN, ("x",))
    with pytest.raises(Unavailable):
        await reviews.may(user(), QUESTION)


@pytest.mark.parametrize(
    ("name", "is_its"),
    [
        ("t-support-8d59cd30", True),
        ("t-support-8d59cd30-collect", True),
        ("support-8d59cd30", False),
        ("t-support-8d59cd31", False),
        ("t-support-8d59cd30-send", True),
        ("t-support-8d59cd30-other", False),
        ("t-8d59cd30", True),
    ],
)
def test_the_names_of_a_runs_jobs(name: str, is_its: bool) -> None:
    assert is_job_name(name, "6f1b8e1c-2d9f-4b6f-9a55-0f6c1f0e7a11") is is_its
