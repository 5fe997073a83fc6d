"""Pages of a browser that tell what went wrong in them."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page


def opened(browser: Browser, site: str, problems: list[str], **settings: Any) -> tuple[BrowserContext, Page]:
    context = browser.new_context(base_url=site, **settings)
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.on("console", lambda said: problems.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    return context, page


def go(page: Page, path: str) -> None:
    answer = page.goto(path)
    assert answer is not None
    assert answer.status == 200, path
