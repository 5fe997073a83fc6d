"""The chart, rendered by Helm: rights, security of the pods, and what its values refuse."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from finetune.api.crd import build_crd
from finetune.cli.registry import add_commands
from finetune.controller.core.settings import Settings
from finetune.registry.server import Settings as RegistrySettings
from tests.support.chart import CHART, HELM, POLICIES, Document, render, template

GOLDEN_RBAC = Path(__file__).parent / "golden" / "rbac.yaml"
NAMESPACES = ("--set", "watch.namespaces={ml,research}")
POSTGRES = ("--set", "registry.database.existingSecret.name=db", "--set", "registry.database.existingSecret.key=dsn")
KEPT = {"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Prune=false"}
"""What neither Helm nor Argo CD deletes."""
NAME = "finetune-finetune-operator"
CLUSTER = f"{NAME}.finetune-system"
"""Of what belongs to no namespace."""

needs_helm = pytest.mark.skipif(HELM is None, reason="Helm is not on PATH, and the local cluster has not built it yet")


def of_kind(objects: tuple[Document, ...], *kinds: str) -> list[Document]:
    return [each for each in objects if each["kind"] in kinds]


def find(objects: tuple[Document, ...], kind: str, name: str) -> Document:
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def container_of(deployment: Document) -> Document:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


def environment(container: Document) -> Document:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


MODES = pytest.mark.parametrize("values", [(), NAMESPACES], ids=["cluster", "namespaces"])


@needs_helm
@MODES
def test_no_right_is_a_wildcard_and_none_is_on_secrets(values: tuple[str, ...]) -> None:
    roles = of_kind(render(*values), "Role", "ClusterRole")
    rules = [rule for role in roles for rule in role["rules"]]
    assert len(rules) > 10
    for rule in rules:
        assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
        assert not any(resource.split("/")[0] == "secrets" for resource in rule["resources"])
        assert not {"pods/exec", "pods/attach", "serviceaccounts/token", "roles"} & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


@needs_helm
def test_what_everybody_may_do() -> None:
    """Written out in a file, so that a new right is seen in review; it is what the clients ask for and no more."""
    roles = {each["metadata"]["name"]: each["rules"] for each in of_kind(render(), "Role", "ClusterRole")}
    assert roles == yaml.safe_load(GOLDEN_RBAC.read_text(encoding="utf-8"))


@needs_helm
def test_the_policy_on_the_operator_speaks_of_its_account_only() -> None:
    objects = render(*POLICIES, *NAMESPACES, "--set", "trainer.serviceAccountName=runs")
    policy = find(objects, "ValidatingAdmissionPolicy", CLUSTER)["spec"]
    account = "system:serviceaccount:finetune-system:finetune-finetune-operator"
    assert [each["expression"] for each in policy["matchConditions"]] == [f"request.userInfo.username == '{account}'"]
    said = " ".join(each["expression"] for each in policy["validations"])
    assert 'c.image in ["finetune-trainer:0.1.0"]' in said
    assert 'serviceAccountName in ["runs"]' in said
    binding = find(objects, "ValidatingAdmissionPolicyBinding", CLUSTER)["spec"]
    assert binding == {"policyName": CLUSTER, "validationActions": ["Deny"]}


@needs_helm
def test_the_policy_can_be_left_out_and_is_where_the_cluster_has_none() -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    assert of_kind(render(), *kinds) == []  # without a cluster Helm knows of no such API
    off = ("--set", "operator.admissionPolicy.enabled=false", "--set", "runPolicy.enabled=false")
    assert of_kind(render(*POLICIES, *off), *kinds) == []


@needs_helm
@pytest.mark.parametrize("values", [("--set", "trainer.cpuLimit=8"), ("--set-string", "trainer.cpuLimit=7500m")])
def test_a_cpu_limit_reaches_the_operator(values: tuple[str, ...]) -> None:
    operator = container_of(find(render(*values), "Deployment", "finetune-finetune-operator"))
    assert Settings.from_environment(environment(operator)).cpu_limit == values[1].partition("=")[2]


@needs_helm
def test_the_notes_have_the_commands_that_people_need() -> None:
    done = subprocess.run(
        [str(HELM), "install", "finetune", str(CHART), "--dry-run=client", *NAMESPACES, "--namespace=finetune-system"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl wait --for=condition=Finished trainingrun/NAME" in notes
    assert "kubectl logs -l finetune.dev/run=NAME --all-containers" in notes
    assert "Only these namespaces are watched: ml, research." in notes


@needs_helm
def test_a_role_in_every_watched_namespace_and_nowhere_else() -> None:
    objects = render(*NAMESPACES)
    for kind in ("Role", "RoleBinding"):
        places = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in of_kind(objects, kind)}
        names = ("finetune-finetune-operator", "finetune-finetune-operator-registry")
        assert places == {(namespace, name) for namespace in ("ml", "research") for name in names}
    bound = {each["metadata"]["name"] for each in of_kind(objects, "ClusterRoleBinding")}
    assert bound == {f"{NAME}-registry-reviews.finetune-system"}
    reviews = find(objects, "ClusterRole", f"{NAME}-registry-reviews.finetune-system")["rules"]
    assert [(rule["resources"], rule["verbs"]) for rule in reviews] == [
        (["tokenreviews"], ["create"]),
        (["subjectaccessreviews"], ["create"]),
    ]
    operator = container_of(find(objects, "Deployment", "finetune-finetune-operator"))
    assert environment(operator)["FINETUNE_WATCH_NAMESPACES"] == "ml,research"


@needs_helm
def test_without_namespaces_there_are_only_cluster_roles() -> None:
    objects = render()
    assert of_kind(objects, "Role", "RoleBinding") == []
    operator = container_of(find(objects, "Deployment", "finetune-finetune-operator"))
    assert environment(operator)["FINETUNE_WATCH_NAMESPACES"] == ""


@needs_helm
def test_every_binding_binds_a_role_and_an_account_that_exist() -> None:
    for objects in (render(), render(*NAMESPACES)):
        for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding"):
            find_all = [
                each
                for each in of_kind(objects, binding["roleRef"]["kind"])
                if each["metadata"]["name"] == binding["roleRef"]["name"]
                and each["metadata"].get("namespace") == binding["metadata"].get("namespace")
            ]
            assert len(find_all) == 1
            (subject,) = binding["subjects"]
            account = find(objects, "ServiceAccount", subject["name"])
            assert account["metadata"]["namespace"] == subject["namespace"] == "finetune-system"


@needs_helm
@pytest.mark.parametrize("values", [(), POSTGRES], ids=["sqlite", "postgres"])
def test_every_pod_meets_the_restricted_standard(values: tuple[str, ...]) -> None:
    deployments = of_kind(render(*values), "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        assert all(set(volume) & {"emptyDir", "projected", "persistentVolumeClaim"} for volume in pod["volumes"])
        container = container_of(deployment)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert deployment["spec"]["replicas"] == 1


@needs_helm
def test_the_pod_that_keeps_an_image_may_do_nothing() -> None:
    flags = ("--set", "trainer.preload.enabled=true")
    objects = render(*flags)
    preload = find(objects, "DaemonSet", "finetune-finetune-operator-preload")
    operator = find(objects, "Deployment", "finetune-finetune-operator")
    pod, container = preload["spec"]["template"]["spec"], container_of(preload)
    assert container["image"] == environment(container_of(operator))["FINETUNE_TRAINER_IMAGE"]
    assert pod["securityContext"] == operator["spec"]["template"]["spec"]["securityContext"]
    assert container["securityContext"] == container_of(operator)["securityContext"]
    assert (pod["automountServiceAccountToken"], set(pod) & {"volumes", "serviceAccountName"}) == (False, set())


@needs_helm
def test_the_operator_understands_its_environment() -> None:
    """Every FINETUNE_ variable of the Deployment is a setting, and the settings are the values."""
    operator = container_of(
        find(
            render(
                *("--set", "operator.pretendedGPUs=true", "--set", "trainer.image.repository=r/trainer"),
                *("--set", "trainer.hubEndpoint=http://mirror:8080"),
            ),
            "Deployment",
            "finetune-finetune-operator",
        )
    )
    variables = environment(operator)
    settings = Settings.from_environment(variables)
    assert operator["args"] == ["operator", "--log-format=json"]
    assert [operator[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")] == [
        "/healthz",
        "/readyz",
    ]
    assert settings.pretended_gpus
    assert settings.hub_endpoint == "http://mirror:8080"
    assert settings.trainer_image == "r/trainer:0.1.0"
    assert settings.reference_timeout_seconds == 300
    service = find(render(), "Service", "finetune-finetune-operator-registry")
    assert settings.registry_url == f"http://{service['metadata']['name']}.finetune-system.svc:8080"
    assert service["spec"]["ports"][0]["port"] == 8080
    known = {f"FINETUNE_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in variables if name.startswith("FINETUNE_")} <= known


@needs_helm
def test_the_registry_understands_its_arguments() -> None:
    flags = ("--set", "registry.pages.proxyUser=system:serviceaccount:web:oauth2-proxy")
    registry = container_of(find(render(*flags), "Deployment", "finetune-finetune-operator-registry"))
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    arguments = parser.parse_args(registry["args"])
    settings = RegistrySettings(
        database_url=environment(registry)["FINETUNE_DATABASE_URL"],
        host=arguments.host,
        port=arguments.port,
        auth=arguments.auth,
        operator_user=arguments.operator_user,
        store=arguments.store,
        store_label=arguments.store_label,
        file_bytes=arguments.max_file_bytes,
        run_bytes=arguments.max_run_bytes,
        proxy_user=arguments.proxy_user,
    )
    settings.check()
    assert (settings.store_url(), settings.store_label) == (
        "file:///data/blobs",
        "claim finetune-finetune-operator-registry",
    )
    assert (settings.file_bytes, settings.run_bytes) == (2 * 1024**3, 4 * 1024**3)
    assert (arguments.log_format, settings.proxy_user) == ("json", "system:serviceaccount:web:oauth2-proxy")
    assert (settings.host, settings.port, settings.auth) == ("", 8080, "kubernetes")
    assert registry["ports"] == [{"name": "http", "containerPort": settings.port}]


@needs_helm
def test_a_bucket_holds_the_files_and_its_secret_reaches_the_registry_alone() -> None:
    bucket = ("--set", "registry.store.url=s3://adapters/team", "--set", "registry.store.existingSecret=bucket")
    objects = render(*bucket, *POSTGRES)
    registry = container_of(find(objects, "Deployment", "finetune-finetune-operator-registry"))
    assert "--store=s3://adapters/team" in registry["args"]
    assert not [argument for argument in registry["args"] if argument.startswith("--store-label")]
    assert registry["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert "envFrom" not in container_of(find(objects, "Deployment", "finetune-finetune-operator"))


@needs_helm
def test_the_operators_token_is_for_the_registry_and_the_registry_knows_the_operator() -> None:
    objects = render()
    pod = find(objects, "Deployment", "finetune-finetune-operator")["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "registry-token"]
    assert volume["projected"]["sources"][0]["serviceAccountToken"]["audience"] == "finetune.dev/registry"
    registry = container_of(find(objects, "Deployment", "finetune-finetune-operator-registry"))
    account = pod["serviceAccountName"]
    assert f"--operator-user=system:serviceaccount:finetune-system:{account}" in registry["args"]
    assert "--auth=kubernetes" in registry["args"]


@needs_helm
def test_every_service_finds_its_pods() -> None:
    objects = render()
    (service,) = of_kind(objects, "Service")
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in of_kind(objects, "Deployment")
    }
    found = [name for name, own in labels.items() if service["spec"]["selector"].items() <= own.items()]
    assert found == ["finetune-finetune-operator-registry"]
    for deployment in of_kind(objects, "Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert [name for name, own in labels.items() if selector.items() <= own.items()] == [
            deployment["metadata"]["name"]
        ]


@needs_helm
def test_sqlite_is_on_a_claim_that_is_kept() -> None:
    objects = render("--set", "registry.persistence.size=3Gi", "--set", "registry.persistence.storageClassName=fast")
    claim = find(objects, "PersistentVolumeClaim", "finetune-finetune-operator-registry")
    assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["metadata"]["annotations"] == KEPT
    deployment = find(objects, "Deployment", "finetune-finetune-operator-registry")
    assert environment(container_of(deployment))["FINETUNE_DATABASE_URL"] == "sqlite:////data/registry.db"
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": claim["metadata"]["name"]} in [each.get("persistentVolumeClaim") for each in volumes]


@needs_helm
def test_the_url_of_postgres_comes_from_a_secret_and_needs_no_claim() -> None:
    objects = render(*POSTGRES)
    assert of_kind(objects, "PersistentVolumeClaim") == []
    deployment = find(objects, "Deployment", "finetune-finetune-operator-registry")
    assert environment(container_of(deployment))["FINETUNE_DATABASE_URL"] == {
        "secretKeyRef": {"name": "db", "key": "dsn"}
    }
    assert not any("persistentVolumeClaim" in each for each in deployment["spec"]["template"]["spec"]["volumes"])


@needs_helm
def test_the_definition_is_the_checked_in_one() -> None:
    (crd,) = of_kind(render(), "CustomResourceDefinition")
    assert crd["metadata"].pop("annotations") == KEPT
    assert crd["metadata"].pop("labels")["app.kubernetes.io/name"] == "finetune-operator"
    assert crd == build_crd()


@needs_helm
def test_the_definition_can_be_left_out_and_let_go() -> None:
    assert of_kind(render("--set", "crds.enabled=false"), "CustomResourceDefinition") == []
    (crd,) = of_kind(render("--set", "crds.keep=false"), "CustomResourceDefinition")
    assert "annotations" not in crd["metadata"]


@needs_helm
def test_the_definitions_own_sync_options_stay() -> None:
    options = "crds.annotations.argocd\\.argoproj\\.io/sync-options=ServerSideApply=true\\,Prune=false"
    (crd,) = of_kind(render("--set", options), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["argocd.argoproj.io/sync-options"] == "Prune=false,ServerSideApply=true"


@needs_helm
def test_people_get_their_rights_by_aggregation() -> None:
    objects = render()
    viewer = find(objects, "ClusterRole", f"{NAME}-viewer.finetune-system")
    editor = find(objects, "ClusterRole", f"{NAME}-editor.finetune-system")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {label for label in viewer["metadata"]["labels"] if label.startswith(prefix)} == {
        f"{prefix}{role}" for role in ("view", "edit", "admin")
    }
    assert {label for label in editor["metadata"]["labels"] if label.startswith(prefix)} == {
        f"{prefix}{role}" for role in ("edit", "admin")
    }
    assert {verb for rule in viewer["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    without = render("--set", "rbac.aggregate=false")
    assert not any("aggregate-to" in label for each in without for label in each["metadata"].get("labels", ()))


@needs_helm
def test_a_digest_wins_over_a_tag() -> None:
    digest = f"sha256:{'a' * 64}"
    objects = render("--set", f"image.digest={digest}", "--set", "image.tag=x", "--set", "trainer.image.tag=y")
    images = {container_of(each)["image"] for each in of_kind(objects, "Deployment")}
    assert images == {f"finetune-operator@{digest}"}
    operator = container_of(find(objects, "Deployment", "finetune-finetune-operator"))
    assert environment(operator)["FINETUNE_TRAINER_IMAGE"] == "finetune-trainer:y"


@needs_helm
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("watch.namespacez={a}", "namespacez"),
        ("operator.maxInterruptions=0", "maxInterruptions"),
        ("operator.admissionPolicy.on=true", "on"),
        ("trainer.cpuLimit=lots", "cpuLimit"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("watch.namespaces={A_B}", "namespaces"),
        ("registry.database.url=postgresql://u:p@h/d", "url"),
    ],
)
def test_a_wrong_value_is_refused(value: str, complaint: str) -> None:
    done = template("--set", value)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_the_values_are_what_their_schema_describes() -> None:
    """Every object is closed, everything is described, and the defaults are valid."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    _check_described(schema, values, "values")


def _check_described(schema: Document, values: Document, path: str) -> None:
    assert schema.get("description"), path
    if "properties" not in schema:
        return
    if path == "values.global":
        return  # the parent chart's own
    assert schema["additionalProperties"] is False, path
    assert set(values) == set(schema["properties"]), path
    for name, value in values.items():
        _check_described(schema["properties"][name], value, f"{path}.{name}")


@needs_helm
def test_the_operator_reads_the_pods_defaults_as_the_chart_writes_them() -> None:
    values = {
        "imagePullSecrets": [{"name": "pull"}],
        "annotations": {"sidecar.istio.io/inject": "false", "note": "$(HOME) costs $$5"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "ephemeralStorage": {"limit": "10Gi"},
        "proxy": {"https": "http://proxy:3128", "noProxy": ".svc"},
        "caBundle": {"configMap": "trusted"},
    }
    flags = ("--set-json", f"trainer.pod={json.dumps(values)}", "--set", "trainer.storageClassName=fast")
    objects = render(*flags, "--set", "trainer.activeDeadlineSeconds=3600")
    deployment = find(objects, "Deployment", "finetune-finetune-operator")
    variables = environment(container_of(deployment))
    document = "FINETUNE_POD_DEFAULTS"
    assert "$" not in variables[document].replace("$$", "")  # the kubelet would take it for a reference
    settings = Settings.from_environment({**variables, document: variables[document].replace("$$", "$")})
    pod = settings.pod_defaults
    assert [each.name for each in pod.image_pull_secrets] == ["pull"]
    assert pod.annotations == values["annotations"]
    assert pod.tolerations == ({"key": "nvidia.com/gpu", "operator": "Exists"},)
    assert (pod.ephemeral_storage.request, pod.ephemeral_storage.limit) == ("", "10Gi")
    assert (pod.proxy.https, pod.proxy.no_proxy) == ("http://proxy:3128", ".svc")
    assert (pod.ca_bundle.config_map, pod.ca_bundle.key) == ("trusted", "ca-certificates.crt")
    assert (settings.storage_class_name, settings.active_deadline_seconds) == ("fast", 3600)


@needs_helm
@pytest.mark.parametrize(
    "value",
    [
        "trainer.pod.imagePullSecret=x",
        "trainer.pod.labels.finetune\\.dev/run=x",
        "trainer.pod.ephemeralStorage.limit=ten",
        "trainer.pod.proxy.https=proxy:3128",
        "trainer.storageClassName=Fast",
    ],
)
def test_pod_defaults_that_mean_nothing_are_refused(value: str) -> None:
    assert template("--set", value).returncode != 0
