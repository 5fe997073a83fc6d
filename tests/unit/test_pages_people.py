"""Who gets to see the pages: sessions, tokens, an authenticating proxy, and what the cluster allows them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune.api.conditions import Condition
from finetune.registry.access import Rule
from finetune.registry.blobs import open_store
from finetune.registry.errors import Forbidden, Unauthorized, Unavailable
from finetune.registry.pages import live
from finetune.registry.reviews import Question, User
from tests.support.pages import form_token, make_scene
from tests.support.registry import serving

PROXY = "system:serviceaccount:web:oauth2-proxy"


class FakeCluster:
    """A cluster's answers: whose tokens these are, and what people may do. The rules around it are the registry's."""

    is_open = False

    def __init__(self) -> None:
        self.tokens = {"alice-token": "alice", "proxy-token": PROXY}
        self.is_away = False
        self.rights = {("alice", verb, "trainingruns", "ml") for verb in ("list", "get")}

    async def namespace_uid(self, namespace: str) -> str | None:
        return f"uid-of-{namespace}"

    async def check(self, token: str | None, rule: Rule) -> str:  # noqa: ARG002 - the pages do not ask it
        raise Forbidden("the pages do not call this", hint="")

    async def person(self, token: str) -> User:
        if self.is_away:
            raise Unavailable("the Kubernetes API does not answer", hint="try again")
        name = self.tokens.get(token.split(".", maxsplit=1)[0])
        if name is None:
            raise Unauthorized("the API server does not accept the token", hint="send a token")
        return User(name=name, uid="1", groups=("g",), extra={"k": ("v",)}, audiences=("finetune.dev/registry",))

    async def allows(self, user: User, question: Question) -> bool:
        return (user.name, question.verb, question.resource, question.namespace) in self.rights

    async def conditions(self, namespace: str, name: str, uid: str) -> tuple[Condition, ...]:
        raise Unavailable(f"there is nothing to say of {namespace}/{name} {uid}", hint="")

    async def close(self) -> None:
        pass


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[httpx.Client, FakeCluster]]:
    cluster = FakeCluster()

    async def access() -> FakeCluster:
        return cluster

    database = f"sqlite:///{tmp_path}/registry.db"
    store = open_store(f"file://{tmp_path}/blobs")
    with serving(database, store=store) as url:
        make_scene(httpx.Client(base_url=f"{url}/api/v1/namespaces/ml/"))
    store = open_store(f"file://{tmp_path}/blobs")
    with serving(database, access=access, store=store, proxy_user=PROXY) as url, httpx.Client(base_url=url) as http:
        yield http, cluster


def jwt(name: str, **claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"{name}.{body}.c2ln"


def sign_in(http: httpx.Client, token: str, *, then: str = "/ui/ml/runs") -> httpx.Response:
    page = http.get(f"/ui/sign-in?next={then}")
    return http.post("/ui/sign-in", data={"form-token": form_token(page), "token": token, "next": then})


def test_a_person_comes_in_with_a_token_and_sees_what_the_cluster_allows(
    guarded: tuple[httpx.Client, FakeCluster],
) -> None:
    http, cluster = guarded
    asked = http.get("/ui/ml/runs?state=Failed")
    assert asked.headers["location"] == "/ui/sign-in?next=%2Fui%2Fml%2Fruns%3Fstate%3DFailed"
    refused = sign_in(http, "mallory.x.y")
    assert refused.status_code == 401
    assert "does not accept the token" in refused.text
    answer = sign_in(http, jwt("alice-token"))
    cookie = next(each for each in answer.headers.get_list("set-cookie") if "finetune-session" in each)
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert answer.headers["location"] == "/ui/ml/runs"
    assert "alice" in http.get("/ui/ml/runs").text
    assert http.get("/ui/").headers["location"] == "/ui/ml/runs"  # the only namespace that she may see
    assert http.get("/ui/other/runs").status_code == 403
    assert http.get("/ui/ml/adapters").status_code == 403
    assert http.get("/ui/-/audit").status_code == 403
    form = {"form-token": form_token(http.get("/ui/ml/runs")), "run": "x", "do": "archive"}
    assert http.post("/ui/ml/chosen", data=form).status_code == 403
    cluster.rights |= {("alice", "get", "datasets", "ml")}
    assert "question 0" not in http.get("/ui/ml/datasets/tickets").text
    assert "question 6" not in http.get("/ui/ml/runs/support-12").text
    cluster.rights |= {("alice", "get", "datasets/rows", "ml")}
    assert "question 0" in http.get("/ui/ml/datasets/tickets").text
    cluster.rights.clear()
    assert http.get("/ui/ml/runs").status_code == 403
    http.post("/ui/sign-out", data={"form-token": form["form-token"]})
    assert http.get("/ui/ml/runs").status_code == 303


def test_a_session_ends_with_its_token(guarded: tuple[httpx.Client, FakeCluster]) -> None:
    http, _ = guarded
    sign_in(http, jwt("alice-token", exp=1_000_000_000))
    http.cookies.set("finetune-session", http.cookies.get("finetune-session") or "x")
    assert http.get("/ui/ml/runs").headers["location"].startswith("/ui/sign-in")


def test_only_the_named_proxy_says_who_somebody_is(guarded: tuple[httpx.Client, FakeCluster]) -> None:
    http, _ = guarded
    said = {"X-Forwarded-User": "alice", "X-Forwarded-Groups": "g,system:masters"}
    by_proxy = {"Authorization": f"Bearer {jwt('proxy-token')}", **said}
    assert http.get("/ui/ml/runs", headers=by_proxy).status_code == 200
    assert http.get("/ui/ml/runs", headers=said).status_code == 303
    for name in ("", "system:admin"):
        assert http.get("/ui/ml/runs", headers={**by_proxy, "X-Forwarded-User": name}).status_code == 403
    token, alice = ("Authorization", f"Bearer {jwt('proxy-token')}"), ("X-Forwarded-User", "alice")
    for twice in (
        [alice, ("X-Forwarded-User", "bob")],
        [alice, ("X-Forwarded-Groups", "a"), ("X-Forwarded-Groups", "b")],
    ):
        assert http.get("/ui/ml/runs", headers=[token, *twice]).status_code == 403  # one of them may be the browser's
    own = {"Authorization": f"Bearer {jwt('alice-token')}", "X-Forwarded-User": "root"}
    assert "<span>alice</span>" in http.get("/ui/ml/runs", headers=own).text


@pytest.mark.parametrize("is_away", [False, True], ids=["refused", "unknown"])
def test_a_live_page_ends_with_its_token(
    guarded: tuple[httpx.Client, FakeCluster], monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    monkeypatch.setattr(live, "PING_SECONDS", 0.1)
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.1)
    http, cluster = guarded
    with http.stream("GET", "/ui/ml/events", headers={"Authorization": f"Bearer {jwt('alice-token')}"}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry:")
        while next(lines) != ": still here":  # she still may
            pass
        cluster.is_away = is_away
        cluster.tokens.clear()
        rest = [line for line in lines if line.startswith("event: ")]
    assert rest == ([] if is_away else ["event: goodbye"])  # where nobody can say it, the browser asks once more
