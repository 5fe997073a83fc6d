"""What the cluster's administrator wants of every run's pod, and how a Job gets it.

It goes into the Job alone, never into a run's spec: what a run says itself wins, and Git sees no drift.
"""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

Document = dict[str, Any]
Text = Annotated[str, StringConstraints(min_length=1)]

CA_VOLUME, CA_DIRECTORY = "ca-bundle", "/etc/finetune/ca"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "PGSSLROOTCERT")
"""Python and its HTTP clients; requests; object stores; libpq's verify-full."""
OWN_DOMAIN = "finetune.dev/"
INSIDE = (".svc", ".cluster.local", "localhost", "127.0.0.1", "::1")
"""What is reached without a proxy: Services, and the pod itself."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class SecretName(_Part):
    """A Secret of the run's namespace."""

    name: Text


class EphemeralStorage(_Part):
    """What each container asks for of its node's own disk, and at most uses; for quotas and full nodes."""

    request: str = ""
    limit: str = ""


class Proxy(_Part):
    """The proxy of all that leaves the cluster: the hub, object stores. The registry is never asked through it."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""
    """Hosts and domains that are reached without it beside the registry and Services, with commas in between."""


class CABundle(_Part):
    """Certificate authorities that are trusted instead of the image's: all of them, also the public ones."""

    config_map: str = ""
    """Name of the ConfigMap in each run's namespace; none: the image's authorities."""
    key: Text = "ca-certificates.crt"


class PodDefaults(_Part):
    """What every run's pod gets; the names are those of a pod's spec."""

    image_pull_secrets: tuple[SecretName, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Document, ...] = ()
    affinity: Document = Field(default_factory=dict)
    runtime_class_name: str = ""
    priority_class_name: str = ""
    scheduler_name: str = ""
    ephemeral_storage: EphemeralStorage = EphemeralStorage()
    proxy: Proxy = Proxy()
    ca_bundle: CABundle = CABundle()

    def apply(self, job: Document, registry_url: str) -> Document:
        """The Job with all of it; a new document."""
        template = job["spec"]["template"]
        metadata = {
            **template["metadata"],
            "labels": {**_foreign(self.labels), **template["metadata"]["labels"]},
            **({"annotations": dict(self.annotations)} if self.annotations else {}),
        }
        pod = self._pod(template["spec"], registry_url)
        return {**job, "spec": {**job["spec"], "template": {**template, "metadata": metadata, "spec": pod}}}

    def _pod(self, pod: Document, registry_url: str) -> Document:
        defaults = {
            "imagePullSecrets": [{"name": each.name} for each in self.image_pull_secrets],
            "affinity": dict(self.affinity),
            "runtimeClassName": self.runtime_class_name,
            "priorityClassName": self.priority_class_name,
            "schedulerName": self.scheduler_name,
        }
        joined = {
            "nodeSelector": {**self.node_selector, **pod.get("nodeSelector", {})},
            "tolerations": [*pod.get("tolerations", ()), *self.tolerations],
        }
        made = {**{key: value for key, value in defaults.items() if value}, **pod}
        made |= {key: value for key, value in joined.items() if value}
        for role in ("initContainers", "containers"):
            if role in pod:
                made[role] = [self._container(each, registry_url) for each in pod[role]]
        if self.ca_bundle.config_map:
            item = {"key": self.ca_bundle.key, "path": self.ca_bundle.key}
            source = {"name": self.ca_bundle.config_map, "items": [item]}
            made["volumes"] = [*pod["volumes"], {"name": CA_VOLUME, "configMap": source}]
        return made

    def _container(self, container: Document, registry_url: str) -> Document:
        known = {each["name"] for each in container["env"]}
        variables = {**self._proxy_variables(registry_url), **self._ca_variables()}
        added = [{"name": name, "value": value} for name, value in variables.items() if name not in known]
        made = {**container, "env": [*container["env"], *added]}
        if self.ca_bundle.config_map:
            mount = {"name": CA_VOLUME, "mountPath": CA_DIRECTORY, "readOnly": True}
            made["volumeMounts"] = [*container["volumeMounts"], mount]
        for kind, amount in (
            ("requests", self.ephemeral_storage.request),
            ("limits", self.ephemeral_storage.limit),
        ):
            if amount:
                resources = made["resources"]
                made["resources"] = {**resources, kind: {**resources.get(kind, {}), "ephemeral-storage": amount}}
        return made

    def _proxy_variables(self, registry_url: str) -> dict[str, str]:
        if not (self.proxy.http or self.proxy.https):
            return {}
        named = [each.strip() for each in self.proxy.no_proxy.split(",") if each.strip()]
        direct = ",".join(dict.fromkeys([urlsplit(registry_url).hostname or "", *INSIDE, *named]))
        values = {"HTTP_PROXY": self.proxy.http, "HTTPS_PROXY": self.proxy.https, "NO_PROXY": direct}
        # Some clients read the one spelling, some the other.
        return {spelling: value for name, value in values.items() if value for spelling in (name, name.lower())}

    def _ca_variables(self) -> dict[str, str]:
        if not self.ca_bundle.config_map:
            return {}
        return dict.fromkeys(CA_VARIABLES, f"{CA_DIRECTORY}/{self.ca_bundle.key}")


def _foreign(labels: dict[str, str]) -> dict[str, str]:
    """The labels but ours: who sets these would be taken for a run's pod, or not be found."""
    return {key: value for key, value in labels.items() if not key.startswith(OWN_DOMAIN)}


def from_json(value: object) -> object:
    """A document, also where a variable of the environment holds it as text."""
    return json.loads(value) if isinstance(value, str) else value


FromEnvironment = Annotated[PodDefaults, BeforeValidator(from_json)]
"""Pod defaults as a variable of the environment holds them: a JSON document."""
