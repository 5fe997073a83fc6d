"""What the run's pod mounts, and where: claims, ConfigMaps (rows, chat template), scratch space, the registry's token.

A claim that serves twice (a base model beside the dataset, a parent adapter on the output claim) is one volume with
several mounts: a pod with two volumes of one claim never starts on some nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.api.sources import ConfigMapDataset, ConfigMapKey, DatasetSource
from finetune.api.status import ResumeStatus
from finetune.api.trainingrun import TrainingRun

from . import names
from .views import ParentView

Document = dict[str, Any]

HOME = "/home/finetune"
TOKEN_SECONDS = 3600

OUTPUT = "output"
TOKEN = "token"  # noqa: S105 - a volume's name
BASE_MODEL = "base-model"
SOURCE = "source"
PARENT_ADAPTER = "parent-adapter"
RESUME = "resume"
CHAT_TEMPLATE = "chat-template"
SHARED_MEMORY = "shared-memory"


def output_claim_name(run: TrainingRun) -> str:
    """The claim that the run writes to: the named one, else one that bears the Job's name."""
    return run.spec.output.claim_name or names.job_name(run.metadata.name, run.metadata.uid)


def claim_names(run: TrainingRun, parent: ParentView | None, resume: ResumeStatus | None = None) -> tuple[str, ...]:
    """The claims that the run's pod mounts, each once."""
    return tuple(dict.fromkeys(_claims(run, parent, resume).values()))


def parent_directory(run: TrainingRun, parent: ParentView) -> str:
    """Where the trainer finds the parent adapter: below the output claim if it is there, else on its own mount."""
    on_output = parent.claim_name == output_claim_name(run)
    return f"{names.OUTPUT_MOUNT if on_output else names.PARENT_ADAPTER_MOUNT}/{parent.path}"


def resume_directory(run: TrainingRun, resume: ResumeStatus) -> str:
    """Where the trainer finds the other run's folder: below the output claim if it is there, else on its own mount."""
    on_output = resume.claim_name == output_claim_name(run)
    return f"{names.OUTPUT_MOUNT if on_output else names.RESUME_MOUNT}/{resume.path}"


def pod_volumes(run: TrainingRun, parent: ParentView | None, resume: ResumeStatus | None = None) -> list[Document]:
    """The volumes of the training pod."""
    volumes = [
        claim_volume(OUTPUT, output_claim_name(run)),
        token_volume(run),
        {"name": SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": run.spec.resources.shared_memory}},
    ]
    claims = _claims(run, parent, resume)
    for role, claim in claims.items():
        if _volume_of(role, claims) == role and role != OUTPUT:
            volumes.append(claim_volume(role, claim, read_only=True))
    for name, config_map in config_maps(run).items():
        item = {"key": config_map.key, "path": config_map.key}
        volumes.append({"name": name, "configMap": {"name": config_map.name, "items": [item]}})
    return [*volumes, *scratch_volumes()]


def token_volume(run: TrainingRun) -> Document:
    """The run's token for the registry, which Kubernetes renews."""
    token = {
        "audience": f"finetune.dev/runs/{run.metadata.uid}",
        "expirationSeconds": TOKEN_SECONDS,
        "path": "token",
    }
    return {"name": TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}}


def config_maps(run: TrainingRun) -> dict[str, ConfigMapDataset | ConfigMapKey]:
    """The ConfigMaps that the pod mounts, by the names of their volumes."""
    template = run.spec.base_model.chat_template
    wanted: dict[str, ConfigMapDataset | ConfigMapKey | None] = {
        place.role: source.config_map for place, source in source_places(run)
    }
    wanted[CHAT_TEMPLATE] = template.config_map if template else None
    return {name: config_map for name, config_map in wanted.items() if config_map}


@dataclass(frozen=True)
class SourcePlace:
    """Where the files of a source are: the role of its volume, and where that is mounted."""

    role: str
    path: str


def source_places(run: TrainingRun) -> list[tuple[SourcePlace, DatasetSource]]:
    """The sources of the run's dataset with their places, also those that have no files; a mix has one for each."""
    dataset = run.spec.dataset
    if not dataset.mix:
        return [(SourcePlace(SOURCE, names.SOURCE_MOUNT), dataset)]
    return [
        (SourcePlace(f"{SOURCE}-{index}", f"{names.SOURCE_MOUNT}/{index}"), source)
        for index, source in enumerate(dataset.mix)
    ]


def export_mounts(run: TrainingRun, parent: ParentView | None) -> list[Document]:
    """The mounts of the container `export`."""
    claims = _claims(run, parent)
    mounts = [mount(OUTPUT, names.OUTPUT_MOUNT), mount(TOKEN, names.TOKEN_DIRECTORY, read_only=True)]
    for place, source in source_places(run):
        if source.volume or source.config_map:
            mounts.append(mount(_volume_of(place.role, claims), place.path, read_only=True))
    return [*mounts, *scratch_mounts()]


def trainer_mounts(run: TrainingRun, parent: ParentView | None, resume: ResumeStatus | None = None) -> list[Document]:
    """The mounts of the container `trainer`."""
    claims = _claims(run, parent, resume)
    mounts = [
        mount(OUTPUT, names.OUTPUT_MOUNT),
        mount(TOKEN, names.TOKEN_DIRECTORY, read_only=True),
        mount(SHARED_MEMORY, "/dev/shm"),  # noqa: S108 - PyTorch's workers share tensors there
    ]
    if BASE_MODEL in claims:
        mounts.append(mount(_volume_of(BASE_MODEL, claims), names.BASE_MODEL_MOUNT, read_only=True))
    if run.spec.base_model.chat_template:
        mounts.append(mount(CHAT_TEMPLATE, names.CHAT_TEMPLATE_MOUNT, read_only=True))
    for role, path in ((PARENT_ADAPTER, names.PARENT_ADAPTER_MOUNT), (RESUME, names.RESUME_MOUNT)):
        if role in claims and _volume_of(role, claims) != OUTPUT:
            mounts.append(mount(_volume_of(role, claims), path, read_only=True))
    return [*mounts, *scratch_mounts()]


def claim_volume(name: str, claim: str, *, read_only: bool = False) -> Document:
    """A volume that is a claim."""
    source: Document = {"claimName": claim}
    if read_only:
        source["readOnly"] = True
    return {"name": name, "persistentVolumeClaim": source}


def mount(name: str, path: str, *, read_only: bool = False) -> Document:
    """A mount of a volume."""
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def scratch_volumes() -> list[Document]:
    """Space for temporary files and the home directory: everything else is read-only."""
    return [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]


def scratch_mounts() -> list[Document]:
    """The mounts of `scratch_volumes`."""
    return [mount("tmp", "/tmp"), mount("home", HOME)]  # noqa: S108 - an emptyDir of the pod's own


def _claims(run: TrainingRun, parent: ParentView | None, resume: ResumeStatus | None = None) -> dict[str, str]:
    """The claims that the pod needs, by what for; the output comes first."""
    base = run.spec.base_model.volume
    sources = {place.role: source.volume.claim_name for place, source in source_places(run) if source.volume}
    wanted = {
        OUTPUT: output_claim_name(run),
        BASE_MODEL: base.claim_name if base else None,
        **sources,
        PARENT_ADAPTER: parent.claim_name if parent else None,
        RESUME: resume.claim_name if resume else None,
    }
    return {role: claim for role, claim in wanted.items() if claim}


def _volume_of(role: str, claims: dict[str, str]) -> str:
    """The volume that serves a role: the first one of the same claim, else its own."""
    return next((first for first, claim in claims.items() if claim == claims.get(role)), role)
