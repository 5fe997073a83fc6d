"""Starts the node beside a control plane: image registry, containerd, kubelet, kube-proxy, cluster DNS and storage."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import host, machine, node_image, render
from tests.cluster.base import ClusterError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kube_api import MERGE, KubeApi
from tests.cluster.layout import LOOPBACK, Layout
from tests.cluster.supervise import Supervisor

PROGRAMS = frozenset(
    {
        "containerd",
        "containerd-shim-runc-v2",
        "coredns",
        "docker-registry",
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubelet",
        "local-path-provisioner",
    }
)
"""What runs in a cluster of processes."""
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "docker-registry": "docker-registry",
    "nft": "nftables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    str(render.CNI_PLUGINS / "bridge"): "containernetworking-plugins",
}
"""The Debian package that brings each program."""
STORAGE_NAMESPACE = "local-path-storage"
UPSTREAM_RESOLVERS = Path("/etc/resolv.conf")
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def start(plane: ControlPlane, *, gpus: int) -> None:
    """Start everything and wait until pods can run.

    Args:
        plane: what to start the programs with; nothing of it runs yet, and its folder is clean.
        gpus: how many ``nvidia.com/gpu`` the node pretends to have.

    Raises:
        ClusterError: a part did not start; the message has the end of its log.
    """
    layout = plane.layout
    machine.set_up(layout)
    _write_configuration(plane)
    plane.start_program(["docker-registry", "serve", str(layout.config / "registry.yaml")])
    start_containerd(layout, plane.supervisor)
    api = plane.start()
    plane.start_program(render.controller_manager(layout, plane.ports))
    plane.start_program(render.scheduler(layout, plane.ports))
    _import_helper_image(plane)
    plane.start_program(
        [
            "kubelet",
            f"--config={layout.config / 'kubelet.yaml'}",
            f"--kubeconfig={layout.kubeconfig('kubelet')}",
            f"--hostname-override={host.NODE}",
            f"--root-dir={layout.kubelet}",
            f"--cert-dir={layout.kubelet / 'pki'}",
            f"--node-ip={plane.address}",
        ]
    )
    plane.start_program(["kube-proxy", f"--config={layout.config / 'kube-proxy.yaml'}"])
    plane.start_program(["coredns", "-conf", str(layout.config / "Corefile")])
    _apply_objects(api)
    plane.start_program(_local_path_provisioner(layout))
    _pretend_gpus(plane, api, gpus)
    _wait_for_all(plane, api)


def start_containerd(layout: Layout, supervisor: Supervisor, *, with_kubernetes: bool = True) -> None:
    """Start containerd on the layout's own folders."""
    layout.config.mkdir(parents=True, exist_ok=True)
    config = layout.config / "containerd.toml"
    config.write_text(render.containerd(layout, with_kubernetes=with_kubernetes))
    env = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"}
    supervisor.start("containerd", ["containerd", f"--config={config}"], env=env)


def containerd_answers(layout: Layout) -> bool:
    """Whether containerd takes calls."""
    if not layout.containerd_socket.exists():
        return False
    try:
        ctr(layout, "version")
    except ClusterError:
        return False
    return True


def ctr(layout: Layout, *arguments: str) -> str:
    """Run containerd's own client in the namespace that the kubelet uses."""
    return host.run(["ctr", f"--address={layout.containerd_socket}", "--namespace=k8s.io", *arguments])


def _write_configuration(plane: ControlPlane) -> None:
    layout, ports = plane.layout, plane.ports
    for folder in (layout.config, layout.cni, layout.volumes, layout.registry):
        folder.mkdir(parents=True, exist_ok=True)
    resolvers = UPSTREAM_RESOLVERS.read_text() if UPSTREAM_RESOLVERS.exists() else ""
    upstream = UPSTREAM_RESOLVERS if "nameserver" in resolvers else None
    files = {
        layout.cni / "10-bridge.conflist": render.cni(layout),
        layout.config / "registry.yaml": render.registry(layout, ports),
        layout.config / "kubelet.yaml": render.kubelet(layout, ports),
        layout.config / "kube-proxy.yaml": render.kube_proxy(layout, ports),
        layout.config / "Corefile": render.corefile(layout, ports, upstream),
        layout.config / "resolv.conf": "",  # the machine's search domains are none of the pods' business
        layout.config / "local-path.json": json.dumps(render.local_path(layout)),
        layout.config / "local-path-pod.yaml": yaml.safe_dump(render.local_path_pod()),
    }
    for path, content in files.items():
        path.write_text(content)


def _import_helper_image(plane: ControlPlane) -> None:
    plane.wait_until("containerd answers", lambda: containerd_answers(plane.layout))
    archive = plane.layout.config / "node-image.tar"
    node_image.write(plane.bin_dir / "pause", render.PAUSE_IMAGE, archive)
    ctr(plane.layout, "images", "import", str(archive))


def _local_path_provisioner(layout: Layout) -> list[str]:
    return [
        "local-path-provisioner",
        "start",
        f"--config={layout.config / 'local-path.json'}",
        f"--helper-pod-file={layout.config / 'local-path-pod.yaml'}",
        f"--helper-image={render.PAUSE_IMAGE}",
        f"--kubeconfig={layout.kubeconfig('super-admin')}",
        f"--namespace={STORAGE_NAMESPACE}",
        "--service-account-name=default",
    ]


def _apply_objects(api: KubeApi) -> None:
    # kubeadm's own binding, which its phases for certificates and kubeconfigs leave out: without it neither admin.conf
    # nor the API server's calls to the kubelet (logs, exec) may do anything.
    administrators = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kubeadm:cluster-admins"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "kubeadm:cluster-admins"}],
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STORAGE_NAMESPACE}}
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": render.STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "rancher.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }
    api.apply(f"{RBAC}/clusterrolebindings", administrators)
    api.apply("/api/v1/namespaces", namespace)
    api.apply("/apis/storage.k8s.io/v1/storageclasses", storage_class)


def _pretend_gpus(plane: ControlPlane, api: KubeApi, count: int) -> None:
    """Write GPUs into the node's status, as its device plugin would; the kubelet keeps what it does not know."""
    node = f"/api/v1/nodes/{host.NODE}"
    plane.wait_until("the kubelet has registered the node", lambda: api.get(node))
    amounts = {host.GPU_RESOURCE: str(count)}
    patch = {"status": {"capacity": amounts, "allocatable": amounts}}
    code, answer = api.request("PATCH", f"{node}/status", patch, content_type=MERGE)
    if code != 200:
        raise ClusterError(f"the API server refused the node's GPUs: {code} {answer}")


def _wait_for_all(plane: ControlPlane, api: KubeApi) -> None:
    node = f"/api/v1/nodes/{host.NODE}"
    plane.wait_until("the node is ready", lambda: node_is_ready(api.get(node) or {}))
    for namespace in ("default", STORAGE_NAMESPACE):
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        plane.wait_until(f"namespace {namespace} has a service account", partial(api.get, account))
    ports = plane.ports
    for name, url in {
        "the image registry": f"http://{LOOPBACK}:{ports.registry}/v2/",
        "cluster DNS": f"http://{LOOPBACK}:{ports.dns_ready}/ready",
        "kube-proxy": f"http://{LOOPBACK}:{ports.proxy_health}/healthz",
    }.items():
        plane.wait_until(f"{name} answers at {url}", partial(host.answers, url))


def node_is_ready(node: Mapping[str, Any]) -> bool:
    """Whether a node can run pods, GPUs included."""
    status = node.get("status", {})
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
    return conditions.get("Ready") == "True" and host.GPU_RESOURCE in status.get("allocatable", {})
