"""An API server that knows TrainingRuns."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.api_server import ApiServerOnly
from tests.cluster.kube_api import KubeApi
from tests.support.kubectl import Kubectl

CRD = Path(__file__).parents[2] / "crds" / "finetune.dev_trainingruns.yaml"


def serve_training_runs(server: ApiServerOnly) -> None:
    """Make the definition, and wait until it is served."""
    kubectl = Kubectl(kubeconfig=server.kubeconfig, bin_dir=server.bin_dir)
    kubectl("apply", "--server-side", f"--filename={CRD}")
    api = KubeApi.from_kubeconfig(server.kubeconfig)
    # A definition is served a moment after it is Established.
    kubectl.wait_for("TrainingRuns are served", lambda: api.get("/apis/finetune.dev/v1alpha1/trainingruns"))
