"""What the trainer's process finds out about itself, and what it tells while it works."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model.exits import FailureError
from model.files import FileDigest, RunDirectory, combined_digest, digest_directory, publish_directory, write_json
from model.registry import RegistryUnavailableError
from model.training.output.progress import ProgressLog, StatusPoster, trainer_status
from model.training.output.remaining import RemainingTime
from model.training.processes import process
from model.training.weights import origin


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_the_threads_follow_from_the_containers_limit(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert process.usable_cpus(tmp_path) == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 fma", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("model name\t: bf16", False),
    ],
)
def test_a_cpu_says_whether_it_multiplies_bfloat16(tmp_path: Path, line: str, expected: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{line}\n")
    assert process.cpu_has_bfloat16(path) is expected


def test_the_start_of_the_process_is_known() -> None:
    started = process.start_time()
    age = (datetime.now(UTC) - started).total_seconds()
    assert 0 < age < 3600


def test_timestamps_are_utc() -> None:
    assert process.timestamp(datetime(2026, 11, 24, 6, 0, tzinfo=UTC)) == "2026-11-24T06:00:00.000Z"


def test_a_base_model_is_a_directory_or_a_name_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert origin.check(str(tmp_path)) == tmp_path
    assert origin.check("HuggingFaceTB/SmolLM2-135M-Instruct") is None


@pytest.mark.parametrize("name", ["/models/nowhere", "./nowhere", "a/b/c"])
def test_a_path_without_a_model_is_named(name: str) -> None:
    with pytest.raises(FailureError, match="does not exist") as caught:
        origin.check(name)
    assert (caught.value.code, caught.value.reason) == (10, "BaseModelUnavailable")
    assert str(Path(name)) in caught.value.message


def test_a_file_in_the_place_of_a_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(FailureError, match=r"rows\.jsonl is a file: name the directory"):
        origin.check(str(tmp_path / "rows.jsonl"))


def test_events_go_to_both_streams_and_hold_no_broken_numbers(tmp_path: Path) -> None:
    output = io.StringIO()
    log = ProgressLog(output, tmp_path / "deep" / "metrics.jsonl")
    log.emit("train", step=1, loss=float("nan"), tokens=5)
    assert output.getvalue() == (tmp_path / "deep" / "metrics.jsonl").read_text()
    document = json.loads(output.getvalue())
    assert document["time"].endswith("Z")
    assert {key: document[key] for key in ("event", "step", "loss", "tokens")} == {
        "event": "train", "step": 1, "loss": None, "tokens": 5,
    }  # fmt: skip


def test_the_remaining_time_counts_this_process_alone() -> None:
    now = [100.0]
    remaining = RemainingTime(lambda: now[0])
    assert remaining.seconds(41, 60) is None  # resumed at 40: 60 steps in all, 19 to go
    now[0] = 106.0
    assert remaining.seconds(43, 60) == 51


def test_a_status_holds_integers_and_decimal_strings() -> None:
    status = trainer_status(step=7, total_steps=55, remaining_seconds=130, metrics={"loss": 2.91})["trainerStatus"]
    assert status["progressPercentage"] == 12
    assert status["estimatedRemainingSeconds"] == 130
    assert status["metrics"] == [
        {"name": "loss", "value": "2.91"}, {"name": "step", "value": "7"}, {"name": "totalSteps", "value": "55"},
    ]  # fmt: skip
    assert "estimatedRemainingSeconds" not in trainer_status(step=1, total_steps=2, remaining_seconds=None, metrics={})


@pytest.mark.parametrize("failing", [False, True])
def test_only_the_newest_status_is_posted_and_the_last_one_always(
    failing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    posted: list[dict[str, Any]] = []
    arrived, go_on = threading.Event(), threading.Event()

    def post(document: dict[str, Any]) -> None:
        arrived.set()
        assert go_on.wait(10)
        posted.append(document)
        if failing:
            raise RegistryUnavailableError("away")

    poster = StatusPoster(post, interval=3600)
    poster.offer({"step": 1})
    assert arrived.wait(10)
    poster.offer({"step": 2})
    poster.offer({"step": 3})
    go_on.set()
    poster.close()
    assert posted == [{"step": 1}, {"step": 3}]
    assert ("cannot post the progress: away" in capsys.readouterr().err) is failing


def test_a_document_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_directory_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    for content in ("old", "new"):
        temporary = tmp_path / "adapter.tmp"
        temporary.mkdir()
        (temporary / content).write_text(content)
        publish_directory(temporary, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["new"]


def test_a_directorys_digest_is_over_sorted_paths(tmp_path: Path) -> None:
    for name in ("b", "README.md", "a"):
        (tmp_path / name).write_text(name)
    files = digest_directory(tmp_path)
    assert [file.path for file in files] == ["README.md", "a", "b"]
    assert combined_digest(files) == combined_digest(files[::-1])
    assert combined_digest([FileDigest("a", 1, "0")]) != combined_digest([FileDigest("b", 1, "0")])


def test_the_files_of_a_run_are_where_the_contract_says(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    paths = [
        directory.train_rows, directory.evaluation_rows, directory.manifest, directory.checkpoints, directory.adapter,
        directory.metrics, directory.training_config,
    ]  # fmt: skip
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "dataset/train.jsonl", "dataset/evaluation.jsonl", "dataset/manifest.json", "checkpoints", "adapter",
        "metrics.jsonl", "training_config.json",
    ]  # fmt: skip


def test_libraries_are_quiet_but_for_what_hinders_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with warnings.catch_warnings(record=True) as shown:
        process.quiet()
        warnings.warn("this will be removed in v6", FutureWarning, stacklevel=1)
        warnings.warn("CUDA initialization: the NVIDIA driver is too old", UserWarning, stacklevel=1)
    assert [str(warning.message)[:19] for warning in shown] == ["CUDA initialization"]
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        process.quiet()
        warnings.warn("this will be removed in v6", FutureWarning, stacklevel=1)
    assert len(shown) == 1


def test_libraries_that_are_missing_are_named_with_what_installs_them() -> None:
    process.check_packages(lambda name: name)
    with pytest.raises(
        FailureError, match=r"packages torch, trl, which are not installed here: run pip install"
    ) as told:
        process.check_packages(lambda name: name not in ("torch", "trl"))
    assert (told.value.code, told.value.reason) == (2, "InvalidSpec")


HOLDING = """
import gc
from model.training.loop.memory import resident_bytes
from model.training.processes import process
{before}
held = [bytes(range(256)) * 1024 for _ in range(400)]
with_them = resident_bytes()
del held
gc.collect()
print(with_them - resident_bytes())
"""


@pytest.mark.parametrize(("before", "gives"), [("", False), ("process.give_memory_back()", True)])
def test_memory_goes_back_to_the_kernel_where_it_is_told_to(before: str, *, gives: bool) -> None:
    """With the settings of the trainer's image, which hold what was freed."""
    tunables = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
    environment = os.environ | {"GLIBC_TUNABLES": tunables, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = HOLDING.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 90 << 20) == gives
