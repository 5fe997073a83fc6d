"""The two programs that can build and keep images here: Docker where its engine answers, else buildah."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from images import shell

BUILD_SECONDS = 3600.0
FIRST_WITHOUT_BUILDKIT = 23


@dataclass(frozen=True)
class Mount:
    """A folder of this machine inside a container."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class BuildRequest:
    """One image to build.

    Attributes:
        tag: ``name:tag`` of the result.
        dockerfile: how to build it.
        context: the folder that COPY reads from.
        stage: the Dockerfile's stage to stop after; the last one where it is empty.
        arguments: values of the Dockerfile's ARGs.
        secrets: files that RUN steps can mount by their id and that never reach the image.
        labels: of the image.
        seconds: the time since 1970 that image and files are said to be from, whenever they are made.
    """

    tag: str
    dockerfile: Path
    context: Path
    stage: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    seconds: int = 0


class Engine(ABC):
    """Builds, keeps, runs and pushes images; an image is named ``name:tag`` without a registry."""

    name: str

    @abstractmethod
    def local_reference(self, tag: str) -> str:
        """The full name by which a Dockerfile's FROM finds a local image, and nothing else."""

    @abstractmethod
    def image_id(self, tag: str) -> str | None:
        """The digest (hex) of a local image's configuration; None where there is no such image."""

    @abstractmethod
    def size(self, tag: str) -> int:
        """Bytes of an image's files, unpacked."""

    @abstractmethod
    def tags(self, name: str) -> list[str]:
        """The tags of all local images of this name."""

    @abstractmethod
    def pull(self, reference: str) -> bool:
        """Fetch a public image; False where it cannot be reached."""

    def discard_leftovers(self) -> None:  # noqa: B027 - not every engine leaves any
        """Remove what a killed build left behind; no other process builds meanwhile."""

    @abstractmethod
    def build(self, request: BuildRequest) -> None:
        """Build an image; its output goes to standard error."""

    @abstractmethod
    def import_rootfs(self, archive: Path, tag: str) -> None:
        """Make an image of one layer from a tar file of a root file system."""

    @abstractmethod
    def remove(self, tags: Sequence[str]) -> None:
        """Remove images and what only they used; one that a container still uses stays, and goes the next time."""

    @abstractmethod
    def push(self, tag: str, destination: str) -> None:
        """Copy an image to a registry; to one on loopback without TLS."""

    @abstractmethod
    def run(
        self, tag: str, argv: Sequence[str], *, mounts: Sequence[Mount], env: Mapping[str, str], folder: str
    ) -> int:
        """Run a command in a container of an image, as this user, and remove the container.

        Returns:
            The command's exit code.
        """


class Docker(Engine):
    """A Docker engine."""

    name = "docker"

    def local_reference(self, tag: str) -> str:
        return tag

    def image_id(self, tag: str) -> str | None:
        try:
            return shell.run(["docker", "image", "inspect", "--format={{.Id}}", tag]).strip().removeprefix("sha256:")
        except shell.CommandError:
            return None

    def size(self, tag: str) -> int:
        return int(shell.run(["docker", "image", "inspect", "--format={{.Size}}", tag]))

    def tags(self, name: str) -> list[str]:
        listed = shell.run(["docker", "image", "list", "--format={{.Tag}}", name]).split()
        return [f"{name}:{tag}" for tag in listed if tag != "<none>"]

    def pull(self, reference: str) -> bool:
        return shell.succeeds(["docker", "pull", "--quiet", reference], timeout=BUILD_SECONDS)

    def build(self, request: BuildRequest) -> None:
        argv = ["docker", "build", "--progress=plain", f"--file={request.dockerfile}", f"--tag={request.tag}"]
        environment = {"DOCKER_BUILDKIT": "1", "SOURCE_DATE_EPOCH": str(request.seconds)}
        _stream([*argv, *_build_flags(request), str(request.context)], env=environment)

    def import_rootfs(self, archive: Path, tag: str) -> None:
        shell.run(["docker", "import", archive, tag], timeout=BUILD_SECONDS)

    def remove(self, tags: Sequence[str]) -> None:
        if tags:
            shell.succeeds(["docker", "image", "rm", *tags])

    def push(self, tag: str, destination: str) -> None:
        shell.run(["docker", "tag", tag, destination])
        shell.run(["docker", "push", "--quiet", destination], timeout=BUILD_SECONDS)

    def run(
        self, tag: str, argv: Sequence[str], *, mounts: Sequence[Mount], env: Mapping[str, str], folder: str
    ) -> int:
        flags = [f"--volume={mount.source}:{mount.target}:{'rw' if mount.writable else 'ro'}" for mount in mounts]
        flags += [f"--env={name}={value}" for name, value in env.items()]
        user = f"--user={os.getuid()}:{os.getgid()}"
        command = ["docker", "run", "--rm", user, f"--workdir={folder}", *flags, "--entrypoint=", tag, *argv]
        return subprocess.run(command, check=False).returncode


class Buildah(Engine):
    """buildah, as root, without a daemon, on a store of its own below the cache folder."""

    name = "buildah"

    def __init__(self) -> None:
        store = shell.cache_dir() / "buildah"
        # Layers are written to a file on their way into the store, and /var/tmp may be too small for them.
        self._scratch = store / "tmp"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._prefix = [
            "env",
            f"TMPDIR={self._scratch}",
            "buildah",
            f"--root={store / 'storage'}",
            f"--runroot={store / 'run'}",
            "--storage-driver=overlay",
        ]

    def _command(self, *arguments: str | Path) -> list[str]:
        return [*self._prefix, *map(str, arguments)]

    def local_reference(self, tag: str) -> str:
        return f"localhost/{tag}"

    def image_id(self, tag: str) -> str | None:
        try:
            answer = shell.run(self._command("inspect", "--type=image", self.local_reference(tag)))
        except shell.CommandError:
            return None
        return str(json.loads(answer)["FromImageID"])

    def size(self, tag: str) -> int:
        listed = json.loads(shell.run(self._command("images", "--json", self.local_reference(tag))))
        return _bytes(listed[0]["size"])

    def tags(self, name: str) -> list[str]:
        listed = json.loads(shell.run(self._command("images", "--json", "--no-trunc")) or "null") or []
        names = [reference for image in listed for reference in image["names"] or []]
        prefix = self.local_reference(f"{name}:")
        return [reference.removeprefix("localhost/") for reference in names if reference.startswith(prefix)]

    def pull(self, reference: str) -> bool:
        return shell.succeeds(self._command("pull", "--quiet", reference), timeout=BUILD_SECONDS)

    def discard_leftovers(self) -> None:
        for path in self._scratch.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def build(self, request: BuildRequest) -> None:
        # Layers are kept, so that a changed line repeats the steps below it only. No image is asked for in a registry:
        # the base is either local or was pulled before.
        flags = [
            "--isolation=chroot",
            "--layers",
            "--force-rm",
            "--pull-never",
            "--format=oci",
            f"--timestamp={request.seconds}",
            f"--file={request.dockerfile}",
        ]
        tag = f"--tag={self.local_reference(request.tag)}"
        _stream(self._command("bud", *flags, tag, *_build_flags(request), request.context))

    def import_rootfs(self, archive: Path, tag: str) -> None:
        container = shell.run(self._command("from", "scratch")).strip()
        try:
            shell.run(self._command("add", "--quiet", container, archive, "/"), timeout=BUILD_SECONDS)
            reference = self.local_reference(tag)
            shell.run(self._command("commit", "--quiet", container, reference), timeout=BUILD_SECONDS)
        finally:
            shell.run(self._command("rm", container))

    def remove(self, tags: Sequence[str]) -> None:
        if tags:
            shell.succeeds(self._command("rmi", *[self.local_reference(tag) for tag in tags]), timeout=BUILD_SECONDS)
            shell.succeeds(self._command("rmi", "--prune"), timeout=BUILD_SECONDS)

    def push(self, tag: str, destination: str) -> None:
        loopback = destination.startswith(("localhost:", "127.0.0.1:"))
        # For a registry beside us quick compression is worth more than good compression; the node unpacks faster, too.
        flags = ["--tls-verify=false", "--compression-format=zstd", "--compression-level=1"] if loopback else []
        source = self.local_reference(tag)
        argv = self._command("push", "--quiet", *flags, source, f"docker://{destination}")
        with shell.lock("images"):
            shell.run(argv, timeout=BUILD_SECONDS)

    def run(
        self, tag: str, argv: Sequence[str], *, mounts: Sequence[Mount], env: Mapping[str, str], folder: str
    ) -> int:
        container = shell.run(self._command("from", "--pull-never", self.local_reference(tag))).strip()
        try:
            flags = [f"--volume={mount.source}:{mount.target}:{'rw' if mount.writable else 'ro'}" for mount in mounts]
            flags += [f"--env={name}={value}" for name, value in env.items()]
            shell.run(self._command("config", f"--workingdir={folder}", container))
            command = self._command("run", "--isolation=chroot", "--user=0:0", *flags, container, "--", *argv)
            return subprocess.run(command, check=False).returncode
        finally:
            shell.run(self._command("rm", container))


def detect() -> Engine:
    """The engine of this machine.

    Raises:
        CommandError: there is none, and buildah cannot be used either.
    """
    if shutil.which("docker") and shell.succeeds(["docker", "version", "--format={{.Server.Version}}"], timeout=10):
        _require_buildkit(shell.run(["docker", "version", "--format={{.Client.Version}}"]).strip())
        return Docker()
    if os.getuid() != 0:
        raise shell.CommandError(
            "images are built by a Docker engine, or by buildah as root: `docker version` does not answer, and this is "
            "not root; start Docker, or run this as root"
        )
    shell.install({"buildah": "buildah"})
    return Buildah()


def _require_buildkit(client: str) -> None:
    """Raise CommandError where Docker's command line cannot build: since 23 it leaves BuildKit to a plugin."""
    major = client.partition(".")[0]
    if major.isdigit() and int(major) < FIRST_WITHOUT_BUILDKIT:
        return
    if not shell.succeeds(["docker", "buildx", "version"], timeout=30):
        raise shell.CommandError(
            f"Docker {client} builds images by its plugin buildx, which is missing: install it (docker-buildx-plugin "
            "in Docker's packages, docker-buildx in Debian's and Ubuntu's)"
        )


def _build_flags(request: BuildRequest) -> list[str]:
    flags = [f"--build-arg={name}={value}" for name, value in request.arguments.items()]
    flags += [f"--target={request.stage}"] if request.stage else []
    flags += [f"--label={name}={value}" for name, value in request.labels.items()]
    return flags + [f"--secret=id={name},src={path}" for name, path in request.secrets.items()]


def _stream(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
    """Run a long command with its output on standard error, where progress belongs."""
    done = subprocess.run(argv, check=False, stdout=sys.stderr, env=dict(os.environ) | dict(env or {}))
    if done.returncode != 0:
        raise shell.CommandError(
            f"the image could not be built (code {done.returncode}): see the output above of {shlex.join(argv)}"
        )


def _bytes(text: str) -> int:
    """The number of bytes in buildah's ``6.41 GB``."""
    number, unit = text.split()
    return round(float(number) * 1000.0 ** ["B", "KB", "MB", "GB", "TB"].index(unit.upper()))
