"""Last words: what they hold, and that they always fit."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from model import exits, result
from model.exits import FailureError
from model.files import RunDirectory
from model.training.result import read_training_config


def test_a_short_document_is_left_as_it_is() -> None:
    document = {"failure": {"reason": "X", "message": "ä"}}
    assert json.loads(result.fit(document)) == document


@pytest.mark.parametrize("letter", ["a", "ä", "😀", '"', "\n"])
def test_a_long_message_is_cut_at_its_end(letter: str) -> None:
    text = result.fit(result.failure_document(FailureError(3, "DatasetInvalid", letter * 9000, row=7)))
    document = json.loads(text)["failure"]
    assert len(text.encode()) <= result.MAX_BYTES
    assert len(text.encode()) > result.MAX_BYTES / 2
    assert document["message"].endswith(letter + "...")
    assert (document["reason"], document["row"]) == ("DatasetInvalid", 7)


def test_a_long_history_is_thinned_and_keeps_its_end() -> None:
    history = [{"step": step, "loss": "1.0"} for step in range(1, 401)]
    document = json.loads(result.fit({"result": {"finalLoss": "1"}, "lossHistory": history}))
    assert document["lossHistory"][-1] == history[-1]
    assert 20 < len(document["lossHistory"]) < 200


def test_a_long_list_of_files_is_left_out_and_the_digest_stays() -> None:
    files = [{"path": f"adapter-{number}.safetensors", "sha256": "0" * 64} for number in range(100)]
    document = json.loads(result.fit({"result": {"adapter": {"sha256": "1", "files": files}}}))
    assert document == {"result": {"adapter": {"sha256": "1"}}}


def test_the_sources_of_a_mix_are_left_out_before_the_files_are() -> None:
    files = [{"path": f"{number}.safetensors", "sha256": "0" * 64} for number in range(20)]
    sources = [{"name": "x" * 60, "rows": number} for number in range(16)]
    document = {"result": {"adapter": {"files": files}}, "dataset": {"rows": 120, "sources": sources}}
    assert json.loads(result.fit({"dataset": document["dataset"]})) == {"dataset": document["dataset"]}
    assert json.loads(result.fit({**document, "timings": {"x": "y" * 1500}})) == {
        **document,
        "dataset": {"rows": 120},
        "timings": {"x": "y" * 1500},
    }


def test_what_cannot_be_shortened_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be shortened"):
        result.fit({"other": "x" * 5000})


def test_last_words_replace_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("TERMINATION_LOG", str(log))
    result.write_termination_message({"failure": {"reason": "X", "message": "a long one"}})
    result.write_termination_message(result.interrupted_document(12))
    assert json.loads(log.read_text()) == {"interrupted": {"step": 12}}


def test_last_words_that_cannot_be_written_do_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path))
    result.write_termination_message(result.interrupted_document(1))
    assert "cannot write the termination message" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.8342, "1.8342"),
        (2.0, "2"),
        (0.0, "0"),
        (100, "100"),
        (0.0002, "0.0002"),
        (0.00123456, "0.00123456"),
        (1.5e-7, "1.5e-07"),
        (402.1, "402.1"),
    ],
)
def test_numbers_are_decimal_strings(value: float, text: str) -> None:
    assert result.decimal(value) == text
    assert float(text) == pytest.approx(value)


def test_a_result_is_the_part_of_the_record_that_fits() -> None:
    record: dict[str, Any] = {"schemaVersion": 1, "result": {}, "dataset": {}, "config": {}, "lossHistory": []}
    assert result.result_document(record) == {"result": {}, "dataset": {}, "lossHistory": []}


def wrapped(cause: BaseException) -> Exception:
    error = RuntimeError("cannot save")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/output/x"), exits.STORAGE_FULL, "StorageFull"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), exits.STORAGE_FULL, "StorageFull"),
        (wrapped(OSError(errno.ENOSPC, "full")), exits.STORAGE_FULL, "StorageFull"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), exits.STORAGE_FULL, "StorageFull"),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 6976 vs 6868"), 7, "StorageFull"),
        (RuntimeError("[enforce fail at inline_container.cc:9] . no central directory"), 1, "InternalError"),
        (PermissionError(errno.EACCES, "Permission denied", "/output"), exits.ACCESS_DENIED, "AccessDenied"),
        (OSError(errno.EROFS, "Read-only file system"), exits.ACCESS_DENIED, "AccessDenied"),
        (FailureError(6, "Diverged", "x"), exits.DIVERGED, "Diverged"),
        (KeyError("x"), exits.CRASH, "InternalError"),
        (wrapped(PermissionError(errno.EACCES, "no")), exits.CRASH, "InternalError"),
    ],
)
def test_exceptions_become_failures(error: BaseException, code: int, reason: str) -> None:
    failure = result.as_failure(error)
    assert (failure.code, failure.reason) == (code, reason)


def test_an_unexpected_exception_keeps_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert result.as_failure(ValueError("odd")).message == "ValueError: odd"
    assert "odd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"r": 12}, None),
        ({"r": 24}, "--max-lora-rank=32"),
        ({"r": 64}, "--max-lora-rank=64"),
        ({"rank_pattern": {"q_proj": 32}}, "--max-lora-rank=32"),
        ({"r": 600}, "up to rank 512"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "of the embeddings (embed_tokens)"),
        ({"target_modules": ["transformer.wte"]}, "of the embeddings (wte)"),
        ({"target_modules": ["lm_head"]}, "of the output layer (lm_head)"),
        ({"target_modules": "all-linear"}, None),
    ],
)
def test_what_a_server_does_not_load_is_said(changes: dict[str, Any], words: str | None) -> None:
    from types import SimpleNamespace

    from model.training.serving import serving_warnings

    plain = {"r": 16, "rank_pattern": {}, "use_dora": False, "bias": "none", "modules_to_save": None}
    plain |= {"target_modules": ["model.layers.0.self_attn.q_proj"]}
    config = SimpleNamespace(**{**plain, **changes})
    warnings = serving_warnings(config)
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]


@pytest.mark.parametrize(("rows", "said"), [(3, "of 3 examples"), (16, "of 16 examples"), (400, "of 16 examples")])
def test_a_step_has_no_more_examples_than_there_are_rows(rows: int, said: str, tmp_path: Path) -> None:
    from model.training.config import TrainSettings
    from model.training.result import model_card

    settings = TrainSettings(method="SFT", run_directory=tmp_path, run_uid="u", base_model="base").resolved()
    card = model_card(settings, {"steps": 2, "finalLoss": "1"}, {"rows": rows, "sha256": "0"}, ["answers end late"])
    assert said in card
    assert "Note: answers end late." in card


def test_a_record_of_another_trainers_schema_is_no_verdict_about_its_files(tmp_path: Path) -> None:
    """The chart's trainer image was upgraded between the training and the reading of its result."""
    directory = RunDirectory(tmp_path)
    record = {"schemaVersion": 99, "result": {"adapter": {"sha256": "a" * 64}}}
    directory.training_config.write_text(json.dumps(record))
    with pytest.raises(FailureError, match="schemaVersion 99") as caught:
        read_training_config(directory)
    assert (caught.value.code, caught.value.reason) == (exits.CRASH, "InternalError")
