"""The client of the API server against servers that break off, hang, or are another one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from kubernetes.aio import client

from finetune.clients.kubernetes import (
    UNSELECTABLE_SECONDS,
    USER_AGENT,
    KubernetesClient,
    KubernetesError,
    NotServedError,
    load_configuration,
)
from finetune.clients.kubernetes_errors import INVALID_ANSWER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def asking(handler: Handler) -> AsyncIterator[KubernetesClient]:
    """A client of a server on the loopback that answers so; it waits half a second for one that does not."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    kubernetes = KubernetesClient(configuration=configuration, timeout_seconds=0.5 if handler is hang else 30)
    try:
        yield kubernetes
    finally:
        await kubernetes.close()
        await runner.cleanup()


async def hang(request: web.Request) -> web.StreamResponse:
    del request
    await asyncio.Event().wait()
    raise AssertionError("never")


def broken_off(length: int | None) -> Handler:
    """An answer that is cut in its middle; with a length that it had promised, or in chunks."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = length
        await response.prepare(request)
        await response.write(b'{"kind": "TrainingRun", "metadata": {')
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


def text(body: bytes, status: int = 200, **headers: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(body=body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


@pytest.mark.parametrize(
    ("handler", "status"),
    [
        pytest.param(hang, 0, id="nothing"),
        pytest.param(broken_off(1000), 0, id="cut in its length"),
        pytest.param(broken_off(None), 0, id="cut in a chunk"),
        pytest.param(text(b"this is no gzip at all", Content_Encoding="gzip"), 0, id="no gzip"),
        pytest.param(text(b"<html>Log in</html>", Content_Type="text/html"), 200, id="a login page"),
        pytest.param(text(b'{"kind": "TrainingRun", "metadata": {'), 200, id="cut by a proxy"),
        pytest.param(text(b""), 200, id="empty"),
        pytest.param(text(b"\xff\xfe"), 200, id="no text"),
        pytest.param(text(b"[" * 100_000), 200, id="deep"),
        pytest.param(text(b'{"kind": "Pod"}'), 200, id="another kind"),
        pytest.param(text(b"<html>Bad Gateway</html>", status=502), 502, id="a proxy's error"),
        pytest.param(text(b"", status=302, Location="/elsewhere"), 0, id="a redirect in a circle"),
        pytest.param(text(b"too many", status=429, Retry_After="9"), 429, id="too many"),
    ],
)
async def test_nothing_but_its_own_errors_leaves_the_client(handler: Handler, status: int) -> None:
    async with asking(handler) as kubernetes:
        calls: list[Awaitable[object]] = [
            kubernetes.get_run("ml", "a"),
            kubernetes.replace_run_status({"metadata": {"namespace": "ml", "name": "a"}}),
            kubernetes.list_pods("ml", "a=b"),
            kubernetes.get_job("ml", "a"),
            kubernetes.delete_pod("ml", "a", "uid") if status != 200 else kubernetes.get_claim("ml", "a"),
        ]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, KubernetesError)
            assert error.status == status
        assert not await kubernetes.answers()


async def test_a_server_that_is_away_is_an_error_too() -> None:
    kubernetes = KubernetesClient(configuration=client.Configuration(host="http://127.0.0.1:1"))
    with pytest.raises(KubernetesError) as caught:
        await kubernetes.get_run("ml", "a")
    assert (caught.value.status, caught.value.retry_after) == (0, None)
    assert not await kubernetes.answers()
    await kubernetes.close()


async def test_a_refusal_in_its_own_words_is_an_answer() -> None:
    body = json.dumps({"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}).encode()
    async with asking(text(body, status=403)) as kubernetes:
        assert await kubernetes.answers()


async def test_requests_name_us() -> None:
    agents = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        agents.add(request.headers["User-Agent"])
        return web.json_response({"kind": "Job"})

    async with asking(answer) as kubernetes:
        await kubernetes.get_job("ml", "a")
    assert agents == {USER_AGENT}
    assert USER_AGENT.startswith("finetune-operator/")


async def test_runs_come_page_by_page() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        page = int(request.query.get("continue", "0"))
        items = [{"metadata": {"name": f"r{page}-{number}"}} for number in range(2)]
        following = str(page + 1) if page < 2 else ""
        return web.json_response({"kind": "TrainingRunList", "metadata": {"continue": following}, "items": items})

    async with asking(answer) as kubernetes:
        sizes = [len(page) async for page in kubernetes.list_unfinished_runs(None)]
    assert sizes == [2, 2, 2]


async def test_a_server_that_cannot_select_by_phase_is_asked_again_some_time_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selected: list[bool] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        selected.append("fieldSelector" in request.query)
        if selected[-1] and len(selected) == 1:
            words = {"kind": "Status", "reason": "BadRequest", "message": "field label not supported: status.phase"}
            return web.json_response(words, status=400)
        return web.json_response({"kind": "TrainingRunList", "items": [{}]})

    async with asking(answer) as kubernetes:
        for _ in range(2):
            assert [page async for page in kubernetes.list_unfinished_runs("ml")] == [[{}]]
        assert selected == [True, False, False]
        later = time.monotonic() + UNSELECTABLE_SECONDS
        monkeypatch.setattr("finetune.clients.kubernetes.time.monotonic", lambda: later)
        assert [page async for page in kubernetes.list_unfinished_runs("ml")] == [[{}]]
    assert selected == [True, False, False, True]


async def test_runs_with_an_output_are_selected_by_the_api_server_or_by_us() -> None:
    """A definition that is older than the operator cannot select by it."""
    runs = [{"spec": {"output": {"claimName": name}}} for name in ("a", "b")] + [{"spec": {"output": {}}}, {"spec": {}}]
    selects = [True]

    async def answer(request: web.Request) -> web.StreamResponse:
        wanted = request.query.get("fieldSelector")
        if wanted and not selects[0]:
            words = {"kind": "Status", "reason": "BadRequest", "message": "field label not supported"}
            return web.json_response(words, status=400)
        found = [each for each in runs if not wanted or (wanted == "spec.output.claimName=a" and each == runs[0])]
        return web.json_response({"kind": "TrainingRunList", "items": found})

    async with asking(answer) as kubernetes:
        assert [page async for page in kubernetes.list_runs_with_output("ml", "a")] == [runs[:1]]
        selects[0] = False
        assert [page async for page in kubernetes.list_runs_with_output("ml", "a")] == [runs[:1]]


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "other.example"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".example"}, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({}, None),
    ],
)
async def test_the_proxy_of_the_environment_is_looked_for_once(
    environment: dict[str, str], proxy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cluster = {"name": "c", "cluster": {"server": "https://api.example:6443"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {"token": "t"}}]
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps({"clusters": [cluster], "contexts": [context], "users": users, "current-context": "c"}))
    monkeypatch.setenv("KUBECONFIG", str(file))
    configuration = await load_configuration()
    assert configuration.proxy == proxy
    assert configuration.client_session_kwargs == {"trust_env": False}


async def test_the_version_of_kueue_is_asked_once_and_again_when_it_is_served_no_more() -> None:
    asked: list[str] = []
    served = ["v1beta1"]

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/apis/kueue.x-k8s.io":
            return web.json_response({"kind": "APIGroup", "preferredVersion": {"version": served[0]}})
        if f"/{served[0]}/" not in request.path:
            return web.Response(status=404, text="404 page not found")
        return web.json_response({"kind": "WorkloadList", "items": [{"spec": {"active": True}}]})

    async with asking(answer) as kubernetes:
        for _ in range(2):
            assert len(await kubernetes.list_workloads("ml", "uid")) == 1
        served[0] = "v1beta2"
        with pytest.raises(NotServedError):
            await kubernetes.list_workloads("ml", "uid")
        assert len(await kubernetes.list_workloads("ml", "uid")) == 1
    assert asked.count("/apis/kueue.x-k8s.io") == 2


async def test_without_kueue_there_are_no_workloads() -> None:
    async with asking(text(b"404 page not found", status=404)) as kubernetes:
        assert await kubernetes.list_workloads("ml", "uid") == []
        with pytest.raises(NotServedError, match="Kueue is not installed"):
            await kubernetes.patch_workload("ml", "w", {"spec": {"active": False}})


async def test_an_invalid_success_says_what_came_instead() -> None:
    async with asking(text(b"<html><title>Please log in</title></html>")) as kubernetes:
        with pytest.raises(KubernetesError, match="Please log in") as caught:
            await kubernetes.get_run("ml", "a")
    assert caught.value.reason == INVALID_ANSWER
