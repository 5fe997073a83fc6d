"""Settings from flags and files, and what is said about wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import exits, flags
from model.data.export import ExportSettings
from model.exits import FailureError
from model.training import cli
from model.training.config import TrainSettings

USUAL = ["--method=SFT", "--run-directory=/output/a/b", "--run-uid=u", "--base-model=/models/base"]


def train_settings(*arguments: str) -> TrainSettings:
    return flags.parse(TrainSettings, [*USUAL, *arguments])


def problems(*arguments: str) -> str:
    with pytest.raises(FailureError) as caught:
        train_settings(*arguments)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")
    return caught.value.message


def test_flags_become_typed_settings() -> None:
    settings = train_settings(
        "--learning-rate=2e-4", "--batch-size", "8", "--pretended-gpus", "--lora-target-modules=q_proj,v_proj"
    )
    assert settings.learning_rate == 2e-4
    assert settings.batch_size == 8
    assert settings.pretended_gpus is True
    assert settings.lora_target_modules == ["q_proj", "v_proj"]
    assert settings.run_directory == Path("/output/a/b")
    assert train_settings("--pretended-gpus=false").pretended_gpus is False


def test_all_problems_are_told_at_once_with_the_nearest_name() -> None:
    said = problems("--learning-rte=1", "--seed=abc", "--schedule=cosine", "--batch-size=0", "--max-steps")
    assert "--learning-rte: no such flag, did you mean --learning-rate?" in said
    assert "--seed=abc: " in said
    assert "--schedule=cosine: must be 'Cosine', 'Linear' or 'Constant'" in said
    assert "--batch-size=0: must be greater than or equal to 1" in said
    assert "--max-steps: needs a value" in said


def test_required_flags_are_named() -> None:
    with pytest.raises(FailureError, match="--run-directory: is required"):
        flags.parse(TrainSettings, ["--method=SFT"])


def test_a_flag_given_twice_is_a_problem() -> None:
    assert "--seed: given 2 times" in problems("--seed=1", "--seed=2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs=1", "--max-steps=2"], "not both"),
        (["--batch-size=2", "--micro-batch-size=4"], "larger than --batch-size=2"),
        (["--lora-target-modules=lm_head"], "cannot be adapted"),
        (["--lora-target-modules=all-linear,q_proj"], "all-linear stands alone"),
        (["--registry-url=http://registry"], "needs --namespace"),
        (["--learning-rate=nan"], "--learning-rate=nan"),
    ],
)
def test_settings_that_contradict_each_other(arguments: list[str], said: str) -> None:
    assert said in problems(*arguments)


def test_an_unknown_method_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(FailureError, match=r"--method=dpo: must be 'SFT', 'DPO' or 'KTO', did you mean DPO\?"):
        flags.parse(TrainSettings, ["--method=dpo", *USUAL[1:]])


def test_a_file_gives_settings_and_a_flag_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("batchSize: 4\nseed: 7\nloraTargetModules: [q_proj]\n")
    settings = train_settings(f"--config={path}", "--seed=9")
    assert (settings.batch_size, settings.seed, settings.lora_target_modules) == (4, 9, ["q_proj"])


def test_unknown_keys_of_a_file_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("batchsize: 4\n")
    assert "batchsize: no such setting, did you mean batchSize?" in problems(f"--config={path}")


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert "No such file" in problems(f"--config={tmp_path}/none.yaml")


def test_the_resolved_settings_make_a_file_that_gives_them_again(tmp_path: Path) -> None:
    settings = train_settings("--seed=3", "--lora-variant=DoRA", "--early-stopping-patience=2")
    assert settings.resolved().document()["learningRate"] == 2e-4
    path = tmp_path / "run.json"  # JSON is YAML
    path.write_text(json.dumps(settings.document()))
    assert flags.parse(TrainSettings, [f"--config={path}"]) == settings


@pytest.mark.parametrize("settings", [TrainSettings, ExportSettings, cli.CollectSettings, cli.ChatSettings])
def test_help_names_every_flag(settings: type[flags.Settings]) -> None:
    text = flags.help_text(settings, "usage")
    for name, field in settings.model_fields.items():
        assert f"  {flags.flag(name)}" in text
        assert field.description
        assert field.description in " ".join(text.split())


def test_commands_print_help_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    assert cli.main([]) == 0
    capsys.readouterr()
    assert cli.main(["schema"]) == 0
    schema: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert schema["properties"]["batchSize"]["default"] == 16
    assert schema["additionalProperties"] is False


def test_what_needs_no_training_imports_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'datasets'}"
    code = f"import sys; import model.training.cli, model.data.export; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_setting_under_its_name_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lora:\n  rank: 4\n  targetModules: [q_proj, v_proj]\nseed: 1\n")
    settings = train_settings(f"--config={path}", "--set", "lora.rank=8", "--set=seed=2", "--seed=3")
    assert (settings.lora_rank, settings.lora_target_modules, settings.seed) == (8, ["q_proj", "v_proj"], 3)
    assert train_settings("--set", "loraTargetModules=[k_proj]").lora_target_modules == ["k_proj"]
    assert train_settings("--set", "loraTargetModules=k_proj,o_proj").lora_target_modules == ["k_proj", "o_proj"]
    assert train_settings(f"--config={path}", "--set", "lora.rank=null").lora_rank is None


def test_a_wrong_setting_is_told_with_the_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: many\nlora:\n  rnk: 4\n  rank: 0\nseed: 3\n")
    said = problems(f"--config={path}", "--set", "batchsize=3", "--set", "x")
    assert f"{path} line 3: lora.rnk: no such setting" in said
    assert f"{path} line 4: lora.rank=0: must be greater than or equal to 1" in said
    assert f"{path} line 5: seed: given twice" in said
    assert "--set batchsize: no such setting, did you mean batchSize?" in said
    assert "--set x: must be key=value" in said


def test_what_is_wrong_together_is_told_with_what_is_wrong_alone() -> None:
    said = problems("--seed=x", "--epochs=1", "--max-steps=2")
    assert "--seed=x: must be a valid integer" in said
    assert "give --epochs or --max-steps, not both" in said
    with pytest.raises(flags.InvalidSettingsError) as caught:
        flags.parse(ExportSettings, ["--source=nowhere", "--seed=x"])
    assert len(caught.value.problems) == 3  # the directory is missing, too, and nothing is said twice
    # What is wrong alone already is no reason to say that it is missing.
    assert "needs --namespace" not in problems("--registry-url=http://r", "--namespace")


def test_an_argument_without_a_flag_and_a_flag_without_a_value() -> None:
    settings = flags.parse(cli.PlotSettings, ["runs/a", "--plot"])
    assert (settings.run_directory, settings.plot) == (Path("runs/a"), Path("loss.png"))
    assert flags.parse(cli.PlotSettings, ["--plot=b.svg", "--run-directory=c"]).plot == Path("b.svg")
    with pytest.raises(FailureError, match="b: no flag stands before it; settings are given as --flag=value"):
        flags.parse(cli.PlotSettings, ["a", "b"])


def test_a_setting_given_under_two_of_its_names_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lora: {rank: 4}\nloraRank: 8\n")
    assert f"{path} line 2: loraRank: given twice" in problems(f"--config={path}")


def test_yes_and_no_are_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: yes\nlearningRate: on\n")
    said = problems(f"--config={path}")
    assert f"{path} line 1: seed=True: must be a number" in said
    assert f"{path} line 2: learningRate=True: must be a number" in said


def test_what_is_wrong_is_told_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("parentAdapter: true\n")
    said = problems(f"--config={path}", "--lora-target-modules=", "--parent-adapter-sha256=x")
    assert "parentAdapter=True: must be a path" in said
    assert "--lora-target-modules=: must not be empty" in said
    assert "--parent-adapter-sha256=x: must match pattern" in said
