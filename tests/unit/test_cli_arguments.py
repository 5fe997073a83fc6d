"""What a command takes for a name, before it asks anybody."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from finetune.cli.main import build_parser, main


@pytest.mark.parametrize(
    "words",
    [
        "delete ",
        "delete r1 ",
        "delete .",
        "delete ../jobs/j",
        "suspend r1/status",
        "status Support",
        "watch r1?x=y",
        "logs job/r1",
        "compare r1 ",
        "retry ",
        "run new --from=",
        "doctor ..",
        "list -n ../kube-system",
        "list -n A",
        "datasets list ",
        "datasets delete @3",
        "datasets show ..",
        "datasets push A/b rows.jsonl",
        "adapters delete .@3",
        "adapters show support@..",
        "adapters alias support  3",
        "adapters promote  production",
        "login ../../pods/p",
    ],
)
def test_what_cannot_be_a_name_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a URL it would be another object, or all of them."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(words.split(" "))
    assert ended.value.code == 2
    assert "is not " in capsys.readouterr().err


@pytest.mark.parametrize("step", ["", "nope", "0", "-1", "1.5", "10000000000", "100/adapter"])
def test_a_step_that_is_none_is_refused_with_how_one_is_written(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["adapters", "pull", f"support@run/{step}"])
    said = capsys.readouterr().err
    assert f"'support@run/{step}' names no step: write NAME@RUN/100, NAME@RUN/best or NAME@RUN/latest" in said


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"finetune-operator {version('finetune-operator')}\n")


@pytest.mark.parametrize("prefix", ["", "trainingrun/", "trainingruns/", "trainingrun.finetune.dev/"])
def test_a_run_is_named_as_lists_name_it(prefix: str) -> None:
    assert build_parser().parse_args(["delete", f"{prefix}support-14.a"]).names == ["support-14.a"]
