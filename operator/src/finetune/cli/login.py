"""`finetune login` and `logout`: a token for the registry, from the rights that kubectl has."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING

from .logins import Logins, request_token
from .session import Session, UsageError

if TYPE_CHECKING:
    from finetune.clients.cluster import Cluster

DEFAULT_ACCOUNT = "finetune"
ROLE = "edit"


async def login(session: Session, arguments: argparse.Namespace) -> str:
    """Make a token of a service account of the namespace, keep it, and try it."""
    from finetune.clients.kubernetes_errors import NotFoundError

    cluster, namespace, account = await session.cluster(), session.namespace, arguments.account
    if arguments.create:
        await _create_account(cluster, namespace, account)
    try:
        made = await request_token(cluster, f"{namespace}/{account}", arguments.hours * 3600)
    except NotFoundError as error:
        raise UsageError(
            f"there is no service account {account} in {namespace}; --create makes it, with the rights of the cluster "
            f"role `{ROLE}` in {namespace}"
        ) from error
    logins = Logins.read(os.environ)
    logins.keep(session.connection.server, namespace, made, service=await session.service())
    said = f"logged in to namespace {namespace} as its service account {account}; the token is renewed when it ends"
    if session.registry_url is None:
        registry = await session.registry()
        await registry.list_datasets(namespace)
        said += f"\nthe registry {await session.service()} answers"
    return said


async def logout(session: Session, _: argparse.Namespace) -> str:
    """Forget the namespace's token."""
    known = Logins.read(os.environ).forget(session.connection.server, session.namespace)
    return f"logged out of namespace {session.namespace}" if known else f"there was no login for {session.namespace}"


async def _create_account(cluster: Cluster, namespace: str, account: str) -> None:
    """A service account that may use datasets and adapters, unless it is there already."""
    from finetune.clients.kubernetes_errors import AlreadyExistsError

    binding = {
        "metadata": {"name": f"{account}-{ROLE}"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
    }
    bindings = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
    account_itself = {"metadata": {"name": account}}
    for path, body in ((f"/api/v1/namespaces/{namespace}/serviceaccounts", account_itself), (bindings, binding)):
        with contextlib.suppress(AlreadyExistsError):
            await cluster.create(path, body)
