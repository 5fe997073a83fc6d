"""The API server of the API tests: fast, alone in its folder and ports, and gone with its user, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import go_build, host
from tests.cluster.api_server import ApiServerOnly
from tests.cluster.base import ClusterError
from tests.cluster.host import wait_until
from tests.cluster.kube_api import KubeApi
from tests.cluster.supervise import find

PROGRAMS = frozenset({"etcd", "kube-apiserver"})
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _built() -> None:
    go_build.build(go_build.API_SERVER)


def running(root: Path) -> list[int]:
    return [identity.pid for identity in find(programs=PROGRAMS, argument_prefix=f"{root}/")]


@pytest.mark.long
def test_several_do_not_see_each_other_and_leave_nothing_behind() -> None:
    with ApiServerOnly() as one, ApiServerOnly() as two:
        roots = [server.kubeconfig.parent for server in (one, two)]
        assert [len(running(root)) for root in roots] == [2, 2]
        first, second = (KubeApi.from_kubeconfig(server.kubeconfig) for server in (one, two))
        first.apply("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "only-one"}})
        assert first.get("/api/v1/namespaces/only-one") is not None
        assert second.is_ready()
        assert second.get("/api/v1/namespaces/only-one") is None
    for root in roots:
        assert running(root) == []
        assert not root.exists()


@pytest.mark.long
def test_one_whose_programs_were_killed_can_be_ended_and_started_again() -> None:
    server = ApiServerOnly()
    server.up()
    root = server.kubeconfig.parent
    for pid in running(root):
        os.kill(pid, signal.SIGKILL)
    wait_until("the killed programs have gone", lambda: not running(root), seconds=5)
    server.down()
    assert not root.exists()
    with server:
        assert KubeApi.from_kubeconfig(server.kubeconfig).is_ready()


def test_it_ends_with_a_user_that_was_killed_and_its_folder_is_removed_by_the_next() -> None:
    program = (
        "from tests.cluster.api_server import ApiServerOnly\n"
        "server = ApiServerOnly()\nserver.up()\nprint(server.kubeconfig, flush=True)\ninput()\n"
    )
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        root = Path(user.stdout.readline().strip()).parent
        assert len(running(root)) == 2
        user.kill()
    wait_until("the programs of the killed user have ended", lambda: not running(root), seconds=10)
    with ApiServerOnly():
        assert not root.exists()


def test_a_token_of_any_audience_is_reviewed(api: KubeApi) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    api.apply(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}})
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": ["some/where"]},
    }
    code, issued = api.request("POST", f"{accounts}/runner/token", request)
    assert code == 201
    for audience, accepted in (("some/where", True), ("else/where", False)):
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": issued["status"]["token"], "audiences": [audience]},
        }
        _, answer = api.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
        assert answer["status"].get("authenticated", False) is accepted


def test_using_it_before_it_is_up_says_so() -> None:
    with pytest.raises(ClusterError, match="not running: call up"):
        _ = ApiServerOnly().kubeconfig


def test_its_folder_is_outside_of_the_clone() -> None:
    assert REPOSITORY not in host.cache_dir().parents
