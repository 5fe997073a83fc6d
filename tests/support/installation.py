"""The project installed on a cluster the way its documentation says, for the demo and the end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images import build
from tests.cluster.base import Cluster
from tests.support.kubectl import Kubectl, is_true

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
TOKEN_AUDIENCE = "finetune.dev/registry"
USER = "data-scientist"


@dataclass
class Images:
    """References of the images as the cluster's pods name them."""

    operator: str
    trainer: str
    base_model: str
    sizes: dict[str, int] = field(default_factory=dict)


def build_images(cluster: Cluster) -> Images:
    """Build what has changed and make it available to the cluster's nodes."""
    operator, trainer = build.build_known("operator"), build.build_known("trainer")
    folder = ROOT / "examples" / "base-model"
    libraries = build.build_recipe(build.LIBRARIES)
    base_model = build.build("finetune-base-model", folder / "Dockerfile", folder, libraries.tag)
    made = {"operator": operator, "trainer": trainer, "base_model": base_model}
    return Images(
        **{name: cluster.load_image(image.tag) for name, image in made.items()},
        sizes={name: image.bytes for name, image in made.items()},
    )


class Installation:
    """The chart's release on one cluster, and what a user does with it.

    Parameters
    ----------
    kubectl: the administrator's.
    images: see `build_images`.
    """

    def __init__(self, *, kubectl: Kubectl, images: Images) -> None:
        self.kubectl = kubectl
        self.system = kubectl.at(NAMESPACE)
        self.images = images

    def install(self, **operator: Any) -> None:
        """`helm upgrade --install` the chart, and wait until it is ready; keyword arguments are `operator.*` values."""
        values = {
            "image": image_values(self.images.operator),
            "trainer": {"image": image_values(self.images.trainer)},
            "operator": {"pretendedGPUs": True, **operator},
            "registry": {"persistence": {"size": "1Gi"}},
        }
        self.kubectl.command(
            *["helm", "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"],
            *["--wait", "--timeout=180s", "--values=-"],
            stdin=json.dumps(values),
        )

    def create_namespace(self, name: str) -> Kubectl:
        """A namespace for a team: restricted pods, and a user who may push datasets and read adapters."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        kubectl = self.kubectl.at(name)
        subject = {"kind": "ServiceAccount", "name": USER, "namespace": name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": USER, "namespace": name}},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": USER, "namespace": name},
                "subjects": [subject],
                "roleRef": role,
            },
        )
        return kubectl

    def provide_base_model(self, kubectl: Kubectl, *, tiny: bool = False) -> None:
        """Put the base model on the claim `base-models` of a namespace; does nothing when it is there."""
        if is_true(kubectl.find("jobs", "base-model"), "Complete"):
            return
        text = (ROOT / "examples" / "base-model" / "job.yaml").read_text().replace("__IMAGE__", self.images.base_model)
        if tiny:
            text = text.replace("smollm2-135m-instruct", "tiny")
        kubectl("delete", "job", "base-model", "--ignore-not-found")  # a Job's template cannot be changed
        kubectl("apply", "--filename=-", stdin=text)
        kubectl("wait", "--for=condition=Complete", "job/base-model", "--timeout=300s", timeout=310)

    @contextlib.contextmanager
    def registry(self, kubectl: Kubectl) -> Iterator[RegistryUser]:
        """The registry as a user of this namespace sees it, through a port-forward and with the user's token."""
        token = kubectl("create", "token", USER, f"--audience={TOKEN_AUDIENCE}").strip()
        # A rollout may be under way, and a port-forward takes the first pod that it finds, ready or not.
        self.system("rollout", "status", f"deployment/{RELEASE}-registry", "--timeout=90s")
        self.system.wait_for("one registry pod, ready", self._registry_is_alone)
        with self.system.forward(f"{RELEASE}-registry", 8080) as url:
            yield RegistryUser(url=url, token=token, namespace=kubectl.namespace)

    def _registry_is_alone(self) -> bool:
        """The registry has one pod, and it is running."""
        prefix = f"{RELEASE}-registry-"
        found = [pod for pod in self.system.items("pods") if pod["metadata"]["name"].startswith(prefix)]
        return [pod["status"]["phase"] for pod in found] == ["Running"]


@dataclass(frozen=True)
class RegistryUser:
    """The `finetune` command with a user's token."""

    url: str
    token: str
    namespace: str

    def __call__(self, *arguments: str) -> str:
        """Standard output of `finetune ARGUMENTS`; what it complains of goes to this process's standard error."""
        with secret_file(self.token) as token_file:
            environment = {
                **os.environ,
                "FINETUNE_REGISTRY_URL": self.url,
                "FINETUNE_TOKEN_FILE": str(token_file),
            }
            argv = [sys.executable, "-m", "finetune.cli.main", *arguments, "--namespace", self.namespace]
            return subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    def json(self, *arguments: str) -> Any:
        """The answer of `finetune ARGUMENTS -o json`."""
        return json.loads(self(*arguments, "--output=json"))


@contextlib.contextmanager
def secret_file(text: str) -> Iterator[Path]:
    """A file that only this user can read, for the time of the block."""
    with tempfile.NamedTemporaryFile("w") as file:  # made with mode 0600
        file.write(text)
        file.flush()
        yield Path(file.name)


def image_values(reference: str) -> dict[str, str]:
    """An image reference as the chart's values."""
    repository, tag = reference.rsplit(":", 1)
    return {"repository": repository, "tag": tag}
