"""An API server without a node: all of the API's behaviour (CRDs, CEL, RBAC, admission), but nothing ever runs.

with ApiServerOnly() as server:
    subprocess.run(["kubectl", "apply", "-f", "crds/"], env={"KUBECONFIG": str(server.kubeconfig), ...})
    server.start_controllers()  # where Jobs shall make pods, and owners take their children with them
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from tests.cluster import go_build, host, render
from tests.cluster.base import ClusterError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.layout import LOOPBACK, NODE_ADDRESS, Layout, Ports, is_taken
from tests.cluster.supervise import Supervisor

ATTEMPTS = 3
MEMORY = {"GOGC": "300", "GOMEMLIMIT": "700MiB"}
"""Collect garbage less often, while there is little: that takes a fifth of an API server's processor time."""

CONTROLLERS = (
    "job-controller",
    "garbage-collector-controller",
    "ttl-after-finished-controller",
    "namespace-controller",
    "resourcequota-controller",
    "persistentvolumeclaim-protection-controller",
)
"""What makes a Job's pods and ends them, removes what has no owner or no namespace any more, and counts quotas.

A claim's namespace could never go without the last one, which takes off what protects claims that are in use.
"""

MUTATING_POLICIES = (
    "--feature-gates=MutatingAdmissionPolicy=true",
    "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
)
"""Flags that let a test change objects on their way in, as a mesh's webhook does, without a webhook's server."""


class ApiServerOnly:
    """etcd and an API server on ports of their own, in a folder of their own, for as long as this process lives.

    Args:
        flags: more flags of the API server.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._flags = flags
        self._plane: ControlPlane | None = None
        self._lock: TextIO | None = None
        self._lifeline: tuple[int, ...] = ()  # a pipe: its ends while the programs run

    @property
    def kubeconfig(self) -> Path:
        """The file that gives an administrator access."""
        return self._running().layout.kubeconfig("super-admin")

    @property
    def bin_dir(self) -> Path:
        """A folder with ``kubectl``."""
        return self._running().bin_dir

    @property
    def etcd(self) -> str:
        """URL of etcd, which takes JSON below ``/v3``."""
        return f"http://{LOOPBACK}:{self._running().ports.etcd}"

    @property
    def programs(self) -> dict[str, int]:
        """The process numbers of the programs that were started, by name."""
        return {name: each.pid for name, each in self._running().supervisor.recorded().items()}

    def _running(self) -> ControlPlane:
        if self._plane is None:
            raise ClusterError("this API server is not running: call up(), or use it in a `with` statement")
        return self._plane

    def up(self) -> None:
        """Start it; up to three times, where another program takes a port between its choice and its use."""
        bin_dir = go_build.build(go_build.API_SERVER)
        parent = host.cache_dir() / "api"
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start(bin_dir, parent)
            except ClusterError as error:
                self.down()
                if attempt == ATTEMPTS or "address already in use" not in str(error):
                    raise
            else:
                return

    def _start(self, bin_dir: Path, parent: Path) -> None:
        root = Path(tempfile.mkdtemp(dir=parent))
        layout = Layout(root)
        self._lock = (root / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lifeline = os.pipe()
        read_end = self._lifeline[0]
        self._plane = ControlPlane(
            layout=layout,
            ports=Ports.free(),
            bin_dir=bin_dir,
            address=LOOPBACK,
            supervisor=Supervisor(records=layout.records, logs=layout.logs),
            extra_env={"LIFELINE_FD": str(read_end), **MEMORY},
            pass_fds=(read_end,),
        )
        # Without the controller that makes them, pods would be refused for want of a service account.
        api = self._plane.start(disabled_admission=("ServiceAccount",), flags=self._flags)
        self._plane.wait_until("namespace default exists", lambda: api.get("/api/v1/namespaces/default"))

    def start_controllers(self, controllers: Sequence[str] = CONTROLLERS) -> None:
        """Start the real controller manager beside it; the definitions that it shall know must be there before."""
        plane = self._running()
        credentials = plane.layout.kubeconfig("controller-manager")  # kubeadm wrote the address of a node into it
        credentials.write_text(credentials.read_text().replace(NODE_ADDRESS, LOOPBACK))
        plane.start_program(render.controller_manager(plane.layout, plane.ports, controllers=controllers))
        plane.wait_until("the controller manager is ready", lambda: is_taken(LOOPBACK, plane.ports.controller_manager))

    def down(self) -> None:
        """Stop it and remove its folder."""
        if self._plane is not None:
            self._plane.supervisor.stop_all()
            shutil.rmtree(self._plane.layout.root)
            self._plane = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for end in self._lifeline:
            os.close(end)
        self._lifeline = ()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of runs that were killed: nobody holds their lock; their programs ended with them."""
    for root in parent.iterdir():
        try:
            with (root / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root)
        except (BlockingIOError, FileNotFoundError):
            continue  # in use, or another run is just making or removing it
