"""What the chart makes for Prometheus and Grafana, and how it lets the programs log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.chart import Document, render, template
from tests.support.prometheus import promtool
from tests.unit.test_alerts import DASHBOARD, RULES, needs_promtool
from tests.unit.test_chart_render import container_of, find, needs_helm, of_kind

NAME = "finetune-finetune-operator"
KINDS = ("PodMonitor", "ServiceMonitor", "PrometheusRule")


def ports_of(objects: tuple[Document, ...]) -> dict[str, set[str]]:
    """The names of the ports of each pod's container."""
    pods = of_kind(objects, "Deployment")
    return {each["metadata"]["name"]: {port["name"] for port in container_of(each)["ports"]} for each in pods}


@needs_helm
def test_nothing_of_it_is_made_unasked() -> None:
    objects = render()
    assert of_kind(objects, *KINDS, "ConfigMap") == []
    assert len(of_kind(objects, "Service")) == 1


@needs_helm
def test_a_pod_monitor_finds_both_pods_and_a_port_of_each() -> None:
    objects = render("--set", "metrics.podMonitor.enabled=true", "--set", "metrics.podMonitor.labels.release=stack")
    monitor = find(objects, "PodMonitor", NAME)
    assert monitor["metadata"]["labels"]["release"] == "stack"
    asked = {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]}
    assert all(len(asked & own) == 1 for own in ports_of(objects).values())
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(objects, "Deployment")]
    assert [selector <= labels.items() for labels in pods] == [True, True]
    assert of_kind(objects, "ServiceMonitor") == []


@needs_helm
def test_a_service_monitor_finds_a_service_of_each_pod() -> None:
    objects = render("--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.serviceMonitor.interval=10s")
    spec = find(objects, "ServiceMonitor", NAME)["spec"]
    assert {each["interval"] for each in spec["endpoints"]} == {"10s"}
    asked = {each["port"] for each in spec["endpoints"]}
    services = of_kind(objects, "Service")
    assert len(services) == 2
    for service in services:
        assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (port,) = service["spec"]["ports"]
        assert port["name"] in asked
        (pod,) = [
            each
            for each in of_kind(objects, "Deployment")
            if service["spec"]["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert port["targetPort"] in {each["name"] for each in container_of(pod)["ports"]}


@needs_helm
def test_both_monitors_would_count_twice() -> None:
    done = template("--set", "metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true")
    assert done.returncode != 0
    assert "everything would be counted twice" in done.stderr


@needs_helm
@needs_promtool
def test_the_rules_are_the_checked_ones_and_lead_to_the_page_that_is_named(tmp_path: Path) -> None:
    page = "https://docs.example.com/ops"
    objects = render("--set", "metrics.rules.enabled=true", "--set", f"metrics.rules.runbookUrl={page}")
    spec = find(objects, "PrometheusRule", NAME)["spec"]
    own = yaml.safe_load(RULES.read_text().replace("docs/operations.md", page))
    assert spec == own
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(spec))
    promtool("check", "rules", file)
    relative = find(render("--set", "metrics.rules.enabled=true"), "PrometheusRule", NAME)["spec"]
    assert relative == yaml.safe_load(RULES.read_text())


@needs_helm
def test_the_dashboard_is_where_the_sidecar_looks() -> None:
    objects = render("--set", "metrics.dashboard.enabled=true", "--set", "metrics.dashboard.namespace=grafana")
    made = find(objects, "ConfigMap", f"{NAME}-dashboard")
    assert made["metadata"]["namespace"] == "grafana"
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(made["data"]["finetune.json"]) == json.loads(DASHBOARD.read_text())


@needs_helm
def test_prometheus_can_be_let_in_to_the_operator() -> None:
    peer = "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring"
    policies = of_kind(render("--set", "networkPolicy.enabled=true", "--set", peer), "NetworkPolicy")
    ingress = {each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]["ingress"] for each in policies}
    port = {"protocol": "TCP", "port": 8080}
    assert ingress["operator"] == [
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}], "ports": [port]}
    ]


@needs_helm
@pytest.mark.parametrize("value", ["text", "json"])
def test_both_programs_log_in_the_same_format(value: str) -> None:
    for deployment in of_kind(render("--set", f"logFormat={value}"), "Deployment"):
        assert f"--log-format={value}" in container_of(deployment)["args"]


@needs_helm
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("logFormat=xml", "logFormat"),
        ("metrics.podMonitor.interval=often", "interval"),
        ("metrics.rules.runbookUrl=", "runbookUrl"),
        ("metrics.serviceMonitors.enabled=true", "serviceMonitors"),
        ("metrics.dashboard.labels.a=true", "labels"),
    ],
)
def test_a_wrong_value_is_refused(value: str, complaint: str) -> None:
    done = template("--set", value)
    assert done.returncode != 0
    assert complaint in done.stderr
