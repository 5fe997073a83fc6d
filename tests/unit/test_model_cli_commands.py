"""The commands as a person uses them, as far as they need no torch."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model import exits, flags
from model.files import combined_digest, digest_directory
from model.training import cli
from model.training.local import TrainCommand
from model.training.loop.checkpoint import CheckpointStore, RunState
from model.training.loop.fingerprint import of_settings
from model.training.output import terminal
from tests.support.safetensors_files import write_adapter, write_base

HEAVY = ("torch", "transformers", "numpy", "datasets", "peft", "matplotlib", "tqdm", "sqlalchemy", "pyarrow")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    rows = "".join(json.dumps({"prompt": f"{n}?", "completion": f"{n}."}) + "\n" for n in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    return tmp_path


def validate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["validate", "--method=SFT", "--base-model=base", "--tokens=false", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_a_run_that_can_start(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = validate(capsys, "--dataset=rows.jsonl", "--seed=5")
    assert (code, found["valid"], found["problems"]) == (0, True, [])
    assert found["settings"]["seed"] == 5
    assert found["settings"]["learningRate"] == 2e-4
    assert found["baseModel"]["positions"] == 64
    dataset = found["dataset"]
    assert (dataset["shape"], dataset["rows"] + dataset["evaluationRows"]) == ("prompt-completion", 40)
    assert sorted(path.name for path in workplace.iterdir()) == ["base", "rows.jsonl"]  # nothing was written


def test_the_run_to_go_on_from_is_looked_at(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ("--dataset=rows.jsonl", "--resume-from=runs/first", "--resume-from-run=support-7")
    code, found = validate(capsys, *usual)
    assert (code, found["problems"][0]["reason"]) == (exits.DOES_NOT_EXIST, "CheckpointUnavailable")
    assert "runs does not exist" in found["problems"][0]["message"]
    command = flags.parse(TrainCommand, ["--method=SFT", "--base-model=base", "--dataset=rows.jsonl"])
    store = CheckpointStore(workplace / "runs/first/checkpoints", of_settings(command.resolved()))
    store.save(7, RunState(), lambda _directory: None)
    code, found = validate(capsys, *usual)
    assert code == 0
    assert found["resumeFrom"] == {"run": "support-7", "checkpoint": "runs/first/checkpoints/checkpoint-7", "step": 7}
    code, found = validate(capsys, *usual, "--seed=3", "--processes=2")
    (problem,) = found["problems"]
    assert (code, problem["reason"]) == (exits.INVALID_CONFIGURATION, "InvalidSpec")
    assert "spec.training.seed (--seed) is 3 here and 42 in run support-7; spec.resources.gpus" in problem["message"]
    (workplace / "runs/first/training_config.json").write_text("{}")
    code, found = validate(capsys, *usual)
    assert "run support-7 has finished" in found["problems"][0]["message"]


def test_all_parts_are_looked_at_though_some_are_wrong(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "bad.jsonl").write_text('{"prompt": "a", "completion": ""}\n{"prompt": 1, "completion": "b"}\n')
    (workplace / "base/tokenizer.json").unlink()
    code, found = validate(capsys, "--dataset=bad.jsonl", "--parent-adapter=none")
    assert code == exits.DOES_NOT_EXIST
    assert [problem["reason"] for problem in found["problems"]] == [
        "BaseModelUnavailable",
        "AdapterInvalid",
        "DatasetInvalid",
    ]
    assert "row 1" in found["problems"][2]["message"]
    assert found["dataset"]["dropped"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--lora-target-modules=q_proj,gate_proj"],
            "has no layer gate_proj; it has down_proj, q_proj, up_proj, v_proj",
        ),
        (["--dataset=none.jsonl"], "none.jsonl"),
        (["--early-stopping-patience=2", "--evaluation-percent=0"], "--early-stopping-patience compares losses"),
        (["--quantization=NF4"], "--quantization=NF4 needs a GPU"),
        (["--base-model=./none"], "--base-model: none does not exist"),
        (["--parent-adapter=none"], "--parent-adapter: none holds no adapter"),
        (["--run-directory=none"], "none/dataset holds no exported dataset: give --dataset"),
    ],
)
def test_problems_with_one_part(
    arguments: list[str], said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del workplace
    given = {"--base-model": "base", "--dataset": "rows.jsonl", "--tokens": "false"}
    given |= dict(argument.split("=", 1) for argument in arguments)
    if "--run-directory" in given:
        del given["--dataset"]
    code = cli.main(["validate", "--method=SFT", *(f"{key}={value}" for key, value in given.items())])
    found = json.loads(capsys.readouterr().out)
    assert not found["valid"]
    assert code in (exits.INVALID_CONFIGURATION, exits.DOES_NOT_EXIST)
    assert said in found["problems"][0]["message"]


def test_a_parent_is_compared_with_base_and_digest(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = write_adapter(workplace / "parent")
    digest = combined_digest(digest_directory(parent))
    dataset = "--dataset=rows.jsonl"
    code, found = validate(capsys, dataset, f"--parent-adapter={parent}", f"--parent-adapter-sha256={digest}")
    assert (code, found["parentAdapter"]["rank"]) == (0, 8)
    other = hashlib.sha256(b"").hexdigest()
    code, found = validate(capsys, dataset, f"--parent-adapter={parent}", f"--parent-adapter-sha256={other}")
    assert f"has the SHA-256 {digest}, --parent-adapter-sha256 says {other}" in found["problems"][0]["message"]
    assert len(found["problems"]) == 1


@pytest.mark.parametrize(
    ("config", "argument", "said"),
    [
        ({}, "--lora-rank=64", "--lora-rank is 64, the parent adapter parent has 8"),
        ({"base_model_name_or_path": "example/other"}, "--base-model-name=example/tiny", "made for the base model"),
        ({"modules_to_save": ["lm_head"]}, "--seed=1", "trains whole layers, biases or tokens"),
        ({"bias": "all"}, "--seed=1", "trains whole layers, biases or tokens"),
        ({"target_parameters": ["down_proj"]}, "--seed=1", "adapts the experts"),
        ({"peft_type": "IA3"}, "--seed=1", "is a IA3 adapter"),
    ],
)
def test_a_parent_that_training_refuses_is_refused(
    config: dict[str, Any], argument: str, said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(workplace / "parent", **config)
    code, found = validate(capsys, "--dataset=rows.jsonl", "--parent-adapter=parent", argument)
    assert code == exits.INVALID_CONFIGURATION
    assert [said in problem["message"] for problem in found["problems"]] == [True]


def test_an_exported_dataset_is_recognised(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model.data import export

    arguments = ["--run-directory=run", "--source=volume", "--path=rows.jsonl"]
    assert export.main(arguments) == 0
    capsys.readouterr()
    before = digest_directory(workplace)
    code, found = validate(capsys, "--run-directory=run")
    assert (code, found["dataset"]["shape"]) == (0, "prompt-completion")
    assert digest_directory(workplace) == before  # it may be another's, or read-only
    with (workplace / "run/dataset/train.jsonl").open("a") as file:
        file.write("\n")
    code, found = validate(capsys, "--run-directory=run")
    assert (code, found["problems"][0]["reason"]) == (exits.DATASET_INVALID, "DatasetInvalid")


def test_the_printed_configuration_is_a_file_that_gives_the_same(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--method=DPO", "--base-model=base", "--dataset=rows.jsonl", "--set", "dpo.beta=0.2"]
    assert cli.main([*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["dpoBeta"] == 0.2
    (workplace / "run.yaml").write_text(printed)
    assert cli.main(["train", "--config=run.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert not (workplace / "runs").exists()


def test_a_plan_without_a_probe_needs_no_torch(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del workplace
    arguments = ["plan", "--method=SFT", "--base-model=base", "--no-probe", "--precision=Float32", "--batch-size=4"]
    assert cli.main([*arguments, "--dataset=rows.jsonl", "--evaluation-percent=0"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rows"], plan["steps"], plan["microBatchSize"]) == (40, 10, 4)
    assert plan["memoryBytes"]["weights"] == 4 * plan["parameters"]["total"]
    assert plan["memoryBytes"]["gradients and optimizer"] == 12 * plan["parameters"]["trainable"]
    assert plan["peakBytes"] == sum(plan["memoryBytes"].values())
    assert cli.main([*arguments, "--max-length=32"]) == 0  # without a dataset: rows of the greatest length
    assert json.loads(capsys.readouterr().out)["longestRow"] == 32


def test_the_last_words_are_short_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "--method=sft", "--batch-size=0"]
    assert cli.main(arguments) == exits.INVALID_CONFIGURATION
    assert capsys.readouterr().err.startswith("InvalidSpec: --method=sft: must be ")
    monkeypatch.setattr(terminal, "is_terminal", lambda _stream: True)
    assert cli.main(arguments) == exits.INVALID_CONFIGURATION
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "InvalidSpec: 4 problems"
    assert lines[1] == "  - --method=sft: must be 'SFT', 'DPO' or 'KTO', did you mean SFT?"
    assert lines[-1].startswith("hint: ")


def test_commands_have_near_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tarin"]) == exits.INVALID_CONFIGURATION
    assert "tarin: no such command, did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_is_short_enough_to_read(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 110
    assert max(map(len, lines)) <= 120
    assert cli.main([]) == 0
    assert f"  {name:10}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["validate", "--method=SFT", "--base-model=base", "--dataset=rows.jsonl", "--tokens=false"],
        ["validate", "--method=SFT", "--base-model=base", "--run-directory=r", "--run-uid=u"],
        ["plan", "--method=SFT", "--base-model=base", "--dataset=rows.jsonl", "--no-probe"],
        ["schema"],
    ],
)
def test_what_starts_at_once_loads_nothing_heavy(arguments: list[str], workplace: Path) -> None:
    code = (
        "import sys; from model.training import cli; code = cli.main(sys.argv[1:]); "
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=workplace,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("picture", "said"),
    [("loss.xyz", "must end in one of .png, .svg, .pdf"), ("rows.jsonl/loss.png", "rows.jsonl is no directory that")],
)
def test_a_picture_is_refused_before_anything_is_trained(
    picture: str, said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method=SFT", "--base-model=base", "--dataset=rows.jsonl", f"--plot={picture}"]
    assert cli.main(["train", *arguments]) == exits.INVALID_CONFIGURATION
    assert said in capsys.readouterr().err
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "a\u2028b"}\n\n{"prompt": 5}\n', "prompts.jsonl line 3: must be an object with a text in prompt"),
        ("[]", "prompts.jsonl line 1: must be"),
        ("a", "prompts.jsonl line 1: must be"),
        (None, "prompts.jsonl: cannot be read"),
    ],
)
def test_prompts_that_cannot_be_asked_are_told_with_their_line(
    lines: str | None, said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if lines is not None:
        (workplace / "prompts.jsonl").write_text(lines, encoding="utf-8")
    assert cli.main(["chat", "runs/x", "--prompts-file=prompts.jsonl"]) == exits.INVALID_CONFIGURATION
    assert said in capsys.readouterr().err


def test_ctrl_c_ends_what_is_no_training_as_it_ends_any_program() -> None:
    code = (
        "import os, signal; from model.training import cli\n"
        "cli.COMMANDS['schema'] = cli.COMMANDS['schema']._replace(run=lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "cli.run(['schema'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nstopped\n")
