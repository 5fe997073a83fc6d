"""What the node changes outside of its own folder (network, cgroups, kernel settings), and how it is taken back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import host, render
from tests.cluster.base import ClusterError
from tests.cluster.layout import BRIDGE, CGROUP, NETWORK, NODE_ADDRESS, SERVICE_CIDR, Layout

MOUNTS = Path("/proc/self/mountinfo")
SYSCTLS = Path("/proc/sys")
BRIDGES = Path("/sys/class/net")
CNI_RESULTS = Path("/var/lib/cni/results")
CONTAINER_LOG_LINKS = Path("/var/log/containers")
DEVICE_PLUGIN_SOCKET = Path("/var/lib/kubelet/device-plugins/kubelet.sock")  # the kubelet's, whatever its root
SHARED_FOLDERS = (
    DEVICE_PLUGIN_SOCKET.parent,
    DEVICE_PLUGIN_SOCKET.parent.parent,
    CNI_RESULTS,
    CNI_RESULTS.parent,
    CONTAINER_LOG_LINKS,
    Path("/run/containerd/s"),
    Path("/run/containerd"),
)
"""What the node's programs make outside of their folder, innermost first."""
NFT_TABLES = (("ip", NETWORK), ("ip", "kube-proxy"), ("ip6", "kube-proxy"))
BRIDGE_FILTER = "net/bridge/bridge-nf-call-iptables"
CHANGED_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    BRIDGE_FILTER,
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
)
"""What kubelet, kube-proxy and the pod network set."""


def set_up(layout: Layout) -> None:
    """Note the kernel's settings; make the bridge with the node's address, the masquerading rule and the cgroups."""
    if not (SYSCTLS / BRIDGE_FILTER).exists():
        # Without it the answers of a service's pod go straight over the bridge, past the rules that know its address.
        host.run(["modprobe", "br_netfilter"])
    values = {name: (SYSCTLS / name).read_text().strip() for name in CHANGED_SYSCTLS if (SYSCTLS / name).exists()}
    layout.saved_sysctls.write_text(json.dumps(values))
    for name in ("net/ipv4/ip_forward", BRIDGE_FILTER):
        (SYSCTLS / name).write_text("1")
    commands = f"""link add {BRIDGE} type bridge
address add {NODE_ADDRESS}/24 dev {BRIDGE}
link set {BRIDGE} up
route add {SERVICE_CIDR} dev {BRIDGE} src {NODE_ADDRESS}
"""
    host.run(["ip", "-batch", "-"], stdin=commands)
    host.run(["nft", "-f", "-"], stdin=render.nftables())
    for hierarchy in cgroup_hierarchies():
        (hierarchy / CGROUP).mkdir(exist_ok=True)
        controllers = hierarchy / "cgroup.subtree_control"
        if controllers.exists() and (hierarchy / "cgroup.controllers").read_text().strip():
            enabled = " ".join(f"+{name}" for name in (hierarchy / "cgroup.controllers").read_text().split())
            for group in (hierarchy, hierarchy / CGROUP):
                (group / "cgroup.subtree_control").write_text(enabled)


def cgroup_hierarchies() -> list[Path]:
    """Where cgroups are mounted: one place for version 2, one for each controller for version 1."""
    return [mount for mount, kind in _mounts() if kind in {"cgroup", "cgroup2"}]


def tear_down(layout: Layout) -> None:
    """Take back all of it, and what died with the containers: their processes, mounts, links and caches."""
    kill_cgroup()
    unmount_below(layout.root)
    _remove_network()
    _remove_cgroups()
    _remove_traces(layout)
    if layout.saved_sysctls.exists():
        for name, value in json.loads(layout.saved_sysctls.read_text()).items():
            with contextlib.suppress(PermissionError):  # some are read-only inside a container; then nobody set them
                (SYSCTLS / name).write_text(value)


def kill_cgroup() -> None:
    """Kill every process of every pod; a container whose shim is dead has no other handle."""
    deadline = time.monotonic() + 10
    while pids := set(_cgroup_pids()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {sorted(pids)} of cgroup {CGROUP} cannot be killed: see /proc/<pid>/stack")
        time.sleep(0.01)


def _cgroup_pids() -> Iterator[int]:
    for group in _cgroups():
        with contextlib.suppress(FileNotFoundError):
            yield from map(int, (group / "cgroup.procs").read_text().split())


def _cgroups() -> list[Path]:
    """Our cgroups, innermost first."""
    found: list[Path] = []
    for hierarchy in cgroup_hierarchies():
        found += [Path(folder) for folder, _, _ in os.walk(hierarchy / CGROUP, topdown=False)]
    return found


def _remove_cgroups() -> None:
    deadline = time.monotonic() + 5
    for group in _cgroups():
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:  # EBUSY until the kernel has reaped the killed processes
                if time.monotonic() > deadline:
                    raise ClusterError(f"cannot remove cgroup {group}: {error}") from error
                time.sleep(0.01)
            else:
                break


def mounts_below(root: Path) -> list[Path]:
    """Mount points under a folder, the last mounted first."""
    return [mount for mount, _ in reversed(_mounts()) if root in mount.parents]


def _mounts() -> list[tuple[Path, str]]:
    found = []
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")  # blanks are written as \040
        found.append((Path(point), after.split()[0]))
    return found


def unmount_below(root: Path) -> None:
    """Unmount everything under a folder."""
    mounts = mounts_below(root)
    if mounts:
        host.run(["umount", "--lazy", *mounts])


def _remove_network() -> None:
    ports = BRIDGES / BRIDGE / "brif"
    links = [port.name for port in ports.iterdir()] if ports.is_dir() else []
    if (BRIDGES / BRIDGE).exists():
        links.append(BRIDGE)
    for link in links:
        # A link may vanish between the listing and this: its network namespace is being removed.
        subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)
    for family, table in NFT_TABLES:
        subprocess.run(["nft", "delete", "table", family, table], check=False, capture_output=True)


def _remove_traces(layout: Layout) -> None:
    # A network's cached results are named <network>-<sandbox>-<link>; ours share their sandboxes with the loopback's.
    for result in CNI_RESULTS.glob(f"{NETWORK}-*-eth0"):
        sandbox = result.name.removeprefix(f"{NETWORK}-").removesuffix("-eth0")
        result.unlink()
        (CNI_RESULTS / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
    if CONTAINER_LOG_LINKS.is_dir():
        for link in CONTAINER_LOG_LINKS.iterdir():
            if link.is_symlink() and str(link.readlink()).startswith(f"{layout.pod_logs}/"):
                link.unlink()
    for address in layout.containerd_run.glob("io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)  # the socket of a killed shim
    DEVICE_PLUGIN_SOCKET.unlink(missing_ok=True)
    for folder in SHARED_FOLDERS:
        with contextlib.suppress(OSError):  # somebody else's files are in it, or it does not exist
            folder.rmdir()
