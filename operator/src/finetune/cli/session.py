"""What a command works with: the person's cluster, the registry behind it, and how failures are told.

The registry is found by, in this order: `--registry-url`, the Service that `--registry-service` or the last `login`
names, the Service of the chart's label. A Service is reached through the API server's proxy: whoever can use kubectl
needs nothing else.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from finetune.clients.cluster import Cluster
    from finetune.clients.kubeconfig import Connection
    from finetune.clients.people import PeopleClient

    from .logins import Logins

REGISTRY_URL = "FINETUNE_REGISTRY_URL"
REGISTRY_SERVICE = "FINETUNE_REGISTRY_SERVICE"
TOKEN_FILE = "FINETUNE_TOKEN_FILE"  # noqa: S105 - the name of a variable
DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_SERVICE = "finetune-system/finetune-operator-registry"
REGISTRY_LABELS = "app.kubernetes.io/name=finetune-operator,app.kubernetes.io/component=registry"
PORT = "http"
TLS = "https:"
"""Begins the name of a Service that the API server's proxy is to speak TLS with."""
INTERRUPTED = 130

Result = str | int
"""What a command gives: a text to print, or an exit code when it has printed by itself."""
Command = Callable[["Session", argparse.Namespace], Awaitable[Result]]


class UsageError(Exception):
    """The command cannot do what was asked for; the text says why and what to do."""


def add_options(parser: argparse.ArgumentParser, *, inner: bool) -> None:
    """The options of every command. `inner`: of a command, so that those given before it stay as they are."""
    default: Any = argparse.SUPPRESS if inner else None
    group = parser.add_argument_group("cluster and registry")
    group.add_argument("-n", "--namespace", type=_namespace, default=default, help="default: the kubeconfig's")
    group.add_argument("--context", default=default, help="context of the kubeconfig; default: the current one")
    group.add_argument("--kubeconfig", type=Path, default=default, metavar="FILE", help="default: KUBECONFIG")
    group.add_argument(
        "--registry-service", default=default, metavar="NAMESPACE/NAME", help=f"default: {REGISTRY_SERVICE}, or found"
    )
    group.add_argument(
        "--port-forward",
        action="store_true",
        default=argparse.SUPPRESS if inner else False,
        help="reach the registry by `kubectl port-forward` instead of the API server's proxy",
    )
    group.add_argument("--registry-url", default=default, metavar="URL", help=f"default: {REGISTRY_URL}")
    group.add_argument(
        "--token-file", type=Path, default=default, metavar="FILE", help=f"default: {TOKEN_FILE}, then of `login`"
    )


def _namespace(text: str) -> str:
    """A namespace; empty is that of the kubeconfig, as for kubectl."""
    if text and not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a namespace")
    return text


class Session:
    """Cluster and registry of one command, opened when they are asked for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._connection: Connection | None = None
        self._cluster: Cluster | None = None
        self._registry: PeopleClient | None = None
        self._service = ""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def connection(self) -> Connection:
        """The cluster of the kubeconfig. Raises KubeconfigError."""
        if self._connection is None:
            from finetune.clients.kubeconfig import load

            given = self._arguments
            self._connection = load(os.environ, file=given.kubeconfig, context=given.context, namespace=given.namespace)
        return self._connection

    @property
    def namespace(self) -> str:
        """The namespace of `-n`, else of the kubeconfig's context, else `default`."""
        from finetune.clients.kubeconfig import KubeconfigError

        if self._arguments.namespace:
            return str(self._arguments.namespace)
        try:
            return self.connection.namespace
        except KubeconfigError:
            if self._arguments.context or self._arguments.kubeconfig:
                raise
            return "default"

    @property
    def registry_url(self) -> str | None:
        """The address that was given for the registry; none where a Service is used."""
        return self._arguments.registry_url or os.environ.get(REGISTRY_URL) or None

    async def registry_name(self) -> str:
        """What to call the registry: its address, or its Service."""
        from finetune.clients.kubeconfig import KubeconfigError

        try:
            return self.registry_url or await self.service()
        except KubeconfigError:
            return DEFAULT_URL

    async def cluster(self) -> Cluster:
        """The API server."""
        if self._cluster is None:
            from finetune.clients.cluster import Cluster

            self._cluster = await self._stack.enter_async_context(Cluster(self.connection))
        return self._cluster

    async def registry(self) -> PeopleClient:
        """The registry, with the person's token where there is one."""
        if self._registry is None:
            self._registry = await self._stack.enter_async_context(await self._open_registry())
        return self._registry

    async def service(self) -> str:
        """The registry's Service, as NAMESPACE/NAME, or as NAMESPACE/https:NAME where it speaks TLS."""
        if not self._service:
            named = self._arguments.registry_service or os.environ.get(REGISTRY_SERVICE)
            known = None if named else self.logins.service(self.connection.server)
            service = known or await self._with_scheme(named or await self._found_service())
            if service.count("/") != 1:
                raise UsageError(f"--registry-service is NAMESPACE/NAME, such as {DEFAULT_SERVICE}; not {service!r}")
            self._service = service
        return self._service

    async def _with_scheme(self, service: str) -> str:
        """The Service as the API server's proxy calls it; who may not read it takes it for one without TLS."""
        from finetune.clients.kubernetes_errors import KubernetesError

        namespace, _, name = service.partition("/")
        if name.startswith(TLS) or not name:
            return service
        try:
            found = await (await self.cluster()).get(f"/api/v1/namespaces/{namespace}/services/{name}")
        except KubernetesError:
            return service
        speaks_tls = any(port.get("appProtocol") == "https" for port in found["spec"].get("ports") or ())
        return f"{namespace}/{TLS}{name}" if speaks_tls else service

    @property
    def logins(self) -> Logins:
        """What `login` has kept."""
        from .logins import Logins

        return Logins.read(os.environ)

    async def _open_registry(self) -> PeopleClient:
        from finetune.clients.kubeconfig import KubeconfigError
        from finetune.clients.people import PeopleClient

        token_file = self._arguments.token_file or os.environ.get(TOKEN_FILE)
        if self.registry_url is not None:
            return PeopleClient(base_url=self.registry_url, token_file=Path(token_file) if token_file else None)
        try:
            connection = self.connection
        except KubeconfigError:
            if self._arguments.context or self._arguments.kubeconfig or self._arguments.registry_service:
                raise
            return PeopleClient(base_url=DEFAULT_URL, token_file=Path(token_file) if token_file else None)
        namespace, name = (await self.service()).split("/")
        if self._arguments.port_forward:
            if name.startswith(TLS):
                raise UsageError(
                    f"--port-forward cannot check the certificate of {namespace}/{name}: leave it out, and the API "
                    "server's proxy is used"
                )
            return PeopleClient(
                base_url=await self._stack.enter_async_context(forwarded(self._kubectl_flags(), namespace, name)),
                token=await self._token(token_file),
            )
        target = name if name.startswith(TLS) else f"http:{name}"
        url = f"{connection.server}/api/v1/namespaces/{namespace}/services/{target}:{PORT}/proxy"
        return PeopleClient(base_url=url, token=await self._token(token_file), through=connection)

    async def _token(self, file: str | None) -> Callable[[], str] | None:
        """What gives the token: a file that was named, else what `login` has kept; nothing without either."""
        from finetune.clients.registry_answers import FileToken

        if file:
            return FileToken(Path(file))
        token = await self._kept_token()
        return (lambda: token) if token else None

    def _kubectl_flags(self) -> list[str]:
        """What makes kubectl mean the same cluster."""
        given = {"--context": self._arguments.context, "--kubeconfig": self._arguments.kubeconfig}
        return [f"{flag}={value}" for flag, value in given.items() if value]

    async def _kept_token(self) -> str:
        """The token of `login`, made anew once it has expired; empty without a login."""
        from .logins import renewed

        login = self.logins.find(self.connection.server, self.namespace)
        if login is None:
            return ""
        if login.expired:
            login = await renewed(await self.cluster(), login)
            self.logins.keep(self.connection.server, self.namespace, login)
        return login.token

    async def _found_service(self) -> str:
        from finetune.clients.kubernetes_errors import KubernetesError

        try:
            found = await (await self.cluster()).items("/api/v1/services", labelSelector=REGISTRY_LABELS)
        except KubernetesError:
            return DEFAULT_SERVICE  # who may not list the Services of all namespaces may still use this one
        names = sorted(f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in found)
        if len(names) > 1:
            raise UsageError(f"there are several registries: {', '.join(names)}; choose one with --registry-service")
        return names[0] if names else DEFAULT_SERVICE


@asynccontextmanager
async def forwarded(flags: Sequence[str], namespace: str, service: str) -> AsyncIterator[str]:
    """A port-forward to a Service by kubectl, as the URL on the loopback. Raises UsageError."""
    import asyncio
    from asyncio.subprocess import PIPE

    argv = [
        "kubectl",
        *flags,
        f"--namespace={namespace}",
        "port-forward",
        f"service/{service}",
        "--address=127.0.0.1",
        f":{PORT}",
    ]
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE)
    except FileNotFoundError as error:
        raise UsageError("--port-forward needs kubectl on PATH; without it the API server's proxy is used") from error
    try:
        said = (await process.stdout.readline()).decode() if process.stdout else ""
        found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", said)
        if found is None:
            with suppress(ProcessLookupError):
                process.terminate()
            why = (await process.communicate())[1].decode().strip()
            raise UsageError(f"kubectl port-forward to {namespace}/{service} does not work: {why or said}")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def run_command(command: Command, arguments: argparse.Namespace) -> int:
    """Run one command; a failure becomes a sentence and a hint on standard error, and an exit code."""
    import asyncio

    async def call() -> Result:
        async with Session(arguments) as session:
            return await command(session, arguments)

    try:
        result = asyncio.run(call())
    except BrokenPipeError:  # the reader of the output has seen enough: see main
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except failures() as error:
        return failed(error)
    if isinstance(result, str):
        if result:
            print(result)
        return 0
    return result


def failures() -> tuple[type[Exception], ...]:
    """What may go wrong in a command; anything else is a fault of ours. Imported where something has gone wrong."""
    from finetune.clients.kubeconfig import KubeconfigError
    from finetune.clients.kubernetes_errors import KubernetesError
    from finetune.clients.registry_errors import RegistryError

    return RegistryError, KubernetesError, KubeconfigError, UsageError, OSError


def failed(error: Exception) -> int:
    """Say what one of the `failures` means and what to do; gives the exit code."""
    from finetune.clients.kubeconfig import KubeconfigError
    from finetune.clients.kubernetes_errors import KubernetesError
    from finetune.clients.registry_errors import RegistryDenied, RegistryRefused, RegistrySilent

    match error:
        case RegistryRefused():
            return fail(error.message, error.hint)
        case RegistryDenied():
            hint = "`finetune login` makes a token for the registry; `finetune doctor` says what is missing"
            return fail(str(error), hint)
        case RegistrySilent():
            hint = "`finetune doctor` says where it is looked for; --registry-url names another address"
            return fail(str(error), hint)
        case KubernetesError():
            return fail(*told(error))
        case KubeconfigError() | UsageError():
            return fail(str(error), code=2)
        case OSError():
            return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), code=2)
        case _:  # any other of the registry's
            return fail(str(error))


def fail(message: str, hint: str = "", *, code: int = 1) -> int:
    """Say what went wrong and what to do; gives the exit code."""
    print(f"finetune: {message}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    return code


def note(text: str) -> None:
    """Say something beside a command's output."""
    print(f"note: {text}", file=sys.stderr)


def told(error: Any) -> tuple[str, str]:
    """What the API server's refusal means to a person, and what to do about it."""
    from finetune.clients.kubernetes_errors import AlreadyExistsError, NotFoundError, NotServedError

    if isinstance(error, NotFoundError):
        return error.message, "`finetune list` shows the runs of the namespace; -n chooses another one"
    if isinstance(error, AlreadyExistsError):
        return error.message, "give the run another name, or leave the name out: one is made up then"
    if isinstance(error, NotServedError) and "finetune.dev" in error.path:
        return "this cluster does not serve TrainingRuns", "install the chart first; see docs/install.md"
    if error.status == 401:
        return "the API server does not know you", "log in to the cluster again: kubectl shall work first"
    if error.status == 403:
        return error.message, "ask an administrator of the namespace for this right; the cluster role `edit` has it"
    if error.status == 0:
        return f"the API server does not answer: {error.message}", "is the cluster up, and is it the right --context?"
    return error.message, ""
