"""The pages over a real registry: what they answer, to whom, and with which headers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune.registry.blobs import open_store
from finetune.registry.pages.assets import STATIC, assets, vendored
from finetune.registry.pages.mount import LOOPBACK_HEADER
from tests.support.pages import form_token, make_scene, points, post_points
from tests.support.registry import run_document, serving

TEMPLATES = STATIC.parent / "templates"
PATHS = (
    "runs",
    "runs/support-14",
    "runs/support-13",
    "runs/support-12",
    "runs/support-11",
    "runs?state=Failed&text=row&archived=1&sort=evaluationLoss",
    "compare?run=support-13&run=support-14",
    "compare?run=support-13&run=support-14&equal=1&ignore=",
    "experiments",
    "experiments/support",
    "adapters",
    "adapters/support?version=1",
    "datasets",
    "datasets/tickets?version=2&against=1&row=5",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A registry without tokens that has the scene in namespace ml."""
    folder = tmp_path_factory.mktemp("pages")
    with (
        serving(f"sqlite:///{folder}/registry.db", store=open_store(f"file://{folder}/blobs")) as url,
        httpx.Client(base_url=url) as http,
    ):
        make_scene(httpx.Client(base_url=f"{url}/api/v1/namespaces/ml/"))
        yield http


def follow(http: httpx.Client, answer: httpx.Response) -> str:
    assert answer.status_code == 303, answer.text
    return http.get(answer.headers["location"]).text


@pytest.mark.parametrize("path", PATHS)
def test_every_page_is_there_and_lets_a_browser_run_nothing_but_our_own_files(site: httpx.Client, path: str) -> None:
    answer = site.get(f"/ui/ml/{path}")
    assert answer.status_code == 200, answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?! src=\"/ui/static/)| style=|<style| on[a-z]+=|javascript:", answer.text)


def test_the_list_tells_what_became_of_runs(site: httpx.Client) -> None:
    page = re.sub(r"<[^>]*>|\s+", " ", site.get("/ui/ml/runs").text)
    page = re.sub(r" +", " ", page)
    assert "4 in all, 1 training, 1 failed" in page
    assert "support-14 SFT ● Training Llama-3.1-8B tickets/2" in page
    assert "1,240/3,900 2h 10m" in page
    assert "✓ Succeeded support@1 Llama-3.1-8B tickets/1 1.901" in page
    assert "train.jsonl row 7: completion is empty. Correct the row that the message names" in page


def test_a_failed_run_shows_its_row_and_what_to_do(site: httpx.Client) -> None:
    page = site.get("/ui/ml/runs/support-12").text
    assert "Row 7" in page
    assert "question 6" in page  # rows are counted from 1
    manifest = site.get("/ui/ml/runs/support-12/manifest").text
    assert "name: support-13\n" in manifest
    assert "kind: TrainingRun" in manifest


def test_a_comparison_shows_only_what_differs(site: httpx.Client) -> None:
    table = site.get("/ui/ml/compare.csv?run=support-13&run=support-14").text.splitlines()
    assert table[:3] == [",support-13,support-14", "dataset,tickets/1,tickets/2", "training.learningRate,1e-4,2e-4"]
    assert site.get("/ui/ml/compare?run=support-13").status_code == 422
    ranking = site.get("/ui/ml/experiments/support/runs.csv")
    assert ranking.headers["content-disposition"] == 'attachment; filename="support.csv"'
    assert ranking.text.splitlines()[1].startswith("support-14,")
    page = site.get("/ui/ml/compare?run=support-13&run=support-14").text
    assert "tickets: version 1 against 2</a>, +5 −0 rows" in page  # noqa: RUF001 - a true minus


def test_a_page_shows_points_that_were_told_a_moment_ago(site: httpx.Client) -> None:
    """What is remembered of a curve is read anew once its run has told more."""
    uid, address = "00000000-0000-4000-8000-000000000051", "/ui/fresh"
    api = httpx.Client(base_url=f"{site.base_url}/api/v1/namespaces/fresh/")
    assert api.put(f"runs/{uid}", json=run_document(name="fresh")).status_code == 201
    for last in (50, 150, 151):
        post_points(api, uid, max(1, last - 99), last)
        for _ in range(2):
            assert f"by step {last}" in site.get(f"{address}/runs/{uid}").text
            assert "<polyline" in site.get(f"{address}/runs").text
    other = "00000000-0000-4000-8000-000000000052"
    assert api.put(f"runs/{other}", json=run_document(name="other")).status_code == 201
    compared = site.get(f"{address}/compare?run=other&run=fresh")
    assert re.search(r"fresh.*by step 151", compared.text)
    assert site.get(f"{address}/compare?run=other&run=gone").status_code == 404


def test_points_are_given_over_tokens_too(site: httpx.Client) -> None:
    uids = "00000000-0000-4000-8000-000000000013,00000000-0000-4000-8000-000000000012"
    address = f"/ui/ml/series?runs={uids}&metrics=evaluationLoss"
    (line,) = site.get(f"{address}&x=tokens").json()["lines"]
    assert line["tokens"] == [1000 * step for step in line["steps"]]
    assert "tokens" not in site.get(address).json()["lines"][0]
    assert '<option value="tokens">' in site.get("/ui/ml/compare?run=support-13&run=support-12").text
    assert '<option value="tokens">' not in site.get("/ui/ml/runs/support-12").text


def test_points_keep_their_spike(site: httpx.Client) -> None:
    answer = site.get("/ui/ml/series?runs=support-14&metrics=loss").json()["lines"]
    assert answer == []  # the address has uids: a name may become another run's
    line = site.get("/ui/ml/series?runs=00000000-0000-4000-8000-000000000014&metrics=loss").json()["lines"][0]
    assert len(line["steps"]) <= 600
    assert max(line["values"]) == pytest.approx(points(500, 500)[0]["values"]["loss"], rel=1e-5)


def test_files_are_kept_for_ever_by_their_digest_and_are_those_that_were_vendored(site: httpx.Client) -> None:
    page = site.get("/ui/ml/runs/support-14").text
    linked = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page)
    assert len(linked) == 7
    for path in linked:
        answer = site.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert hashlib.sha256(answer.content).hexdigest()[:12] in path
    assert site.get("/ui/static/000000000000/app.css").status_code == 404
    for library in vendored():
        folder = STATIC / "vendor" / str(library["name"])
        assert isinstance(library["files"], dict)
        assert {path.name for path in folder.iterdir()} == set(library["files"])
        for name, digest in library["files"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    first = sum(len(assets()[path.split("/", 4)[4]].packed) for path in linked)
    packed = site.get("/ui/ml/runs/support-14", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert first + int(packed.headers["content-length"]) <= 60_000


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.html")), ids=lambda path: path.name)
def test_no_template_lets_anything_through_unescaped(template: Path) -> None:
    source = template.read_text()
    assert not re.search(r"\|\s*safe|Markup|autoescape|\sstyle=|\son[a-z]+=|hx-on|<script>", source)


def test_what_is_archived_leaves_the_list_and_comes_back_by_undo(site: httpx.Client) -> None:
    uid = "00000000-0000-4000-8000-000000000011"
    page = site.get("/ui/ml/runs")
    chosen = {"form-token": form_token(page), "run": uid, "do": "archive"}
    after = follow(site, site.post("/ui/ml/chosen", data=chosen))
    assert "1 run archived." in after
    assert f'id="run-{uid}"' not in after
    undo = {"form-token": form_token(page), "run": uid, "restore": "1"}
    assert f'id="run-{uid}"' in follow(site, site.post("/ui/ml/archive", data=undo))
    trail = site.get("/ui/-/audit?namespace=ml").text
    assert trail.index("RestoreRun") < trail.index("ArchiveRun")


def test_an_alias_is_moved_only_from_where_the_page_has_seen_it(site: httpx.Client) -> None:
    page = site.get("/ui/ml/adapters/support")
    form = {"form-token": form_token(page), "alias": "production", "to": "1", "expected": "0"}
    assert "production points to version 1." in follow(site, site.post("/ui/ml/adapters/support/alias", data=form))
    refused = site.post("/ui/ml/adapters/support/alias", data=form)
    assert refused.status_code == 409
    assert "somebody else has moved it" in refused.text
    removed = {**form, "to": "", "expected": "1"}
    assert "production is removed" in follow(site, site.post("/ui/ml/adapters/support/alias", data=removed))


def test_a_run_is_deleted_with_its_curves_unless_something_needs_it(site: httpx.Client) -> None:
    api = httpx.Client(base_url=f"{site.base_url}/api/v1/namespaces/ml/")
    uid = "00000000-0000-4000-8000-000000000099"
    document = {"name": "gone", "experiment": "gone", "method": "SFT", "spec": {"method": "SFT"}}
    assert api.put(f"runs/{uid}", json=document).status_code == 201
    post_points(api, uid, 1, 20)
    form = {"form-token": form_token(site.get(f"/ui/ml/runs/{uid}"))}
    refused = site.post(f"/ui/ml/runs/{uid}/delete", data=form)
    assert refused.status_code == 409
    assert "kubectl delete trainingrun gone -n ml" in refused.text
    api.put(f"runs/{uid}/status", json={"phase": "Failed", "ended": True, "version": 1})
    assert "Run gone is deleted." in follow(site, site.post(f"/ui/ml/runs/{uid}/delete", data=form))
    assert site.get(f"/ui/ml/runs/{uid}").status_code == 404
    made = site.post("/ui/ml/runs/support-13/delete", data=form)
    assert made.status_code == 409
    assert "made adapter support version 1" in made.text


def test_tags_and_notes_are_kept_as_they_were_written(site: httpx.Client) -> None:
    form = {"form-token": form_token(site.get("/ui/ml/runs/support-12")), "tags": "team=a&b", "notes": "<b>\nline"}
    page = follow(site, site.post("/ui/ml/runs/support-12/describe", data=form))
    assert 'value="team=a&amp;b"' in page
    assert "&lt;b&gt;\nline</textarea>" in page
    path = "/ui/ml/runs/support-12/describe"
    for notes in ("漢" * 1000, "short"):  # what was written before does not fit the cookie that could bring it back
        done = site.post(path, data={**form, "notes": notes})
        assert all(len(each) < 4096 for each in done.headers.get_list("set-cookie"))
    assert "Tags and notes are saved." in follow(site, done)


def test_cookies_that_are_not_ours_break_no_page(site: httpx.Client) -> None:
    cookie = {"Cookie": b"finetune-forms=\xe9; finetune-notice=e30.\xe9"}
    assert httpx.get(f"{site.base_url}/ui/ml/runs", headers=cookie).status_code == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"data": {"run": "x"}}, 403),
        ({"data": {"form-token": "0" * 64, "run": "x"}}, 403),
        ({"headers": {"Sec-Fetch-Site": "cross-site"}, "data": {}}, 403),
        ({"json": {}}, 422),
        ({"content": b"a=%ff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 422),
        ({"data": {"a": "x" * 70_000}}, 422),
    ],
)
def test_a_form_of_another_page_changes_nothing(site: httpx.Client, change: dict[str, object], status: int) -> None:
    site.get("/ui/ml/runs")  # there is a cookie
    assert site.post("/ui/ml/archive", **change).status_code == status  # type: ignore[arg-type]


def test_no_page_is_shown_on_the_api_servers_origin(site: httpx.Client) -> None:
    uri = "/api/v1/namespaces/finetune/services/http:registry:8080/proxy/ui/ml/runs"
    refused = site.get("/ui/ml/runs", headers={"X-Forwarded-Uri": uri})
    assert refused.status_code == 403
    assert refused.headers["content-type"].startswith("text/plain")
    assert "finetune ui" in refused.text
    shown = site.get("/ui/ml/runs", headers={"X-Forwarded-Uri": uri, LOOPBACK_HEADER: "1"})
    assert shown.status_code == 200


HOSTILE = (
    '"><img src=x onerror=alert(1)><svg onload=alert(1)><script>alert(1)</script>',
    "{{ 7 * 7 }}{% raw %}${7*7}#{7*7}<%= 7*7 %>",
    "\x1b[31mred\x1b]8;;http://evil\x07",
    "\u202egnp.exe\u2066",
    "javascript:alert(1)",
    "'; DROP TABLE runs; --",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_run_says_becomes_markup(site: httpx.Client, text: str) -> None:
    api = httpx.Client(base_url=f"{site.base_url}/api/v1/namespaces/hostile/")
    uid = hashlib.sha256(text.encode()).hexdigest()[:32]
    printable = re.sub(r"[\x00-\x1f\u202e\u2066]", "", text)
    spec = {"method": "SFT", "baseModel": {"hub": {"repository": text}}, text: {text: text}}
    document = {"name": f"run-{uid[:6]}", "experiment": "hostile", "method": "SFT", "spec": spec}
    assert api.put(f"runs/{uid}", json=document).status_code == 201
    metrics = [{"name": printable[:64], "value": text[:64]}, {"name": "step", "value": "2"}]
    values = {printable[:64].replace(",", ""): 1.0, "loss": 2.0}
    told = {
        "trainerStatus": {"metrics": metrics},
        "attempt": 1,
        "points": [{"step": step, "values": values} for step in (1, 2)],
    }
    assert api.post(f"runs/{uid}/status", json=told).status_code == 200
    result = {
        "result": {"runUid": uid},
        "timings": {text: text},
        "samples": [{"prompt": text, "base": text, "row": text}],
    }
    assert api.put(f"runs/{uid}/result", content=json.dumps(result)).status_code == 204
    failed = {"phase": "Failed", "reason": "X", "message": text, "hint": text, "ended": True, "version": 1}
    assert api.put(f"runs/{uid}/status", json=failed).status_code == 200
    rows = json.dumps({"prompt": text, "completion": text, text: text}).encode()
    assert api.post(f"datasets/d-{uid[:6]}/versions", content=rows).status_code == 201
    pages = [f"runs/{uid}", "runs", f"datasets/d-{uid[:6]}", f"runs?text={printable}", f"compare?run={uid}&run={uid}x"]
    for path in pages:
        page = site.get(f"/ui/hostile/{path}").text
        assert not re.search(r"<(img|script>|svg on)|href=\"javascript|[\x1b\u202e\u2066]", page)
        assert ">49<" not in page
    assert "&lt;script&gt;" in site.get(f"/ui/hostile/runs/{uid}").text or "<script>" not in text
