"""The registry against its own description: whatever is sent gets an answer that it describes, and never a 500."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.registry import adapter_document, pairs, run_document, serving

EXAMPLES = 6
"""Requests for each call, of those that fit the description and of those that do not."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KNOWN = {"namespace": "ml", "uid": "known", "name": "tickets", "version": "1"}
"""Half of the requests are about things that are there."""


@schemathesis.serializer("application/jsonl")
def as_it_is(_context: object, value: object) -> object:
    """Bytes, or whatever else is to be no rows."""
    return value if isinstance(value, (bytes, str)) else str(value)


@pytest.mark.parametrize(
    "backend", [pytest.param("sqlite", marks=pytest.mark.long), "postgresql"], indirect=True, scope="session"
)
def test_it_answers_as_it_describes(database_url: str) -> None:
    with serving(database_url) as url, httpx.Client(timeout=60) as client:  # the machine may do ten other things
        base = f"{url}/api/v1/namespaces/ml"
        assert client.post(f"{base}/datasets/tickets/versions", content=pairs(2)).status_code == 201
        for uid in ("known", "made"):
            assert client.put(f"{base}/runs/{uid}", json=run_document(name=uid)).status_code == 201
        adapter = adapter_document("made", name="tickets")
        assert client.put(f"{base}/runs/made/adapter", json=adapter).status_code == 201
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        calls = [found.ok() for found in schema.get_all_operations()]
        assert len(calls) >= 20
        for call in calls:
            for mode in GenerationMode:
                send(call, mode)


def send(call: Any, mode: GenerationMode) -> None:
    """Send some requests of one kind."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,  # what fails here fails again
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(call.as_strategy(generation_mode=mode), booleans())
    def check(case: Any, known: bool) -> None:
        if known:
            case.path_parameters.update({name: KNOWN[name] for name in case.path_parameters if name in KNOWN})
        case.call_and_validate(checks=CHECKS, timeout=60)

    with suppress(Unsatisfiable):  # a call without parameters cannot be asked wrongly
        check()
