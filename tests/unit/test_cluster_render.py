"""The configuration of the local Kubernetes: what its users and its clean end rely on."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cluster import render
from tests.cluster.base import ClusterError
from tests.cluster.layout import LOOPBACK, NODE_ADDRESS, Layout, Ports

LAYOUT = Layout(Path("/state/cluster"))
PORTS = Ports()


def test_containerd_keeps_everything_below_its_folder() -> None:
    config = tomllib.loads(render.containerd(LAYOUT))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    paths = [config["root"], config["state"], config["grpc"]["address"], cri["cni"]["conf_dir"]]
    paths.append(cri["containerd"]["runtimes"]["runc"]["options"]["Root"])
    assert all(path.startswith("/state/cluster/") for path in paths)
    assert cri["netns_mounts_under_state_dir"] is True
    assert config["disabled_plugins"] == []


def test_images_outlive_the_cluster_and_nothing_else_does(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for path in (layout.containerd_images, layout.registry, layout.etcd, layout.volumes, layout.containerd_run):
        path.mkdir(parents=True)
    (tmp_path / "lock").touch()
    assert set(layout.throwaway()) == {layout.etcd, layout.volumes, layout.containerd_run}


def test_containers_are_removed_without_the_kubernetes_part() -> None:
    config = tomllib.loads(render.containerd(LAYOUT, with_kubernetes=False))
    assert config["disabled_plugins"] == ["io.containerd.grpc.v1.cri"]


def test_the_kubelet_never_removes_images_or_evicts_for_disk() -> None:
    config = yaml.safe_load(render.kubelet(LAYOUT, PORTS))
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["evictionHard"]["nodefs.available"] == config["evictionHard"]["imagefs.available"] == "0%"


def test_nothing_of_the_node_touches_iptables() -> None:
    network = json.loads(render.cni(LAYOUT))
    assert [plugin["type"] for plugin in network["plugins"]] == ["bridge"]
    assert network["plugins"][0]["ipMasq"] is False
    assert yaml.safe_load(render.kubelet(LAYOUT, PORTS))["makeIPTablesUtilChains"] is False
    assert yaml.safe_load(render.kube_proxy(LAYOUT, PORTS))["mode"] == "nftables"


def test_pod_security_and_any_audience_are_left_at_the_api_servers_defaults() -> None:
    flags = render.api_server(LAYOUT, PORTS, address=NODE_ADDRESS)
    assert not any(flag.startswith(("--disable-admission-plugins", "--api-audiences")) for flag in flags)
    assert "--authorization-mode=Node,RBAC" in flags


def test_an_api_server_alone_publishes_no_endpoint_of_itself() -> None:
    flags = render.api_server(LAYOUT, PORTS, address=LOOPBACK, disabled_admission=["ServiceAccount"])
    assert "--endpoint-reconciler-type=none" in flags
    assert "--disable-admission-plugins=ServiceAccount" in flags


@pytest.mark.parametrize(
    "argv",
    [
        render.etcd(LAYOUT, PORTS),
        render.api_server(LAYOUT, PORTS, address=NODE_ADDRESS),
        render.controller_manager(LAYOUT, PORTS),
        render.scheduler(LAYOUT, PORTS),
    ],
    ids=lambda argv: argv[0],
)
def test_every_program_can_be_told_from_others_by_its_arguments(argv: list[str]) -> None:
    assert any("/state/cluster/" in argument for argument in argv[1:])


def test_the_clusters_dns_asks_the_machines_resolver_only_where_there_is_one() -> None:
    with_resolver = render.corefile(LAYOUT, PORTS, Path("/etc/resolv.conf"))
    assert "forward . /etc/resolv.conf" in with_resolver
    assert "forward" not in render.corefile(LAYOUT, PORTS, None)


def test_certificates_are_good_for_every_address_of_the_api_server() -> None:
    cluster, init = yaml.safe_load_all(render.kubeadm(LAYOUT, PORTS, NODE_ADDRESS))
    assert set(cluster["apiServer"]["certSANs"]) == {"127.0.0.1", "localhost"}
    assert init["localAPIEndpoint"]["advertiseAddress"] == NODE_ADDRESS


def test_a_folder_too_long_for_a_socket_is_refused_before_anything_starts() -> None:
    with pytest.raises(ClusterError, match="set FINETUNE_CACHE to a shorter one"):
        Layout(Path("/" + "x" * 100))
