"""The cache of reviews, and the client's tokens. The rules themselves are tested on a real API server, in tests/api."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from finetune.clients.registry import RegistryClient, RegistryDenied, RegistryUnavailable
from finetune.registry.access import Access, Rule
from finetune.registry.cache import ShortCache
from finetune.registry.errors import Unauthorized
from tests.support.registry import serving


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Counts how often it is asked, and fails when it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.calls


async def test_a_storm_of_questions_is_one_question() -> None:
    cache, load = ShortCache(), Loader()
    assert set(await asyncio.gather(*(cache.get("key", load) for _ in range(100)))) == {1}
    assert load.calls == 1


async def test_an_answer_is_good_for_its_time_only() -> None:
    clock, load = Clock(), Loader()
    cache = ShortCache(seconds=10, clock=clock)
    assert await cache.get("key", load) == 1
    clock.now = 9.9
    assert await cache.get("key", load) == 1
    clock.now = 10.0
    assert await cache.get("key", load) == 2
    assert await cache.get("another key", load) == 3


async def test_a_refusal_is_remembered_for_a_moment_and_a_failure_not_at_all() -> None:
    clock, load = Clock(), Loader()
    cache = ShortCache(clock=clock, refused_seconds=2, refusals=(Unauthorized,))
    load.error = Unauthorized("no", hint="none")
    for clock.now, calls in ((0.0, 1), (1.9, 1), (2.0, 2)):
        with pytest.raises(Unauthorized):
            await cache.get("key", load)
        assert load.calls == calls
    clock.now, load.error = 4.1, OSError("away")
    for calls in (3, 4):
        with pytest.raises(OSError, match="away"):
            await cache.get("key", load)
        assert load.calls == calls
    load.error = None
    assert await cache.get("key", load) == 5


async def test_a_failure_is_shared_by_all_who_wait_for_it() -> None:
    """Forty callers of a server that hangs do not wait one after the other."""
    cache, load = ShortCache(), Loader()
    load.error = OSError("hangs")
    answers = await asyncio.gather(*(cache.get("key", load) for _ in range(40)), return_exceptions=True)
    assert {str(each) for each in answers} == {"hangs"}
    assert load.calls == 1


async def test_each_answer_has_its_own_time() -> None:
    clock, load = Clock(), Loader()
    cache = ShortCache(seconds=10, clock=clock)
    assert await cache.get("key", load, seconds=60) == 1
    clock.now = 59
    assert await cache.get("key", load, seconds=60) == 1
    clock.now = 60
    assert await cache.get("key", load, seconds=60) == 2


async def test_a_caller_that_gives_up_does_not_take_the_others_along() -> None:
    cache, started, release = ShortCache(), asyncio.Event(), asyncio.Event()

    async def load() -> str:
        started.set()
        await release.wait()
        return "answer"

    first = asyncio.create_task(cache.get("key", load))
    await started.wait()
    second = asyncio.create_task(cache.get("key", load))
    await asyncio.sleep(0)
    first.cancel()
    release.set()
    assert await second == "answer"


async def test_the_cache_does_not_grow_without_end() -> None:
    clock, load = Clock(), Loader()
    cache = ShortCache(entries=10, clock=clock)
    for key in range(25):
        await cache.get(key, load)
    assert len(cache._known) == 10
    assert not cache._loading
    assert await cache.get(24, load) == 25
    clock.now = 100
    await cache.get("new", load)
    assert len(cache._known) == 1


class OneToken:
    """Accepts one token; what it was asked is kept."""

    is_open = False

    def __init__(self, token: str) -> None:
        self.token = token
        self.rules: list[Rule] = []

    async def check(self, token: str | None, rule: Rule) -> str:
        self.rules.append(rule)
        if token != self.token:
            raise Unauthorized(f"not {token}", hint=f"send a token of audience {rule.audiences[0]}")
        return "somebody"

    async def namespace_uid(self, namespace: str) -> str | None:
        return f"uid of {namespace}"

    async def close(self) -> None:
        return


def opened(access: Access) -> Callable[[], Awaitable[Access]]:
    async def open_it() -> Access:
        return access

    return open_it


async def test_a_replaced_token_is_read_again(tmp_path: Path) -> None:
    access = OneToken("old")
    file = tmp_path / "token"
    file.write_text("old\n")
    with serving(f"sqlite:///{tmp_path}/registry.db", access=opened(access)) as url:
        async with RegistryClient(base_url=url, token_file=file) as client:
            assert await client.list_datasets("ml") == []
            access.token = "new"
            with pytest.raises(RegistryDenied, match=r"send a token of audience finetune\.dev/registry"):
                await client.list_datasets("ml")
            # The way the kubelet does it: another file under the same name.
            (tmp_path / "next").write_text("new\n")
            (tmp_path / "next").replace(file)
            assert await client.list_datasets("ml") == []
            file.unlink()
            with pytest.raises(RegistryUnavailable, match=r"cannot read the registry token .*No such file"):
                await client.list_datasets("ml")


async def test_a_caller_is_refused_before_its_documents_are_judged(tmp_path: Path) -> None:
    import httpx

    with serving(f"sqlite:///{tmp_path}/registry.db", access=opened(OneToken("good"))) as url:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1/namespaces/ml") as http:
            for path in ("", "/status", "/result", "/adapter"):
                for content in (b"{", b"[" * 100_000, b" " * (5 * 1024 * 1024)):
                    strange = await http.put(f"/runs/some-uid{path}", content=content)
                    assert strange.status_code == 401, (path, content[:10])
            refused = await http.put("/runs/some-uid", json={"nonsense": 1})
            judged = await http.put("/runs/some-uid", json={"nonsense": 1}, headers={"Authorization": "Bearer good"})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert judged.status_code == 422


async def test_each_call_asks_for_its_own_callers(tmp_path: Path) -> None:
    import httpx

    access = OneToken("none is good")
    people = {
        "POST datasets/d/versions": ("create", "datasets"),
        "GET datasets": ("list", "datasets"),
        "GET datasets/d": ("get", "datasets"),
        "GET datasets/d/versions/1": ("get", "datasets"),
        "GET datasets/d/versions/1/rows": ("get", "datasets/rows"),
        "GET runs": ("list", "trainingruns"),
        "GET runs/u": ("get", "trainingruns"),
        "GET runs/u/result": ("get", "trainingruns"),
        "GET series?runs=u&metric=loss": ("list", "trainingruns"),
        "GET adapters": ("list", "adapters"),
        "GET adapters/a": ("get", "adapters"),
        "GET adapters/a/versions/latest": ("get", "adapters"),
    }
    operator = {
        "GET datasets",
        "GET datasets/d",
        "GET datasets/d/versions/1",
        "PUT runs/u",
        "GET runs",
        "GET runs/u",
        "GET runs/u/result",
        "PUT runs/u/adapter",
        "PUT runs/u/status",
    }
    pods = {
        "GET runs/u/dataset",
        "GET runs/u/dataset/rows",
        "POST runs/u/status",
        "PUT runs/u/result",
        "GET runs/u/result",
    }
    with serving(f"sqlite:///{tmp_path}/registry.db", access=opened(access)) as url:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1/namespaces/ml") as http:
            for call in people.keys() | operator | pods:
                method, path = call.split()
                assert (await http.request(method, f"/{path}")).status_code == 401, call
                rule = access.rules[-1]
                question = rule.people
                assert rule.namespace == "ml"
                assert (question and (question.verb, question.resource)) == people.get(call), call
                assert question is None or question.namespace == "ml"
                assert rule.operator is (call in operator), call
                assert rule.run_uid == ("u" if call in pods else None), call
            count = len(access.rules)
            assert (await http.get(f"{url}/api/v1/progress?runs=a")).status_code == 401
            assert access.rules[-1] == Rule(namespace="", operator=True)
            assert (await http.get(f"{url}/api/v1/unfinished")).status_code == 401
            assert access.rules[-1] == Rule(namespace="", operator=True)
            for path in ("/healthz", "/readyz", "/openapi.json"):
                assert (await http.get(f"{url}{path}")).status_code == 200
            assert len(access.rules) == count + 2
