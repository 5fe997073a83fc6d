"""Every object that the chart makes, with every value that it has, is one that the API server takes."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster import go_build
from tests.cluster.kube_api import KubeApi
from tests.support.chart import cases, objects_of, render_cases
from tests.support.kubectl import Kubectl

NOT_SERVED = {"monitoring.coreos.com/v1", "cert-manager.io/v1", "gateway.networking.k8s.io/v1"}
"""Definitions of others, which this server has not."""
ONE_FAMILY = 'Invalid value: "IPv6": not configured on this cluster'
"""What this server says of a Service that is otherwise as it should be."""


def objects() -> dict[str, dict[str, Any]]:
    """Every object that is unlike all others, by its text, with the name of the first case that has it."""
    helm = str(go_build.build(go_build.CLIENTS) / "helm")
    found: dict[str, dict[str, Any]] = {}
    for name, text in render_cases(helm, cases()).items():
        for each in objects_of(text):
            if each["apiVersion"] not in NOT_SERVED:
                found.setdefault(json.dumps(each, sort_keys=True), {"case": name, "object": each})
    return found


def path_of(document: dict[str, Any]) -> str:
    """Where objects of its kind are made; each object of a namespace says of which."""
    version, plural = document["apiVersion"], document["kind"].lower()
    plural = f"{plural[:-1]}ies" if plural.endswith("y") else f"{plural}es" if plural.endswith("s") else f"{plural}s"
    namespace = document["metadata"].get("namespace")
    place = f"namespaces/{namespace}/{plural}" if namespace else plural
    return f"/{'apis' if '/' in version else 'api'}/{version}/{place}?dryRun=All&fieldValidation=Strict"


def test_the_api_server_takes_every_object_of_every_case(api: KubeApi, kubectl: Kubectl) -> None:
    found = list(objects().values())
    assert len(found) > 120
    refused = []
    for each in found:
        document = each["object"]
        if "namespace" in document["metadata"]:
            document["metadata"]["namespace"] = kubectl.namespace  # that exists
        code, answer = api.request("POST", path_of(document), document)
        if code != 201 and ONE_FAMILY not in str(answer):
            refused.append(f"{each['case']}: {document['kind']} {document['metadata']['name']}: {answer}")
    assert refused == []
