"""The alert rules and the dashboard, as Prometheus reads them: each alert fires when it should, and not otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import generate_latest

from finetune.controller.metrics import OperatorMetrics
from finetune.controller.workqueue import QueueState
from finetune.registry.database import Database, parse_url
from finetune.registry.metrics import RegistryMetrics
from tests.support.prometheus import find, promtool

ROOT = Path(__file__).parents[2]
FILES = ROOT / "charts" / "finetune-operator" / "files"
RULES = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"
RUNBOOKS = ROOT / "docs" / "operations.md"
UP = {"finetune_operator_build_info": "1x200", "finetune_registry_build_info": "1x200"}

MEASURED = {"finetune_registry_database_bytes", "finetune_registry_store_bytes"}
"""What a page has once the database has answered."""
FIRING = 'count by (alertname) (ALERTS{alertstate="firing"})'

needs_promtool = pytest.mark.skipif(
    find("promtool") is None,
    reason="promtool is not on PATH, and `python -m tests.support.prometheus` has not fetched it",
)

Document = dict[str, Any]


class Scene(NamedTuple):
    """Series by the minute, as promtool writes them, in which an alert fires, and some in which it does not."""

    alert: str
    minutes: int
    fires: dict[str, str]
    silent: dict[str, str]


OPERATOR, REGISTRY = "finetune_operator_", "finetune_registry_"
REQUESTS = OPERATOR + 'kubernetes_requests_total{verb="get",resource="jobs",code="%s"}'
ANSWERED = REGISTRY + 'requests_total{route="/x",method="GET",code="%s"}'
ENDED = OPERATOR + 'attempts_ended_total{reason="%s"}'
FINISHED = OPERATOR + 'runs_finished_total{reason="%s"}'
WAITING = OPERATOR + 'runs_waiting{reason="%s"}'
STATUS = "/api/v1/namespaces/{namespace}/runs/{uid}/status"
BUCKET = f'{REGISTRY}request_duration_seconds_bucket{{method="POST",route="{STATUS}",le="%s"}}'
ROWS = f'{REGISTRY}request_duration_seconds_bucket{{method="POST",route="/datasets/{{name}}/versions",le="%s"}}'

SCENES = [
    Scene("FinetuneOperatorDown", 12, {OPERATOR + "build_info": "_x200"}, {OPERATOR + "build_info": "1x200"}),
    Scene(
        "FinetuneOperatorErrors",
        15,
        {OPERATOR + 'reconcile_errors_total{cause="internal"}': "0+1x200"},
        {
            OPERATOR + 'reconcile_errors_total{cause="internal"}': "0 0 1x200",
            OPERATOR + 'reconcile_errors_total{cause="kubernetes"}': "0+9x200",
        },
    ),
    Scene(
        "FinetuneQueueStuck",
        8,
        {OPERATOR + "queue_oldest_seconds": "61+60x200"},
        {OPERATOR + "queue_oldest_seconds": "30x200"},
    ),
    Scene(
        "FinetuneKubernetesErrors",
        25,
        {REQUESTS % "200": "0+80x200", REQUESTS % "503": "0+10x200", REQUESTS % "none": "0+10x200"},
        {REQUESTS % "200": "0+95x200", REQUESTS % "503": "0+5x200", REQUESTS % "404": "0+50x200"},
    ),
    Scene(
        "FinetuneOperatorForbidden",
        20,
        {REQUESTS % "403": "0+1x200"},
        {REQUESTS % "403": "0 1 1x200", REQUESTS % "409": "0+9x200"},
    ),
    Scene(
        "FinetuneNamespaceRefused",
        17,
        {OPERATOR + 'namespaces{state="refused"}': "1x200", OPERATOR + 'namespaces{state="served"}': "3x200"},
        {OPERATOR + 'namespaces{state="refused"}': "1x10 0x190", OPERATOR + 'namespaces{state="served"}': "3x200"},
    ),
    Scene(
        "FinetuneRegistrySilent",
        7,
        {OPERATOR + "registry_silent": "1x200"},
        {OPERATOR + "registry_silent": "1x3 0x2 1x1 0x190"},
    ),
    Scene("FinetuneRunsWait", 32, {WAITING % "ImagePullFailed": "2x200"}, {WAITING % "QuotaExceeded": "500x200"}),
    Scene(
        "FinetuneRunsFail",
        20,
        {FINISHED % "GPUUnavailable": "0x5 1x3 2x3 4x100"},
        {
            FINISHED % "DatasetInvalid": "0+5x200",
            FINISHED % "AdapterRegistered": "0+5x200",
            FINISHED % "NodeLost": "0x5 1x200",
        },
    ),
    Scene(
        "FinetuneInterruptions",
        60,
        {ENDED % "Interrupted": "0+1x200", ENDED % "Completed": "0x200"},
        {ENDED % "Interrupted": "0+1x200", ENDED % "Completed": "0+1x200"},
    ),
    Scene("FinetuneRegistryDown", 12, {REGISTRY + "build_info": "_x200"}, {REGISTRY + "build_info": "1x200"}),
    Scene(
        "FinetuneRegistryErrors",
        25,
        {ANSWERED % "200": "0+90x200", ANSWERED % "503": "0+10x200"},
        {ANSWERED % "200": "0+97x200", ANSWERED % "500": "0+3x200", ANSWERED % "422": "0+90x200"},
    ),
    Scene(
        "FinetuneRegistrySlow",
        30,
        {BUCKET % "2.5": "0+9x200", BUCKET % "5.0": "0+10x200", BUCKET % "+Inf": "0+10x200"},
        {
            BUCKET % "2.5": "0+100x200",
            BUCKET % "5.0": "0+100x200",
            BUCKET % "+Inf": "0+100x200",
            ROWS % "2.5": "0x200",
            ROWS % "5.0": "0+9x200",
            ROWS % "+Inf": "0+9x200",  # an upload may take its time
        },
    ),
    Scene(
        "FinetuneRegistryPoolFull",
        7,
        {REGISTRY + "pool_connections_in_use": "20x200", REGISTRY + "pool_connections": "20x200"},
        {REGISTRY + "pool_connections_in_use": "20x2 3x198", REGISTRY + "pool_connections": "20x200"},
    ),
    Scene(
        "FinetuneRegistryVolumeFills",
        12,
        {REGISTRY + "volume_free_bytes": "5x200", REGISTRY + "volume_bytes": "100x200"},
        {REGISTRY + "volume_free_bytes": "15x200", REGISTRY + "volume_bytes": "100x200"},
    ),
]


def rules() -> list[Document]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def exposition() -> str:
    """The pages of operator and registry, with everything that they can show."""
    operator, registry = OperatorMetrics(), RegistryMetrics()
    operator.show(
        runs=lambda: [("Training", "QuotaExceeded")],
        queue=lambda: QueueState(0, 0, 0, 0.0),
        namespaces=lambda: {"served": 1},
        registry_silent=lambda: False,
    )
    operator.registry_answered("GET", None, 0.1)
    registry.answered("/healthz", "GET", 200, 0.1)
    return (generate_latest(operator.registry) + generate_latest(registry.registry)).decode()


@pytest.fixture
def known_metrics(tmp_path: Path) -> set[str]:
    """The names of all metrics, as they stand in a page, with the parts of histograms."""
    registry = RegistryMetrics()
    registry.show(Database(parse_url(f"sqlite:///{tmp_path}/registry.db")))
    text = exposition() + generate_latest(registry.registry).decode()
    declared = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    parts = {
        f"{name}_{part}"
        for name, kind in declared.items()
        if kind == "histogram"
        for part in ("bucket", "count", "sum")
    }
    return {*declared, *parts, *MEASURED}


@needs_promtool
def test_promtool_has_nothing_to_say_about_the_metrics() -> None:
    lines = exposition().splitlines(keepends=True)
    for program in ("operator", "registry"):
        page = "".join(line for line in lines if f"finetune_{program}_" in line)
        assert promtool("check", "metrics", stdin=page) == ""


@needs_promtool
def test_promtool_reads_the_rules() -> None:
    assert f"SUCCESS: {len(SCENES)} rules found" in promtool("check", "rules", RULES)


def test_each_alert_has_a_scene_and_a_section_that_its_runbook_leads_to() -> None:
    names = [rule["alert"] for rule in rules()]
    assert names == [scene.alert for scene in SCENES]
    sections = re.findall(r"^### (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sections == names
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_the_rules_name_metrics_that_exist(known_metrics: set[str]) -> None:
    for rule in rules():
        assert set(re.findall(r"finetune_\w+", rule["expr"])) <= known_metrics, rule["alert"]


def scene_test(alert: str, minutes: int, series: dict[str, str], *, firing: bool) -> Document:
    """A test of promtool: whether the alert, and no other, fires after so many minutes."""
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if firing else []
    return {
        "name": f"{alert} {'fires' if firing else 'is silent'}",
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in (UP | series).items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minutes}m",
                "exp_samples": expected,
            }
        ],
    }


@needs_promtool
@pytest.mark.parametrize("scene", SCENES, ids=[scene.alert for scene in SCENES])
def test_an_alert_fires_when_it_should_and_is_silent_when_not(scene: Scene, tmp_path: Path) -> None:
    tests = [
        scene_test(scene.alert, scene.minutes, scene.fires, firing=True),
        scene_test(scene.alert, scene.minutes, scene.silent, firing=False),
        scene_test(scene.alert, 150, scene.silent, firing=False),
    ]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", file)


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "summary"),
    [
        ("FinetuneQueueStuck", "A run has waited for 9m 1s for the operator to look at it."),
        ("FinetuneRegistryVolumeFills", "Only 5% of the volume with the registry's database is free."),
        ("FinetuneRunsWait", "2 runs wait for something that the cluster should give them: ImagePullFailed."),
    ],
)
def test_what_an_alert_says(alert: str, summary: str, tmp_path: Path) -> None:
    (scene,) = [scene for scene in SCENES if scene.alert == alert]
    (rule,) = [rule for rule in rules() if rule["alert"] == alert]
    test = scene_test(alert, scene.minutes, scene.fires, firing=True)
    labels = {**rule["labels"], **({"reason": "ImagePullFailed"} if "reason" in summary or "Pull" in summary else {})}
    told = {"exp_labels": labels, "exp_annotations": {**rule["annotations"], "summary": summary}}
    test["alert_rule_test"] = [{"eval_time": f"{scene.minutes}m", "alertname": alert, "exp_alerts": [told]}]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", file)


def panels() -> list[Document]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """The queries of the dashboard, with Grafana's variables filled in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [each.replace("$__rate_interval", "5m").replace("$__range", "1h") for each in found]


@needs_promtool
def test_prometheus_reads_each_query_of_the_dashboard(tmp_path: Path) -> None:
    records = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    assert f"SUCCESS: {len(records)} rules found" in promtool("check", "rules", file)


def test_the_dashboard_names_metrics_that_exist(known_metrics: set[str]) -> None:
    named = {name for expr in expressions() for name in re.findall(r"finetune_\w+", expr)}
    assert named <= known_metrics
    assert len(named) > 20


def test_the_panels_have_titles_and_the_data_source_that_is_chosen() -> None:
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in panels())
    assert all(panel["description"] for panel in panels())
