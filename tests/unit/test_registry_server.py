"""The registry as a process: what it refuses to start with, how it ends, what it says about itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from finetune.cli.main import main
from finetune.registry.blobs import open_store
from finetune.registry.migrate import head
from finetune.registry.server import InvalidSettings, Settings, is_loopback
from tests.support.adapters import adapter_files, make_version
from tests.support.ports import free_port
from tests.support.postgresql import PostgreSQL
from tests.support.registry import adapter_document, pairs, run_document, serving

START_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


Finetune = Callable[..., Outcome]


@pytest.fixture
def finetune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Finetune:
    """Run the command line in this process."""

    def run(*arguments: str, **environment: str) -> Outcome:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main(arguments)
        output = capsys.readouterr()
        return Outcome(code, output.out, output.err)

    return run


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {START_SECONDS} s"
        time.sleep(0.02)


def answers(url: str, status: int) -> bool:
    try:
        return httpx.get(url).status_code == status
    except httpx.TransportError:
        return False


@contextmanager
def registry_process(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune.cli.main", "registry", "serve", "--port", str(port)],
            env={**os.environ, "FINETUNE_DATABASE_URL": f"sqlite:///{folder}/registry.db"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or answers(f"{url}/readyz", 200), "the registry is ready")
        assert process.poll() is None, (folder / "log").read_text()
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_sigterm_ends_it_cleanly_after_the_requests_under_way(tmp_path: Path) -> None:
    with registry_process(tmp_path) as (process, url):
        versions = f"{url}/api/v1/namespaces/ml/datasets/tickets/versions"

        def rows_with_a_sigterm_between() -> Iterator[bytes]:
            yield pairs(1)
            process.send_signal(signal.SIGTERM)
            # Nobody new is let in: the signal has arrived.
            wait_until(lambda: not answers(f"{url}/healthz", 200), "the registry stops listening")
            yield pairs(1, tag="last")

        answer = httpx.post(versions, content=rows_with_a_sigterm_between(), timeout=30)
        assert (answer.status_code, answer.json()["rows"]) == (201, 2)
        assert process.wait(timeout=30) == 0
    with registry_process(tmp_path) as (_, url):
        latest = f"{url}/api/v1/namespaces/ml/datasets/tickets/versions/latest/rows"
        assert httpx.get(latest).content == pairs(1) + pairs(1, tag="last")


def test_sigterm_ends_it_also_when_a_request_never_ends(tmp_path: Path) -> None:
    """It gets some seconds and no more: a roll-out must not wait for whoever holds a connection."""
    with registry_process(tmp_path) as (process, url):

        def rows_that_never_end() -> Iterator[bytes]:
            yield pairs(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            yield b""

        with suppress(httpx.TransportError):  # what is answered to a request that was given up does not matter
            httpx.post(f"{url}/api/v1/namespaces/ml/datasets/d/versions", content=rows_that_never_end(), timeout=60)
    with registry_process(tmp_path) as (_, url):
        assert httpx.get(f"{url}/api/v1/namespaces/ml/datasets").json()["items"] == []


def test_a_killed_registry_lost_nothing_that_it_had_answered(tmp_path: Path) -> None:
    with registry_process(tmp_path) as (process, url):
        versions = f"{url}/api/v1/namespaces/ml/datasets/tickets/versions"
        assert httpx.post(versions, content=pairs(2)).status_code == 201
        process.send_signal(signal.SIGKILL)
        process.wait()
    with registry_process(tmp_path) as (_, url):
        again = httpx.post(f"{url}/api/v1/namespaces/ml/datasets/tickets/versions", content=pairs(2))
        assert (again.status_code, again.json()["version"]) == (200, 1)


def test_without_tokens_it_listens_on_loopback_only(finetune: Finetune) -> None:
    done = finetune("registry", "serve", "--database-url=sqlite:////nowhere/registry.db", "--host=0.0.0.0")
    assert done.code == 2
    assert "--auth=none lets everybody in" in done.err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("db", False)],
)
def test_what_loopback_is(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_tokens_need_to_know_the_operator() -> None:
    with pytest.raises(InvalidSettings, match="--operator-user=system:serviceaccount"):
        Settings(database_url="sqlite:////data/registry.db", auth="kubernetes").check()


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_no_database_url_is_a_sentence(finetune: Finetune, command: str) -> None:
    done = finetune("registry", command, FINETUNE_DATABASE_URL="")
    assert done.code == 2
    assert "write sqlite:////path/registry.db" in done.err


def test_a_database_that_does_not_answer_is_a_sentence(finetune: Finetune) -> None:
    url = f"postgresql://finetune:secret@127.0.0.1:{free_port()}/registry"
    done = finetune("registry", "migrate", FINETUNE_DATABASE_URL=url)
    assert done.code == 1
    assert "the database does not answer" in done.err
    assert "secret" not in done.err


def test_migrate_says_what_it_did(finetune: Finetune, tmp_path: Path) -> None:
    url = f"--database-url=sqlite:///{tmp_path}/registry.db"
    assert finetune("registry", "migrate", url).out == f"schema {head()} (was: empty)\n"
    assert finetune("registry", "migrate", url).out == f"schema {head()} already\n"


def test_a_database_that_goes_away_is_unavailable_and_comes_back(postgresql_server: PostgreSQL) -> None:
    with serving(postgresql_server.new_database(schema=True)) as url:
        datasets = f"{url}/api/v1/namespaces/ml/datasets"
        assert httpx.get(datasets).status_code == 200
        postgresql_server.stop()
        postgresql_server.start()
        assert httpx.get(datasets).status_code == 200, "connections from before the restart are not used"
        postgresql_server.stop()
        try:
            answer = httpx.get(datasets, timeout=30)
            ready = httpx.get(f"{url}/readyz", timeout=30)
            alive = httpx.get(f"{url}/healthz")
        finally:
            postgresql_server.start()
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "Unavailable")
        assert (ready.status_code, alive.status_code) == (503, 200)
        assert httpx.get(datasets, timeout=30).status_code == 200
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200


def test_people_push_and_list_with_the_command_line(finetune: Finetune, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(pairs(3))
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:

        def command(*arguments: str) -> Outcome:
            return finetune(*arguments, "-n", "ml", FINETUNE_REGISTRY_URL=url, FINETUNE_TOKEN_FILE="")

        pushed = command("datasets", "push", "tickets", str(rows))
        assert pushed.out == "stored as tickets version 1 (3 rows, prompt-completion)\n"
        again = command("datasets", "push", "tickets", str(rows), "-o", "json")
        assert json.loads(again.out)["version"] == 1
        listed = command("datasets", "list").out.splitlines()
        assert listed[0].split() == ["NAME", "VERSION", "ROWS", "BYTES", "SHAPE", "SHA256", "CREATED"]
        assert listed[1].split()[:3] == ["tickets", "1", "3"]
        missing = command("adapters", "show", "support")
        assert (missing.code, missing.out) == (1, "")
        assert "adapter 'support' does not exist in namespace 'ml'\nhint: " in missing.err
        rows.write_bytes(pairs(6) + b"oops\n")
        refused = command("datasets", "push", "tickets", str(rows))
        assert refused.code == 1
        assert "line 7: not valid JSON" in refused.err
        nothing = command("datasets", "push", "tickets", str(tmp_path / "nothing.jsonl"))
        assert (nothing.code, "nothing.jsonl" in nothing.err) == (2, True)


def test_an_adapter_is_shown_with_its_parent_and_its_rewards(finetune: Finetune, tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        for uid, parent, name, rewards in (
            ("parent", {}, "support", {}),
            ("child", {"parentAdapterName": "support"}, "preferred", {"rewardAccuracy": "0.91", "bestStep": 40}),
        ):
            document = adapter_document(uid, name=name)
            document["result"] |= rewards
            base = f"{url}/api/v1/namespaces/ml/runs/{uid}"
            assert httpx.put(base, json=run_document(name=uid, **parent)).status_code == 201
            assert httpx.put(f"{base}/adapter", json=document).status_code == 201
        shown = finetune("adapters", "show", "preferred", "-n", "ml", FINETUNE_REGISTRY_URL=url, FINETUNE_TOKEN_FILE="")
    facts = dict(line.split(":", 1) for line in shown.out.splitlines() if ":" in line)
    assert facts["Parent"].strip().startswith("support version 1, SHA-256 ")
    assert facts["Reward accuracy"].strip() == "0.91"
    assert facts["Steps"].strip() == "55, the best is 40"


def test_an_adapter_is_shown_with_the_sources_of_its_mix_and_its_sample_answers(
    finetune: Finetune, tmp_path: Path
) -> None:
    sample = {
        "row": 17,
        "file": "a.jsonl",
        "prompt": "Hi?\nYes?",
        "base": "No\x1b[2J",
        "adapter": "Hello",
        "truncated": ["base"],
    }
    with serving(f"sqlite:///{tmp_path}/registry.db") as url:
        document = adapter_document("mixed")
        document["dataset"]["sources"] = [
            {"name": "tickets", "version": 3, "rows": 70, "evaluationRows": 7, "found": 90, "dropped": 2},
            {"name": "hub:org/chat", "rows": 30, "found": 30},
        ]
        base = f"{url}/api/v1/namespaces/ml/runs/mixed"
        httpx.put(base, json=run_document()).raise_for_status()
        httpx.put(f"{base}/result", json={"result": {"runUid": "mixed"}, "samples": [sample]}).raise_for_status()
        httpx.put(f"{base}/adapter", json=document).raise_for_status()
        shown = finetune("adapters", "show", "support", "-n", "ml", FINETUNE_REGISTRY_URL=url, FINETUNE_TOKEN_FILE="")
    assert "\x1b" not in shown.out, "a pod's words must not move the terminal's cursor"
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["tickets", "3", "70", "7", "90", "2"] in lines
    assert ["hub:org/chat", "-", "30", "0", "30", "0"] in lines
    assert shown.out.endswith(
        "Asked, as in row 17 of a.jsonl\n"
        "            Hi?\n            Yes?\n  base      No\ufffd[2J ...\n  adapter   Hello\n"
    )


def test_an_adapter_is_pulled_by_its_alias_and_compared(finetune: Finetune, tmp_path: Path) -> None:
    files = adapter_files(salt=1)
    target = tmp_path / "pulled"
    store = open_store(f"file://{tmp_path}/blobs")
    with serving(f"sqlite:///{tmp_path}/registry.db", store=store) as url:
        with httpx.Client(base_url=f"{url}/api/v1/namespaces/ml") as http:
            make_version(http, "u1", files)
            make_version(http, "u2", adapter_files(salt=2))

        def command(*arguments: str) -> Outcome:
            return finetune("adapters", *arguments, "-n", "ml", FINETUNE_REGISTRY_URL=url, FINETUNE_TOKEN_FILE="")

        assert command("alias", "support", "production", "1").out == "support@production is version 1\n"
        assert command("alias", "support", "production", "2", "--expected=2").code == 1
        assert command("pull", "support@production", "--to", str(target)).code == 0
        assert {path.name: path.read_bytes() for path in target.iterdir()} == files
        assert command("verify", "support@production", str(target)).code == 0
        again = command("pull", "support@production", "--to", str(target))
        assert (again.code, "exists already" in again.err) == (2, True)
        (target / "adapter_config.json").write_bytes(b"{}")
        damaged = command("verify", "support@1", str(target))
        assert (damaged.code, "adapter_config.json is damaged" in damaged.err) == (1, True)
        listed = command("list").out.splitlines()
        assert listed[1].split()[:5] == ["support", "2", "Ready", "1.901", "-31"]
        assert "production" in command("show", "support@1").out
        assert command("delete", "support@1").code == 1
        assert command("alias", "support", "production", "--remove", "--expected=2").code == 1
        assert command("alias", "support", "production", "--remove", "--expected=1").code == 0
        assert command("delete", "support@1").out == "deleted the files of support version 1\n"
        gone = command("pull", "support@1", "--to", str(tmp_path / "other"))
        assert (gone.code, "was deleted at" in gone.err) == (1, True)
        blob = next(path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 3000)
        for path in (tmp_path / "blobs").rglob("*"):
            if path.is_file() and path.stat().st_size == blob.stat().st_size:
                path.write_bytes(b"x" * blob.stat().st_size)
        rotten = command("pull", "support@2", "--to", str(tmp_path / "rotten"))
        assert (rotten.code, "is damaged" in rotten.err) == (1, True)
        assert not [path for path in tmp_path.iterdir() if "rotten" in path.name]


def test_files_are_kept_beside_an_sqlite_database_and_elsewhere_where_that_is_said(tmp_path: Path) -> None:
    beside = Settings(database_url=f"sqlite:///{tmp_path}/registry.db")
    assert beside.store_url() == f"file://{tmp_path}/blobs"
    bucket = Settings(database_url=f"sqlite:///{tmp_path}/registry.db", store="s3://adapters/team")
    assert bucket.store_url() == "s3://adapters/team"
    assert Settings(database_url="postgresql://u@h/d").store_url() is None


def test_a_store_or_a_limit_that_cannot_be_is_refused_at_start(finetune: Finetune, tmp_path: Path) -> None:
    database = f"--database-url=sqlite:///{tmp_path}/registry.db"
    for wrong, words in (("--store=ftp://x", "not supported"), ("--max-file-bytes=0", "--max-file-bytes")):
        refused = finetune("registry", "serve", database, wrong)
        assert refused.code == 2
        assert words in refused.err


def test_garbage_is_counted_and_removed_by_a_command(finetune: Finetune, tmp_path: Path) -> None:
    database = f"--database-url=sqlite:///{tmp_path}/registry.db"
    assert finetune("registry", "migrate", database).code == 0
    planned = finetune("registry", "gc", database, "--dry-run")
    assert (planned.code, planned.out) == (0, f"0 files of 0 bytes would be removed from {tmp_path}/blobs\n")
    assert finetune("registry", "gc", database).out.startswith("0 files of 0 bytes removed")
    assert finetune("registry", "gc", "--database-url=postgresql://u@h/d").code == 2
    assert finetune("registry", "contents", database, "--into=database").out.startswith("0 pieces of datasets' rows")
    assert finetune("registry", "contents", "--database-url=postgresql://u@h/d", "--into=store").code == 2


def test_a_namespace_is_listed_and_forgotten_with_the_command_line(finetune: Finetune, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    with serving(url) as registry:
        assert httpx.post(f"{registry}/api/v1/namespaces/ml/datasets/d/versions", content=pairs(2)).status_code == 201
    at = f"--database-url={url}"
    assert finetune("registry", "namespaces", at).out == ""  # without tokens no uid is ever seen
    forgotten = finetune("registry", "forget", "ml", at)
    assert (forgotten.code, forgotten.out) == (0, "forgotten: 1 dataset_versions, 1 datasets\n")
    again = finetune("registry", "forget", "ml", at)
    assert (again.code, again.out) == (1, "")
    assert "nothing is known of namespace 'ml'\nhint: finetune registry namespaces lists them" in again.err
    assert finetune("registry", "adopt", "~1", at).code == 1
