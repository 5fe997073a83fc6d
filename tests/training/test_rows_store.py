"""Tokens are made once: who asks again gets the same, and whatever would make others makes them anew and says so."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model import exits
from model.exits import FailureError
from model.files import RunDirectory, sha256_of_files
from model.training.config import TrainSettings
from model.training.rows import making, store
from model.training.rows.store import Tokens
from model.training.rows.tokens import PreferenceRows, TokenRows, sequences_of
from tests.training import faults
from tests.training.chat_templates import make_tokenizer
from tests.training.harness import PROCESSES, Run, finish, wait_for

CLOCK = (
    "<|im_start|>system\n{{ strftime_now('%Y-%m-%d %H:%M:%S') }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if 'odd' in m.content %}{{ raise_exception('no odd words here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(make_tokenizer("chatml"))
    tokenizer.chat_template = template
    return tokenizer


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "completion": "Yes? " * (number % 7 + 1), "row": number} | fields


class Made:
    """A run's directory with exported rows, and what is told while tokens are made of them."""

    def __init__(self, path: Path, rows: list[dict[str, Any]], held_out: list[dict[str, Any]], **settings: Any) -> None:
        self.directory = RunDirectory(path / "run")
        self.directory.dataset.mkdir(parents=True)
        for file, contents in ((self.directory.train_rows, rows), (self.directory.evaluation_rows, held_out)):
            file.write_text("".join(json.dumps(content) + "\n" for content in contents))
        method = settings.get("method", "SFT")
        self.manifest: dict[str, Any] = {
            "sha256": sha256_of_files([self.directory.train_rows, self.directory.evaluation_rows]),
            "source": {},
            "rows": len(rows),
            "evaluationRows": len(held_out),
            "shape": "preference" if method == "DPO" else "prompt-completion",
        }
        self.settings: dict[str, Any] = {"method": method, "run_uid": "u", "base_model": "b"} | settings
        self.told: list[dict[str, Any]] = []

    def tokens(self, tokenizer: Any, **changes: Any) -> Tokens:
        settings = TrainSettings.model_validate(self.settings | changes | {"run_directory": self.directory.path})
        self.told.clear()

        def tell(event: str, **fields: Any) -> None:
            assert event == "tokens"
            self.told.append(fields)

        return making.make(settings.resolved(), self.directory, self.manifest, tokenizer, tell)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path, [row(number) for number in range(1, 1200)], [row(number) for number in (2000, 2001)])


def contents(tokens: Tokens) -> list[list[int]]:
    sides = [*sequences_of(tokens.rows), *sequences_of(tokens.held_out)]
    return [list(values) for side in sides for values in (side.ids, side.labels, side.offsets)]


def test_tokens_are_made_once_and_are_those_of_the_encoder(made: Made) -> None:
    from model.training.rows.tokens import RowEncoder

    tokenizer = make_tokenizer("chatml")
    first = made.tokens(tokenizer)
    assert [(told["rows"], told["totalRows"]) for told in made.told] == [(1201, 1201)]
    second = made.tokens(tokenizer)
    assert made.told == [{"rows": 1201, "kept": True}]
    assert contents(first) == contents(second)
    assert (first.sha256, first.moment, first.largest) == (second.sha256, second.moment, second.largest)
    encoder = RowEncoder(tokenizer, max_length=1024, too_long="Truncate")
    for side, path in ((second.rows, made.directory.train_rows), (second.held_out, made.directory.evaluation_rows)):
        assert isinstance(side, TokenRows)
        plain = encoder.encode(path.read_bytes().splitlines(), "the dataset's")
        assert [side.row(index) for index in range(len(side))] == [plain.row(index) for index in range(len(plain))]
        assert side.lengths == plain.lengths
    assert second.largest == max(*second.rows.ids, *second.held_out.ids)  # type: ignore[union-attr]
    assert second.figures == first.figures
    assert second.rows.outcomes.document() == first.rows.outcomes.document()


def test_pairs_are_kept_as_well(tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"What is {n}?", "chosen": "Yes?", "rejected": "No. " * (n % 3 + 1), "row": n} for n in range(9)
    ]
    made = Made(tmp_path, pairs, [], method="DPO")
    first, second = made.tokens(make_tokenizer("chatml")), made.tokens(make_tokenizer("chatml"))
    assert made.told == [{"rows": 9, "kept": True}]
    assert isinstance(second.rows, PreferenceRows)
    assert (len(second.rows), len(second.held_out)) == (9, 0)
    assert contents(first) == contents(second)
    assert second.rows.chosen.as_dataset()[8]["input_ids"] == list(second.rows.chosen.row(8)[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_length": 60}, r"training.maxLength \(--max-length\) was 1024 and is 60"),
        ({"too_long": "Drop"}, r"dataset.tooLong \(--too-long\) was Truncate and is Drop"),
        ({"template": CLOCK}, "its chat template has changed"),
        ({"tokenizer": "zephyr"}, "the base model's tokenizer has changed"),
        ({"manifest": "Drop"}, r"dataset.invalidRows \(--invalid-rows\) was Fail and is Drop"),
    ],
)
def test_whatever_would_make_other_tokens_makes_them_anew_and_is_told(
    made: Made, changes: dict[str, str], words: str
) -> None:
    before = made.tokens(make_tokenizer("chatml"))
    tokenizer = make_tokenizer(changes.pop("tokenizer", "chatml"))
    if template := changes.pop("template", None):
        tokenizer = with_template(template)
    made.manifest["source"] = {"invalidRows": value} if (value := changes.pop("manifest", None)) else {}
    after = made.tokens(tokenizer, **changes)
    assert re.search(words, made.told[0]["again"])
    assert made.told[1]["rows"] == 1201
    assert after.moment == before.moment  # what the run shows for now stays
    assert contents(before)  # who still reads the old ones is not disturbed
    made.tokens(tokenizer, **changes)
    assert made.told == [{"rows": 1201, "kept": True}]


def test_another_number_of_bytes_or_another_bit_is_noticed(made: Made) -> None:
    expected = made.tokens(make_tokenizer("chatml")).sha256
    path = made.directory.dataset / "tokens" / "train-labels.bin"
    data = path.read_bytes()
    for broken in (data[:-4], data[:8] + bytes([data[8] ^ 1]) + data[9:]):
        path.unlink()
        path.write_bytes(broken)
        assert made.tokens(make_tokenizer("chatml")).sha256 == expected
        assert made.told[0]["again"] == "the files are not as they were written"


def test_rows_that_were_changed_after_the_export_are_refused_with_and_without_tokens(made: Made) -> None:
    rows = made.directory.train_rows
    text = rows.read_text()
    rows.write_text(text.replace("What is 7?", "What is 8?"))
    with pytest.raises(FailureError, match="were changed after the export"):
        made.tokens(make_tokenizer("chatml"))
    assert not (made.directory.dataset / "tokens").exists()
    rows.write_text(text)
    made.tokens(make_tokenizer("chatml"))
    rows.write_text(text.replace("What is 7?", "What is 8?"))
    with pytest.raises(FailureError, match="were changed after the export"):
        made.tokens(make_tokenizer("chatml"))


def test_all_rows_that_the_template_refuses_are_told_at_once_or_dropped(tmp_path: Path) -> None:
    odd = {"prompt": "What is odd?"}
    rows = [row(number, **(odd if number % 3 == 0 else {})) for number in range(1, 100)]
    made = Made(tmp_path, rows, [row(200), row(201, **odd)])
    with pytest.raises(FailureError) as caught:
        made.tokens(with_template(NO_SYSTEM))
    assert caught.value.row == 3
    refused = "the base model's chat template refuses it: no odd words here"
    assert caught.value.message == (
        f"34 rows cannot be trained on with this base model: the dataset's row 3: {refused} "
        "(also rows 6, 9, 12, 15, 18, 21, 24, 27, 30 and 23 more); "
        f"the dataset's row 201: {refused} (dataset.invalidRows (--invalid-rows) Drop leaves them out)"
    )
    assert not list(made.directory.dataset.glob("tokens*"))
    made.manifest["source"] = {"invalidRows": "Drop"}
    tokens = made.tokens(with_template(NO_SYSTEM))
    assert (len(tokens.rows), len(tokens.held_out)) == (66, 1)
    kept = made.tokens(with_template(NO_SYSTEM)).rows.outcomes
    assert kept.refused.document() == {"rows": 33, "first": [f"row {n}" for n in (3, 6, 9, 12, 15)]}
    assert "no odd words here (also rows 6, 9" in kept.reasons[0]


def test_a_dataset_of_which_the_template_refuses_every_row_says_why_also_when_they_are_dropped(tmp_path: Path) -> None:
    made = Made(tmp_path, [row(number, prompt="odd") for number in (1, 2)], [])
    made.manifest["source"] = {"invalidRows": "Drop"}
    with pytest.raises(
        FailureError, match=r"none of the dataset's 2 rows can be trained on; 2 refused: .* no odd words"
    ):
        made.tokens(with_template(NO_SYSTEM))


def test_all_rows_that_are_too_long_are_told_at_once_with_the_length_that_keeps_all(tmp_path: Path) -> None:
    made = Made(tmp_path, [row(1), row(2, completion="so " * 90), row(3, completion="so " * 80)], [])
    with pytest.raises(FailureError) as caught:
        made.tokens(make_tokenizer("chatml"), max_length=60, too_long="Fail")
    longest = max(made.tokens(make_tokenizer("chatml"), max_length=900).rows.lengths)
    assert caught.value.message.startswith("2 rows are too long: the dataset's row 2: has ")
    assert caught.value.message.endswith(f": raise training.maxLength (--max-length) to {longest}, or set "
                                         "dataset.tooLong (--too-long) to Truncate or Drop")  # fmt: skip


def test_the_moment_is_that_of_the_run_that_this_one_goes_on_from(tmp_path: Path) -> None:
    tokenizer = with_template(CLOCK)
    first = Made(tmp_path / "first", [row(1)], [])
    moment = datetime(2024, 2, 3, 4, 5, tzinfo=UTC)
    with store.Writer(store.tokens_directory(first.directory), pairs=False) as writer:
        writer.rows.append([1], [1])  # type: ignore[union-attr]
        writer.publish({}, moment)
    second = Made(tmp_path / "second", [row(1)], [])
    tokens = second.tokens(tokenizer, resume_from=first.directory.path)
    assert tokens.moment == moment
    assert "2024-02-03 04:05:00" in tokenizer.decode(list(tokens.rows.ids))  # type: ignore[union-attr]


def make_in_a_process(path: Path, made: Made) -> None:
    """Make a run's tokens, and leave what was told in a file."""
    made.tokens(make_tokenizer("chatml"))
    path.write_text(json.dumps(made.told))


def test_two_processes_do_not_both_make_them(made: Made, tmp_path: Path) -> None:
    words = [tmp_path / "one", tmp_path / "other"]
    processes = [PROCESSES.Process(target=make_in_a_process, args=(path, made)) for path in words]
    for process in processes:
        process.start()
    assert [finish(process) for process in processes] == [0, 0]
    told = [json.loads(path.read_text()) for path in words]
    assert sorted(len([line for line in lines if line.get("kept")]) for lines in told) == [0, 1]


def test_who_is_killed_while_tokens_are_made_leaves_nothing_that_could_be_taken_for_them(
    made: Made, tmp_path: Path
) -> None:
    rows, temporary = made.directory.train_rows, made.directory.dataset / "tokens.tmp"
    lines = rows.read_bytes()
    rows.unlink()
    os.mkfifo(rows)  # which never ends
    feeder = threading.Thread(target=lambda: feed(rows, lines), daemon=True)
    feeder.start()
    process = PROCESSES.Process(target=make_in_a_process, args=(tmp_path / "told", made))
    process.start()
    wait_for(lambda: temporary.exists() or not process.is_alive())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    assert not (made.directory.dataset / "tokens").exists()
    rows.unlink()
    rows.write_bytes(lines)
    assert len(made.tokens(make_tokenizer("chatml")).rows) == 1199
    assert not temporary.exists()


def feed(fifo: Path, lines: bytes) -> None:
    descriptor = os.open(fifo, os.O_RDWR)  # stays open for reading, too, so that nobody sees an end or a broken pipe
    os.write(descriptor, lines[:4096])


@pytest.fixture
def clock_model(base_model: Path, tmp_path: Path) -> Path:
    """The base model, with a template that writes the second."""
    directory = tmp_path / "base"
    shutil.copytree(base_model, directory)
    (directory / "chat_template.jinja").write_text(CLOCK)
    return directory


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_a_run_whose_template_writes_the_second_goes_on_with_the_same_bits(
    method: str, clock_model: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    if method == "DPO":
        rows = [
            {"prompt": one["prompt"], "chosen": one["completion"], "rejected": f"No, {n}."}
            for n, one in enumerate(rows)
        ]
    flags = {"method": method, "max_steps": 5, "checkpoint_steps": 2, "learning_rate": "1e-3"}
    (tmp_path / "a").mkdir()
    run = Run(tmp_path / "a", clock_model, **flags).export(rows)
    assert run.stop_at(3, signal.SIGTERM) == exits.INTERRUPTED
    # One that nobody stops, with the tokens of the first attempt.
    (tmp_path / "b").mkdir()
    whole = Run(tmp_path / "b", clock_model, **flags)
    shutil.copytree(run.directory / "dataset", whole.directory / "dataset")
    assert whole.train() == 0
    assert run.train() == 0
    assert run.said()["result"]["resumedFromStep"] >= 3
    assert [event.get("kept") for event in run.events("tokens")] == [None, True]
    assert run.said()["result"]["adapter"]["sha256"] == whole.said()["result"]["adapter"]["sha256"]
    shown = json.loads((run.directory / "dataset" / "tokens.json").read_text())
    config = json.loads((run.directory / "training_config.json").read_text())
    assert datetime.fromisoformat(shown["renderedTime"]).strftime("%Y-%m-%d %H:%M:%S") in shown["example"][0]
    assert config["dataset"]["renderedTime"] == shown["renderedTime"]


def test_a_disk_that_is_full_while_tokens_are_made_says_so_and_leaves_nothing(
    base_model: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    run = Run(tmp_path, base_model, max_steps=1).export(rows)
    assert finish(run.start(faults.full_disk, "tokens", 1)) == exits.STORAGE_FULL
    assert run.said()["failure"]["reason"] == "StorageFull"
    assert "no space left on the volume at " in run.said()["failure"]["message"]
    assert not list((run.directory / "dataset").glob("tokens*"))


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_rows_that_have_all_gone_to_the_disk_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The buffer is written just after the last row: a dataset of just that size is not an empty one."""
    monkeypatch.setattr(store, "_BUFFER_TOKENS", 1)
    rows = [row(number) for number in range(1, 6)]
    if method == "DPO":
        rows = [{"prompt": f"What is {n}?", "chosen": "Yes.", "rejected": "No, no.", "row": n} for n in range(1, 6)]
    found = Made(tmp_path, rows, [], method=method).tokens(make_tokenizer("chatml"))
    assert (len(found.rows), len(found.held_out)) == (5, 0)
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []


def test_what_a_killed_process_left_of_older_tokens_goes(made: Made) -> None:
    """Numbers of processes come again in pods, and the leftover is as large as the tokens."""
    tokenizer = make_tokenizer("chatml")
    made.tokens(tokenizer)
    left = store.tokens_directory(made.directory).with_name(f"tokens.{os.getpid()}.tmp")
    left.mkdir()
    (left / "ids").write_bytes(b"x")
    made.tokens(tokenizer, max_length=64)
    assert not left.exists()


def test_rows_are_only_called_by_their_numbers_where_each_line_became_one(tmp_path: Path) -> None:
    """A row that is left out and a conversation that is split add up to the same number of rows, in another order."""
    rows = [row(1), row(2, completion="Yes? " * 400), row(3)]
    made, tokenizer = Made(tmp_path, rows, []), make_tokenizer("chatml")
    folder = store.tokens_directory(made.directory)
    assert not store.is_row_for_row(folder)
    made.tokens(tokenizer, max_length=2048)
    assert store.is_row_for_row(folder)
    made.tokens(tokenizer, max_length=64, too_long="Drop")
    assert not store.is_row_for_row(folder)
