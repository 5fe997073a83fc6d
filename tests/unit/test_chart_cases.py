"""The chart's values, one case each: what a value changes is written in a file, for both versions of Helm."""

from __future__ import annotations

import json
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from deploy import manifests
from model.data.sources import gate
from tests.support.chart import (
    GOLDEN,
    GOLDEN_CASES,
    HELM,
    POLICIES,
    cases,
    differences,
    find_helm,
    objects_of,
    render,
    render_cases,
    template,
)
from tests.unit.test_chart_render import needs_helm

HELM_3 = find_helm("helm3")
AGAIN = "run `python -m tests.support.chart` and look at what it changes"


@cache
def rendered(helm: str) -> dict[str, str]:
    """The text of every case."""
    return render_cases(helm, cases())


@needs_helm
def test_every_value_changes_what_is_written_down() -> None:
    texts = rendered(str(HELM))
    assert texts["default"] == GOLDEN.read_text(encoding="utf-8"), AGAIN
    assert differences(texts) == GOLDEN_CASES.read_text(encoding="utf-8"), AGAIN


@needs_helm
@pytest.mark.skipif(HELM_3 is None, reason="Helm 3 has not been built yet: python -m tests.cluster build")
def test_helm_3_makes_the_same_of_every_case() -> None:
    assert rendered(str(HELM_3)) == rendered(str(HELM))


@needs_helm
def test_a_second_render_is_the_same() -> None:
    assert template(*POLICIES).stdout == template(*POLICIES).stdout != ""


@needs_helm
def test_two_releases_of_one_name_have_nothing_in_common() -> None:
    """But the definition of TrainingRun, which the second leaves out."""

    def objects(namespace: str) -> set[tuple[str, str | None, str]]:
        done = template(*POLICIES, "--namespace", namespace, "--set", "crds.enabled=false")
        found = objects_of(done.stdout)
        return {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in found}

    assert objects("one") & objects("other") == set()


@needs_helm
def test_the_plain_manifests_and_the_readme_are_the_charts() -> None:
    assert manifests.INSTALL.read_text(encoding="utf-8") == manifests.install_manifest(), "run `make manifests`"
    assert manifests.README.read_text(encoding="utf-8") == manifests.readme(), "run `make manifests`"


NETWORKS = (
    *("0.0.0.0/0", "128.0.0.0/1", "168.0.0.0/5", "169.0.0.0/8", "64.0.0.0/2", "100.64.0.0/10", "100.100.100.0/24"),
    *("10.0.0.0/8", "100.100.100.201/32", "::/0", "2000::/3", "fc00::/7", "fd00::/8", "fd00::/10", "fd00::/16"),
    *("fd00::/20", "fd00:ec0::/28", "fd20::/11", "fd20::/16", "fd12:3456::/32", "fd00:1::/32"),
)
LISTED = ",".join(NETWORKS)


@needs_helm
def test_every_network_goes_without_the_addresses_that_hand_out_credentials() -> None:
    runs = f"networkPolicy.runs.enabled=true,networkPolicy.runs.namespaces={{ml}},networkPolicy.runs.cidrs={{{LISTED}}}"
    (policy,) = [each for each in render("--set", runs) if each["kind"] == "NetworkPolicy"]
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert {block["cidr"]: set(block.get("except", ())) for block in blocks} == {
        each: {str(other) for other in gate.LOCAL if holds(ip_network(each), other)} for each in NETWORKS
    }


@needs_helm
def test_without_networks_no_rule_opens_all_of_them() -> None:
    """In a NetworkPolicy a rule without `to` means everybody, metadata addresses among them."""
    peer = [{"podSelector": {"matchLabels": {"app": "postgres"}}}]
    own = {"enabled": True, "apiServer": {"cidrs": []}, "registry": {"cidrs": [], "to": peer}}
    values = {**own, "runs": {"enabled": True, "namespaces": ["ml"], "cidrs": []}}
    database = ("--set", "registry.database.existingSecret.name=db")
    objects = render("--set-json", f"networkPolicy={json.dumps(values)}", *database)
    rules = [rule for each in objects if each["kind"] == "NetworkPolicy" for rule in each["spec"]["egress"]]
    assert len(rules) == 6  # names for all three, the registry for two, its database
    assert all(rule["to"] for rule in rules)
    assert not [to for rule in rules for to in rule["to"] if "ipBlock" in to]


def holds(network: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return network.version == other.version and network.supernet_of(other)  # type: ignore[arg-type]


@needs_helm
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("registry.replicas=2", "registry.replicas above 1 needs PostgreSQL"),
        ("registry.replicas=0", "replicas"),
        (
            "registry.tls.existingSecret=a,registry.tls.certManager.enabled=true,registry.tls.certManager.issuerRef.name=b",
            "set one",
        ),
        ("registry.tls.certManager.enabled=true", "name"),
        ("registry.service.ipFamilies={IPv4,IPv4}", "ipFamilies"),
        ("networkPolicy.runs.enabled=true", "set networkPolicy.runs.namespaces or watch.namespaces"),
        *(
            (
                f"networkPolicy.runs.enabled=true,networkPolicy.runs.namespaces={{ml}},networkPolicy.runs.cidrs={{{cidr}}}",
                text,
            )
            for cidr, text in (
                ("169.254.169.254/32", "is link-local"),
                ("169.254.0.0/16", "is link-local"),
                ("100.100.100.200/32", "a cloud's metadata"),
                ("168.63.129.16/32", "a cloud's metadata"),
                ("fd00:c1::/32", "link-local or metadata"),
                ("fd00:42::42/128", "link-local or metadata"),
                ("fd00:ec2::/32", "link-local or metadata"),
                ("fe80::/10", "link-local or metadata"),
                ("FE80::1/128", "link-local or metadata"),
                ("fd00:ec2::254/128", "link-local or metadata"),
                ("8000::/1", "link-local or metadata"),
                ("10.0.0.0", "cidrs"),
                ("10.0.0.0/33", "cidrs"),
                ("300.0.0.0/8", "cidrs"),
                ("everything", "cidrs"),
            )
        ),
        ("registry.pages.ingress.enabled=true", "/registry/pages/ingress/host"),
        ("registry.pages.httpRoute.enabled=true", "/registry/pages/httpRoute/parentRefs"),
        ("registry.pages.proxyUser=a b", "proxyUser"),
        ("registry.proxy.https=proxy:3128", "/registry/proxy/https"),
        ("trainer.preload.image=x", "image"),
        ("trainer.allowed.images={*}", "images"),
        ("trainer.allowed.podLabelPrefixes={-}", "podLabelPrefixes"),
        ("trainer.allowed.service=x", "service"),
        ("trainer.serviceAccountNames.Ml=x", "'Ml' does not match"),
        ("runPolicy.maxGPUs=-1", "maxGPUs"),
        ("runPolicy.maxClaimSize=big", "maxClaimSize"),
        ("operator.paused=maybe", "paused"),
        ("global.imagePullSecrets={a}", "imagePullSecrets"),
        ("extraObjects={}", None),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_word_on_it(values: str, complaint: str | None) -> None:
    done = template("--set", values)
    assert (done.returncode == 0) is (complaint is None)
    assert (complaint or "") in done.stderr
