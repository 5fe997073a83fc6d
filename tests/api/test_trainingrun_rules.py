"""Every CEL rule of the CRD, on a real API server: what it lets through, what it refuses, and its sentence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from finetune.api import rules
from finetune.api.crd import build_crd
from finetune.api.fields import RULES
from finetune.api.sources import Columns
from finetune.api.trainingrun import TrainingRun
from finetune.controller.core.quantities import quantity
from model.data.shapes import candidates
from tests.cluster.kube_api import KubeApi
from tests.support.rule_cases import CASES
from tests.support.rule_objects import ABSENT, DPO, KTO, Overrides, run_object

RUNS = "/apis/finetune.dev/v1alpha1/namespaces/default/trainingruns"


def create(api: KubeApi, run: object) -> tuple[int, dict[str, Any]]:
    """What the API server would answer to the object; nothing is stored."""
    return api.request("POST", f"{RUNS}?dryRun=All&fieldValidation=Strict", run)


SPEAKING_OF_THE_WHOLE = {
    "metadata.name must be no longer than 63 characters: it becomes a label",
    "add spec with method, baseModel and dataset",
    rules.IMMUTABLE_MESSAGE,
}
"""Rules with a test of their own below."""


def by_message(kind: str) -> list[Any]:
    """One pytest parameter for each object of that kind, named after its rule."""
    return [
        pytest.param(case.message, overrides, id=f"{case.message[:40]}-{number}")
        for case in CASES
        for number, overrides in enumerate(getattr(case, kind))
    ]


@pytest.mark.parametrize(("message", "overrides"), by_message("accepted"))
def test_keeps_the_rule(api: KubeApi, message: str, overrides: Overrides) -> None:
    code, answer = create(api, run_object(overrides))
    assert code == 201, f"{message}: {answer}"
    TrainingRun.from_object(answer)


@pytest.mark.parametrize(("message", "overrides"), by_message("refused"))
def test_breaks_the_rule(api: KubeApi, message: str, overrides: Overrides) -> None:
    code, answer = create(api, run_object(overrides))
    assert code == 422
    causes = [cause["message"] for cause in answer["details"]["causes"]]
    assert any(cause.endswith(f": {message}") for cause in causes), causes


ROBUST = {**DPO, "dpo.loss": "RobustSigmoid"}
DECIMALS: dict[str, tuple[Overrides, tuple[object, ...], tuple[object, ...]]] = {
    "training.learningRate": (
        {},
        (0.0002, 2e-4, 1, "2e-4", "0.0002", "1", "1E-5", "5e-06", "1.0", "0.99", "2.5e-10"),
        (0, 1.1, -1e-4, "0", "0.0", "1.1", "-1e-4", "fast", "1e-999", "0e-4", ".1", "1 ", "2e4", "", True, [], {}, [1]),
    ),
    "resources.cpu": (
        {},
        (4, 0.5, 9999, "4", "0.5", "500m", "1.25", "0.001"),
        (0, -1, 0.0, 10000, "0", "-1", "four", "4Gi", "0m", "0.0", "0.000", "1e3", True),
    ),
    "resources.cpuLimit": ({}, (8, 7.5, "8", "7500m"), (0, "0", "lots")),
    "dpo.beta": (DPO, (0.1, 1, 10, "0.1", "10", "1e-2", "2.5"), (0, 10.1, "0", "10.1", "-1", "high", False)),
    "dpo.labelSmoothing": (
        ROBUST,
        (0.1, 0.49, "0.49", "0.05", "4.9e-1", "1e-2", "9e-10"),
        (0, 0.5, "0", "0.5", "5e-1", "x", "0.0"),
    ),
    "dpo.sftWeight": (DPO, (0, 0.2, 10, "0", "0.2", "10", "0.0", "5e-3"), (-0.1, 11, "-0.1", "11", "1e2")),
    "kto.beta": (KTO, (0.1, 1, 10, "0.1", "10", "1e-2"), (0, 10.1, "0", "high", False)),
    "kto.desirableWeight": (KTO, (0.5, 1, 1000, "1.33", "42", "5e-3", "1000"), (0, -1, 1001, "0", "1001", "x", True)),
    "kto.undesirableWeight": (KTO, (1, "2.5"), (0, "0", "1e2")),
}
"""By field: what else the spec needs, numbers that are let through, and what is refused."""


@pytest.mark.parametrize("field", DECIMALS)
def test_a_number_may_be_written_with_quotes_or_without(api: KubeApi, field: str) -> None:
    """Nobody quotes 0.0002: it is a number in YAML, and taken as one."""
    others, accepted, refused = DECIMALS[field]
    for value in accepted:
        code, answer = create(api, run_object({**others, field: value}))
        assert code == 201, answer
        owner, name = field.split(".")
        assert answer["spec"][owner][name] == value
        spec = TrainingRun.from_object(answer).spec.to_dict()
        understood = spec[owner][name]
        if owner == "resources":
            assert quantity(understood) == quantity(str(value))
        else:
            assert understood == str(value)
    for value in refused:
        code, answer = create(api, run_object({**others, field: value}))
        assert code == 422, value
        assert f"spec.{field}" in answer["message"]


def test_a_name_becomes_a_label(api: KubeApi) -> None:
    assert create(api, run_object({}, name="a" * 63))[0] == 201
    code, answer = create(api, run_object({}, name="a" * 64))
    assert code == 422
    assert "metadata.name must be no longer than 63 characters: it becomes a label" in answer["message"]


def test_a_run_without_a_spec_is_told_what_to_add(api: KubeApi) -> None:
    run = run_object({})
    del run["spec"]
    code, answer = create(api, run)
    assert code == 422
    assert "add spec with method, baseModel and dataset" in answer["message"]


def test_all_that_is_missing_is_said_at_once(api: KubeApi) -> None:
    code, answer = create(api, run_object({"method": ABSENT, "baseModel": ABSENT, "dataset": ABSENT}))
    assert code == 422
    for sentence in (rules.ADD_METHOD, rules.ADD_BASE_MODEL, rules.ADD_DATASET):
        assert sentence in answer["message"]


def test_every_rule_has_a_case() -> None:
    in_crd = {each["message"] for each in _rules(build_crd())}
    assert in_crd == {case.message for case in CASES} | SPEAKING_OF_THE_WHOLE


def _rules(node: object) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        yield from node.get(RULES, ())
        for value in node.values():
            yield from _rules(value)
    elif isinstance(node, list):
        for value in node:
            yield from _rules(value)


@pytest.mark.parametrize("method", ["SFT", "DPO", "KTO"])
def test_the_columns_that_the_export_can_use_are_those_that_may_be_set(api: KubeApi, method: str) -> None:
    """Every set of fields: nothing is let through that only the pod refuses, and nothing refused that it can use."""
    fields = [field.alias or name for name, field in Columns.model_fields.items()]
    sets = [chosen for count in range(1, len(fields) + 1) for chosen in itertools.combinations(fields, count)]
    different = {
        chosen
        for chosen in sets
        if (create(api, run_object({"method": method, "dataset.columns": {f: f"my {f}" for f in chosen}}))[0] == 201)
        is not bool(candidates(method, dict.fromkeys(chosen, "")))
    }
    assert different == set()
