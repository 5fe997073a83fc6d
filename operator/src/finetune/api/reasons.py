"""Every reason that a condition or a failure can have, and a hint for each failure."""

from __future__ import annotations

# Reasons of Succeeded=False, of Finished=True after a failure, of Stalled=True, and of failure.reason.
INVALID_SPEC = "InvalidSpec"
DATASET_UNAVAILABLE = "DatasetUnavailable"
DATASET_INVALID = "DatasetInvalid"
BASE_MODEL_UNAVAILABLE = "BaseModelUnavailable"
PARENT_ADAPTER_UNAVAILABLE = "ParentAdapterUnavailable"
ACCESS_DENIED = "AccessDenied"
GPU_UNAVAILABLE = "GPUUnavailable"
GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
OUT_OF_MEMORY = "OutOfMemory"
STORAGE_FULL = "StorageFull"
UNSCHEDULABLE = "Unschedulable"
IMAGE_PULL_FAILED = "ImagePullFailed"
DEADLINE_EXCEEDED = "DeadlineExceeded"
DIVERGED = "Diverged"
ADAPTER_INVALID = "AdapterInvalid"
POD_CREATION_REFUSED = "PodCreationRefused"
NODE_LOST = "NodeLost"
JOB_LOST = "JobLost"
RETRIES_EXHAUSTED = "RetriesExhausted"
INTERNAL_ERROR = "InternalError"

HINTS: dict[str, str] = {
    INVALID_SPEC: (
        "The message names the field. Correct it and create the run under a new name: a spec cannot be changed."
    ),
    DATASET_UNAVAILABLE: (
        "Check the name, the version and the path in spec.dataset, and that the dataset is in the run's "
        "namespace; then create the run under a new name."
    ),
    DATASET_INVALID: (
        "Correct the row that the message names, or set spec.dataset.invalidRows: Drop to leave "
        "malformed rows out. Rows whose columns have other names need spec.dataset.columns; for rows that are too "
        "long, raise spec.training.maxLength or set spec.dataset.tooLong."
    ),
    BASE_MODEL_UNAVAILABLE: (
        "Check spec.baseModel: the claim and its path must exist and hold config.json and the weights; a "
        "repository must exist on the hub, and the cluster must reach it."
    ),
    PARENT_ADAPTER_UNAVAILABLE: (
        "Check spec.parentAdapter: finetune adapter list shows the registry's adapters, and the claim that holds the "
        "parent must exist in the run's namespace. Then create the run under a new name."
    ),
    ACCESS_DENIED: (
        "The message names what refused. Put a token that may read the repository into a Secret, and name its key "
        "in spec.baseModel.hub.tokenSecretRef or spec.dataset.hub.tokenSecretRef; gated repositories ask every "
        "account to accept their licence first. A database's URL comes from spec.dataset.sql.urlSecretRef, an "
        "object store's keys from spec.dataset.objectStore.credentialsSecretRef."
    ),
    GPU_UNAVAILABLE: (
        "The pod got GPUs that the training cannot use. Check the node's driver, and set "
        "spec.scheduling.runtimeClassName if the cluster needs one. spec.resources.gpus: 0 trains on the "
        "CPU."
    ),
    GPU_OUT_OF_MEMORY: (
        "One row does not fit the GPU's memory. Lower spec.training.maxLength, set "
        "spec.training.gradientCheckpointing: Enabled, or choose a node with larger GPUs in "
        "spec.scheduling.nodeSelector."
    ),
    OUT_OF_MEMORY: (
        "Raise spec.resources.memory. What is used of spec.resources.sharedMemory counts as memory too; "
        "a smaller spec.training.microBatchSize or maxLength needs less on the CPU."
    ),
    STORAGE_FULL: (
        "The output claim is full, or the pod used more of its node's own disk than it may; the message says which. "
        "Raise spec.output.claim.size, delete runs' folders that are no longer needed, or raise "
        "spec.training.checkpointSteps to keep fewer checkpoints."
    ),
    UNSCHEDULABLE: (
        "A claim or StorageClass that the message names must exist: create it, or correct spec.output. If no node "
        "fits, compare "
        "spec.resources and spec.scheduling with the nodes: kubectl describe nodes shows what is free."
    ),
    IMAGE_PULL_FAILED: (
        "The cluster's administrator sets the trainer's image (trainer.image in the chart's values): "
        "check that it exists and that the nodes may pull it."
    ),
    DEADLINE_EXCEEDED: (
        "Raise spec.activeDeadlineSeconds, or train less: spec.training.epochs, maxSteps. Waiting for a node counts."
    ),
    DIVERGED: (
        "The loss became infinite or not a number. Lower spec.training.learningRate, raise "
        "warmupPercent, or set precision: Float32."
    ),
    ADAPTER_INVALID: (
        "The files of the run's adapter, or of its parent where the message names the parent, are not those that were "
        "recorded. Check the claim's storage, and that nothing else writes to the adapter's folder. Restore a parent "
        "from a copy, or go on from another one in spec.parentAdapter."
    ),
    POD_CREATION_REFUSED: (
        "The cluster refused the run's pod. The message names the quota, the admission rule or the missing class: "
        "lower spec.resources, ask for a larger quota, or correct spec.scheduling."
    ),
    NODE_LOST: (
        "The node that the pod was on is gone. Create the run under a new name; with an output claim "
        "that other nodes can mount, more spec.retries would go on elsewhere."
    ),
    JOB_LOST: (
        "Somebody deleted the run's Job. Create the run under a new name; delete a TrainingRun, not its "
        "Job, to stop it."
    ),
    RETRIES_EXHAUSTED: (
        "The attempts failed for different causes, or left no trace. Look at the pods' logs (kubectl "
        "logs -l finetune.dev/run=<name>) while they are kept, and raise spec.retries if the causes pass "
        "by themselves."
    ),
    INTERNAL_ERROR: (
        "This is an error in the software, not in your spec. Please report the message and the pod's log "
        "(kubectl logs -l finetune.dev/run=<name>)."
    ),
}
"""What to change, by failure reason."""

FAILURE_REASONS: frozenset[str] = frozenset(HINTS)

# Reasons of Accepted.
SPEC_ACCEPTED = "SpecAccepted"
WAITING_FOR_REFERENCE = "WaitingForReference"

# Reasons of DatasetReady.
DATASET_EXPORTED = "DatasetExported"
DATASET_PENDING = "DatasetPending"

# Reasons of Succeeded=Unknown, of Finished=False and of Reconciling=True: the phase in which the run is.
PENDING = "Pending"
EXPORTING = "Exporting"
TRAINING = "Training"
REGISTERING = "Registering"

# Reasons of Suspended.
SUSPENDED = "Suspended"
SUSPENDING = "Suspending"
RESUMED = "Resumed"

# Reason of Succeeded=True and of Finished=True after a success.
ADAPTER_REGISTERED = "AdapterRegistered"

OTHER_REASONS: dict[str, str] = {
    SPEC_ACCEPTED: "The operator took the run on.",
    WAITING_FOR_REFERENCE: "Something that the spec names does not exist yet; the message names it.",
    DATASET_EXPORTED: "The rows are on the output claim, checked.",
    DATASET_PENDING: "The rows are not on the output claim yet.",
    PENDING: "The run's pod waits for a node, for its volumes or for its image.",
    EXPORTING: "The rows are copied to the output claim and checked.",
    TRAINING: "The trainer is at work.",
    REGISTERING: "The training is done; the adapter is not in the registry yet.",
    SUSPENDED: "spec.suspend is set and no pod is left.",
    SUSPENDING: "spec.suspend is set; the pod is saving its checkpoint.",
    RESUMED: "The run is not suspended.",
    ADAPTER_REGISTERED: "The adapter is in the registry.",
}
"""What the reasons that are no failures say."""
