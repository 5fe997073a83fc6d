"""Lines of the log: one for each record, whole, and without what specs, rows, tokens and answers say."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from finetune.api.status import TrainingRunStatus
from finetune.clients.kubernetes_errors import KubernetesError
from finetune.clients.registry_errors import RegistryRefused, RegistryUnavailable
from finetune.logs import JSONFormatter, TextFormatter, described, fields
from tests.support.registry import run_document, serving

SECRET = "hunter2-of-the-row"
TOKEN = "eyJhbGciOiJSUzI1NiIsImtpZCI6IngifQ.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"

Document = dict[str, Any]
JSON = JSONFormatter()
TEXT = TextFormatter()


def record(message: str, *arguments: object, error: BaseException | None = None, **more: Any) -> logging.LogRecord:
    given = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("finetune.x", logging.WARNING, "x.py", 1, message, arguments, given)
    made.__dict__.update(more)
    return made


def raised(error: BaseException, *, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - whatever it is, it is what was asked for
        return caught


@contextmanager
def lines_of(logger: str) -> Iterator[list[Document]]:
    """What a logger and those below it write as JSON, also from other threads."""
    stream, found = io.StringIO(), list[Document]()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSON)
    named = logging.getLogger(logger)
    level, named.level = named.level, logging.INFO
    named.addHandler(handler)
    try:
        yield found
    finally:
        named.removeHandler(handler)
        named.setLevel(level)
        found += [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_json_object_with_its_fields() -> None:
    line = JSON.format(record("%s", "Training", **fields(run="support-1", seconds=12, attempt=1)["fields"] and {}))
    assert json.loads(line)["message"] == "Training"
    told = json.loads(JSON.format(record("%s", "Training", **fields(run="support-1", seconds=12))))
    assert {key: told[key] for key in ("level", "logger", "message", "run", "seconds")} == {
        "level": "WARNING",
        "logger": "finetune.x",
        "message": "Training",
        "run": "support-1",
        "seconds": 12,
    }
    assert told["time"].endswith("Z")


def test_the_same_as_text() -> None:
    line = TEXT.format(record("%s", "Training", **fields(run="support-1", seconds=12)))
    assert line.endswith(" WARNING finetune.x: Training run=support-1 seconds=12")


@pytest.mark.parametrize(
    "name", ["a\nb", "a\r\n2026-11-24T06:00:00Z INFO finetune: forged", "\x1b[2J", "a\u2028b", "\x00"]
)
def test_no_name_makes_a_line_of_its_own(name: str) -> None:
    made = record("about %s", name, **fields(run=name))
    for line in (JSON.format(made), TEXT.format(made)):
        assert len(line.splitlines()) == 1
        assert line.isprintable()


@pytest.mark.parametrize("value", ["\ud800", float("nan"), object(), {"a": {1, 2}}, b"\xff", 10**400])
def test_any_value_makes_a_line(value: object) -> None:
    made = record("%r", value, **fields(value=value))
    assert json.loads(JSON.format(made))["logger"] == "finetune.x"
    TEXT.format(made).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}",
        f"sent bearer {SECRET}",
        f"url postgresql://user:{SECRET}@host/name failed",
        f"url https://{SECRET}@host/ failed",
        f"token={TOKEN}",
    ],
)
def test_what_other_libraries_say_is_cleared_of_credentials(text: str) -> None:
    for line in (JSON.format(record(text)), TEXT.format(record(text))):
        assert SECRET not in line
        assert TOKEN not in line
        assert "***" in line


def errors() -> list[BaseException]:
    def recursion(depth: int) -> None:
        recursion(depth + 1)

    found = [
        raised(ValueError(f"row 7 is {SECRET}"), cause=KeyError(SECRET)),
        raised(
            KubernetesError(verb="PUT", path="/x", status=422, reason="Invalid", message=f"Invalid value: {SECRET}")
        ),
        raised(KubernetesError(verb="PUT", path="/x", status=500, reason=f"{SECRET}\n<html>", message=SECRET)),
        raised(RegistryRefused(status=422, reason="InvalidRows", message=SECRET, hint=SECRET)),
        raised(RegistryUnavailable(f"GET http://x: HTTP 500: {SECRET}")),
        raised(ExceptionGroup("group", [ValueError(SECRET), OSError(5, SECRET, SECRET)])),
    ]
    try:
        TrainingRunStatus.model_validate_json(f'{{"phase": {{"x": "{SECRET}"}}, "attempts": "{SECRET}"}}', strict=True)
        json.loads(f'{{"{SECRET}"')
    except ValueError as error:
        found.append(error)
    try:
        recursion(0)
    except RecursionError as error:
        found.append(error)
    return found


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_an_error_is_one_object_with_its_frames_and_without_its_words(error: BaseException) -> None:
    line = JSON.format(record("failed: %s", described(error), error=error))
    assert len(line.splitlines()) == 1
    assert SECRET not in line + TEXT.format(record("failed", error=error))
    (first, *_) = json.loads(line)["error"]
    assert first["error"].startswith(type(error).__name__)
    assert 0 < len(first["frames"]) <= 40
    assert all(":" in frame and " in " in frame for frame in first["frames"])
    assert len(line) < 20_000


def test_what_an_error_is_told_as() -> None:
    told = [described(error) for error in errors()[:6]]
    assert told == [
        "ValueError",
        "KubernetesError: 422 Invalid, PUT /x",
        "KubernetesError",  # a server that says such a reason is not quoted
        "RegistryRefused: 422 InvalidRows",
        "RegistryUnavailable",
        "ExceptionGroup",
    ]


def test_the_causes_are_told_as_well() -> None:
    (error, *_) = errors()
    told = json.loads(JSON.format(record("failed", error=error)))["error"]
    assert [each["error"] for each in told] == ["ValueError", "KeyError"]


@pytest.mark.parametrize("program", [f"raise ValueError('{SECRET}')", "import warnings; warnings.warn('careful')"])
def test_what_ends_a_process_and_what_warns_are_lines_too(program: str) -> None:
    script = f"from finetune.logs import install; install('json'); {program}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert SECRET not in line
    if "raise" in program:
        assert (done.returncode, told["level"], told["error"][0]["error"]) == (1, "CRITICAL", "ValueError")
    else:
        assert "careful" in told["message"]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_request_to_the_registry_is_one_line_without_contents(database_url: str) -> None:
    row = json.dumps({"prompt": SECRET, "completion": SECRET}) + "\n"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with lines_of("finetune.registry") as lines, serving(database_url) as url, httpx.Client(headers=headers) as client:
        base = f"{url}/api/v1/namespaces/ml"
        client.get(f"{url}/healthz")
        client.get(f"{url}/metrics")
        client.post(f"{base}/datasets/{SECRET}/versions?token={TOKEN}", content=row)
        client.post(f"{base}/datasets/{SECRET}/versions", content=f'{{"prompt": "{SECRET}"\n')
        client.put(f"{base}/runs/{uuid.uuid4()}", json=run_document(spec={"x": SECRET}))
        client.get(f"{url}/{SECRET}/nothing")
        client.request(SECRET.upper(), f"{url}/healthz")
    assert SECRET not in json.dumps(lines)
    assert TOKEN not in json.dumps(lines)
    requests = [each for each in lines if "route" in each]
    told = [(each["method"], each["route"], each["status"]) for each in requests]
    versions = "/api/v1/namespaces/{namespace}/datasets/{name}/versions"
    assert told == [
        ("POST", versions, 201),
        ("POST", versions, 422),
        ("PUT", "/api/v1/namespaces/{namespace}/runs/{uid}", 201),
        ("GET", "unmatched", 404),
        ("other", "/healthz", 405),
    ]
    assert all(each["milliseconds"] >= 0 for each in requests)
    assert requests[0]["user"] == "local"
