"""`finetune ui`: the pages on a loopback address, for the browser that was given the code and for nobody else."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from aiohttp import web

from finetune.cli.ui import Pages, kept
from finetune.clients.people import PeopleClient
from tests.support.pages import form_token, outcome, spec
from tests.support.ports import free_port
from tests.support.registry import run_document, serving

UID = "00000000-0000-4000-8000-000000000001"


async def test_one_browser_gets_the_pages_and_sends_their_forms(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        await asyncio.to_thread(_record, url)
        async with PeopleClient(base_url=url) as registry:
            pages = Pages(registry)
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", pages.serve)
            runner = web.AppRunner(application, auto_decompress=False)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            try:
                await _browse(pages, runner.addresses[0][1])
            finally:
                await runner.cleanup()


def _record(url: str) -> None:
    with httpx.Client(base_url=f"{url}/api/v1/namespaces/ml/") as api:
        assert api.put(f"runs/{UID}", json=run_document(spec=spec())).status_code == 201
        outcome(api, UID, "Training")


async def _browse(pages: Pages, port: int) -> None:
    begin = pages.address(port)
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=60) as stranger:
        assert (await stranger.get("/ui/ml/runs")).status_code == 403
        assert (await stranger.get(begin, headers={"Host": f"evil.example:{port}"})).status_code == 403
    async with httpx.AsyncClient(base_url=base, timeout=60) as browser:
        entered = await browser.get(begin)
        assert entered.status_code == 303
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert (await browser.get(begin)).status_code == 403  # good once
        page = await browser.get("/ui/ml/runs")
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "run-1" in page.text
        form = {"form-token": form_token(page), "run": UID, "do": "archive"}
        done = await browser.post("/ui/ml/chosen", data=form, headers={"Sec-Fetch-Site": "same-origin"})
        assert done.headers["location"] == "/ui/ml/runs"
        assert "1 run archived." in (await browser.get("/ui/ml/runs")).text
        async with browser.stream("GET", f"/ui/ml/runs/{UID}/events") as answer:
            assert (await anext(answer.aiter_lines())).startswith("retry:")
        assert (await browser.get("/api/v1/namespaces/ml/runs")).status_code == 404


def test_the_registry_gets_neither_the_browsers_host_nor_its_credentials_nor_others_cookies() -> None:
    headers = {"Host": "x", "Authorization": "y", "Cookie": "a=b", "X-Forwarded-User": "root", "Accept": "text/html"}
    cookies = {"jupyter": "secret", "finetune-ui": "key", "finetune-forms": "f", "finetune-notice": "n.s"}
    assert kept(headers, {}) == {"Accept": "text/html", "X-Finetune-UI": "1"}
    assert kept(headers, cookies)["Cookie"] == "finetune-forms=f; finetune-notice=n.s"


def test_no_address_is_printed_where_no_registry_answers() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    command = (sys.executable, "-m", "finetune.cli.main", "ui", "--registry-url", away, "--no-open")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{away} does not answer" in done.stderr


def test_it_ends_at_once_also_while_a_page_is_live(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        _record(url)
        command = (sys.executable, "-m", "finetune.cli.main", "ui", "--registry-url", url, "--no-open")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            begin = process.stdout.readline().strip()
            with httpx.Client(timeout=60) as browser:
                browser.get(begin)
                with browser.stream("GET", f"{begin.partition('/?')[0]}/ui/ml/runs/{UID}/events") as answer:
                    assert next(answer.iter_lines()).startswith("retry:")
                    process.send_signal(signal.SIGINT)
                    process.wait(timeout=10)  # the registry says that it is still there each 15 seconds
        finally:
            process.kill()
            process.wait()
