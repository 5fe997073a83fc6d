"""Which cluster is used, by what a machine offers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.base import ClusterError
from tests.cluster.choose import Facts, choose, is_own

NOTHING = Facts(chosen="", kubeconfig="", docker_answers=False, has_kind=False, is_linux=False, is_root=False)


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ({"kubeconfig": "/c", "docker_answers": True, "has_kind": True, "is_linux": True, "is_root": True}, "existing"),
        ({"docker_answers": True, "has_kind": True, "is_linux": True, "is_root": True}, "kind"),
        ({"docker_answers": True, "is_linux": True, "is_root": True}, "processes"),
        ({"has_kind": True, "is_linux": True, "is_root": True}, "processes"),
        ({"docker_answers": True, "has_kind": True}, "kind"),
        ({"chosen": "processes", "kubeconfig": "/c", "docker_answers": True, "has_kind": True}, "processes"),
        ({"chosen": "kind", "kubeconfig": "/c"}, "kind"),
        ({"chosen": "existing"}, "existing"),
    ],
)
def test_the_first_that_works_is_used_unless_cluster_says_otherwise(offer: dict[str, object], expected: str) -> None:
    assert choose(replace(NOTHING, **offer)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        ({}, ["KUBECONFIG is not set", "no Docker engine answers, and kind is not installed", "this is not Linux"]),
        ({"is_linux": True}, ["this is not root", "run this as root on Linux"]),
        ({"is_linux": True, "docker_answers": True}, ["(kind is not installed)"]),
        ({"is_linux": True, "has_kind": True}, ["(no Docker engine answers)"]),
    ],
)
def test_where_nothing_works_the_error_says_why_and_what_to_do(offer: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ClusterError) as caught:
        choose(replace(NOTHING, **offer))  # type: ignore[arg-type]
    for word in [*words, "Set KUBECONFIG"]:
        assert word in str(caught.value)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="'minikube' is not one of existing, kind, processes"):
        choose(replace(NOTHING, chosen="minikube", is_linux=True, is_root=True))


@pytest.mark.parametrize(
    ("kubeconfig", "expected"), [("", True), ("cache/cluster/admin.conf", True), ("home/.kube/config", False)]
)
def test_the_kubeconfig_of_our_own_cluster_does_not_make_it_somebody_elses(
    kubeconfig: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    assert is_own(str(tmp_path / kubeconfig) if kubeconfig else "") is expected
