"""The operator's settings, read from the environment once, by the command line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from finetune.api.status import MAX_ATTEMPT_HISTORY

from .allowed import Allowed, AllowedFromEnvironment
from .pod_defaults import FromEnvironment, PodDefaults, from_json

ENVIRONMENT_PREFIX = "FINETUNE_"


class Settings(BaseModel):
    """Settings of one operator process; each is set by `FINETUNE_<NAME>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry_url: str
    """Base URL of the registry, for the operator and for the runs' pods."""
    registry_token_file: str | None = None
    """File with the operator's token for the registry; none for a registry without authentication."""
    registry_ca_file: str | None = None
    """File with the certificate authorities of a registry that speaks HTTPS; none for those of the system."""
    registry_ca: str | None = None
    """The same as text, which the runs' pods are given; read from the file."""
    trainer_image: str
    """Image of export, trainer and collect."""
    image_pull_policy: str = "IfNotPresent"
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty means all."""
    reference_timeout_seconds: int = Field(default=300, ge=0)
    """How long a run waits for a dataset, claim, ConfigMap, Secret or image that does not exist."""
    termination_grace_seconds: int = Field(default=120, ge=1)
    """What the trainer gets to save its checkpoint after SIGTERM."""
    max_interruptions: int = Field(default=20, ge=1, le=MAX_ATTEMPT_HISTORY - 1)
    """Interrupted attempts without a new checkpoint before the run fails; the status must remember one more."""
    pretended_gpus: bool = False
    """The cluster's GPUs are pretended: let the trainer use the CPU. For test clusters."""
    service_account_name: str = "default"
    """Service account of the runs' pods; it needs no rights."""
    service_accounts: Annotated[dict[str, str], BeforeValidator(from_json)] = Field(default_factory=dict)
    """The same for single namespaces, by their names; FINETUNE_SERVICE_ACCOUNTS is a JSON document."""
    allowed: AllowedFromEnvironment = Allowed()
    """What runs may choose for themselves; FINETUNE_ALLOWED is a JSON document."""
    fixed_ids: bool = True
    """Whether the runs' pods have a fixed user and group; not where the cluster assigns them (OpenShift)."""
    paused: bool = False
    """Make no new Jobs; what trains goes on. For maintenance."""
    cpu_limit: str | None = None
    """CPU limit of the containers of runs that name none; none by default: what is idle on the node may be used."""
    pod_defaults: FromEnvironment = PodDefaults()
    """What every run's pod gets beside what its spec asks for; FINETUNE_POD_DEFAULTS is a JSON document."""
    storage_class_name: str | None = None
    """StorageClass of the claims of runs that name none; none for the cluster's default class."""
    active_deadline_seconds: int | None = Field(default=None, ge=1)
    """Longest active time of runs that set none."""
    hub_endpoint: str | None = None
    """Address of a mirror of the Hugging Face Hub; none for the hub itself."""
    resync_seconds: float = Field(default=60.0, gt=0)
    progress_seconds: float = Field(default=15.0, gt=0)
    pending_seconds: float = Field(default=5.0, ge=0)
    """How long a pod may be pending before its Events are read, by the operator's own clock."""
    health_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the probes and the metrics; by default 8080 inside a cluster, and none outside."""
    linger_seconds: float = Field(default=30.0, ge=0)
    """What containers beside a trainer that has ended get to end as well: log shippers flush, meshes drain."""

    def service_account_of(self, namespace: str) -> str:
        """The service account of the pods of runs that name none."""
        return self.service_accounts.get(namespace, self.service_account_name)

    @property
    def linger(self) -> timedelta:
        """The same as a time."""
        return timedelta(seconds=self.linger_seconds)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Settings from variables such as FINETUNE_REGISTRY_URL. Raises pydantic.ValidationError."""
        values: dict[str, object] = {}
        for name in cls.model_fields:
            value = environment.get(f"{ENVIRONMENT_PREFIX}{name.upper()}")
            if value:
                values[name] = value
        namespaces = environment.get(f"{ENVIRONMENT_PREFIX}WATCH_NAMESPACES", "")
        values["watch_namespaces"] = tuple(part.strip() for part in namespaces.split(",") if part.strip())
        settings = cls.model_validate(values)
        return settings.model_copy(update={"registry_ca": settings.read_authorities()})

    def read_authorities(self) -> str | None:
        """What `registry_ca_file` holds now; None where there is none, or it cannot be read."""
        if self.registry_ca_file is None:
            return None
        try:
            return Path(self.registry_ca_file).read_text()
        except OSError:
            return None
