"""What each answer of the API server and of the registry means, row by row, in the servers' own words."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from finetune.controller.core.findings import Verdict
from finetune.controller.core.refusals import (
    TABLE,
    Answer,
    Doing,
    classify,
    classify_registry,
    classify_words,
)
from tests.support import objects as o
from tests.support.cases import again, failed, failure, look, status, waiting

JOB = "Job/t-support"
CLAIM = "PersistentVolumeClaim/t-support"


@dataclass(frozen=True)
class Said:
    """An answer of the API server: its status (0: none), its words, what was asked for, and what it means."""

    status: int
    words: str
    answer: Answer
    reason: str
    about: str = JOB
    hint: str = ""
    """Words of the hint."""


FORBIDDEN = 'jobs.batch "t-support" is forbidden: '
CLAIM_FORBIDDEN = 'persistentvolumeclaims "t-support" is forbidden: '
VAP = f"{FORBIDDEN}ValidatingAdmissionPolicy 'gpus' with binding 'all' denied request: "
WAITS, EXPIRES, ENDS, RETRIES = Answer.WAITS, Answer.EXPIRES, Answer.ENDS, Answer.RETRIES

SAID = (
    # Admission says no. A webhook that gives no code denies with 400, others with whatever they like.
    Said(
        400,
        'admission webhook "validate.kyverno.svc-fail" denied the request: resource Job/ml/t-support was blocked',
        EXPIRES,
        "PodCreationRefused",
        hint="rule of the cluster",
    ),
    Said(
        403,
        'admission webhook "validation.gatekeeper.sh" denied the request: [team] label missing',
        EXPIRES,
        "PodCreationRefused",
    ),
    Said(400, 'admission webhook "a.b" denied the request without explanation', EXPIRES, "PodCreationRefused"),
    Said(404, 'admission webhook "a.b" denied the request: no such project', EXPIRES, "PodCreationRefused"),
    Said(409, 'admission webhook "a.b" denied the request: already scheduled', EXPIRES, "PodCreationRefused"),
    Said(418, 'admission webhook "a.b" denied the request: teapot', EXPIRES, "PodCreationRefused"),
    Said(451, 'admission webhook "a.b" denied the request: not here', EXPIRES, "PodCreationRefused"),
    Said(
        403,
        'admission webhook "a.b" denied the request: exceeded quota: budget of the team',
        EXPIRES,
        "PodCreationRefused",
        hint="rule of the cluster",
    ),
    Said(
        400,
        'admission webhook "a.b" denied the request: failed calling webhook of the image scanner',
        EXPIRES,
        "PodCreationRefused",
    ),
    Said(422, f"{VAP}no more than 4 GPUs", EXPIRES, "PodCreationRefused"),
    Said(413, f"{VAP}too large", EXPIRES, "PodCreationRefused"),
    Said(401, f"{VAP}not you", EXPIRES, "PodCreationRefused"),
    Said(403, f"{FORBIDDEN}ValidatingAdmissionPolicy 'x' denied request: no", EXPIRES, "PodCreationRefused"),
    Said(
        403,
        f'{FORBIDDEN}violates PodSecurity "restricted:latest": runAsNonRoot != true',
        EXPIRES,
        "PodCreationRefused",
        hint="rule of the cluster",
    ),
    Said(403, f"{FORBIDDEN}no PriorityClass with name urgent was found", EXPIRES, "PodCreationRefused"),
    Said(
        403,
        f"{FORBIDDEN}maximum memory usage per Container is 4Gi, but limit is 8Gi",
        EXPIRES,
        "PodCreationRefused",
        hint="rule of the cluster",
    ),
    Said(
        400,
        'Job in version "v1" cannot be handled as a Job: strict decoding error: unknown field "spec.x"',
        EXPIRES,
        "PodCreationRefused",
    ),
    Said(405, "the server does not allow this method on the requested resource", EXPIRES, "PodCreationRefused"),
    # A webhook that fails by itself says so with 500 (controller-runtime's Errored).
    Said(
        500,
        'admission webhook "a.b" denied the request: Get "https://10.0.0.1": context deadline exceeded',
        WAITS,
        "WebhookUnavailable",
        hint="or fails",
    ),
    Said(503, 'admission webhook "a.b" denied the request: not ready', WAITS, "WebhookUnavailable"),
    # Webhooks that are away.
    Said(
        500,
        'Internal error occurred: failed calling webhook "pods.example.com": failed to call webhook: Post '
        '"https://hook.infra.svc:443/v?timeout=10s": dial tcp 10.96.3.7:443: connect: connection refused',
        WAITS,
        "WebhookUnavailable",
        hint="webhook",
    ),
    Said(
        500,
        'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: Post '
        '"https://kueue-webhook-service.kueue-system.svc:443/mutate-batch-v1-job?timeout=10s": no endpoints available '
        'for service "kueue-webhook-service"',
        WAITS,
        "WebhookUnavailable",
    ),
    Said(
        500,
        'Internal error occurred: failed calling webhook "x"; no further details available',
        WAITS,
        "WebhookUnavailable",
    ),
    # Quotas.
    Said(
        403,
        f"{FORBIDDEN}exceeded quota: gpus, requested: count/jobs.batch=1, used: count/jobs.batch=2, limited: "
        "count/jobs.batch=2",
        WAITS,
        "QuotaExceeded",
        hint="end or suspend other work",
    ),
    Said(
        403,
        f"{CLAIM_FORBIDDEN}exceeded quota: disks, requested: requests.storage=20Gi, used: requests.storage=90Gi, "
        "limited: requests.storage=100Gi",
        WAITS,
        "QuotaExceeded",
        CLAIM,
        "spec.output.claim.size",
    ),
    Said(
        403,
        f"{CLAIM_FORBIDDEN}exceeded quota: disks, requested: persistentvolumeclaims=1, used: "
        "persistentvolumeclaims=3, limited: persistentvolumeclaims=3",
        WAITS,
        "QuotaExceeded",
        CLAIM,
        "spec.output.claimName",
    ),
    Said(
        403,
        f"{CLAIM_FORBIDDEN}exceeded quota: disks, requested: fast.storageclass.storage.k8s.io/requests.storage=20Gi, "
        "used: fast.storageclass.storage.k8s.io/requests.storage=0, limited: "
        "fast.storageclass.storage.k8s.io/requests.storage=1Gi",
        WAITS,
        "QuotaExceeded",
        CLAIM,
        "spec.output.claim.size",
    ),
    Said(403, f"{FORBIDDEN}insufficient quota to consume: count/jobs.batch", WAITS, "QuotaExceeded"),
    Said(500, "insufficient quota to match these scopes: [{PriorityClass In [high]}]", WAITS, "QuotaExceeded"),
    Said(403, f"{FORBIDDEN}status unknown for quota: gpus, resources: requests.nvidia.com/gpu", WAITS, "QuotaExceeded"),
    # Limits on CPU, which a pod has only when somebody asks for one.
    Said(
        403,
        f"{FORBIDDEN}failed quota: cpus: must specify limits.cpu for: export,trainer",
        EXPIRES,
        "PodCreationRefused",
        hint="spec.resources.cpuLimit",
    ),
    Said(
        403,
        f"{FORBIDDEN}failed quota: all: must specify limits.cpu for: trainer; limits.memory for: trainer",
        EXPIRES,
        "PodCreationRefused",
        hint="spec.resources.cpuLimit",
    ),
    Said(
        403,
        f"{FORBIDDEN}failed quota: disk: must specify limits.ephemeral-storage for: trainer",
        EXPIRES,
        "PodCreationRefused",
        hint="rule of the cluster",
    ),
    Said(
        403,
        f"{FORBIDDEN}cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0",
        EXPIRES,
        "PodCreationRefused",
        hint="spec.resources.cpuLimit",
    ),
    Said(
        403,
        f"{FORBIDDEN}cpu max limit to request ratio per Container is 2, but provided ratio is 10.000000",
        EXPIRES,
        "PodCreationRefused",
        hint="spec.resources.cpuLimit",
    ),
    Said(
        403,
        f"{FORBIDDEN}maximum cpu usage per Container is 1.  No limit is specified",
        EXPIRES,
        "PodCreationRefused",
        hint="spec.resources.cpuLimit",
    ),
    Said(
        403,
        f"{CLAIM_FORBIDDEN}maximum storage usage per PersistentVolumeClaim is 10Gi, but request is 20Gi",
        EXPIRES,
        "PodCreationRefused",
        CLAIM,
        "spec.output.claim.size",
    ),
    # The operator's rights.
    Said(
        403,
        'jobs.batch is forbidden: User "system:serviceaccount:finetune:operator" cannot create resource "jobs" in API '
        'group "batch" in the namespace "ml"',
        WAITS,
        "OperatorForbidden",
        hint="Roles",
    ),
    Said(
        403,
        'workloads.kueue.x-k8s.io "w" is forbidden: User "x" cannot patch resource "workloads" in API group '
        '"kueue.x-k8s.io" in the namespace "ml": RBAC: role.rbac.authorization.k8s.io "r" not found',
        WAITS,
        "OperatorForbidden",
    ),
    Said(
        403,
        f"{FORBIDDEN}cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers "
        "on: , <nil>",
        WAITS,
        "OperatorForbidden",
    ),
    Said(
        403,
        f"{FORBIDDEN}cannot set an ownerRef on a resource you can't delete: , <nil>",
        WAITS,
        "OperatorForbidden",
    ),
    Said(401, "Unauthorized", WAITS, "OperatorForbidden"),
    # The namespace.
    Said(
        403,
        f"{FORBIDDEN}unable to create new content in namespace ml because it is being terminated",
        WAITS,
        "NamespaceTerminating",
        hint="being deleted",
    ),
    Said(404, 'namespaces "ml" not found', WAITS, "NamespaceTerminating"),
    # What passes by itself.
    Said(
        409,
        'Operation cannot be fulfilled on resourcequotas "gpus": the object has been modified; please apply your '
        "changes to the latest version and try again",
        RETRIES,
        "APIServerUnavailable",
    ),
    Said(409, 'object is being deleted: jobs.batch "t-support" already exists', RETRIES, "APIServerUnavailable"),
    Said(429, "Too many requests: too many requests, please try again later.", RETRIES, "APIServerUnavailable"),
    Said(
        429,
        "Cannot evict pod as it would violate the pod's disruption budget.",
        RETRIES,
        "APIServerUnavailable",
    ),
    Said(500, "Internal error occurred: resource quota evaluation timed out", RETRIES, "APIServerUnavailable"),
    Said(500, "etcdserver: request timed out", RETRIES, "APIServerUnavailable"),
    Said(500, "etcdserver: mvcc: database space exceeded", RETRIES, "APIServerUnavailable"),
    Said(
        403,
        f"{FORBIDDEN}unable to CREATE jobs at this time because there was an error enforcing limit ranges",
        RETRIES,
        "APIServerUnavailable",
    ),
    Said(403, f"{FORBIDDEN}not yet ready to handle request", RETRIES, "APIServerUnavailable"),
    Said(
        500,
        "The create operation against jobs.batch could not be completed at this time, please try again.",
        RETRIES,
        "APIServerUnavailable",
    ),
    Said(503, "the server is currently unable to handle the request", RETRIES, "APIServerUnavailable"),
    Said(
        504,
        "Timeout: request did not complete within requested timeout - context deadline exceeded",
        RETRIES,
        "APIServerUnavailable",
    ),
    Said(502, "502 Bad Gateway", RETRIES, "APIServerUnavailable"),
    Said(200, "Log in", RETRIES, "APIServerUnavailable"),
    Said(404, "the server could not find the requested resource", RETRIES, "APIServerUnavailable"),
    Said(404, "404 page not found", RETRIES, "APIServerUnavailable"),
    Said(0, "no answer in time", RETRIES, "APIServerUnavailable"),
    Said(0, "Cannot connect to host 10.0.0.1:6443 ssl:default [Connect call failed]", RETRIES, "APIServerUnavailable"),
    Said(500, "an empty answer", RETRIES, "APIServerUnavailable"),
    # The run's own fault.
    Said(
        422,
        'Job.batch "t-support" is invalid: spec.template.spec.tolerations[0].effect: Invalid value: "NoExecute"',
        ENDS,
        "InvalidSpec",
    ),
    Said(
        422,
        'PersistentVolumeClaim "t-support" is invalid: spec.resources[storage]: Invalid value: "0"',
        ENDS,
        "InvalidSpec",
        CLAIM,
    ),
)


def ids(said: Said) -> str:
    return f"{said.status} {said.words[-48:]}"


@pytest.mark.parametrize("said", SAID, ids=ids)
def test_what_a_refusal_means_for_a_run_that_has_not_started(said: Said) -> None:
    refusal = classify(said.status, said.words, about=said.about, doing=Doing.START)
    assert (refusal.answer, refusal.reason) == (said.answer, said.reason)
    assert (refusal.message, refusal.object) == (said.words, said.about)
    assert said.hint in refusal.hint
    assert refusal.hint or refusal.answer is Answer.ENDS  # which has its reason's hint


@pytest.mark.parametrize("said", SAID, ids=ids)
def test_nothing_that_may_pass_ends_a_run_that_goes_on(said: Said) -> None:
    refusal = classify(said.status, said.words, about=said.about, doing=Doing.GO_ON)
    assert refusal.finding.verdict is Verdict.WAIT
    assert refusal.message == said.words
    assert refusal.answer in (Answer.WAITS, Answer.RETRIES)


def test_every_row_speaks_of_a_sentence() -> None:
    """The first row that matches decides: one that no sentence reaches is dead, or hidden by one before it."""
    reached = {next(n for n, row in enumerate(TABLE) if row.matches(said.status, said.words)) for said in SAID}
    assert [row for n, row in enumerate(TABLE) if n not in reached] == []


def test_the_last_row_takes_whatever_is_left() -> None:
    assert (TABLE[-1].statuses, TABLE[-1].words) == ((), "")
    for code in (0, 100, 301, 402, 499, 500, 599):
        assert classify(code, "", about=JOB, doing=Doing.START).message == f"HTTP {code}"


@pytest.mark.parametrize("said", SAID, ids=ids)
def test_no_refusal_is_silent(said: Said) -> None:
    """The server's words stand where people look, with a clock; and only what is said to end a run does."""
    refusal = classify(said.status, said.words, about=said.about, doing=Doing.START)
    case = look(refusal=refusal)
    if said.answer is Answer.ENDS:
        assert (failed(case).reason, failed(case).message) == (said.reason, said.words)
        return
    assert (waiting(case).reason, waiting(case).message) == (said.reason, said.words)
    made = status(case)
    assert made.waiting is not None
    assert made.waiting.object == said.about
    finished = made.condition("Finished")
    accepted = made.condition("Accepted")
    assert finished is not None
    assert accepted is not None
    assert said.words in finished.message
    assert said.words in accepted.message
    assert accepted.status == ("False" if said.answer is Answer.EXPIRES else "Unknown")
    assert failure(again(case, 359)) is None
    late = failure(again(case, 360))
    assert (late is not None) == (said.answer is Answer.EXPIRES)


@pytest.mark.parametrize(
    ("words", "verdict", "reason"),
    [
        *((said.words, said.answer, said.reason) for said in SAID if said.status == 403 and said.about == JOB),
        (
            (
                'Operation cannot be fulfilled on resourcequotas "gpus": the object has been modified; please apply '
                "your changes to the latest version and try again"
            ),
            RETRIES,
            "APIServerUnavailable",
        ),
        ('Post "https://10.0.0.1:6443/api/v1/namespaces/ml/pods": EOF', RETRIES, "APIServerUnavailable"),
        ('Post "https://10.0.0.1:6443/x": net/http: TLS handshake timeout', RETRIES, "APIServerUnavailable"),
        ('Post "https://10.0.0.1:6443/x": dial tcp: lookup api: no such host', RETRIES, "APIServerUnavailable"),
        ("the server is currently unable to handle the request", RETRIES, "APIServerUnavailable"),
        ("etcdserver: leader changed", RETRIES, "APIServerUnavailable"),
        ('admission webhook "a.b" denied the request: no', EXPIRES, "PodCreationRefused"),
        (
            'Internal error occurred: failed calling webhook "a.b": failed to call webhook: Post "https://x": EOF',
            WAITS,
            "WebhookUnavailable",
        ),
        (
            'pods "x" is forbidden: unable to validate against any security context constraint: [provider restricted]',
            EXPIRES,
            "PodCreationRefused",
        ),
        ('pods "x" is forbidden: pod rejected: RuntimeClass "kata" not found', EXPIRES, "PodCreationRefused"),
        (
            (
                'Pod "x" is invalid: spec.containers[0].resources.requests: Invalid value: "2": must be less than or '
                "equal to cpu limit of 500m"
            ),
            EXPIRES,
            "PodCreationRefused",
        ),
    ],
)
def test_what_the_job_controllers_event_means_which_has_no_status(words: str, verdict: Answer, reason: str) -> None:
    refusal = classify_words(words, about=JOB)
    assert (refusal.answer, refusal.reason) == (verdict, reason)


# The registry


@pytest.mark.parametrize(
    ("code", "reason", "about", "answer", "expected"),
    [
        (0, "", "Adapter/support", WAITS, "RegistryUnavailable"),
        (500, "", "Adapter/support", WAITS, "RegistryUnavailable"),
        (503, "Unavailable", "Run/support", WAITS, "RegistryUnavailable"),
        (507, "StorageFull", "Run/support", WAITS, "RegistryUnavailable"),
        (429, "TooManyRequests", "Run/support", WAITS, "RegistryUnavailable"),
        # Another version of the registry, or a body that this one does not know, is no verdict on the adapter.
        (422, "Invalid", "Adapter/support", WAITS, "RegistryRefused"),
        (400, "BadRequest", "Adapter/support", WAITS, "RegistryRefused"),
        (401, "Unauthorized", "Adapter/support", WAITS, "RegistryRefused"),
        (403, "Forbidden", "Adapter/support", WAITS, "RegistryRefused"),
        (405, "MethodNotAllowed", "Adapter/support", WAITS, "RegistryRefused"),
        (413, "TooLarge", "Adapter/support", WAITS, "RegistryRefused"),
        (404, "", "Adapter/support", WAITS, "RegistryRefused"),
        (409, "Busy", "Adapter/support", WAITS, "RegistryRefused"),
        (409, "Conflict", "Run/support", WAITS, "RegistryRefused"),
        (422, "DigestMismatch", "Run/support", WAITS, "RegistryRefused"),
        # These two are.
        (422, "DigestMismatch", "Adapter/support", ENDS, "AdapterInvalid"),
        (409, "Conflict", "Adapter/support", ENDS, "AdapterInvalid"),
    ],
)
def test_what_the_registry_means(code: int, reason: str, about: str, answer: Answer, expected: str) -> None:
    refusal = classify_registry(code, reason, "its words", about=about)
    assert (refusal.answer, refusal.reason, refusal.message) == (answer, expected, "its words")
    case = look(o.run({"phase": "Registering", "jobName": o.JOB}), o.job("Complete"), refusal=refusal)
    if answer is ENDS:
        assert failed(case).reason == expected
    else:
        assert failure(again(case, 10**7)) is None
        assert waiting(case).message == "its words"
