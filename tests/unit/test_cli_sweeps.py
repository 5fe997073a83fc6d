"""From a manifest and values of settings to the runs of a sweep, and from their numbers to the best version."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import pytest
import yaml

from finetune.api.registry import AdapterVersion
from finetune.cli.measures import Guard, best_of, guard, objection
from finetune.cli.session import UsageError
from finetune.cli.sweeping import manifests, ranking
from finetune.cli.sweeps import HELD_ANNOTATION, SWEEP_LABEL, held, members, next_ones
from finetune.cli.views import of_object
from tests.support.registry import adapter_document

BASE: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "tune", "namespace": "ml", "labels": {"team": "a"}, "annotations": {"why": "try"}},
    "spec": {
        "method": "SFT",
        "baseModel": {"hub": {"repository": "a/b"}},
        "dataset": {"registry": {"name": "tickets", "version": 2}},
        "training": {"maxSteps": 10, "learningRate": "3e-4"},
    },
}


def values(path: str, made: list[Any]) -> list[str]:
    return [member.settings[path] for member in made]


def test_a_grid_is_every_combination_in_the_order_of_the_settings() -> None:
    made = members(BASE, ["learningRate=1e-4,0.0002", "lora.rank=8,16", "training.epochs=2"], name="tune")
    assert [dict(each.settings) for each in made] == [
        {"training.learningRate": rate, "lora.rank": rank} for rate in ("1e-4", "0.0002") for rank in ("8", "16")
    ]
    first = made[0].manifest
    assert first["spec"]["training"] == {"maxSteps": 10, "learningRate": "1e-4", "epochs": 2}
    assert first["spec"]["lora"] == {"rank": 8}
    assert first["spec"]["experiment"] == "tune"
    assert first["metadata"] == {
        "name": made[0].name,
        "namespace": "ml",
        "labels": {"team": "a", SWEEP_LABEL: "tune"},
        "annotations": {"why": "try"},
    }
    assert BASE["spec"]["training"] == {"maxSteps": 10, "learningRate": "3e-4"}
    assert re.fullmatch(r"tune-8-1e-4-[0-9a-f]{6}", made[0].name)


def test_the_same_sweep_is_the_same_objects_and_a_larger_one_adds_to_them() -> None:
    small = members(BASE, ["learningRate=1e-4,2e-4", "lora.rank=8,16"], name="tune")
    turned = members(BASE, ["lora.rank=16,8", "spec.training.learningRate=2e-4,1e-4"], name="tune")
    large = members(BASE, ["learningRate=1e-4,2e-4,5e-4", "lora.rank=8,16"], name="tune")
    assert {each.name for each in small} == {each.name for each in turned}
    assert {each.name for each in small} < {each.name for each in large}
    other = {**BASE, "spec": {**BASE["spec"], "retries": 1}}
    assert not {each.name for each in small} & {
        each.name for each in members(other, ["learningRate=1e-4,2e-4", "lora.rank=8,16"], name="tune")
    }
    suspended = {**BASE, "spec": {**BASE["spec"], "suspend": True}}
    assert [each.name for each in small] == [
        each.name for each in members(suspended, ["learningRate=1e-4,2e-4", "lora.rank=8,16"], name="tune")
    ]


def test_random_choices_are_the_same_everywhere_and_fewer_of_them_are_the_first() -> None:
    settings = ["learningRate=1e-5..1e-3", "lora.rank=8..64", "lora.variant=LoRA,DoRA"]
    made = members(BASE, settings, name="tune", count=40, seed=7)
    assert [each.name for each in members(BASE, settings, name="tune", count=3, seed=7)] == [
        each.name for each in made[:3]
    ]
    assert dict(made[0].settings) == {
        "training.learningRate": "0.000432",
        "lora.rank": "60",
        "lora.variant": "DoRA",
    }
    rates, ranks = ([float(each) for each in values(path, made)] for path in ("training.learningRate", "lora.rank"))
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert all(8 <= rank <= 64 for rank in ranks)
    # two decades: about half of the values lie in each; of a linear range one in eleven would lie in the lower one
    assert 10 <= sum(rate < 1e-4 for rate in rates) <= 30
    assert 10 <= sum(rank < 36 for rank in ranks) <= 30
    assert set(values("lora.variant", made)) == {"LoRA", "DoRA"}
    more = members(BASE, [*settings, "training.seed=1..1000"], name="tune", count=3, seed=7)
    assert values("lora.rank", more) == values("lora.rank", made)[:3]
    assert made[0].name != members(BASE, settings, name="tune", count=1, seed=8)[0].name


def test_an_empty_value_is_the_default_and_brackets_hold_a_value_together() -> None:
    made = members(BASE, ["learningRate=,1e-4", "lora.targetModules=[q_proj,v_proj],[all-linear]"], name="tune")
    assert len(made) == 4
    assert "learningRate" not in made[0].manifest["spec"]["training"]
    assert made[0].manifest["spec"]["lora"]["targetModules"] == ["q_proj", "v_proj"]
    assert "default" in made[0].name
    assert made[0].label == "training.learningRate=(default), lora.targetModules=[q_proj,v_proj]"


def test_names_fit_however_long_the_values_are() -> None:
    repositories = ",".join(f"hub-of-{letter * 60}/m" for letter in "ab")
    made = members(BASE, [f"baseModel.hub.repository={repositories}"], name="s" * 40)
    assert [len(each.name) for each in made] == [63, 63]
    assert made[0].name != made[1].name
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*[a-z0-9]", each.name) for each in made)


@pytest.mark.parametrize(
    ("settings", "count", "said"),
    [
        (["learningRate=1e-4"], None, "nothing varies"),
        ([], None, "nothing varies"),
        (["learningRate=1e-4,1e-4"], None, "twice"),
        (["learningRate=1e-4,0.0001"], None, "0.0001 stands there twice"),
        (["learningRate=1e-4,2e-4", "training.learningRate=3e-4"], None, "training.learningRate is set twice"),
        (["learningRate=1e-5..1e-3"], None, "--random=10"),
        (["learningRate=1e-3..1e-5"], 3, "from a smaller number to a larger one"),
        (["learningRate=1e-4.."], None, "1e-4.. is no value; a range"),
        (["learningRate=..1e-3,1e-4"], 3, "..1e-3 is no value; a range"),
        (["lora.rank=1...8"], 3, "1...8 is no value; a range"),
        (["learningRate=1e-5...1e-3"], 3, "1e-5...1e-3 is no value; a range"),
        (["learningRate=1e-5..1e-3,5e-3"], 3, "1e-5..1e-3 is no value; a range stands alone"),
        (["foo=1,2"], None, "kubectl explain trainingrun.spec"),
        (["lora.rank=1.5..8"], 3, "lora.rank takes whole numbers"),
        (["lora.rank=8,16"], 3, "about 2 combinations"),
        (["training.seed=0..9999"], 201, "200 runs at most"),
        (["training.seed=" + ",".join(map(str, range(201)))], None, "has 201 runs"),
        (["learnRate=1,2"], None, "do you mean"),
        (["lora.rank"], None, "PATH=VALUE"),
        (["lora.rank=8,0", "retries=1,101"], None, "3 of 4 runs cannot be"),
        (["retries=1,101"], None, "retries=101: spec.retries"),
    ],
)
def test_what_is_no_sweep_is_refused_with_why(settings: list[str], count: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        members(BASE, settings, name="tune", count=count)


def test_a_name_without_room_for_values_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 40 letters"):
        members(BASE, ["lora.rank=8,16"], name="s" * 41)


def a_run(name: str, phase: str = "", *, suspend: bool = False, is_held: bool = False) -> dict[str, Any]:
    annotations = {HELD_ANNOTATION: "true"} if is_held else {}
    metadata = {"name": name, "uid": name, "annotations": annotations}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": {"phase": phase}}


def test_the_next_ones_are_released_as_places_become_free() -> None:
    waiting = [a_run(name, suspend=True, is_held=True) for name in "cdef"]
    runs = {
        each["metadata"]["name"]: each
        for each in (
            a_run("a", "Succeeded"),
            a_run("b", "Training"),
            a_run("p", "Suspended", suspend=True),  # a person's: it takes no place and is not released
            a_run("h", "Suspended", suspend=True, is_held=False),
            a_run("g", "Training", is_held=True),  # released by a person
            *waiting,
        )
    }
    order = [*"abpgfedc"]
    assert next_ones(runs, order, parallel=4) == ["f", "e"]
    assert next_ones(runs, order, parallel=2) == []
    assert next_ones(runs, order, parallel=1) == []
    assert next_ones(runs, [*order, "gone"], parallel=99) == ["f", "e", "d", "c"]


def test_a_held_member_is_its_manifest_suspended() -> None:
    (member, *_) = members(BASE, ["lora.rank=8,16"], name="tune")
    waiting = held(member)
    assert waiting["metadata"]["annotations"] == {"why": "try", HELD_ANNOTATION: "true"}
    assert waiting["spec"] == {**member.manifest["spec"], "suspend": True}
    assert waiting["metadata"]["name"] == member.name


def test_manifests_are_documents_for_git_or_a_list() -> None:
    made = [each.manifest for each in members(BASE, ["lora.rank=8,16"], name="tune")]
    assert list(yaml.safe_load_all(manifests(made, "yaml"))) == made
    assert json.loads(manifests(made, "json"))["items"] == made


def test_the_ranking_puts_the_lowest_held_out_loss_first() -> None:
    made = members(BASE, ["lora.rank=8,16,32"], name="tune")
    losses = ("1.5", None, "1.25")
    views = {}
    for member, loss in zip(made, losses, strict=True):
        result = {"evaluationLoss": loss, "baseEvaluationLoss": "2.5"} if loss else {}
        run = a_run(member.name, "Succeeded" if loss else "Failed")
        views[member.name] = of_object({**run, "status": {**run["status"], "result": result}})
    told = ranking(made, views, on=False).splitlines()
    assert told[0].split() == ["NAME", "STATE", "RANK", "LOSS", "VS", "BASE", "ADAPTER"]
    assert [line.split()[2] for line in told[1:]] == ["32", "8", "16"]
    assert told[1].split()[1:] == ["Succeeded", "32", "1.25", "-50", "%", "-"]


def version(number: int, loss: str | None, *, state: str = "Ready", accuracy: str | None = None) -> AdapterVersion:
    known = {
        "id": str(number),
        "name": "support",
        "version": number,
        "uri": "pvc://a/b",
        "sha256": "c" * 64,
        "bytes": 1,
        "files": [],
        "runUid": str(number),
        "runName": f"support-{number}",
        "experiment": "tune",
        "method": "SFT",
        "baseModel": {"name": "a/b"},
        "dataset": adapter_document("u")["dataset"],
        "finalLoss": "1.0",
        "evaluationLoss": loss,
        "rewardAccuracy": accuracy,
        "steps": 1,
        "createdTime": "2026-11-28T09:00:00Z",
        "state": state,
    }
    return AdapterVersion.model_validate({key: value for key, value in known.items() if value is not None})


def test_the_best_is_the_smallest_loss_or_the_largest_accuracy_of_those_that_may_be_used() -> None:
    made = [
        version(1, "1.2", accuracy="0.7"),
        version(2, "0.9", state="Quarantined", accuracy="0.99"),
        version(3, "1.1", accuracy="0.6"),
        version(4, "1.1"),
        version(5, "nan"),
        version(6, None),
    ]
    for by, best in (("heldOutLoss", 4), ("evaluationLoss", 4), ("rewardAccuracy", 1), ("finalLoss", 6)):
        found = best_of(made, by)
        assert found is not None
        assert found.version == best
    assert best_of(made[4:], "heldOutLoss") is None


@pytest.mark.parametrize(
    ("new", "old", "by", "allowed", "is_moved"),
    [
        ("1.01", "1.00", "heldOutLoss", "1%", True),
        ("1.0101", "1.00", "heldOutLoss", "1 %", False),
        ("1.00", "1.00", "heldOutLoss", "0", True),
        ("1.0001", "1.00", "heldOutLoss", "0", False),
        ("1.02", "1.00", "heldOutLoss", "0.02", True),
        ("1.0201", "1.00", "heldOutLoss", ".02", False),
        ("0.5", "1.00", "heldOutLoss", "0", True),
        ("-1.02", "-1.00", "heldOutLoss", "0", True),
        ("0.79", "0.80", "rewardAccuracy", "1%", False),
        ("0.79", "0.80", "rewardAccuracy", "2%", True),
        ("0.81", "0.80", "rewardAccuracy", "0", True),
        ("1.0", None, "heldOutLoss", "50%", False),
        ("0.1", "0", "heldOutLoss", "50%", False),
    ],
)
def test_the_guard(new: str, old: str | None, by: str, allowed: str, is_moved: bool) -> None:
    best, current = (
        version(number, text if by == "heldOutLoss" else "1", accuracy=text if by == "rewardAccuracy" else None)
        for number, text in ((2, new), (1, old))
    )
    why = objection(best, current, by, guard(allowed))
    assert (why is None) is is_moved
    if why is not None:
        assert "version 2" in why
        assert old is None or re.search(rf"\b{float(old):.4g}\b", why)


def test_a_guard_is_a_percentage_or_a_difference() -> None:
    assert guard("1%") == guard(" 1 % ".strip()) == Guard(1.0, is_percent=True)
    assert guard("0.02") == Guard(0.02)
    for text in ("", "%", "-1", "a", "1%%", "nan", "1e3"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a difference"):
            guard(text)
