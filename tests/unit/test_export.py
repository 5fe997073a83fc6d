"""Adapters and runs for other systems: folders for Hugging Face, a real container registry, MLflow's store in files."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from finetune.api.registry import AdapterVersion
from finetune.cli.export import mlflow_store
from finetune.cli.export.card import model_card, notes_of
from finetune.cli.export.destinations import Artifact, Folder, adapter_destination, mlflow_destination
from finetune.cli.export.tracking import key_of, parameters_of
from finetune.clients.docker_config import Credentials, DockerConfigError, find_credentials
from finetune.clients.oci import OciClient, OciError
from finetune.registry.blobs import open_store
from tests.support import oci
from tests.support.adapters import adapter_files, announce, registered, send
from tests.support.pages import outcome, post_points
from tests.support.people import Person
from tests.support.registry import run_document, serving

SPEC = {
    "method": "SFT",
    "baseModel": {"hub": {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct"}},
    "dataset": {"mix": [{"hub": {"repository": "team/tickets"}}, {"registry": {"name": "more"}}]},
    "training": {"learningRate": "1e-4", "packing": True},
    "lora": {"targetModules": ["q_proj", "v_proj"]},
}
CARD = b"""---
base_model: "x"
---
Note: serve it with --max-lora-rank=32.

## Answers to held-out prompts

Note: the customer's secret
"""
PASSWORDS = "finetune:$2b$04$yb3Rts/i.DIYwH/5sEAPae/s6JwHci79sMgRwaa7dT3e5ZYApJ25i\n"
PASSWORD = "open sesame"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("export")
    (folder / "store").mkdir()
    with serving(f"sqlite:///{folder}/registry.db", store=open_store(f"file://{folder}/store")) as url:
        yield url


@pytest.fixture
def http(served: str, namespace: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served}/api/v1/namespaces/{namespace}", timeout=30) as client:
        yield client


@pytest.fixture
def person(served: str, tmp_path: Path) -> Person:
    return Person({"FINETUNE_REGISTRY_URL": served, "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")})


def finished(http: httpx.Client) -> str:
    """A run with an adapter, and points; its uid."""
    uid = str(uuid.uuid4())
    files = {**adapter_files(), "README.md": CARD}
    http.put(f"runs/{uid}", json=run_document(name="support-1", spec=SPEC)).raise_for_status()
    post_points(http, uid, 1, 200)
    announce(http, uid, files).raise_for_status()
    for content in files.values():
        send(http, uid, content).raise_for_status()
    http.put(f"runs/{uid}/adapter", json=registered(uid, files)).raise_for_status()
    outcome(http, uid, "Succeeded", ended=True, completionTime="2026-11-28T10:00:00Z", gpuSeconds=60)
    return uid


@pytest.mark.parametrize(
    ("text", "read", "loopback"),
    [
        ("oci://ghcr.io/team/support:v1", Artifact("ghcr.io", "team/support", "v1"), False),
        ("oci://localhost/a:b", Artifact("localhost", "a", "b"), True),
        ("oci://127.0.0.1:5000/a/b-c/d__e:1.0_x", Artifact("127.0.0.1:5000", "a/b-c/d__e", "1.0_x"), True),
        ("oci://[::1]:5000/a:b", Artifact("[::1]:5000", "a", "b"), True),
        ("oci://[::1]/a:b", Artifact("[::1]", "a", "b"), True),
        ("oci://127.0.0.1.example.com/a:b", Artifact("127.0.0.1.example.com", "a", "b"), False),
        ("oci://localhost.example.com:80/a:b", Artifact("localhost.example.com:80", "a", "b"), False),
    ],
)
def test_an_artifact_is_read_and_only_this_machine_is_the_loopback(text: str, read: Artifact, loopback: bool) -> None:
    assert (adapter_destination(text), read.is_loopback) == (read, loopback)
    assert f"oci://{read}" == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("support", "neither"),
        ("hf:", "neither"),
        ("oci:host/a:b", "neither"),
        ("oci://host/a", "the tag is missing"),
        ("oci://host/a@sha256:00", "repository"),
        ("oci://host/A:b", "'A' is not a repository"),
        ("oci://host/a/../b:c", "is not a repository"),
        ("oci://user@host/a:b", "'user@host' is not a host"),
        ("oci:///a:b", "'' is not a host"),
        ("oci://host/a:-b", "'-b' is not a tag"),
    ],
)
def test_what_is_no_destination_is_refused(text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        adapter_destination(text)


def test_other_destinations() -> None:
    assert adapter_destination("hf:out/support") == Folder(Path("out/support"))
    assert mlflow_destination("mlflow:http://host:5000") == "http://host:5000"
    with pytest.raises(argparse.ArgumentTypeError, match="mlflow:URI"):
        mlflow_destination("http://host:5000")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"auths": {"r.example.com": {"auth": encoded("me:a:b")}}}, Credentials("me", "a:b")),
        ({"auths": {"https://r.example.com/v1/": {"auth": encoded("me:x")}}}, Credentials("me", "x")),
        ({"auths": {"r.example.com": {"username": "me", "password": "x"}}}, Credentials("me", "x")),
        (
            {"auths": {"r.example.com": {"auth": encoded("me:"), "identitytoken": "t"}}},
            Credentials("me", "", "t"),
        ),
        ({"auths": {"r.example.com": {}}}, None),
        ({"auths": {"other.example.com": {"auth": encoded("me:x")}}}, None),
        ({"auths": {"r.example.com:5000": {"auth": encoded("me:x")}}}, None),
        ({"credsStore": "tests"}, Credentials("me", "of r.example.com")),
        ({"credHelpers": {"r.example.com": "tests-token"}}, Credentials(identity_token="of r.example.com")),
        ({"credHelpers": {"r.example.com": "tests-none"}}, None),
    ],
)
def test_credentials_are_those_of_docker(
    config: dict[str, Any], found: Credentials | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, said in (
        ("tests", '{"Username": "me", "Secret": "of %s"}'),
        ("tests-token", '{"Username": "<token>", "Secret": "of %s"}'),
        ("tests-none", "credentials not found in native keychain"),
    ):
        helper = tmp_path / f"docker-credential-{name}"
        helper.write_text(f"#!/bin/sh\nread host\nprintf '{said}' $host\nexit {int(name.endswith('none'))}\n")
        helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_credentials("r.example.com", {"DOCKER_CONFIG": str(tmp_path)}) == found


def test_a_docker_configuration_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    assert find_credentials("r", environment) is None
    for text, said in (
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ('{"auths": {"r": {"auth": "%"}}}', "Base64"),
        ('{"credsStore": "that-is-not-there"}', "docker-credential-that-is-not-there"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DockerConfigError, match=said):
            find_credentials("r", environment)


def test_the_card_of_a_folder_says_where_the_adapter_comes_from(
    http: httpx.Client, namespace: str, person: Person, tmp_path: Path
) -> None:
    uid = finished(http)
    said = person("adapters", "export", "support", "-n", namespace, "--to", f"hf:{tmp_path}/out/support")
    assert (said.code, said.err) == (0, ""), said
    folder = tmp_path / "out" / "support"
    assert [each.name for each in folder.parent.iterdir()] == ["support"]
    assert {each.name for each in folder.iterdir()} == set(adapter_files())
    for name, content in adapter_files().items():
        assert name == "README.md" or (folder / name).read_bytes() == content
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "datasets": ["team/tickets"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "sft"],
    }
    for line in (
        "| loss on held-out rows | 1.9011 |",
        "| loss on held-out rows, base model alone | 2.7700 |",
        "| against the base model | -31 % |",
        "| dataset | `team/tickets` of the hub |",
        f"| run | support-1, experiment support, uid `{uid}` |",
        "| rank | 16 |",
        "Note: serve it with --max-lora-rank=32.",
        "## Licence",
    ):
        assert line in card.splitlines()
    assert "secret" not in card
    again = person("adapters", "export", "support", "-n", namespace, "--to", f"hf:{tmp_path}/out/support")
    assert (again.code, "exists already" in again.err) == (2, True)


def test_a_card_names_no_model_of_the_hub_where_there_is_none_and_takes_no_name_for_markup() -> None:
    document = {
        "id": "1", "name": "a", "version": 1, "uri": "pvc://a", "sha256": "0" * 64, "bytes": 1, "files": [],
        "runUid": "u", "runName": "r", "experiment": "e", "method": "DPO", "baseModel": {"name": "a|`b`<i>"},
        "parent": {"name": "p", "version": 3, "sha256": "1" * 64}, "datasetName": "rows",
        "dataset": {"version": 2, "rows": 4, "sha256": "2" * 64}, "finalLoss": "1", "steps": 3, "bestStep": 2,
        "createdTime": "2026-11-28T00:00:00Z",
    }  # fmt: skip
    card = model_card(AdapterVersion.model_validate(document), run=None, config={})
    assert "base_model" not in card.split("---")[1]
    for line in (
        "| base model | `a\\|'b'&lt;i>` |",
        f"| goes on from | adapter p, version 3, SHA-256 `{'1' * 64}` |",
        "| dataset | rows, version 2, of the registry |",
        "| steps | 3, the best is 2 |",
    ):
        assert line in card.splitlines()
    assert notes_of("") == []


@pytest.fixture(scope="module")
def container_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if oci.find() is None:
        pytest.skip("docker-registry is not on PATH, and `python -m tests.support.oci` has not fetched it")
    folder = tmp_path_factory.mktemp("oci")
    (folder / "passwords").write_text(PASSWORDS)
    with oci.serving(folder, passwords=folder / "passwords") as host:
        yield host


def test_an_artifact_in_a_real_registry_is_the_adapter_and_pushing_again_changes_nothing(
    http: httpx.Client, namespace: str, person: Person, container_registry: str, tmp_path: Path
) -> None:
    uid = finished(http)
    export = ("adapters", "export", "support@1", "-n", namespace)
    to = ("--to", f"oci://{container_registry}/{namespace}/support:v1")
    nobody = person(*export, *to)
    assert nobody.code == 1
    assert "asks who you are" in nobody.err
    assert "docker login" in nobody.err
    wrong = person(*export, *to, "--username", "finetune", "--password-file", "-", stdin="guessed\n")
    assert wrong.code == 1
    assert ": 401" in wrong.err
    assert "as finetune you may not push" in wrong.err

    (tmp_path / ".docker").mkdir()
    auths = {container_registry: {"auth": encoded(f"finetune:{PASSWORD}")}}
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": auths}))
    done = person(*export, *to)
    assert (done.code, done.err) == (0, ""), done
    assert "3 of 3 files sent" in done.out
    with httpx.Client(
        base_url=f"http://{container_registry}/v2/{namespace}/support/", auth=("finetune", PASSWORD)
    ) as there:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        answer = there.get("manifests/v1", headers=accept)
        manifest = answer.json()
        assert manifest["artifactType"] == "application/vnd.finetune.adapter.v1"
        assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
        assert there.get(f"blobs/{manifest['config']['digest']}").content == b"{}"
        assert manifest["annotations"]["dev.finetune.run.uid"] == uid
        pulled = tmp_path / "pulled"
        pulled.mkdir()
        for layer in manifest["layers"]:  # what `oras pull` does
            name = layer["annotations"]["org.opencontainers.image.title"]
            (pulled / name).write_bytes(there.get(f"blobs/{layer['digest']}").content)
    assert person("adapters", "verify", "support@1", str(pulled), "-n", namespace).code == 0

    again = person(*export, *to, "--username", "finetune", "--password-file", "-", "-o", "name", stdin=PASSWORD + "\n")
    assert again.out.strip() == f"{container_registry}/{namespace}/support@{answer.headers['Docker-Content-Digest']}"
    assert "0 of 3 files sent" in person(*export, *to).out


async def test_a_registry_with_a_server_of_tokens_is_given_one_and_uploads_elsewhere_see_none() -> None:
    seen: list[tuple[str, str, str]] = []
    blob = b"weights"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen.append((request.method, request.path, request.headers.get("Authorization", "")))
        here = f"http://{request.host}"
        if request.path == "/token":
            assert request.query == {"service": "tests", "scope": "repository:team/a:pull,push"} or body
            return web.json_response({"token": "granted"})
        if request.path == "/elsewhere":
            assert (body, dict(request.query)) == (blob, {"_state": "a%b=", "digest": digest})
            return web.Response(status=201)
        if request.headers.get("Authorization") != "Bearer granted":
            challenge = f'Bearer realm="{here}/token",service="tests",scope="repository:team/a:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if request.method == "HEAD":
            return web.Response(status=404)
        port = request.url.port
        return web.Response(status=202, headers={"Location": f"http://localhost:{port}/elsewhere?_state=a%25b%3D"})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host = f"127.0.0.1:{runner.addresses[0][1]}"
        async with OciClient(host, "team/a", credentials=Credentials("me", "pw"), plain_http=True) as client:
            assert await client.push_bytes(digest, blob)
        calls = [(method, path) for method, path, _ in seen]
        path = f"/v2/team/a/blobs/{digest}"
        uploads = ("POST", "/v2/team/a/blobs/uploads/")
        assert calls == [("HEAD", path), ("GET", "/token"), ("HEAD", path), uploads, ("PUT", "/elsewhere")]
        assert (seen[1][2], seen[-1][2]) == (f"Basic {encoded('me:pw')}", "")
        seen.clear()
        async with OciClient(host, "team/a", credentials=Credentials(identity_token="kept"), plain_http=True) as client:
            assert await client.push_bytes(digest, blob)
        assert seen[1] == ("POST", "/token", "")
        async with OciClient(host, "team/a", credentials=None) as client:  # TLS, of which the server knows nothing
            with pytest.raises(OciError) as refused:
                await client.push_bytes(digest, blob)
        assert "--plain-http" in refused.value.hint
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("evaluationLoss", "evaluationLoss"),
        ("eval/loss", "eval.loss"),
        ("../../etc", "_......etc"),
        (".", "_."),
        ("a:b%ü", "a_3a_b_25__fc_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_are_such_that_mlflow_takes_them(name: str, key: str) -> None:
    assert key_of(name) == key


def test_a_spec_becomes_parameters() -> None:
    assert parameters_of(SPEC | {"empty": {}, "nothing": "", "long": "x" * 7000}) == {
        "method": "SFT",
        "baseModel.hub.repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "dataset.mix": '[{"hub": {"repository": "team/tickets"}}, {"registry": {"name": "more"}}]',
        "training.learningRate": "1e-4",
        "training.packing": "true",
        "lora.targetModules": '["q_proj", "v_proj"]',
        "empty": "{}",
        "long": "x" * 5997 + "...",
    }


def test_runs_are_in_mlflow_once_however_often_they_are_exported(
    http: httpx.Client, namespace: str, person: Person, tmp_path: Path
) -> None:
    uid = finished(http)
    going = str(uuid.uuid4())
    http.put(f"runs/{going}", json=run_document(name="support-2", spec=SPEC)).raise_for_status()
    post_points(http, going, 1, 5)
    uri = f"file://{tmp_path}/mlruns"
    export = ("registry", "export", "-n", namespace, "--to", f"mlflow:{uri}")
    said = person(*export)
    assert (said.code, said.out) == (0, f"2 runs of {namespace} in {uri}: 2 new\n"), said
    assert person(*export).out == f"2 runs of {namespace} in {uri}: 2 unchanged\n"
    post_points(http, going, 6, 10)
    outcome(http, going, "Failed", ended=True, reason="OutOfMemory", completionTime="2026-11-28T10:00:00Z", version=2)
    assert person(*export).out == f"2 runs of {namespace} in {uri}: 1 brought up to date, 1 unchanged\n"

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(f"{namespace}/support")
    assert experiment is not None
    runs = {each.data.tags["finetune.run.uid"]: each for each in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {uid, going}
    done, failed = runs[uid], runs[going]
    assert (done.info.run_name, done.info.status, failed.info.status) == ("support-1", "FINISHED", "FAILED")
    assert done.info.end_time == 1795860000000
    assert done.data.params == parameters_of(SPEC)
    wanted = {"result.finalLoss": 1.8342, "result.evaluationLoss": 1.9011, "result.baseEvaluationLoss": 2.77}
    assert {name: done.data.metrics[name] for name in wanted} == wanted
    assert done.data.metrics["result.gpuSeconds"] == 60
    assert done.data.tags["finetune.adapter"] == "support@1"
    assert failed.data.tags["finetune.reason"] == "OutOfMemory"
    curve = client.get_metric_history(done.info.run_id, "loss")
    series = http.get("series", params={"runs": uid, "metric": "loss", "points": 2000}).json()["items"][0]
    assert [(each.step, each.value) for each in curve] == list(zip(series["steps"], series["values"], strict=True))
    assert [each.step for each in client.get_metric_history(failed.info.run_id, "loss")] == list(range(1, 11))

    client.delete_run(failed.info.run_id)
    assert "1 deleted in MLflow and left so" in person(*export).out


def test_the_extra_is_named_where_mlflow_is_not_installed(
    namespace: str, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_store.importlib.util, "find_spec", lambda _: None)
    said = person("registry", "export", "-n", namespace, "--to", "mlflow:file:///nowhere")
    assert said.code == 1
    assert "pip install 'finetune-operator[mlflow]'" in said.err
