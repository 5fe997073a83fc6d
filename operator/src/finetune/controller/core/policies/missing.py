"""What the words of scheduler and kubelet say is missing, by what the spec uses it for."""

from __future__ import annotations

import re

from finetune.api import reasons
from finetune.api.sources import ConfigMapDataset, ConfigMapKey
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core.case import Case
from finetune.controller.core.environment import secret_names
from finetune.controller.core.findings import Finding, expire, wait
from finetune.controller.core.storage import CHAT_TEMPLATE, config_maps, output_claim_name

_NOT_FOUND = re.compile(r'(configmap|secret|persistentvolumeclaim|serviceaccount) "([^"]+)" not found', re.IGNORECASE)
_NO_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (?:\S+/)?(\S+)", re.IGNORECASE)
_VOLUME = re.compile(r'volume "([^"]+)"')
_NO_FILE = re.compile(r"non-existent config key: (\S+)")

KINDS = {
    "configmap": "ConfigMap",
    "secret": "Secret",
    "persistentvolumeclaim": "PersistentVolumeClaim",
    "serviceaccount": "ServiceAccount",
}


def missing_reference(case: Case, message: str) -> Finding | None:
    """The finding behind `secret "x" not found` and its like; None when the words say nothing of the kind.

    What the spec does not name is somebody else's, such as a mesh's ConfigMap: it is waited for and never ends a run.
    """
    run = case.run
    named = _NO_KEY.search(message)
    if named is not None:
        kind, name = KINDS[named.group(2).lower()], named.group(3)
        return _finding(case, kind, name, f'key "{named.group(1)}" not found in {kind} "{name}"')
    config_map = _mounted(run, message)
    lacking = _NO_FILE.search(message)
    if lacking is not None and config_map is not None:
        text = f'key "{lacking.group(1)}" not found in ConfigMap "{config_map.name}"'
        return _finding(case, "ConfigMap", config_map.name, text)
    absent = _NOT_FOUND.search(message)
    if absent is None:
        return None
    kind, name = KINDS[absent.group(1).lower()], absent.group(2)
    return _finding(case, kind, name, f'{kind} "{name}" not found in namespace "{run.metadata.namespace}"')


def _mounted(run: TrainingRun, message: str) -> ConfigMapDataset | ConfigMapKey | None:
    """The ConfigMap of the volume that a message names, the only one when it names none."""
    mounted = config_maps(run)
    volume = _VOLUME.search(message)
    if volume is not None:
        return mounted.get(volume.group(1))
    return next(iter(mounted.values()), None)


def _finding(case: Case, kind: str, name: str, text: str) -> Finding:
    reason = _use(case, kind, name)
    if reason is None:
        said = f"{text}; nothing in the spec names it"
        return wait(reasons.POD_NOT_STARTED, said, f"{kind}/{name}", "Something in the cluster adds it to every pod.")
    return expire(reason, text, f"{kind}/{name}")


def _use(case: Case, kind: str, name: str) -> str | None:
    """The failure reason for what the spec uses the object for."""
    run = case.run
    if kind == "ConfigMap":
        volume = next((volume for volume, held in config_maps(run).items() if held.name == name), None)
        return {None: None, CHAT_TEMPLATE: reasons.BASE_MODEL_UNAVAILABLE}.get(volume, reasons.DATASET_UNAVAILABLE)
    if kind == "Secret":
        return reasons.ACCESS_DENIED if name in secret_names(run) else None
    if kind == "PersistentVolumeClaim":
        return _claim_use(case, run, name)
    return None


def _claim_use(case: Case, run: TrainingRun, name: str) -> str | None:
    base = run.spec.base_model.volume
    sources = {source.volume.claim_name for source in run.spec.dataset.sources if source.volume}
    parent, resumed = case.seen.job.parent if case.seen.job else None, run.status.resumed_from
    uses = {
        reasons.UNSCHEDULABLE: output_claim_name(run),
        reasons.CHECKPOINT_UNAVAILABLE: resumed.claim_name if resumed else None,
        reasons.PARENT_ADAPTER_UNAVAILABLE: parent.claim_name if parent else None,
        reasons.DATASET_UNAVAILABLE: name if name in sources else None,
        reasons.BASE_MODEL_UNAVAILABLE: base.claim_name if base else None,
    }
    found = [reason for reason, claim in uses.items() if claim == name]
    return found[-1] if found else None
