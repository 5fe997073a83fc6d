"""Builds the cluster's programs from their pinned Go modules, once, into the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import host
from tests.cluster.base import ClusterError

KUBERNETES_VERSION = "v1.34.4"
KUBE_PARTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
    "node-images",
)


@dataclass(frozen=True)
class Program:
    """One binary: the Go module (a folder of tests/cluster/go) that pins it, its package, and linker variables."""

    name: str
    module: str
    package: str
    variables: tuple[tuple[str, str], ...] = ()

    def argv(self, output: Path) -> list[str]:
        """The command that builds it to ``output``, run in its module's folder."""
        settings = "".join(f" -X {name}={value}" for name, value in self.variables)
        flags = ["-mod=readonly", "-buildvcs=false", f"-ldflags=-s -w{settings}"]
        return ["go", "build", *flags, "-o", str(output), self.package]


def _kubernetes_variables() -> tuple[tuple[str, str], ...]:
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    return (
        (f"{package}.gitVersion", KUBERNETES_VERSION),
        (f"{package}.gitMajor", major),
        (f"{package}.gitMinor", minor),
        (f"{package}.gitTreeState", "clean"),
    )


KUBE = Program("kube", "kube", ".", _kubernetes_variables())
PAUSE = Program("pause", "kube", "./pause")
LOCAL_PATH = Program("local-path-provisioner", "kube", "github.com/rancher/local-path-provisioner")
COREDNS = Program("coredns", "coredns", ".")
HELM = Program("helm", "helm", "helm.sh/helm/v4/cmd/helm")
HELM_3 = Program("helm3", "helm3", "helm.sh/helm/v3/cmd/helm")
KUEUE = Program("kueue", "kueue", "sigs.k8s.io/kueue/cmd/kueue")
ARGOCD = Program("argocd", "argocd", "github.com/argoproj/argo-cd/v3/cmd")

API_SERVER = (KUBE,)
"""What an API server alone needs."""
CLIENTS = (KUBE, HELM)
"""What a user of any cluster needs."""
ALL = (KUBE, PAUSE, LOCAL_PATH, COREDNS, HELM)
"""What the local cluster is made of."""
TESTS = (*ALL, HELM_3, KUEUE)
"""What the tests need beside that, and the demo need not wait for: the queue alone takes 3 minutes to build."""


def cache_key(sources: Path, program: Program) -> str:
    """A digest of everything that decides what a program's build gives: its module's files and its command."""
    digest = hashlib.sha256()
    module = sources / program.module
    for path in sorted(path for path in module.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(module)}\0{len(content)}\0".encode())
        digest.update(content)
    digest.update("\0".join(program.argv(Path(program.name))).encode())
    return digest.hexdigest()[:16]


def build(programs: Sequence[Program], *, sources: Path = host.GO_SOURCES) -> Path:
    """Build what is not yet in the cache and link it all into one folder.

    Returns:
        The folder with every program under the names it is called by; it stays the same as long as the sources do.

    Raises:
        ClusterError: Go is missing, or a build failed.
    """
    store = host.cache_dir() / "go"
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = {program: _build_one(program, sources, store) for program in programs}
        keys = sorted(f"{program.name}-{path.parent.name}" for program, path in built.items())
        bin_dir = store / "bin" / hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        if not bin_dir.is_dir():
            _link(built, bin_dir)
            _remove_dangling(bin_dir.parent)
    return bin_dir


def _build_one(program: Program, sources: Path, store: Path) -> Path:
    target = store / program.name / cache_key(sources, program) / program.name
    if target.is_file():
        return target
    if shutil.which("go") is None:
        raise ClusterError(
            f"Go is needed to build {program.name} once, and `go` is not on PATH: "
            "install Go 1.26 or newer, or point CLUSTER at kind or existing"
        )
    print(f"building {program.name} (once) ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    shutil.rmtree(target.parent.parent, ignore_errors=True)  # builds of older sources
    target.parent.mkdir(parents=True)
    partial = target.with_suffix(".partial")
    nice = ["nice", "-n", "5"] if shutil.which("nice") else []
    host.run(
        [*nice, *program.argv(partial)],
        cwd=sources / program.module,
        env={"CGO_ENABLED": "0", "GOFLAGS": os.environ.get("GOFLAGS", ""), "GOWORK": "off"},
        timeout=3600,
    )
    partial.rename(target)
    print(f"built {program.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return target


def _link(built: dict[Program, Path], bin_dir: Path) -> None:
    partial = bin_dir.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for program, path in built.items():
        for name in KUBE_PARTS if program is KUBE else (program.name,):
            (partial / name).symlink_to(path)
    partial.rename(bin_dir)


def _remove_dangling(folder: Path) -> None:
    """Remove the folders of links to programs that newer ones have replaced."""
    for bin_dir in folder.iterdir():
        if not all(link.exists() for link in bin_dir.iterdir()):
            shutil.rmtree(bin_dir)
