"""A real browser over every page of a real registry: with JavaScript and without, light and dark, wide and narrow.

    make pages

Chromium is Debian's (`apt-get install chromium`). The pictures in docs/pages are made here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from finetune.registry.blobs import open_store
from tests.support.browsing import go, opened
from tests.support.pages import finish, make_scene, outcome, post_points, spec
from tests.support.registry import run_document, serving

ROOT = Path(__file__).resolve().parents[2]
AXE = Path(__file__).parent / "vendor/axe-core/axe.min.js"
PICTURES = ROOT / "docs/pages"
PAGES = {
    "runs": "/ui/ml/runs",
    "run": "/ui/ml/runs/support-14",
    "failed": "/ui/ml/runs/support-12",
    "compare": "/ui/ml/compare?run=support-13&run=support-14",
    "experiment": "/ui/ml/experiments/support",
    "adapters": "/ui/ml/adapters",
    "adapter": "/ui/ml/adapters/support",
    "datasets": "/ui/ml/datasets",
    "dataset": "/ui/ml/datasets/tickets?version=2&against=1",
    "administration": "/ui/-/administration",
    "audit": "/ui/-/audit?namespace=ml",
}
SERIOUS = ("serious", "critical")
NARROW = (
    "document.documentElement.scrollWidth <= 390"
    " && [...document.querySelectorAll('canvas')].every((each) => each.clientWidth <= 390)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("walk")
    with serving(f"sqlite:///{folder}/registry.db", store=open_store(f"file://{folder}/blobs")) as url:
        with httpx.Client(base_url=f"{url}/api/v1/namespaces/ml/", timeout=60) as http:
            make_scene(http)
            for number, offset in ((21, 0.2), (22, 0.0)):
                uid = f"00000000-0000-4000-8000-{number:012d}"
                document = run_document(
                    name=f"support-{number}", datasetName="tickets", spec=spec(learningRate=f"{number}e-5")
                )
                assert http.put(f"runs/{uid}", json=document).status_code == 201
                finish(http, uid, offset=offset)
        yield url


@pytest.fixture
def api(site: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{site}/api/v1/namespaces/ml/", timeout=60) as http:
        yield http


def charts_drawn(page: Page) -> None:
    for figure in page.locator("figure.chart").all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator("canvas")).to_have_count(1)
    page.evaluate("scrollTo(0, 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_breaks_no_rule_of_its_own(
    browser: Browser, site: str, problems: list[str], scheme: str
) -> None:
    context, page = opened(
        browser, site, problems, color_scheme=scheme, viewport={"width": 1280, "height": 800}, bypass_csp=False
    )
    PICTURES.mkdir(exist_ok=True)
    for name, path in PAGES.items():
        go(page, path)
        charts_drawn(page)
        assert found_by_axe(page) == [], f"{name} in {scheme}"
        if scheme == "light":
            page.screenshot(path=PICTURES / f"{name}-1280.png", full_page=True)
            page.set_viewport_size({"width": 390, "height": 844})
            expect(page.locator("main")).to_be_visible()
            wait_until_narrow(page, name)
            page.screenshot(path=PICTURES / f"{name}-390.png", full_page=True)
            page.set_viewport_size({"width": 1280, "height": 800})
    context.close()
    assert problems == []


def wait_until_narrow(page: Page, name: str) -> None:
    """Charts are drawn again, and nothing is wider than the screen. The policy refuses Playwright's own waiting."""
    deadline = time.monotonic() + 30
    while not page.evaluate(NARROW):
        assert time.monotonic() < deadline, f"{name} is wider than a phone"
        page.wait_for_timeout(50)


def found_by_axe(page: Page) -> list[str]:
    """Serious findings. axe is put in by the debugger, past the policy of the page."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {json.dumps([node['html'][:160] for node in each['nodes'][:3]])}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]


def test_runs_are_filtered_chosen_and_compared_by_keyboard(browser: Browser, site: str, problems: list[str]) -> None:
    context, page = opened(browser, site, problems)
    go(page, "/ui/ml/runs")
    page.get_by_label("State").select_option("Failed")
    expect(page.locator("tr[data-row]")).to_have_count(1)
    page.wait_for_url("**/ui/ml/runs?state=Failed*")
    page.get_by_label("State").select_option("")
    expect(page.locator("tr[data-row]")).to_have_count(6)
    page.locator("h1").click()
    for key in ("j", "x", "j", "x", "c"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("/ui/ml/compare"))
    expect(page.locator("thead th a").filter(has_text="support-22")).to_be_visible()
    charts_drawn(page)
    page.get_by_label("log scale").check()
    page.locator("select[name=x]").select_option("tokens")
    page.wait_for_url("**#x=tokens&log=1")
    page.reload()
    charts_drawn(page)
    expect(page.get_by_label("log scale")).to_be_checked()
    expect(page.locator("select[name=x]")).to_have_value("tokens")
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".reading").first).to_contain_text("100,000 tokens: support-22")
    page.locator("select[name=x]").select_option("step")
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".reading").first).to_contain_text("step 100: support-22")
    context.close()
    assert problems == []


def test_a_curve_moves_and_a_run_ends_while_it_is_looked_at(
    browser: Browser, site: str, api: httpx.Client, problems: list[str]
) -> None:
    uid = "00000000-0000-4000-8000-000000000031"
    assert api.put(f"runs/{uid}", json=run_document(name="live", spec=spec())).status_code == 201
    outcome(api, uid, "Training")
    context, page = opened(browser, site, problems)
    go(page, f"/ui/ml/runs/{uid}#smooth=0.5")
    expect(page.locator(".empty")).to_be_visible()
    post_points(api, uid, 1, 50)
    expect(page.locator("figure.chart")).to_have_count(4)
    expect(page.get_by_label("smooth")).to_have_value("0.5")
    page.get_by_label("smooth").fill("0")
    charts_drawn(page)
    expect(page.locator("#status")).to_contain_text("step 50 of")
    post_points(api, uid, 51, 120)
    expect(page.locator("#status")).to_contain_text("step 120 of")
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".reading").first).to_contain_text("step 120: loss")
    evaluated = {
        "trainerStatus": {"metrics": [{"name": "step", "value": "120"}]},
        "attempt": 1,
        "points": [{"step": 120, "values": {"evaluationLoss": 1.25}}],
    }
    assert api.post(f"runs/{uid}/status", json=evaluated).status_code == 200  # of a step that is there already
    read_until(page, "evaluationLoss 1.25")
    outcome(api, uid, "Failed", ended=True, reason="Diverged", message="the loss is NaN", hint="Lower it", version=2)
    expect(page.locator(".failure")).to_contain_text("the loss is NaN")
    context.close()
    assert problems == []


def read_until(page: Page, text: str) -> None:
    """Move to the newest value of the first chart until the page reads it out."""
    deadline = time.monotonic() + 30
    while text not in (page.locator(".reading").first.text_content() or ""):
        assert time.monotonic() < deadline, page.locator(".reading").first.text_content()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(100)


def test_a_page_that_cannot_be_renewed_stays_and_a_wrong_filter_is_answered(
    browser: Browser, site: str, problems: list[str]
) -> None:
    context, page = opened(browser, site, problems)
    go(page, "/ui/ml/runs")
    page.route("**/ui/ml/runs*", lambda route: route.fulfill(status=503, content_type="text/html", body="<p>down</p>"))
    with page.expect_response("**/ui/ml/runs*"):
        page.evaluate("renew('list')")
    page.unroute("**/ui/ml/runs*")
    with page.expect_response("**/ui/ml/runs*"):
        page.evaluate("renew('list')")
    expect(page.locator("tr[data-row]")).not_to_have_count(0)
    page.get_by_label("Experiment").fill("No Name")
    page.get_by_label("Experiment").press("Tab")
    expect(page.locator("main")).to_contain_text("'No Name' is no name of an experiment")
    context.close()
    assert len(problems) == 3, problems  # the answers that were refused: 503, 422, and 422 as a page


@pytest.mark.parametrize("javascript", [True, False], ids=["scripts", "no-scripts"])
def test_everything_but_live_pages_works_without_javascript(
    browser: Browser, site: str, problems: list[str], javascript: bool
) -> None:
    context, page = opened(browser, site, problems, java_script_enabled=javascript)
    go(page, "/ui/")
    expect(page.locator("h1")).to_have_text(re.compile("Runs"))
    page.get_by_role("link", name="support-14", exact=True).click()
    assert page.locator("figure.chart").count() >= 4
    page.get_by_label("Notes").fill("watch it")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("Tags and notes are saved.")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Notes")).to_have_value("")
    go(page, "/ui/ml/runs")
    for number in (21, 22):
        page.get_by_label(f"Choose support-{number}").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("table.compare")).to_contain_text("training.learningRate")
    go(page, "/ui/ml/adapters/support")
    page.get_by_label("New alias").fill("candidate")
    page.get_by_label("for version").fill("3")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("status")).to_contain_text("candidate points to version 3.")
    page.get_by_label("Version for candidate").fill("2")
    page.get_by_role("button", name="Move").click()
    expect(page.get_by_role("status")).to_contain_text("candidate points to version 2, to 3 before.")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status")).to_contain_text("candidate points to version 3")
    page.get_by_label("Version for candidate").fill("")
    page.get_by_role("button", name="Move").click()
    go(page, "/ui/ml/runs/support-12")
    expect(page.locator(".failure")).to_contain_text("question 6")
    page.get_by_role("link", name=re.compile("New run from this")).click()
    expect(page.locator("body")).to_contain_text("kind: TrainingRun")
    context.close()
    assert problems == []


def test_what_a_run_says_runs_nothing(browser: Browser, site: str, problems: list[str]) -> None:
    hostile = (
        '"><img src=x onerror="document.title=\'owned\'"><svg onload="document.title=\'owned\'">{{7*7}}\x1b[31m\u202e'
    )
    uid = "00000000-0000-4000-8000-000000000041"
    with httpx.Client(base_url=f"{site}/api/v1/namespaces/hostile/") as http:
        document = run_document(name="bad", experiment="bad", spec={"method": "SFT", hostile: hostile})
        assert http.put(f"runs/{uid}", json=document).status_code == 201
        metric = re.sub(r"[\x00-\x1f\u202e,]", "", hostile)[:64]
        told = {"trainerStatus": {"metrics": []}, "attempt": 1}
        points = [{"step": step, "values": {metric: float(step), "loss": 1.0}} for step in (1, 2, 3)]
        assert http.post(f"runs/{uid}/status", json={**told, "points": points}).status_code == 200
        outcome(http, uid, "Failed", ended=True, message=hostile, hint=hostile, reason="X")
        rows = json.dumps({"prompt": hostile, "completion": hostile, hostile: 1})
        assert http.post("datasets/bad/versions", content=rows).status_code == 201
    context, page = opened(browser, site, problems)
    for path in ("runs", "runs/bad", "datasets/bad", "experiments/bad"):
        go(page, f"/ui/hostile/{path}")
        charts_drawn(page)
        assert "owned" not in page.title()
        assert page.locator("img").count() == 0
    context.close()
    assert problems == []
