"""The arithmetic of the operator's benchmark."""

from __future__ import annotations

import base64
import json

import pytest

from benchmarks.operator import audit, history
from benchmarks.operator.loads import percentile, requests_per_run, shares, spread
from finetune.controller.core.mark import is_settled
from tests.support import objects as o
from tests.support.cases import look, stored

AGENT = "finetune-operator/0.1.0"


def line(verb: str, resource: str, subresource: str = "", agent: str = AGENT) -> str:
    about = {"resource": resource, "subresource": subresource}
    return json.dumps({"verb": verb, "userAgent": agent, "objectRef": about}, separators=(",", ":")) + "\n"


def test_requests_are_counted_by_kind_and_client() -> None:
    lines = [
        line("get", "jobs"),
        line("list", "pods"),
        line("watch", "pods"),
        line("update", "trainingruns", "status"),
        line("patch", "trainingruns"),
        line("create", "events"),
        line("create", "jobs"),
        line("get", "jobs", agent="kube-controller-manager/v1.34"),
        line("get", "jobs")[:-10],
    ]
    assert audit.count(lines, "finetune-operator") == {"read": 2, "watch": 1, "status": 1, "write": 2, "event": 1}


def test_requests_about_an_object_are_counted_by_its_name() -> None:
    def about(name: str, agent: str = AGENT) -> str:
        entry = {"verb": "get", "userAgent": agent, "objectRef": {"resource": "jobs", "name": name}}
        return json.dumps(entry, separators=(",", ":")) + "\n"

    lines = [about("t-h00001-ab"), about("t-h00002-cd"), about("t-probe-ab"), about("t-h00003-ef", "kubelet/1")]
    assert audit.naming(lines, "finetune-operator", "t-h0") == 2


def test_a_runs_share_is_what_came_since_then() -> None:
    assert requests_per_run({"read": 10}, {"read": 50, "status": 12}, 4) == {
        "apiReadsPerRun": 10.0,
        "statusWritesPerRun": 3.0,
        "otherWritesPerRun": 0.0,
        "eventsPerRun": 0.0,
    }


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (99, 4.0), (100, 4.0), (1, 1.0)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == value


def test_rounds_become_median_and_spread() -> None:
    entries = [{"load": "a", "runs": 5, "rssMiB": each} for each in (90.0, 80.0, 100.0)]
    assert spread(entries) == {"load": "a", "runs": 5, "rssMiB": {"median": 90.0, "low": 80.0, "high": 100.0}}


def test_cpu_time_is_told_by_process() -> None:
    found = shares({"etcd": 1.0, "registry": 4.0}, {"etcd": 3.0, "registry": 5.0}, 4)
    assert found == {"etcdCpuSecondsPerRun": 0.5, "registryCpuSecondsPerRun": 0.25}


def test_a_history_is_of_runs_of_which_nothing_is_left_to_be_done() -> None:
    ended = stored(look(None, o.job("Failed", reason="PodFailurePolicy"), o.failed_pod("p1", 6)))
    model = {**ended.to_dict(), "status": ended.status.to_dict()}
    assert not is_settled(model)
    runs = [history.ended_like(model, f"h{number:05}") for number in range(history.BATCH + 1)]
    assert all(is_settled(run) for run in runs)
    assert len({run["metadata"]["uid"] for run in [*runs, model]}) == len(runs) + 1
    bodies = list(history.transactions(runs))
    assert [len(body["success"]) for body in bodies] == [history.BATCH, 1]
    put = bodies[1]["success"][0]["requestPut"]
    assert base64.b64decode(put["key"]).decode() == "/registry/finetune.dev/trainingruns/ml/h00050"
    assert json.loads(base64.b64decode(put["value"])) == runs[-1]
