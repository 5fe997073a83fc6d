"""The pages of a registry over PostgreSQL, to people of a real API server: signing in, rights, conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, expect

from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.browsing import go, opened
from tests.support.kubectl import Kubectl
from tests.support.people import Installed, installed
from tests.support.postgresql import find_programs, postgresql
from tests.support.registry import run_document
from tests.support.served import serve_training_runs
from tests.support.world import manifest

SYSTEM = "finetune-pages"
LOOK = ("get", "list")


@dataclass
class Team:
    """A namespace of people with accounts of their own."""

    registry: Installed
    kubectl: Kubectl
    database: str

    def may(self, account: str, *verbs: str) -> None:
        """Let an account do this with runs, adapters and datasets."""
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.kubectl.namespace}
        rule = {"apiGroups": ["finetune.dev"], "resources": ["trainingruns", "adapters", "datasets"], "verbs": verbs}
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": account},
                "rules": [{**rule, "verbs": list(verbs)}],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": account},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
                "subjects": [subject],
            },
        )

    def token(self, account: str) -> str:
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/serviceaccounts/{account}/token"
        body = {"spec": {"audiences": ["finetune.dev/registry"]}}
        return str(self.registry.create(path, body)["status"]["token"])

    def path(self, rest: str) -> str:
        return f"/ui/{self.kubectl.namespace}/{rest}"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")
    folder: Path = tmp_path_factory.mktemp("rights")
    with ApiServerOnly() as server, postgresql(programs) as databases:
        serve_training_runs(server)
        kubectl = Kubectl(kubeconfig=server.kubeconfig, bin_dir=server.bin_dir).create_namespace("ml")
        api, database = KubeApi.from_kubeconfig(server.kubeconfig), databases.new_database()
        with installed(api, server.kubeconfig, folder, namespace=SYSTEM, database=database) as registry:
            yield Team(registry=registry, kubectl=kubectl, database=database)


def a_run(team: Team, name: str) -> str:
    """A run that waits for its rows, in the cluster and in the registry; its uid."""
    team.kubectl.apply(manifest(name))
    run = team.kubectl.find("trainingruns", name)
    assert run is not None
    uid = str(run["metadata"]["uid"])
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": ""},
        {
            "type": "DatasetReady",
            "status": "False",
            "reason": "DatasetNotFound",
            "message": "there is <b>no</b> tickets",
        },
    ]
    told: list[dict[str, Any]] = [{**each, "lastTransitionTime": "2026-11-28T09:00:00Z"} for each in conditions]
    team.kubectl.patch("trainingruns", name, {"status": {"phase": "Pending", "conditions": told}}, subresource="status")
    operator = {"Authorization": f"Bearer {team.registry.token('operator')}"}
    root = f"{team.registry.url}/api/v1/namespaces/{team.kubectl.namespace}/runs/{uid}"
    assert httpx.put(root, json=run_document(name=name), headers=operator).status_code == 201
    waits = {"phase": "Pending", "ended": False, "version": 1}
    assert httpx.put(f"{root}/status", json=waits, headers=operator).status_code == 200
    return uid


def until(page: Any, path: str, holds: Callable[[], bool]) -> None:
    """Load a page until something holds there: the registry remembers the cluster's answers for ten seconds."""
    for _ in range(120):
        page.goto(path)
        if holds():
            return
        page.wait_for_timeout(250)
    raise AssertionError(page.locator("main").inner_text())


def test_who_signs_in_sees_and_does_what_the_cluster_lets_them(
    browser: Browser, team: Team, problems: list[str]
) -> None:
    uid = a_run(team, "first")
    team.may("viewer", *LOOK)
    context, page = opened(browser, team.registry.url, problems)
    page.goto(team.path(f"runs/{uid}"))
    expect(page.locator("h1")).to_have_text(re.compile("Sign in"))
    page.get_by_label("Token").fill("not.a.token")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("main")).to_contain_text("token")
    page.get_by_label("Token").fill(team.token("viewer"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("h1")).to_contain_text("first")  # where one wanted to go
    expect(page.locator(".conditions summary")).to_contain_text("Accepted True")
    page.locator(".conditions summary").click()
    expect(page.locator(".conditions")).to_contain_text("there is <b>no</b> tickets")
    assert page.get_by_role("button", name="Archive").count() == 0
    assert context.cookies()[0]["httpOnly"]
    page.goto("/ui/-/administration")
    expect(page.locator("main")).to_contain_text("may not list trainingruns.finetune.dev")
    page.goto("/ui/kube-system/runs")
    expect(page.locator("main")).to_contain_text("may not list trainingruns.finetune.dev")

    team.may("viewer", *LOOK, "update")
    until(page, team.path(f"runs/{uid}"), lambda: page.get_by_role("button", name="Archive").count() == 1)
    page.get_by_role("button", name="Archive").click()
    expect(page.get_by_role("status")).to_contain_text("archived")
    team.kubectl("delete", "rolebinding", "viewer")
    until(page, team.path("runs"), lambda: "may not list" in page.locator("main").inner_text())
    context.close()


def test_a_session_that_has_ended_asks_to_sign_in_and_goes_on_there(
    browser: Browser, team: Team, problems: list[str]
) -> None:
    uid = a_run(team, "second")
    team.may("other", *LOOK, "update")
    context, page = opened(browser, team.registry.url, problems)
    page.goto(team.path("runs"))
    page.get_by_label("Token").fill(team.token("other"))
    page.get_by_role("button", name="Sign in").click()
    go(page, team.path(f"runs/{uid}"))
    page.get_by_label("Notes").fill("kept?")
    with psycopg.connect(team.database, autocommit=True) as connection:
        connection.execute("UPDATE sessions SET expires_time = now() - interval '1 second'")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("h1")).to_have_text(re.compile("Sign in"))
    page.get_by_label("Token").fill(team.token("other"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("h1")).to_contain_text("second")  # the page whose form it was
    context.close()
    assert [each for each in problems if "Cross-Origin-Opener-Policy" not in each] == []  # for https and the loopback
