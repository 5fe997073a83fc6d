"""Containers that somebody else adds to the pods of a namespace, as a service mesh does; by an admission policy."""

from __future__ import annotations

from typing import Any

from tests.support.kubectl import Kubectl
from tests.support.world import eventually

Document = dict[str, Any]

VERSION = "admissionregistration.k8s.io/v1beta1"


def injecting(namespace: str, *, name: str = "mesh", native: bool = False, init: bool = False) -> list[Document]:
    """A policy that adds a container to every pod of a namespace: plain, native (init, always restarted) or init."""
    kind = "initContainers" if native or init else "containers"
    always = ', restartPolicy: "Always"' if native else ""
    container = f'Object.spec.{kind}{{name: "{name}", image: "mesh:1"{always}}}'
    expression = f"Object{{spec: Object.spec{{{kind}: [{container}]}}}}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    head = {"apiVersion": VERSION, "metadata": {"name": f"{namespace}-{name}"}}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": selector},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
        "reinvocationPolicy": "Never",
        "failurePolicy": "Fail",
    }
    binding = {"policyName": f"{namespace}-{name}"}
    return [
        {**head, "kind": "MutatingAdmissionPolicy", "spec": spec},
        {**head, "kind": "MutatingAdmissionPolicyBinding", "spec": binding},
    ]


async def inject(kubectl: Kubectl, *, name: str = "mesh", native: bool = False, init: bool = False) -> None:
    """Inject a container from now on: the policy is in force when this returns."""
    kubectl.apply(*injecting(kubectl.namespace, name=name, native=native, init=init))
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    await eventually(f"{name} is injected", lambda: f'"{name}"' in kubectl.dry_run(probe))
