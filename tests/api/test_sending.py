"""Files that a trainer could not send get into the registry after the run has succeeded, or no more is said of them.

The send Job's container is played here: what it runs is tested with a real registry in tests/unit/test_model_upload.py.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.support.adapters import adapter_files, announce, registered, send
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Document, Play
from tests.support.managed import Managed, a_managed_world
from tests.support.watching import RUN_UID
from tests.support.world import eventually, result_of

FILES = adapter_files()


def trained(pod: Document) -> Document:
    """The last words of a trainer that has made real files."""
    uid = pod["metadata"]["labels"][RUN_UID]
    words = result_of(uid)
    words["result"]["adapter"] = registered(uid, FILES)["result"]["adapter"]
    return words


def upload(managed: Managed, uid: str) -> None:
    """What the command in the container does."""
    with httpx.Client(base_url=_url(managed)) as http:
        announce(http, uid, FILES).raise_for_status()
        for content in FILES.values():
            send(http, uid, content).raise_for_status()


async def test_a_run_succeeds_at_once_and_its_files_follow(managed_kubectl: Kubectl, tmp_path: Path) -> None:
    async with a_managed_world(managed_kubectl, tmp_path) as managed:
        for name, code in (("sent", 0), ("refused", 2)):
            managed.kubelet.script(name, Attempt(trainer=Play(words=trained)))
            managed.kubelet.script(name, Attempt(plays={"send": Play(seconds=None)}), role="send")
            managed.world.apply(name)
            run = await managed.world.phase("Succeeded", name)
            assert stored(managed, name) is False
            (life,) = await eventually(f"{name} has a sender", partial(managed.kubelet.of, name, "send"))
            if not code:
                await asyncio.to_thread(upload, managed, run["metadata"]["uid"])
            life.orders["send"] = (code, "")
            life.wake()
        await eventually("the files are there", lambda: stored(managed, "sent") is True)
        await eventually("nothing is sent any more", lambda: stored(managed, "refused") is None)
        assert [await state(managed, name) for name in ("sent", "refused")] == ["Ready", "Registered"]


def stored(managed: Managed, name: str) -> Any:
    """What the run's status says of its adapter's files."""
    return (managed.world.run(name) or {})["status"]["result"]["adapter"].get("stored")


async def state(managed: Managed, name: str) -> str:
    """The state of the adapter's version in the registry."""
    found = await managed.world.client.list_adapter_versions(managed.world.kubectl.namespace, name)
    return found[0].state


def _url(managed: Managed) -> str:
    return f"{managed.world.registry.url}/api/v1/namespaces/{managed.world.kubectl.namespace}/"
