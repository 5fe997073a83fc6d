"""What can go wrong with preference training on a parent: each ends in a reason, with what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.api import rules
from finetune.api.registry import AdapterFile, BaseModelReference, adapter_digest
from finetune.clients.registry import RegistryNotFound
from tests.support.databases import lose_the_database, restore_the_database
from tests.support.kubectl import CommandError, Kubectl, is_true
from tests.support.world import DIGEST, World, a_world, eventually, manifest, terminated

Document = dict[str, Any]

PREFERENCE: Document = {"method": "DPO", "parentAdapter": {"name": "support"}}
SHA256 = "0" * 64


@pytest.fixture
async def parent(world: World) -> Document:
    """A run that has succeeded; its adapter is support/1."""
    return await succeeded(world, "support")


async def succeeded(world: World, name: str) -> Document:
    world.apply(name)
    await started(world, name)
    world.finish_pod(name)
    return await world.phase("Succeeded", name)


async def started(world: World, name: str) -> None:
    await eventually("the Job", lambda: world.job_of(name))
    world.start_pod(name)
    await world.phase("Training", name)


async def failure_of(world: World, name: str) -> Document:
    """The end of a run that must fail; the conditions say the same as `status.failure`."""
    run = await world.phase("Failed", name)
    failure: Document = run["status"]["failure"]
    stalled = next(c for c in run["status"]["conditions"] if c["type"] == "Stalled")
    assert is_true(run, "Stalled")
    assert (stalled["reason"], stalled["message"]) == (failure["reason"], failure["hint"])
    return failure


def export_words(folder: Path, rows: list[Document]) -> Document:
    """The last words of a real export of those rows for DPO."""
    source, said = folder / "rows.jsonl", folder / "said"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--method=DPO", f"--run-directory={folder}/run", "--source=volume", f"--path={source}"]
    ended = subprocess.run(
        [sys.executable, "-m", "model.data.export", *flags],
        env={**os.environ, "TERMINATION_LOG": str(said)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == 3, ended.stderr
    return terminated(3, json.loads(said.read_text()))


def sft_rows(folder: Path) -> Document:
    return export_words(folder, [{"prompt": "a", "completion": "b"}])


def equal_answers(folder: Path) -> Document:
    return export_words(
        folder,
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}],
    )


def no_file(_folder: Path) -> Document:
    text = "--parent-adapter=/models/parent/a/u/adapter holds no adapter: it has no adapter_config.json"
    return terminated(10, {"failure": {"reason": "AdapterInvalid", "message": text}})


def changed_files(_folder: Path) -> Document:
    text = f"the parent adapter /models/parent/a/u/adapter has the SHA-256 {SHA256}: its files were changed"
    return terminated(2, {"failure": {"reason": "AdapterInvalid", "message": text}})


def no_cuda(_folder: Path) -> Document:
    text = "1 GPUs were requested and none is usable: check the node's driver"
    return terminated(9, {"failure": {"reason": "GPUUnavailable", "message": text}})


@pytest.mark.usefixtures("parent")
async def test_what_the_pod_finds_wrong_is_told_with_what_to_do(world: World, tmp_path: Path) -> None:
    cases: list[tuple[str, str, Callable[[Path], Document], str, list[str]]] = [
        ("sft-rows", "export", sft_rows, "DatasetInvalid", ["chosen", "spec.dataset.columns"]),
        ("equal-answers", "export", equal_answers, "DatasetInvalid", ["row 2", "invalidRows: Drop"]),
        ("no-file", "trainer", no_file, "AdapterInvalid", ["holds no adapter", "spec.parentAdapter"]),
        ("changed-files", "trainer", changed_files, "AdapterInvalid", [SHA256, "Restore a parent"]),
        ("no-cuda", "trainer", no_cuda, "GPUUnavailable", ["none is usable", "spec.scheduling.runtimeClassName"]),
    ]
    for name, container, words, *_ in cases:
        (tmp_path / name).mkdir()
        quantization = "NF4" if name == "no-cuda" else "None"
        world.apply(name, **PREFERENCE, quantization=quantization)
        await started(world, name)
        ended = words(tmp_path / name)
        export, trainer = (ended, {"waiting": {}}) if container == "export" else (terminated(0), ended)
        world.set_pod_status(name, "Failed", export, trainer)
        world.set_job_condition(name, "Failed", reason="PodFailurePolicy", message="a rule")
    for name, _, _, reason, told in cases:
        failure = await failure_of(world, name)
        assert failure["reason"] == reason, failure
        assert [each for each in told if each not in f"{failure['message']} {failure['hint']}"] == [], failure
    row = (await failure_of(world, "equal-answers"))["row"]
    assert row == 2


@pytest.mark.parametrize("how", ["being deleted", "gone"])
async def test_the_parents_claim_goes_while_the_pod_waits(kubectl: Kubectl, tmp_path: Path, how: str) -> None:
    """Before the Job the operator sees it, after that only the scheduler does."""
    async with a_world(kubectl, tmp_path, FINETUNE_PENDING_SECONDS="0") as world:
        parent = await succeeded(world, "support")
        claim = parent["status"]["output"]["claimName"]
        if how == "being deleted":
            world.kubectl("delete", "pvc", claim, "--wait=false")  # its finalizer keeps it while a pod may use it
            world.apply("preferred", **PREFERENCE)
        else:
            world.apply("preferred", **PREFERENCE)
            await eventually("the Job", lambda: world.job_of("preferred"))
            world.create_pod("preferred")
            text = f'0/1 nodes are available: persistentvolumeclaim "{claim}" not found.'
            unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
            pod = world.kubectl.items("pods", "finetune.dev/run=preferred")[0]["metadata"]["name"]
            nothing: Document = {"initContainerStatuses": [], "containerStatuses": []}
            world.patch_status("pod", pod, {"phase": "Pending", "conditions": [unscheduled], **nothing})
        failure = await failure_of(world, "preferred")
        assert failure["reason"] == "ParentAdapterUnavailable"
        assert f'PersistentVolumeClaim "{claim}"' in failure["message"]
        assert ("is being deleted" if how == "being deleted" else "not found in namespace") in failure["message"]
        assert "the claim that holds the parent must exist" in failure["hint"]


async def test_a_registry_that_lost_its_database_cannot_give_a_run_another_parent(
    world: World, parent: Document, tmp_path: Path
) -> None:
    """The number of the parent is another adapter's by the time at which the child is registered."""
    del parent
    world.apply("preferred", **PREFERENCE)
    await started(world, "preferred")
    kept = await lose_the_database(world, tmp_path)
    other = await register_another(world, "support")
    world.finish_pod("preferred")
    waiting = await eventually("the refusal", lambda: told(world, "is not the one that was recorded for the run"))
    assert f"its SHA-256 was {DIGEST}, and now is {other}" in waiting["message"]
    assert "restore the registry's database from a backup" in waiting["message"]
    assert (world.run("preferred") or {})["status"]["phase"] == "Registering"
    with pytest.raises(RegistryNotFound):
        await world.client.get_adapter_version(world.kubectl.namespace, "preferred")
    await restore_the_database(world, tmp_path, kept)
    done = await world.phase("Succeeded", "preferred")
    assert done["status"]["parentAdapter"] == {"name": "support", "version": 1, "sha256": DIGEST}
    registered = await world.client.get_adapter_version(world.kubectl.namespace, "preferred")
    assert registered.parent is not None
    assert (registered.parent.version, registered.parent.sha256) == (1, DIGEST)


def told(world: World, words: str) -> Document | None:
    """The condition of the run that has those words."""
    run = world.run("preferred") or {}
    listed: list[Document] = (run.get("status") or {}).get("conditions") or []
    return next((each for each in listed if words in each.get("message", "")), None)


async def register_another(world: World, name: str) -> str:
    """Another run's adapter as version 1 of that name, and the dataset; returns the adapter's digest."""
    namespace, uid = world.kubectl.namespace, "another-run"
    rows = Path(world.registry_server.log).parent / "rows.jsonl"
    await world.client.push_dataset(namespace, "tickets", rows)
    await world.client.put_run(namespace, uid, name="another", experiment="another", method="SFT", spec={})
    file = AdapterFile(path="adapter_model.safetensors", bytes=3, sha256="7" * 64)
    digest = adapter_digest([file])
    result = world.result("support")["result"] | {
        "runUid": uid,
        "adapter": {"sha256": digest, "bytes": 3, "files": [file.model_dump()]},
    }
    made = await world.client.put_adapter(
        namespace,
        uid,
        adapter_name=name,
        claim_name="elsewhere",
        base_model=BaseModelReference(name="m"),
        dataset={"rows": 3, "sha256": "d" * 64},
        result=result,
    )
    assert made.version == 1
    return digest


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"quantization": "NF4", "resources": {"gpus": 0}},
            "quantization needs a GPU: set resources.gpus to 1 or more",
        ),
        ({**PREFERENCE, "lora": {"rank": 8}}, rules.FROM_THE_PARENT),
        (
            {"method": "DPO", "dataset": {"registry": {"name": "t"}, "columns": {"completion": "a"}}},
            "map prompt, chosen",
        ),
    ],
)
def test_what_no_pod_could_mend_is_refused_by_kubectl_apply(kubectl: Kubectl, spec: Document, sentence: str) -> None:
    with pytest.raises(CommandError) as caught:
        kubectl.apply(manifest("refused", **spec))
    assert sentence in str(caught.value)
