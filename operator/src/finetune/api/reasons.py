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
DIRECTORY_LOCKED = "DirectoryLocked"
UNSCHEDULABLE = "Unschedulable"
IMAGE_PULL_FAILED = "ImagePullFailed"
DEADLINE_EXCEEDED = "DeadlineExceeded"
DIVERGED = "Diverged"
HUNG = "Hung"
CHECKPOINT_UNAVAILABLE = "CheckpointUnavailable"
ADAPTER_INVALID = "AdapterInvalid"
POD_CREATION_REFUSED = "PodCreationRefused"
NODE_LOST = "NodeLost"
JOB_LOST = "JobLost"
RETRIES_EXHAUSTED = "RetriesExhausted"
SIDECAR_FAILED = "SidecarFailed"
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
        "repository must exist on the hub, and the cluster must reach it. The ConfigMap of chatTemplate "
        "must exist and have the key."
    ),
    PARENT_ADAPTER_UNAVAILABLE: (
        "Check spec.parentAdapter: finetune adapters list shows the registry's adapters, and the claim that holds the "
        "parent must exist in the run's namespace. Then create the run under a new name."
    ),
    ACCESS_DENIED: (
        "The message names what refused. For the hub, put a token that may read the repository into a Secret, and name "
        "its key in spec.baseModel.hub.tokenSecretRef or spec.dataset.hub.tokenSecretRef; a gated repository must "
        "also be accepted once, on its page, by the token's account. For a database, correct the URL in the Secret of "
        "spec.dataset.sql.urlSecretRef and what its user may read; for an object store, the keys in the Secret of "
        "spec.dataset.objectStore.credentialsSecretRef. For a file on a claim, let group 10001 read it."
    ),
    GPU_UNAVAILABLE: (
        "The pod got GPUs that the training cannot use; the message names the node. Compare the driver of that node "
        "(nvidia-smi) with the CUDA version in the message, set spec.scheduling.runtimeClassName if the cluster needs "
        "one, or keep away from the node with spec.scheduling.nodeSelector. spec.resources.gpus: 0 trains on the CPU."
    ),
    GPU_OUT_OF_MEMORY: (
        "One row does not fit the GPU's memory. Lower spec.training.maxLength, set "
        "spec.training.gradientCheckpointing: Enabled, or choose a node with larger GPUs in "
        "spec.scheduling.nodeSelector."
    ),
    OUT_OF_MEMORY: (
        "Raise spec.resources.memory in a new run, and name this one in its spec.resumeFrom.run to keep what was "
        "trained. What is used of spec.resources.sharedMemory counts as memory too; a smaller "
        "spec.training.microBatchSize needs less on the CPU."
    ),
    STORAGE_FULL: (
        "The output claim is full, or the pod used more of its node's own disk than it may; the message says which, "
        "and status.output.claimName names the claim. Enlarge the claim (kubectl edit pvc, where its class allows "
        "it), or delete folders of runs that are no longer needed; a new claim's size is spec.output.claim.size. "
        "Then go on in a new run on the same claim (spec.output.claimName) with spec.resumeFrom."
    ),
    DIRECTORY_LOCKED: (
        "Another pod or process works in the run's folder on the output claim, or the claim's server keeps the lock of "
        "one that is gone, or does not answer for its locks. Delete the pod of a lost node (kubectl delete pod --force "
        "once the node is off); if there is none, remove the lock file that the message names. Then go on in a new run "
        "with spec.resumeFrom: {run: <this run>}."
    ),
    UNSCHEDULABLE: (
        "A claim or StorageClass that the message names must exist: create it, or correct spec.output. If no node "
        "fits, compare spec.resources and spec.scheduling with the nodes: kubectl describe nodes shows what is free."
    ),
    IMAGE_PULL_FAILED: (
        "The cluster's administrator sets the trainer's image (trainer.image in the chart's values): "
        "check that it exists and that the nodes may pull it."
    ),
    DEADLINE_EXCEEDED: (
        "Create a new run with spec.resumeFrom: {run: <this run>} and a larger spec.activeDeadlineSeconds: it goes on "
        "from the newest checkpoint. Or train less: spec.training.epochs, maxSteps. Waiting for a node counts, waiting "
        "in a queue and suspension do not."
    ),
    DIVERGED: (
        "The loss became infinite or not a number. Lower spec.training.learningRate, raise "
        "warmupPercent, or set precision: Float32."
    ),
    HUNG: (
        "The trainer made no step for a long time and was started again, as often as spec.retries allows. The log of "
        "the pod (kubectl logs -l finetune.dev/run=<name> --all-containers) ends with what each of its threads was "
        "doing: look at what they wait for, which is mostly the node, the claim's storage or the GPU's driver. Then "
        "go on in a new run with spec.resumeFrom, elsewhere by spec.scheduling.nodeSelector."
    ),
    CHECKPOINT_UNAVAILABLE: (
        "The run in spec.resumeFrom.run must be in the same namespace, have a whole checkpoint on a claim that exists, "
        "and have the same model, rows and training; the message names what is missing or differs. Correct that in a "
        "new run, or leave spec.resumeFrom out to train from the start."
    ),
    ADAPTER_INVALID: (
        "The files of the run's adapter, or of its parent where the message names the parent, are not those that were "
        "recorded. Check the claim's storage, and that nothing else writes to the adapter's folder. Restore a parent "
        "from a copy, or go on from another one in spec.parentAdapter."
    ),
    POD_CREATION_REFUSED: (
        "The cluster's rules do not allow the run's pod, and waiting does not change that. The message names the rule: "
        "a policy or webhook, a LimitRange, a security standard or a missing class. Set what it asks for in "
        "spec.resources, spec.scheduling or the run's namespace, or ask whoever keeps the rule to let "
        "pods with the label finetune.dev/run through; then create the run under a new name."
    ),
    NODE_LOST: (
        "The node that the pod was on is gone. Create a new run with spec.resumeFrom: {run: <this run>} to go on from "
        "the newest checkpoint, on an output claim that other nodes can mount (spec.output.claimName); more "
        "spec.retries do so by themselves."
    ),
    JOB_LOST: (
        "Somebody deleted the run's Job. Create a new run with spec.resumeFrom: {run: <this run>} to go on from the "
        "newest checkpoint. To stop a run, set spec.suspend or delete the TrainingRun, not its Job."
    ),
    RETRIES_EXHAUSTED: (
        "The attempts failed for different causes, or left no trace: status.attemptHistory lists them, and the pods' "
        "logs say more while they are kept (kubectl logs -l finetune.dev/run=<name> --all-containers). Once the "
        "causes are mended, or with more spec.retries if they pass by themselves, a new run with spec.resumeFrom "
        "goes on from the newest checkpoint."
    ),
    SIDECAR_FAILED: (
        "A container that the cluster adds to every pod (a mesh, a secret store, a log shipper) failed, and the pod "
        "with it. Show the message to the cluster's administrator, or have the injection switched off for pods with "
        "the label finetune.dev/run; then go on in a new run with spec.resumeFrom."
    ),
    INTERNAL_ERROR: (
        "This is an error in the software, not in your spec. Please report the message and the pod's log "
        "(kubectl logs -l finetune.dev/run=<name> --all-containers)."
    ),
}
"""What to change, by failure reason."""

FAILURE_REASONS: frozenset[str] = frozenset(HINTS)

BEFORE_TRAINING: frozenset[str] = frozenset(
    {
        INVALID_SPEC,
        DATASET_UNAVAILABLE,
        DATASET_INVALID,
        BASE_MODEL_UNAVAILABLE,
        PARENT_ADAPTER_UNAVAILABLE,
        ACCESS_DENIED,
        GPU_UNAVAILABLE,
        UNSCHEDULABLE,
        IMAGE_PULL_FAILED,
        CHECKPOINT_UNAVAILABLE,
        POD_CREATION_REFUSED,
    }
)
"""Failures of what a run needs to begin; with the others nobody may have seen that it did."""

# Reasons of Accepted.
SPEC_ACCEPTED = "SpecAccepted"
WAITING_FOR_REFERENCE = "WaitingForReference"

# Reasons of DatasetReady.
DATASET_EXPORTED = "DatasetExported"
DATASET_PENDING = "DatasetPending"

# Reasons of Succeeded=Unknown, of Finished=False and of Reconciling=True: the phase in which the run is.
QUEUED = "Queued"
PENDING = "Pending"
EXPORTING = "Exporting"
TRAINING = "Training"
REGISTERING = "Registering"

# The phases at the end; the conditions then have the reason.
SUCCEEDED = "Succeeded"
FAILED = "Failed"

# Reasons of Suspended.
SUSPENDED = "Suspended"
SUSPENDING = "Suspending"
SUSPENDED_BY_OTHER = "SuspendedByOther"
NOT_SUSPENDED = "NotSuspended"
RESUMED = "Resumed"

# Reasons of status.waiting that are no failures: what the run waits for without an end of its own.
PAUSED = "Paused"
REGISTRY_UNAVAILABLE = "RegistryUnavailable"
REGISTRY_REFUSED = "RegistryRefused"
JOB_NAME_TAKEN = "JobNameTaken"
QUOTA_EXCEEDED = "QuotaExceeded"
WEBHOOK_UNAVAILABLE = "WebhookUnavailable"
OPERATOR_FORBIDDEN = "OperatorForbidden"
NAMESPACE_TERMINATING = "NamespaceTerminating"
API_SERVER_UNAVAILABLE = "APIServerUnavailable"
OPERATOR_ERROR = "OperatorError"
SIDECAR_RUNNING = "SidecarRunning"
RESULT_UNREAD = "ResultUnread"
TERMINATING = "Terminating"
POD_NOT_STARTED = "PodNotStarted"
VOLUME_NOT_MOUNTED = "VolumeNotMounted"
INIT_CONTAINER_RUNNING = "InitContainerRunning"
NODE_NOT_READY = "NodeNotReady"

# Reason of Succeeded=True and of Finished=True after a success.
ADAPTER_REGISTERED = "AdapterRegistered"

OTHER_REASONS: dict[str, str] = {
    SPEC_ACCEPTED: "The operator took the run on.",
    WAITING_FOR_REFERENCE: "Something that the spec names does not exist yet; the message names it.",
    DATASET_EXPORTED: "The rows are on the output claim, checked.",
    DATASET_PENDING: "The rows are not on the output claim yet.",
    QUEUED: "A queue holds the run back until its quota has room; the message has the queue's reason.",
    PENDING: "The run's pod waits for a node, for its volumes or for its image.",
    EXPORTING: "The rows are copied to the output claim and checked.",
    TRAINING: "The trainer is at work.",
    REGISTERING: "The training is done; the adapter is not in the registry yet.",
    SUSPENDED: "spec.suspend is set and no pod is left.",
    SUSPENDING: "spec.suspend is set; the pod is saving its checkpoint.",
    SUSPENDED_BY_OTHER: "Somebody else suspended the run's Job; the operator waits until it is resumed.",
    NOT_SUSPENDED: "The run is not suspended, and never was.",
    RESUMED: "The run was suspended, and goes on.",
    PAUSED: "The administrator lets no new runs start for now; the run starts by itself once that is over.",
    REGISTRY_UNAVAILABLE: "The registry does not answer, or fails; the operator asks again.",
    REGISTRY_REFUSED: "The registry refuses what the operator sends; the message has its words.",
    JOB_NAME_TAKEN: "Another object has the name of the run's Job or claim: delete it, and the run goes on.",
    QUOTA_EXCEEDED: (
        "A ResourceQuota of the namespace has no room: other runs must end, or the quota grow. A quota on limits.cpu "
        "needs spec.resources.cpuLimit."
    ),
    WEBHOOK_UNAVAILABLE: "An admission webhook does not answer: whoever keeps it must mend it; the message names it.",
    OPERATOR_FORBIDDEN: "The operator lacks a right: the administrator must compare its role with the chart's.",
    NAMESPACE_TERMINATING: "The namespace is being deleted: nothing new can be made in it.",
    API_SERVER_UNAVAILABLE: "The API server did not do what the operator asked, for a cause that passes.",
    OPERATOR_ERROR: "The operator failed to look at the run and tries again; please report the message.",
    SIDECAR_RUNNING: "The trainer has ended, but another container of its pod goes on; the message names it.",
    RESULT_UNREAD: "The training is done, and the Job that reads its result from the claim fails; it is made again.",
    TERMINATING: "A pod of the run is being stopped, and its node has not confirmed the end yet.",
    POD_NOT_STARTED: "The node cannot start the pod's containers; the message has its words.",
    VOLUME_NOT_MOUNTED: "The node cannot mount one of the pod's volumes; a claim may be in use on another node.",
    INIT_CONTAINER_RUNNING: "A container that the cluster adds to the pod runs first; the message names it.",
    NODE_NOT_READY: "The pod's node does not report; the pod may still be training there.",
    ADAPTER_REGISTERED: "The adapter is in the registry.",
}
"""What the reasons that are no failures say."""
