"""The hub through its own client: commits, splits, the card's configurations, tokens, and the cache that runs share."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.data.sources import HubSource, SourceInterruptedError
from model.exits import FailureError
from tests.support.hub import Hub, hub

TOKEN = "hf_secretsecret"


@pytest.fixture(scope="module")
def running() -> Iterator[Hub]:
    with hub() as server:
        yield server


@pytest.fixture
def server(running: Hub) -> Hub:
    running.repositories.clear()
    running.downloads.clear()
    running.failing = None
    return running


@pytest.fixture
def source(server: Hub, tmp_path: Path) -> Any:
    def make(
        split: str = "train",
        revision: str | None = None,
        *,
        token: str | None = None,
        name: str = "o/d",
        configuration: str | None = None,
        offline: bool = False,
    ) -> HubSource:
        environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path)}
        environment |= {"HF_TOKEN": token} if token else {}
        environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        return HubSource(name, revision, split, environment, configuration=configuration)

    return make


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()


def card(text: str) -> bytes:
    return f"---\nlicense: mit\n{text}\n---\n# A dataset\n".encode()


def rows(found: HubSource) -> list[tuple[str, int, Any]]:
    return [(record.file, record.number, record.value["prompt"]) for record in found.records()]


def failure(found: HubSource) -> FailureError:
    with pytest.raises(FailureError) as caught:
        list(found.records())
    assert TOKEN not in caught.value.message
    return caught.value


def test_a_branch_is_resolved_to_its_commit_once(server: Hub, source: Any) -> None:
    repository = server.repository("o/d", {"train.jsonl": lines("old"), "README.md": b"# no front matter"})
    found = source()
    first = repository.revisions["main"]
    request = {"type": "hub", "repository": "o/d", "revision": None, "split": "train"}
    assert found.request() == request
    assert found.description() == {**request, "commit": first, "files": ["train.jsonl"]}
    second = repository.commit({"train.jsonl": lines("new")})
    assert rows(found) == [("", 1, "old")]
    assert source().description()["commit"] == second
    assert rows(source()) == [("", 1, "new")]
    assert rows(source(revision=first)) == [("", 1, "old")]


def test_shards_are_read_in_order(server: Hub, source: Any) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    shards = {}
    for index in (1, 0):
        sink = io.BytesIO()
        write_table(pa.table({"prompt": [f"{index}a", f"{index}b"]}), sink)
        shards[f"data/train-0000{index}-of-00002.parquet"] = sink.getvalue()
    server.repository("o/d", {**shards, "data/test-00000-of-00001.parquet": b""})
    assert rows(source()) == [
        ("train-00000-of-00002.parquet", 1, "0a"),
        ("train-00000-of-00002.parquet", 2, "0b"),
        ("train-00001-of-00002.parquet", 1, "1a"),
        ("train-00001-of-00002.parquet", 2, "1b"),
    ]
    assert server.downloads == dict.fromkeys(shards, 1)


@pytest.mark.parametrize(
    ("split", "prompt"), [("train", "1"), ("test", "2"), ("validation", "3"), ("val", "3"), ("dev", "3"), ("eval", "2")]
)
def test_splits_by_file_names(server: Hub, source: Any, split: str, prompt: str) -> None:
    files = {"train.jsonl": lines("1"), "my_test.jsonl": lines("2"), "dev.jsonl": lines("3"), "config.json": b"{}"}
    server.repository("o/d", files)
    assert rows(source(split)) == [("", 1, prompt)]


CONFIGURATIONS = """
configs:
- config_name: en
  data_files:
  - split: train
    path: ["en/*.jsonl", "more/en.jsonl"]
  - split: held_out
    path: en/special/*.jsonl
- config_name: de
  data_dir: german
"""
FILES = {
    "en/b.jsonl": lines("b"),
    "en/a.jsonl": lines("a"),
    "en/special/x.jsonl": lines("x"),
    "more/en.jsonl": lines("m"),
    "german/train.jsonl": lines("g"),
    "german/test.jsonl": lines("t"),
}


@pytest.mark.parametrize(
    ("change", "split", "found"),
    [
        ("", "en.train", ["a", "b", "m"]),
        ("", "en.held_out", ["x"]),
        ("", "de.train", ["g"]),
        ("", "de.test", ["t"]),
        ("  default: true\n", "train", ["g"]),
        ("- config_name: default\n  data_files: en/a.jsonl\n", "train", ["a"]),
    ],
)
def test_the_configurations_of_the_card(server: Hub, source: Any, change: str, split: str, found: list[str]) -> None:
    server.repository("o/d", {**FILES, "README.md": card(CONFIGURATIONS + change)})
    assert [prompt for _, _, prompt in rows(source(split))] == found


def test_one_configuration_needs_no_choice(server: Hub, source: Any) -> None:
    server.repository("o/d", {**FILES, "README.md": card("configs:\n- config_name: x\n  data_files: '**/a.jsonl'")})
    assert rows(source()) == [("", 1, "a")]


def test_several_configurations_need_a_choice(server: Hub, source: Any) -> None:
    server.repository("o/d", {**FILES, "README.md": card(CONFIGURATIONS)})
    found = failure(source())
    assert found.code == 2
    assert found.message == (
        "o/d has several configurations and none is the default: choose with --configuration=de, or write "
        "--split=de.train (split in a TrainingRun); there is de, en"
    )


@pytest.mark.parametrize(
    ("split", "example"), [("en", "en.train"), ("eng.test", "en.test"), ("x.test", "de.test"), ("test", "de.test")]
)
def test_a_name_that_is_nearly_a_configuration_is_proposed(server: Hub, source: Any, split: str, example: str) -> None:
    server.repository("o/d", {**FILES, "README.md": card(CONFIGURATIONS)})
    assert f"--split={example} " in failure(source(split)).message


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("fr.train", "no split fr.train in its configuration de: did you mean train?; for another"),
        ("en.tset", "no split tset in its configuration en: there is held_out, train; for another"),
        ("held_out", "no split held_out in its configuration de: there is test, train; for another"),
    ],
)
def test_a_split_that_is_missing_is_told_with_the_configurations(
    server: Hub, source: Any, split: str, said: str
) -> None:
    server.repository("o/d", {**FILES, "README.md": card(CONFIGURATIONS + "  default: true\n")})
    found = failure(source(split))
    assert found.code == 10
    assert said in found.message
    assert found.message.endswith(" (split in a TrainingRun); there is de, en")


def test_of_two_configurations_the_longer_name_is_meant(server: Hub, source: Any) -> None:
    text = "configs:\n- config_name: a\n  data_files: x.jsonl\n- config_name: a.b\n  data_files: y.jsonl"
    server.repository("o/d", {"x.jsonl": lines("x"), "y.jsonl": lines("y"), "README.md": card(text)})
    assert rows(source("a.b.train")) == [("", 1, "y")]


def test_of_many_configurations_the_first_are_listed(server: Hub, source: Any) -> None:
    text = "configs:\n" + "".join(f"- config_name: c{n:02}\n  data_files: x.jsonl\n" for n in range(25))
    server.repository("o/d", {"x.jsonl": lines("x"), "README.md": card(text)})
    assert failure(source()).message.endswith("there is c00, c01, c02, c03, c04, c05, c06, c07, c08, c09 and 15 more")


def test_a_card_that_cannot_be_read_is_passed_over(
    server: Hub, source: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repository("o/d", {"a.jsonl": lines("1"), "README.md": b"---\n[1, 2\n---\n"})
    assert rows(source()) == [("", 1, "1")]
    assert "the card of o/d is passed over" in capsys.readouterr().err


def test_the_same_rows_in_another_format_are_passed_over(server: Hub, source: Any) -> None:
    server.repository("o/d", {"train-1.jsonl": lines("1"), "train-2.jsonl": lines("2"), "train.csv": b"prompt\n1\n2\n"})
    found = source()
    assert [prompt for _, _, prompt in rows(found)] == ["1", "2"]
    assert found.passed_over == ["train.csv"]


CONVERTED = {
    ".gitattributes": b"*.parquet filter=lfs",
    "alpha/train/0000.jsonl": lines("a0"),
    "alpha/train/0001.jsonl": lines("a1"),
    "alpha/test/0000.jsonl": lines("at"),
    "beta/partial-train/0000.jsonl": lines("b"),
}


@pytest.mark.parametrize(
    ("configuration", "split", "found"),
    [
        (None, "alpha.train", ["a0", "a1"]),
        (None, "alpha.test", ["at"]),
        ("alpha", "train", ["a0", "a1"]),
        ("alpha", "alpha.train", ["a0", "a1"]),
        ("beta", "train", ["b"]),
    ],
)
def test_folders_of_the_converted_branch_are_configurations(
    server: Hub, source: Any, configuration: str | None, split: str, found: list[str]
) -> None:
    server.repository("o/d", {}).commit(CONVERTED, "refs/convert/parquet")
    made = source(split, "refs/convert/parquet", configuration=configuration)
    assert [prompt for _, _, prompt in rows(made)] == found


def test_configurations_of_the_converted_branch_are_never_mixed(server: Hub, source: Any) -> None:
    server.repository("o/d", {}).commit(CONVERTED, "refs/convert/parquet")
    said = failure(source(revision="refs/convert/parquet"))
    assert said.code == 2
    assert "several configurations and none is the default: choose with --configuration=alpha, or" in said.message
    only = {path: content for path, content in CONVERTED.items() if not path.startswith("beta")}
    server.repository("o/d", {}).commit(only, "refs/convert/parquet")
    assert [prompt for _, _, prompt in rows(source(revision="refs/convert/parquet"))] == ["a0", "a1"]


def test_a_configuration_is_a_setting_of_its_own(server: Hub, source: Any) -> None:
    server.repository("o/d", {**FILES, "README.md": card(CONFIGURATIONS)})
    found = source("test", configuration="de")
    assert [prompt for _, _, prompt in rows(found)] == ["t"]
    assert found.request()["configuration"] == "de"
    said = failure(source("test", configuration="dee"))
    assert (said.code, said.message) == (10, "o/d has no configuration dee: did you mean de?")


def test_without_the_hub_the_cached_commit_serves(server: Hub, source: Any) -> None:
    repository = server.repository("o/d", {"train.jsonl": lines("1"), "test.jsonl": lines("2")})
    before = source().description()
    assert rows(source()) == [("", 1, "1")]
    repository.commit({"train.jsonl": lines("newer")})
    server.failing = 500
    offline = source(offline=True)
    assert offline.description() == before
    assert rows(offline) == [("", 1, "1")]
    assert rows(source(revision=before["commit"], offline=True)) == [("", 1, "1")]
    lacking = failure(source("test", offline=True))
    assert lacking.code == 10
    assert lacking.message.startswith("HF_HUB_OFFLINE is set, and the cache ")
    assert lacking.message.endswith(" lacks files of dataset o/d: read it once with the hub in reach")
    unknown = failure(source(revision="other", offline=True))
    assert unknown.code == 10
    assert unknown.message.endswith(" has no other of dataset o/d: read it once with the hub in reach")


def test_without_the_hub_a_cache_that_another_tool_has_filled_serves(server: Hub, source: Any, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    server.repository("o/d", {"train.jsonl": lines("1"), "README.md": b"# no front matter"})
    client = HfApi(endpoint=server.endpoint)
    for path in ("train.jsonl", "README.md"):
        client.hf_hub_download("o/d", path, repo_type="dataset", cache_dir=tmp_path / "hub")
    server.failing = 500
    assert rows(source(offline=True)) == [("", 1, "1")]


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        ({"train.jsonl": b""}, "tests", (10, "o/d has no split tests: there is train")),
        ({"train.jsonl": b"", "test.jsonl": b""}, "tran", (10, "o/d has no split tran: did you mean train?")),
        ({"d.py": b"", "README.md": b""}, "train", (10, "holds no data files (JSON lines, JSON, CSV, Parquet)")),
        ({}, "train", (10, "there is nothing; try the revision refs/convert/parquet")),
        ({"train.avro": b""}, "train", (3, "keeps train in files such as train.avro: only JSON lines, JSON, CSV")),
        ({"train.parquet": b"<html>"}, "train", (3, "train.parquet is an HTML page")),
    ],
)  # fmt: skip
def test_a_repository_without_the_rows(
    server: Hub, source: Any, files: dict[str, bytes], split: str, expected: tuple[int, str]
) -> None:
    server.repository("o/d", files)
    found = failure(source(split))
    assert found.code == expected[0]
    assert expected[1] in found.message


def test_a_revision_that_is_not_there_is_named_with_the_nearest(server: Hub, source: Any) -> None:
    server.repository("o/d", {"train.jsonl": b""}).commit({}, "version-2")
    found = failure(source(revision="version2"))
    assert (found.code, found.reason) == (10, "DatasetUnavailable")
    assert "has no revision version2: did you mean version-2?" in found.message


@pytest.mark.parametrize("name", ["o/missing", "missing"])
def test_a_repository_that_is_not_there(source: Any, name: str) -> None:
    found = failure(source(name=name))
    assert found.code == 10
    assert "does not exist or is private: check the name; a private one needs HF_TOKEN" in found.message


def test_a_name_that_is_none(source: Any) -> None:
    assert failure(source(name="a/b/c")).code == 2


def test_a_private_repository_needs_its_token(server: Hub, source: Any) -> None:
    server.repository("o/d", {"train.jsonl": lines("1")}, token=TOKEN)
    assert rows(source(token=TOKEN)) == [("", 1, "1")]
    assert TOKEN not in json.dumps(source(token=TOKEN).description()) + repr(source(token=TOKEN))
    assert failure(source()).code == 10
    wrong = failure(source(token="hf_wrong"))
    assert (wrong.code, wrong.reason) == (5, "AccessDenied")
    assert wrong.message.endswith("HTTP 401: Invalid credentials in Authorization header; check HF_TOKEN")


def test_a_newline_after_the_token_is_not_part_of_it(server: Hub, source: Any) -> None:
    """Secrets that are made of files end with one."""
    server.repository("o/d", {"train.jsonl": lines("1")}, token=TOKEN)
    assert rows(source(token=f"{TOKEN}\n")) == [("", 1, "1")]
    server.failing = 503
    with pytest.raises(SourceInterruptedError, match=r"failed for Bearer \*\*\*"):
        source(token=f"{TOKEN}\n").description()


@pytest.mark.parametrize("token", [f"{TOKEN} x", f"{TOKEN}\nx", f"{TOKEN}\0", f"{TOKEN}\u00e9", f"{TOKEN}\u2026"])
def test_what_cannot_be_a_token_is_sent_to_nobody(server: Hub, source: Any, token: str) -> None:
    server.repository("o/d", {"train.jsonl": lines("1")}, token=TOKEN)
    found = failure(source(token=token))
    assert (found.code, found.reason) == (5, "AccessDenied")
    assert found.message == (
        "HF_TOKEN holds more than a token (spaces, line breaks or letters with accents): store the token alone in the "
        "Secret, as the hub showed it"
    )
    assert not server.downloads


def test_a_gated_repository(server: Hub, source: Any) -> None:
    server.repository("o/d", {"train.jsonl": lines("1")}, token=TOKEN, gated=True)
    found = failure(source(token="hf_other"))
    assert found.code == 5
    assert "is gated: accept its terms with the account whose token HF_TOKEN holds" in found.message


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_fails_is_asked_again(server: Hub, source: Any, status: int) -> None:
    server.repository("o/d", {"train.jsonl": lines("1")})
    server.failing = status
    with pytest.raises(SourceInterruptedError, match=f"HTTP {status}: ") as caught:
        source(token=TOKEN).description()
    assert TOKEN not in str(caught.value)
    server.failing = None
    assert rows(source()) == [("", 1, "1")]


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    found = HubSource("o/d", None, "train", {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)})
    with pytest.raises(SourceInterruptedError, match=r"cannot read dataset o/d on http://127\.0\.0\.1:9: .*refused"):
        found.description()


def test_processes_that_start_together_download_once(server: Hub, tmp_path: Path) -> None:
    server.repository("o/d", {"train.jsonl": lines(*("x" * 1000 for _ in range(3000)))})
    script = "from model.data.sources import HubSource; print(sum(1 for _ in HubSource('o/d').records()))"
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "PATH": ""}
    started = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in started] == ["3000\n"] * 2
    assert server.downloads == {"train.jsonl": 1}
