"""A tenant who may only make runs, on the real cluster: what is not allowed is refused and said, and reaches no pod."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e import runs
from tests.support.kubectl import CommandError, Kubectl

REFUSED: dict[str, dict[str, Any]] = {
    "spec.image is not allowed": {"image": "docker.io/library/busybox:1"},
    "spec.serviceAccountName is not allowed": {"serviceAccountName": "data-scientist"},
    "spec.podLabels has a key that is not allowed": {"podLabels": {"team": "x"}},
    "no '..'": {"baseModel": {"volume": {"claimName": "base-models", "path": "../../etc"}}},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_a_tenant_may_not_choose_is_refused_when_it_is_applied(team: Kubectl, words: str) -> None:
    with pytest.raises(CommandError, match=words.replace(".", r"\.")):
        team.apply(runs.manifest("greedy", **REFUSED[words]))
    assert team.find("trainingruns", "greedy") is None
    assert team.items("pods", "finetune.dev/run=greedy") == []


def test_the_namespace_of_a_team_takes_restricted_pods_only(team: Kubectl) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "rooted"},
        "spec": {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": True}}]},
    }
    with pytest.raises(CommandError, match="violates PodSecurity"):
        team.apply(pod)
