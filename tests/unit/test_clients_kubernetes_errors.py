"""What an answer of the API server, or of something in its place, becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.clients.kubernetes_errors import (
    INVALID_ANSWER,
    AlreadyExistsError,
    Asked,
    Cause,
    ConflictError,
    ForbiddenError,
    KubernetesError,
    NotFoundError,
    NotServedError,
    document_of,
    error_of,
    no_answer,
)

RUN = {"name": "support", "group": "finetune.dev", "kind": "trainingruns"}
GET = Asked(
    "GET", "/apis/finetune.dev/v1alpha1/namespaces/ml/trainingruns/support", "trainingruns", "finetune.dev", "support"
)
POST_JOB = Asked("POST", "/apis/batch/v1/namespaces/ml/jobs", "jobs", "batch", "support-1")
PATCH_JOB = Asked("PATCH", "/apis/batch/v1/namespaces/ml/jobs/support-1", "jobs", "batch", "support-1", "Job")
JOB = {"name": "support-1", "group": "batch", "kind": "jobs"}
POD = Asked("DELETE", "/api/v1/namespaces/ml/pods/p", "pods", "", "p")
LIST = Asked("GET", "/apis/finetune.dev/v1alpha1/trainingruns", "trainingruns", "finetune.dev")


def status(code: int, reason: str, message: str = "m", **details: Any) -> bytes:
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return json.dumps({**document, "message": message, "details": details}).encode()


@pytest.mark.parametrize(
    ("asked", "code", "data", "kind"),
    [
        pytest.param(GET, 404, status(404, "NotFound", **RUN), NotFoundError, id="the run is gone"),
        pytest.param(POD, 404, status(404, "NotFound", name="p", kind="pods"), NotFoundError, id="the pod is gone"),
        pytest.param(GET, 404, b"404 page not found\n", NotServedError, id="the version is not served"),
        pytest.param(GET, 404, b"<html><h1>Not Found</h1></html>", NotServedError, id="a proxy"),
        pytest.param(GET, 404, status(404, "NotFound"), NotServedError, id="no object named"),
        pytest.param(GET, 404, status(404, "NotFound", **{**RUN, "name": "x"}), NotServedError, id="another run"),
        pytest.param(GET, 404, status(404, "NotFound", **{**RUN, "kind": "pods"}), NotServedError, id="another kind"),
        pytest.param(GET, 404, status(404, "NotFound", **{**RUN, "group": "b"}), NotServedError, id="another group"),
        pytest.param(GET, 404, status(404, "Gone", **RUN), NotServedError, id="another reason"),
        pytest.param(
            POST_JOB, 404, status(404, "NotFound", name="ml", kind="namespaces"), NotServedError, id="no such namespace"
        ),
        pytest.param(LIST, 404, status(404, "NotFound", kind="trainingruns"), NotServedError, id="no such list"),
        pytest.param(GET, 404, b'{"error": "not found"}', NotServedError, id="another service"),
        pytest.param(POST_JOB, 409, status(409, "AlreadyExists", **JOB), AlreadyExistsError, id="the name is taken"),
        pytest.param(POST_JOB, 409, status(409, "AlreadyExists"), KubernetesError, id="a webhook says 409"),
        pytest.param(
            POST_JOB, 409, status(409, "Conflict", name="q", kind="resourcequotas"), KubernetesError, id="a busy quota"
        ),
        pytest.param(PATCH_JOB, 409, status(409, "Conflict", **JOB), ConflictError, id="changed meanwhile"),
        pytest.param(
            PATCH_JOB, 409, status(409, "Conflict", **{**JOB, "kind": "Job"}), ConflictError, id="named by its kind"
        ),
        pytest.param(PATCH_JOB, 409, b"conflict", KubernetesError, id="409 of something else"),
        pytest.param(
            PATCH_JOB,
            422,
            status(
                422, "Invalid", **{**JOB, "kind": "Job"}, causes=[{"field": "metadata.uid", "message": "immutable"}]
            ),
            ConflictError,
            id="another uid",
        ),
        pytest.param(
            PATCH_JOB,
            422,
            status(422, "Invalid", **JOB, causes=[{"field": "spec.suspend", "message": "no"}]),
            KubernetesError,
            id="invalid",
        ),
        pytest.param(POST_JOB, 403, status(403, "Forbidden", **JOB), ForbiddenError, id="forbidden"),
        pytest.param(
            POST_JOB,
            422,
            status(422, "Invalid", "policy denied request: no"),
            KubernetesError,
            id="an admission policy",
        ),
        pytest.param(
            POST_JOB, 400, status(400, "", "denied the request"), KubernetesError, id="a webhook without code"
        ),
        pytest.param(POST_JOB, 500, b"", KubernetesError, id="empty"),
    ],
)
def test_which_error_it_is(asked: Asked, code: int, data: bytes, kind: type[KubernetesError]) -> None:
    error = error_of(asked, code, data, {})
    assert type(error) is kind
    assert (error.status, error.verb, error.path) == (code, asked.verb, asked.path)


def test_the_servers_own_words_and_details_are_kept_apart_from_ours() -> None:
    cause = {"field": "spec.suspend", "reason": "FieldValueInvalid", "message": "no"}
    error = error_of(PATCH_JOB, 422, status(422, "Invalid", 'Job "x" is invalid', **JOB, causes=[cause, "odd"]), {})
    assert (error.reason, error.message) == ("Invalid", 'Job "x" is invalid')
    assert error.details["name"] == "support-1"
    assert error.causes == (Cause("spec.suspend", "FieldValueInvalid", "no"),)
    assert str(error) == f'PATCH {PATCH_JOB.path}: 422 Invalid: Job "x" is invalid'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html><head><style>a {}</style><title>502  Bad\nGateway</title></head>", "502 Bad Gateway"),
        (b"upstream connect error", "upstream connect error"),
        (b"", "an empty answer"),
        (b'{"kind": "Status", "mess', '{"kind": "Status", "mess'),
        (b'["a"]', '["a"]'),
        (b"[" * 100_000, "[" * 200),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 5000, "x" * 200),
    ],
)
def test_what_is_no_status_is_quoted(data: bytes, message: str) -> None:
    error = error_of(GET, 502, data, {})
    assert (error.status, error.reason, error.message) == (502, INVALID_ANSWER, message)
    assert error.said_status == 0, "whoever said it, it was not the API server"


@pytest.mark.parametrize(
    ("headers", "details", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({}, {"retryAfterSeconds": 3}, 3.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, None),
        ({"Retry-After": "999999999"}, {"retryAfterSeconds": "x"}, None),
        ({"Retry-After": "-1"}, {}, None),
        ({}, {}, None),
    ],
)
def test_how_long_the_server_asks_us_to_wait(headers: dict[str, str], details: Any, seconds: float | None) -> None:
    assert error_of(GET, 429, status(429, "TooManyRequests", **details), headers).retry_after == seconds


@pytest.mark.parametrize(
    "data",
    [
        b"<html>Log in</html>",
        b"",
        b'{"kind": "TrainingRun", "metadata": {"na',
        b"[]",
        b"null",
        b'{"kind": "Pod"}',
        b'{"ok": true}',
    ],
)
def test_a_success_with_anything_else_in_it_is_an_error(data: bytes) -> None:
    with pytest.raises(KubernetesError) as caught:
        document_of(GET, "TrainingRun", 200, data)
    assert (caught.value.status, caught.value.reason) == (200, INVALID_ANSWER)


def test_a_document_of_the_right_kind_is_taken() -> None:
    assert document_of(GET, "TrainingRun", 200, b'{"kind": "TrainingRun"}') == {"kind": "TrainingRun"}
    assert document_of(GET, "", 200, b'{"major": "1"}') == {"major": "1"}


def test_no_answer_says_why() -> None:
    assert (no_answer(GET, TimeoutError()).status, no_answer(GET, TimeoutError()).message) == (0, "no answer in time")
    assert no_answer(GET, ConnectionResetError("reset")).reason == "ConnectionResetError"
