"""The registry's client against servers that hang, break off, answer something else, or speak another version."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from finetune.clients import registry as module
from finetune.clients.breaker import Breaker
from finetune.clients.registry import (
    RegistryClient,
    RegistryDenied,
    RegistryError,
    RegistryNotFound,
    RegistryRefused,
    RegistryUnavailable,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback; yields its URL."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def hang(request: web.Request) -> web.StreamResponse:
    del request
    await asyncio.Event().wait()
    raise AssertionError("never")


async def reset(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"uid": ')
    assert request.transport is not None
    request.transport.abort()
    return response


def text(body: bytes, status: int = 200, content_type: str = "application/json") -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(body=body, status=status, content_type=content_type)

    return answer


ERROR = json.dumps({"error": {"reason": "Conflict", "message": "no", "hint": "do"}}).encode()


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (reset, RegistryUnavailable),
        (text(b"<html>Log in</html>", content_type="text/html"), RegistryUnavailable),
        (text(b'{"uid": '), RegistryUnavailable),
        (text(b"[]"), RegistryUnavailable),
        (text(b"[" * 100_000), RegistryUnavailable),
        (text(b"\xff\xfe\x00", content_type="text/plain"), RegistryUnavailable),
        (text(b"", status=302), RegistryUnavailable),
        (text(b"<html>Not Found</html>", status=404), RegistryUnavailable),
        (text(b"oops", status=500), RegistryUnavailable),
        (text(ERROR, status=503), RegistryUnavailable),
        (text(ERROR, status=401), RegistryDenied),
        (text(ERROR, status=404), RegistryNotFound),
        (text(ERROR, status=409), RegistryRefused),
        (text(ERROR, status=422), RegistryRefused),
    ],
)
async def test_only_registry_errors_leave_the_client(handler: Handler, kind: type[RegistryError]) -> None:
    async with answering(handler) as url, RegistryClient(base_url=url, breaker=Breaker()) as client:
        with pytest.raises(RegistryError) as caught:
            await client.get_run("ml", "uid")
    assert type(caught.value) is kind or (kind is RegistryUnavailable and isinstance(caught.value, kind))


async def test_what_cannot_be_sent_is_refused_with_its_name() -> None:
    async with RegistryClient(base_url="http://127.0.0.1:1") as client:
        with pytest.raises(RegistryRefused, match="name"):
            await client.put_run("ml", "uid", name="Not A Name", experiment="e", method="SFT", spec={})
        with pytest.raises(RegistryRefused):
            await client.put_run("ml", "uid", name="a", experiment="e", method="SFT", spec={"a": "\ud800"})
    async with RegistryClient(base_url="http://127.0.0.1:1", token=lambda: "two\nlines") as client:
        with pytest.raises(RegistryUnavailable):
            await client.get_run("ml", "uid")


async def test_progress_that_is_not_understood_hides_no_other() -> None:
    items = {"a": {"progressPercentage": 7, "news": 1}, "b": {"progressPercentage": 700}, "c": "odd"}
    async with answering(text(json.dumps({"items": items}).encode())) as url, RegistryClient(base_url=url) as client:
        found = await client.latest_progress(["a", "b", "c"])
    assert {uid: status.progress_percentage for uid, status in found.items()} == {"a": 7}


async def test_a_registry_that_hangs_costs_one_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALL_SECONDS", 0.3)
    asked = 0

    async def count(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return await hang(request)

    async with answering(count) as url, RegistryClient(base_url=url, breaker=Breaker()) as client:
        start = time.monotonic()
        errors = await asyncio.gather(*(client.get_run("ml", f"u{n}") for n in range(40)), return_exceptions=True)
        assert all(isinstance(error, RegistryUnavailable) for error in errors)
        with pytest.raises(RegistryUnavailable) as later:
            await client.get_run("ml", "later")
        assert str(later.value) == f"{url} does not answer: no answer in time; is the registry up?"
        assert str(later.value) in map(str, errors)  # whoever asks, and when: a status would be written for each change
        assert time.monotonic() - start < 3
    assert asked <= module.CALLS_AT_ONCE


async def test_after_the_rest_one_call_finds_out_that_the_registry_is_back() -> None:
    now = 0.0
    breaker = Breaker(clock=lambda: now)
    async with RegistryClient(base_url="http://127.0.0.1:1", breaker=breaker) as client:
        with pytest.raises(RegistryUnavailable):
            await client.latest_progress(["a"])
        async with answering(text(b'{"items": {}}')) as url:
            client._base_url = url
            with pytest.raises(RegistryUnavailable, match="does not answer"):
                await client.latest_progress(["a"])
            now += 11
            assert await client.latest_progress(["a"]) == {}
            assert await client.latest_progress(["a"]) == {}


async def test_a_refusal_is_an_answer() -> None:
    async with answering(text(ERROR, status=409)) as url, RegistryClient(base_url=url, breaker=Breaker()) as client:
        for _ in range(3):
            with pytest.raises(RegistryRefused) as caught:
                await client.get_run("ml", "uid")
            assert (caught.value.status, caught.value.reason, caught.value.hint) == (409, "Conflict", "do")
