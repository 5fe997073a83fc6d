"""Base models on the hub: looked up before anything else, once for all attempts, and with words for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from model import exits
from model.exits import FailureError
from model.training import cli
from model.training.config import TrainSettings
from model.training.processes import process
from model.training.weights import hub
from tests.support.hub import Hub
from tests.support.hub import hub as running_hub
from tests.support.safetensors_files import write_safetensors

NAME = "owner/tiny"
FILES = {"config.json": b"{}", "model.safetensors": b""}
ROW = json.dumps({"prompt": "a", "completion": "b"}) + "\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub in place of the real one, and an empty cache."""
    with running_hub() as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        use(served.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


def settings(directory: Path, **changes: str) -> TrainSettings:
    values = {"method": "SFT", "run_directory": directory, "run_uid": "u", "base_model": NAME, **changes}
    return TrainSettings.model_validate(values)


def test_a_branch_that_moves_is_followed_by_no_later_attempt(server: Hub, tmp_path: Path) -> None:
    repository = server.repository(NAME, FILES)
    first = repository.revisions["main"]
    assert hub.pin(settings(tmp_path)).base_model_revision == first
    second = repository.commit(FILES | {"config.json": b'{"new": 1}'})
    assert hub.pin(settings(tmp_path)).base_model_revision == first
    assert hub.pin(settings(tmp_path, base_model_revision=first)).base_model_revision == first
    server.failing = 500  # and nobody is asked again
    assert hub.pin(settings(tmp_path)).base_model_revision == first
    server.failing = None
    assert hub.pin(settings(tmp_path, base_model_revision=second)).base_model_revision == second


def test_what_another_model_was_found_at_is_not_used(server: Hub, tmp_path: Path) -> None:
    server.repository(NAME, FILES)
    other = server.repository("owner/other", FILES | {"config.json": b'{"other": 1}'}).revisions["main"]
    hub.pin(settings(tmp_path))
    assert hub.pin(settings(tmp_path, base_model="owner/other")).base_model_revision == other


def test_a_directory_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    pinned = hub.pin(settings(tmp_path, base_model=str(tmp_path), base_model_revision="mine"))
    assert pinned.base_model_revision == "mine"
    assert not (tmp_path / hub.RECORD).exists()


@pytest.mark.parametrize("failing", [None, 503])
def test_a_local_copy_stands_in_for_a_hub_that_is_not_asked_or_silent(
    server: Hub, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    first = server.repository(NAME, FILES).revisions["main"]
    huggingface_hub.hf_hub_download(NAME, "config.json", endpoint=server.endpoint)
    server.repositories[NAME].commit(FILES | {"config.json": b'{"new": 1}'})
    server.failing = failing
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", failing is None)
    assert hub.find_commit(NAME, None) == first


def test_without_a_copy_an_offline_run_is_refused(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository(NAME, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FailureError, match="out of reach, and here is no directory of that name") as caught:
        hub.find_commit(NAME, None)
    assert caught.value.code == exits.UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "revision", "code", "said"),
    [
        ("owner/mistyped", None, exits.DOES_NOT_EXIST, "does not exist on the hub, and here is no directory of that"),
        ("mistyped", None, exits.DOES_NOT_EXIST, "does not exist on the hub, and here is no directory of that"),
        (NAME, "v9", exits.DOES_NOT_EXIST, "owner/tiny at revision v9 does not exist"),
        ("owner/data", None, exits.DOES_NOT_EXIST, "it has no config.json"),
        ("owner/gated", None, exits.ACCESS_DENIED, "must be granted"),
        ("owner/private", None, exits.ACCESS_DENIED, "check the name and the token"),
        ("no name", None, exits.DOES_NOT_EXIST, "Repo id must"),
    ],
)
def test_what_is_wrong_is_told(server: Hub, name: str, revision: str | None, code: int, said: str) -> None:
    server.repository(NAME, FILES)
    server.repository("owner/data", {"rows.jsonl": b""})
    server.repository("owner/gated", FILES, token="t", gated=True)
    server.repository("owner/private", FILES, token="t")
    with pytest.raises(FailureError, match=said) as caught:
        hub.find_commit(name, revision)
    assert caught.value.code == code


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("command", "name"), [("train", "mistyped"), ("train", "a/mistyped"), ("validate", "a/b")])
def test_a_mistyped_base_model_is_told_before_the_rows_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process.check_packages, "__defaults__", (str,))  # as if torch were here
    Path("rows.jsonl").write_text(ROW)
    for directory in ("mistypd", "a/mistypd", "a/bb"):
        Path(directory).mkdir(parents=True)
        Path(directory, "config.json").touch()
    code = cli.main([command, "--method=SFT", f"--base-model={name}", "--dataset=rows.jsonl", "--name=r"])
    assert code == exits.DOES_NOT_EXIST
    told = capsys.readouterr().err
    assert f"{name} does not exist on the hub, and here is no directory of that name, did you mean" in told
    assert ("a/mistypd?" in told) == (name == "a/mistyped")
    assert not Path("runs/r/dataset").exists()


def test_a_hub_that_is_away_is_asked_once(server: Hub) -> None:
    server.failing = 503
    with pytest.raises(FailureError, match="the hub answered 503") as caught:
        hub.find_commit(NAME, None)
    assert caught.value.code == exits.UNAVAILABLE
    assert server.failed == 1  # the client's own way is to ask five times, and to wait longer each time


@pytest.mark.parametrize("command", ["train", "validate"])
def test_a_quantized_base_model_is_refused_before_its_weights_are_downloaded(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process.check_packages, "__defaults__", (str,))  # as if torch were here
    Path("rows.jsonl").write_text(ROW)
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    server.repository(NAME, {"config.json": json.dumps(config).encode(), "model.safetensors": b"no weights"})
    code = cli.main([command, "--method=SFT", f"--base-model={NAME}", "--dataset=rows.jsonl", "--name=r"])
    assert code == exits.INVALID_CONFIGURATION
    assert f"{NAME} is stored quantized (gptq with 4 bits)" in capsys.readouterr().err
    assert not Path("runs/r/dataset").exists()


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model-Q4.gguf"])
def test_weights_in_other_files_are_refused_from_a_directory_as_from_the_hub(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, weights: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process.check_packages, "__defaults__", (str,))  # as if torch were here
    monkeypatch.setenv("TERMINATION_LOG", "words.json")
    Path("rows.jsonl").write_text(ROW)
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", weights: b"weights"}
    server.repository(NAME, files)
    Path("base").mkdir()
    for name, content in files.items():
        Path("base", name).write_bytes(content)
    for base in ("base", NAME):
        flags = ["--method=SFT", f"--base-model={base}", "--dataset=rows.jsonl", "--name=r"]
        assert cli.main([command, *flags]) == exits.DOES_NOT_EXIST
        assert "save the model as safetensors first" in Path("words.json").read_text()
        assert not Path("runs/r/dataset").exists()
    assert server.downloads[weights] == 0


@pytest.mark.parametrize("dtype", ["BF16", "U8"])
def test_of_a_model_on_the_hub_the_weights_tell_whether_they_are_quantized(
    server: Hub, tmp_path: Path, dtype: str
) -> None:
    block = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = {"model_type": "llama", "quantization_config": block}
    write_safetensors(tmp_path / "weights", {"model.layers.0.mlp.up_proj.weight": (32, 1)}, dtype)
    weights = (tmp_path / "weights").read_bytes()
    shards = {
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode(),
        "model-1.safetensors": weights,
    }
    for name, files in (("owner/whole", {"model.safetensors": weights}), ("owner/shards", shards)):
        server.repository(name, {"config.json": json.dumps(config).encode(), **files})
        found = hub.stored_config(name, None)
        assert found == (config if dtype == "U8" else {"model_type": "llama"})
