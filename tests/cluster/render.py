"""The command lines and configuration files of the control plane and the node: pure functions of layout and ports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.go_build import KUBERNETES_VERSION
from tests.cluster.host import NODE
from tests.cluster.layout import BRIDGE, CGROUP, LOOPBACK, NETWORK, NODE_ADDRESS, POD_CIDR, SERVICE_CIDR, Layout, Ports

PAUSE_IMAGE = "localhost/finetune-node:1"
CNI_PLUGINS = Path("/usr/lib/cni")
STORAGE_CLASS = "local-path"


def kubeadm(layout: Layout, ports: Ports, address: str) -> str:
    """What kubeadm makes the certificates and kubeconfigs from; elliptic keys, because RSA ones take seconds."""
    cluster = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "kubernetesVersion": KUBERNETES_VERSION,
        "certificatesDir": str(layout.pki),
        "controlPlaneEndpoint": f"{address}:{ports.api}",
        "encryptionAlgorithm": "ECDSA-P256",
        "networking": {"serviceSubnet": SERVICE_CIDR, "podSubnet": POD_CIDR, "dnsDomain": "cluster.local"},
        "apiServer": {"certSANs": [LOOPBACK, "localhost"]},
    }
    init = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "InitConfiguration",
        "localAPIEndpoint": {"advertiseAddress": NODE_ADDRESS, "bindPort": ports.api},
        "nodeRegistration": {"name": NODE, "criSocket": f"unix://{layout.containerd_socket}"},
    }
    return yaml.safe_dump_all([cluster, init])


def etcd(layout: Layout, ports: Ports) -> list[str]:
    """Etcd without fsync: its data does not outlive the cluster, and disks are slow."""
    client, peer = f"http://{LOOPBACK}:{ports.etcd}", f"http://{LOOPBACK}:{ports.etcd_peer}"
    return [
        "etcd",
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server(
    layout: Layout, ports: Ports, *, address: str, disabled_admission: Sequence[str] = (), flags: Sequence[str] = ()
) -> list[str]:
    """The API server with RBAC, Pod Security admission and service-account tokens of any audience."""
    pki = layout.pki
    return [
        "kube-apiserver",
        f"--etcd-servers=http://{LOOPBACK}:{ports.etcd}",
        f"--advertise-address={address}",
        f"--secure-port={ports.api}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        *([f"--disable-admission-plugins={','.join(disabled_admission)}"] if disabled_admission else []),
        "--allow-privileged=true",
        "--endpoint-reconciler-type=none" if address == LOOPBACK else "--endpoint-reconciler-type=lease",
        *flags,
    ]


def controller_manager(layout: Layout, ports: Ports, *, controllers: Sequence[str] = ()) -> list[str]:
    """All controllers, or those that are named; one copy, so without leader election."""
    kubeconfig, pki = layout.kubeconfig("controller-manager"), layout.pki
    return [
        "kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={ports.controller_manager}",
        "--use-service-account-credentials",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--leader-elect=false",
        *([f"--controllers={','.join(controllers)}"] if controllers else []),
    ]


def scheduler(layout: Layout, ports: Ports) -> list[str]:
    """The scheduler; one copy, so without leader election."""
    kubeconfig = layout.kubeconfig("scheduler")
    return [
        "kube-scheduler",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={ports.scheduler}",
        "--leader-elect=false",
    ]


def containerd(layout: Layout, *, with_kubernetes: bool = True) -> str:
    """Containerd's configuration, all of its files under the layout's root.

    Args:
        layout: where its files go.
        with_kubernetes: serve the kubelet; without, only its own client can use it.
    """
    disabled = [] if with_kubernetes else ["io.containerd.grpc.v1.cri"]
    # Not lowering a container's OOM score needs no CAP_SYS_RESOURCE, which a container or a small VM may lack. Layers
    # are not kept beside their unpacked form: the registry has them. Network namespaces are mounted below the state
    # folder, where what is left of them can be told from others'.
    return f"""version = 2
root = {json.dumps(str(layout.containerd_images))}
state = {json.dumps(str(layout.containerd_run))}
disabled_plugins = {json.dumps(disabled)}
[grpc]
  address = {json.dumps(str(layout.containerd_socket))}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {json.dumps(PAUSE_IMAGE)}
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  max_concurrent_downloads = 3
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {json.dumps(str(CNI_PLUGINS))}
    conf_dir = {json.dumps(str(layout.cni))}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = {json.dumps(str(layout.containerd_run / "runc"))}
"""


def cni(layout: Layout) -> str:
    """The pod network: one bridge. Masquerading is a rule of our own, so that pods leave no iptables chains behind."""
    plugin = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.root / "addresses"),
            "ranges": [[{"subnet": POD_CIDR, "gateway": NODE_ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]})


def nftables() -> str:
    """The rule that lets pods reach what is outside of the node's own networks."""
    return f"""table ip {NETWORK} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_CIDR} ip daddr != {{ {POD_CIDR}, {SERVICE_CIDR} }} masquerade
  }}
}}
"""


def kubelet(layout: Layout, ports: Ports) -> str:
    """The kubelet's configuration: it evicts no pod and removes no image for disk space, and leaves iptables alone."""
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": ports.kubelet,
        "healthzPort": ports.kubelet_health,
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "authentication": {
            "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.config / "resolv.conf"),
        "podLogsDir": str(layout.pod_logs),
        "volumePluginDir": str(layout.kubelet / "plugins-exec"),
        "rotateCertificates": False,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageMaximumGCAge": "0s",
        "makeIPTablesUtilChains": False,
        "serializeImagePulls": False,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        "maxPods": 200,
    }
    return yaml.safe_dump(document)


def kube_proxy(layout: Layout, ports: Ports) -> str:
    """Kube-proxy's configuration: nftables tables of its own."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": POD_CIDR,
            "hostnameOverride": NODE,
            "clientConnection": {"kubeconfig": str(layout.kubeconfig("super-admin"))},
            "conntrack": {"maxPerCore": 0},
            "healthzBindAddress": f"{LOOPBACK}:{ports.proxy_health}",
            "metricsBindAddress": f"{LOOPBACK}:{ports.proxy_metrics}",
        }
    )


def corefile(layout: Layout, ports: Ports, upstream: Path | None) -> str:
    """CoreDNS: the cluster's names, and the resolvers of a resolv.conf, if there are any, for all others."""
    forward = f"\n    forward . {upstream}" if upstream else ""
    return f""".:53 {{
    bind {NODE_ADDRESS}
    errors
    ready {LOOPBACK}:{ports.dns_ready}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.kubeconfig("super-admin")}
        pods insecure
        ttl 5
    }}{forward}
    cache 5
}}
"""


def registry(layout: Layout, ports: Ports) -> str:
    """The image registry, on loopback; without a cache, so that removing blobs behind its back is safe."""
    return yaml.safe_dump(
        {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(layout.registry)}, "delete": {"enabled": True}},
            "http": {"addr": f"{LOOPBACK}:{ports.registry}"},
        }
    )


def local_path(layout: Layout) -> dict[str, Any]:
    """The provisioner's configuration: one folder, and the helper image's programs that work in it."""
    return {
        "nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [str(layout.volumes)]}],
        "setupCommand": "/setup",
        "teardownCommand": "/teardown",
    }


def local_path_pod() -> dict[str, Any]:
    """The pod that makes or removes a volume's folder; the provisioner fills in command and mounts."""
    container = {"name": "helper-pod", "image": PAUSE_IMAGE, "imagePullPolicy": "IfNotPresent"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }
