"""What commands print, and what they take: tables, cards, curves, completion, and the time that `--help` needs."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.api.losses import loss_change
from finetune.api.registry import Run
from finetune.cli.completion import complete, kubectl, script
from finetune.cli.curve import bar, curve
from finetune.cli.doctor import DEFAULT_CLASS, default_class, fields_known, gpus_of, references
from finetune.cli.output import document, duration, facts, number, printable, table
from finetune.cli.runs import card, comparison, differences, runs_table
from finetune.cli.session import Session, run_command
from finetune.cli.views import RunView, merged, of_object, of_record
from finetune.cli.watching import Curves, Screen, has_begun, line

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def a_run(name: str = "support-14", **changes: Any) -> RunView:
    spec = {
        "method": "SFT",
        "experiment": "support",
        "baseModel": {"hub": {"repository": "meta-llama/Llama-3.1-8B"}},
        "dataset": {"registry": {"name": "tickets"}},
    }
    known: dict[str, Any] = {"uid": f"uid-{name}", "created": NOW - timedelta(hours=3), "spec": spec, **changes}
    return RunView(name=name, **known)


TRAINING = a_run(
    phase="Training",
    dataset_version=7,
    step=1240,
    total_steps=3900,
    percent=32,
    remaining=7800,
    loss="1.3812",
    evaluation_loss="1.412",
    base_loss="2.05",
    tokens_per_second="5100.4",
    attempts=2,
    resumed_from=1200,
)
FAILED = a_run(
    "support-12",
    phase="Failed",
    reason="DatasetInvalid",
    message="train.jsonl row 7: \x1b[31mcompletion\x1b[0m is empty",
    hint="Correct the row.",
    row=7,
    checkpoint=30,
)
DONE = a_run(
    "support-13", phase="Succeeded", adapter="support/13", evaluation_loss="1.398", base_loss="2.05", loss="1.2",
    created=NOW - timedelta(days=1), step=3900,
)  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "base", "said"),
    [
        ("1.9011", "2.77", "-31 %"),
        ("9.12", "2.05", "+345 %"),
        ("2.0", "2.001", "0 %"),
        ("1.0", "0", None),
        (None, "1.0", None),
        ("1.0", None, None),
        ("nan", "1.0", None),
        ("1e308", "1e-308", None),
        ("1.0", "-1.0", None),
    ],
)
def test_a_loss_against_the_base_models(loss: str | None, base: str | None, said: str | None) -> None:
    assert loss_change(loss, base) == said


def test_the_list() -> None:
    text = runs_table([TRAINING, DONE, FAILED], now=NOW, wide=False, on=False)
    assert [" ".join(each.split()) for each in text.splitlines()] == [
        "NAME STATE REASON MODEL DATASET LOSS VS BASE STEP LEFT ADAPTER AGE",
        "support-14 Training - Llama-3.1-8B tickets/7 1.412 -31 % 1240/3900 2h10m - 3h",
        "support-13 Succeeded - Llama-3.1-8B tickets 1.398 -32 % 3900 - support/13 24h",
        "support-12 Failed DatasetInvalid Llama-3.1-8B tickets - - - - - 3h",
    ]
    assert "\x1b[31mFailed" in runs_table([FAILED], now=NOW, wide=False, on=True)
    runs = [replace(TRAINING, namespace="ml"), replace(TRAINING, namespace="research")]
    everywhere = runs_table(runs, now=NOW, wide=False, everywhere=True, on=False)
    assert [each.split()[:2] for each in everywhere.splitlines()] == [
        ["NAMESPACE", "NAME"], ["ml", "support-14"], ["research", "support-14"],
    ]  # fmt: skip


def test_the_card_of_a_failed_run_leads_to_what_to_do_and_holds_nothing_that_moves_a_terminal() -> None:
    text = card(FAILED, now=NOW, on=False)
    assert text.split("\n\n")[1].splitlines() == [
        "Failed: DatasetInvalid",
        "  train.jsonl row 7: \ufffd[31mcompletion\ufffd[0m is empty",
        "  row 7 of the dataset",
        "  do: Correct the row.",
        "  logs:  finetune logs support-12",
        "  again: finetune retry support-12  (goes on from step 30)",
    ]
    assert "1.412 on held-out rows, 2.05 of the base (-31 %), 1.381 in training" in card(TRAINING, now=NOW, on=False)
    record = replace(FAILED, in_cluster=False)  # neither its pods nor its checkpoints can be reached by its name
    assert card(record, now=NOW, on=False).splitlines()[-2:] == [
        "  do: Correct the row.",
        "  again: finetune retry support-12",
    ]
    deleted = replace(record, phase="Deleted", reason="ObjectDeleted", message="It was deleted.", row=None, hint=None)
    assert card(deleted, now=NOW, on=False).splitlines()[-2:] == ["Deleted: ObjectDeleted", "  It was deleted."]
    assert "Attempts:        2, the newest from step 1200" in card(TRAINING, now=NOW, on=False)


def test_a_run_in_a_line() -> None:
    assert line(TRAINING, on=False) == (
        "support-14  Training  attempt 2  [#######.................] 32 %  step 1240/3900  loss 1.381  "
        "held-out 1.412 (-31 % vs base)  5100 tok/s  2h10m left"
    )


def test_without_a_terminal_watch_writes_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(terminal=False)
    for percent in (30, 31, 35, 40):
        screen.show(replace(TRAINING, percent=percent), Curves())
    screen.show(replace(TRAINING, percent=41, attempts=3), Curves())
    screen.show(DONE, Curves())
    lines = capsys.readouterr().out.splitlines()
    assert [each.partition("] ")[2][:4] for each in lines] == ["30 %", "40 %", "41 %", ""]


def test_on_a_terminal_watch_writes_over_what_it_has_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(terminal=True)
    screen.show(TRAINING, Curves((3.0, 2.0, 1.0)))
    first = capsys.readouterr().out
    assert first.count("\n") == 7  # the line and six of the curve
    screen.show(TRAINING, Curves((3.0, 2.0, 1.0)))
    assert capsys.readouterr().out.startswith("\x1b[7F\x1b[0J")


def test_a_curve_keeps_its_peak_and_has_no_holes() -> None:
    values = [2.0] * 500 + [9.0] + [2.0 - i / 1000 for i in range(500)]
    drawn = curve(values, width=30, height=5)
    assert len(drawn) == 5
    assert drawn[0].split()[0] == "9"
    assert drawn[-1].split()[0] == "1.501"
    dots = [each.rpartition(" ")[2] for each in drawn]
    peak = [place for place, each in enumerate(dots[0]) if each > "\u2800"]
    assert len(peak) == 1
    assert all(each[peak[0]] > "\u2800" for each in dots), "the peak is a line from bottom to top"
    assert curve([], width=10) == []
    assert curve([float("nan"), float("inf")]) == []
    assert len(curve([1.0], width=10, height=3)) == 3
    assert max(len(each) for each in curve(list(range(10_000)), width=40)) <= 40 + 6
    assert (bar(0), bar(100), bar(150)) == (f"[{'.' * 24}]", f"[{'#' * 24}]", f"[{'#' * 24}]")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (119, "119s"), (120, "2m"), (3599, "59m"), (3600, "1h"), (12000, "3h20m"), (86400, "24h"),
     (172800, "2d"), (-5, "0s")],
)  # fmt: skip
def test_times_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_what_others_wrote_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2J\u202eb\tc\nd\x00") == "a\ufffd[2J\ufffdb\tc\nd\ufffd"
    assert table(("A", "B"), [("x\ny", "\x07")]) == "A    B\nx y  \ufffd"
    assert facts({"A": "x\ny", "B": None}) == "A:               x\n                 y"
    assert [number(each) for each in ("1.83421", None, "", "nan", "x\x1b")] == ["1.834", "-", "-", "nan", "x\ufffd"]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        *(
            (text, f"'{text}'")
            for text in ("12345e67", "1e-4", "1.e3", ".5", "0o17", "08", "y", "N", "+7", "1_0", "on")
        ),
        *((text, text) for text in ("16Gi", "1.2.3", "yz", "e5", "12345e67a", "HuggingFaceTB/SmolLM2-135M", "größe")),
    ],
)
def test_a_text_stays_a_text_whoever_reads_the_manifest(text: str, written: str) -> None:
    """YAML 1.1, 1.2 and Go's readers differ in what they take for a number or a boolean."""
    assert document({"revision": text}, "yaml") == f"revision: {written}"
    assert yaml.safe_load(document([text], "yaml")) == [text]


def test_a_comparison_marks_the_best_and_leaves_out_what_nobody_has() -> None:
    other = {**DONE.spec, "training": {"learningRate": "1e-4"}}
    runs = [DONE, a_run("support-15", phase="Succeeded", spec=other, evaluation_loss="1.5", base_loss="2.05")]
    text = comparison(runs, differences([run.spec for run in runs]))
    assert text.splitlines() == [
        "SETTING                support-13  support-15",
        "training.learningRate  -           1e-4",
        "",
        "RESULT                 support-13  support-15",
        "state                  Succeeded   Succeeded",
        "loss on held-out rows  1.398 *     1.5",
        "of the base model      2.05        2.05",
        "against it             -32 %       -27 %",
        "loss in training       1.2         -",
        "steps                  3900        -",
        "adapter                support/13  -",
    ]
    runs.insert(0, a_run("support-11", evaluation_loss="nan"))
    found = next(line for line in comparison(runs, {}).splitlines() if line.startswith("loss on held-out"))
    assert found.split()[-4:] == ["nan", "1.398", "*", "1.5"]


def test_object_and_record_say_the_same_of_a_run() -> None:
    result = {"finalLoss": "1.8", "evaluationLoss": "1.9", "baseEvaluationLoss": "2.7", "steps": 5, "tokens": 1}
    adapter = {"id": "i", "name": "support", "version": 3, "uri": "u", "sha256": "c", "bytes": 1}
    spec = {"method": "SFT", "experiment": "e", "baseModel": {"volume": {"claimName": "c", "path": "m"}}}
    obj = {
        "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-11-28T11:00:00Z"},
        "spec": spec,
        "status": {"phase": "Succeeded", "result": {**result, "adapter": adapter}, "attempts": 1},
    }
    run = Run.model_validate(
        {
            "uid": "u",
            "name": "a",
            "experiment": "e",
            "method": "SFT",
            "spec": spec,
            "createdTime": "2026-11-28T11:00:01Z",
            "outcome": {"phase": "Succeeded", "attempts": 1, "evaluationLoss": "1.9", "baseEvaluationLoss": "2.7"},
        }
    )
    ours, theirs = of_object(obj), of_record(run)
    for name in ("name", "phase", "change", "model", "experiment", "attempts", "evaluation_loss", "is_over"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (ours.change, ours.adapter, theirs.in_cluster) == ("-30 %", "support/3", False)
    assert [run.in_cluster for run in merged([ours], [theirs])] == [True]


def test_a_run_that_trains_has_the_newest_losses_of_both() -> None:
    mine = replace(TRAINING, evaluation_loss=None, base_loss=None, step=1000)
    (found,) = merged([mine], [replace(TRAINING, in_cluster=False)])
    assert (found.evaluation_loss, found.step, found.in_cluster) == ("1.412", 1240, True)


def test_containers_that_have_begun() -> None:
    pod = {"status": {"initContainerStatuses": [{"name": "export", "state": {"terminated": {}}}],
                      "containerStatuses": [{"name": "trainer", "state": {"waiting": {}}}]}}  # fmt: skip
    assert [has_begun(pod, each) for each in ("export", "trainer", "collect")] == [True, False, False]
    assert not has_begun({}, "trainer")


def test_doctors_checks() -> None:
    nodes = [{"status": {"allocatable": {"nvidia.com/gpu": count, "cpu": "4"}}} for count in ("2", "1", "0")]
    assert gpus_of(nodes).message == "3 nvidia.com/gpu"
    assert gpus_of([{}]).level == "warn"
    plain, default = {"name": "a"}, {"name": "b", "annotations": {DEFAULT_CLASS: "true"}}
    for metadata, level in (([plain, default], "ok"), ([plain], "warn"), ([], "warn")):
        assert default_class([{"metadata": each} for each in metadata]).level == level
    crd = yaml.load((ROOT / "crds" / "finetune.dev_trainingruns.yaml").read_text(), yaml.CSafeLoader)
    assert fields_known(crd).level == "ok"
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["resumeFrom"]
    assert fields_known(crd).message.endswith("it lacks spec.resumeFrom")
    spec = {
        "dataset": {"sql": {"urlSecretRef": {"name": "db", "key": "k"}}},
        "baseModel": {"chatTemplate": {"configMap": {"name": "t"}}},
        "output": {"claimName": "out"},
    }
    assert [word for _, word in references(spec)] == ["Secret db", "ConfigMap t", "claim out"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ad"], ["adapters"]),
        (["adapters", "pu"], ["pull"]),
        (["list", "-o", "y"], ["yaml"]),
        (["run", "--dr"], ["--dry-run"]),
        (["run", "--method", ""], ["SFT", "DPO", "KTO"]),
        (["-n", "ml", "datasets", "di"], ["diff"]),
        (["completion", "z"], ["zsh"]),
        (["datasets", "push", "tickets", ""], []),
    ],
)
def test_completion_knows_what_the_parser_knows(words: list[str], found: list[str]) -> None:
    assert complete(words) == found


def test_kubectl_is_answered_as_it_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["kubectl_complete-finetune", "adapters", "v"])
    assert kubectl() == 0
    assert capsys.readouterr().out == "verify\n:4\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_asks_the_command_itself(shell: str) -> None:
    assert "finetune __complete" in script(shell)


def loaded(code: str, libraries: str) -> str:
    """Which of these libraries a program has loaded at its end, after what it has printed."""
    last = f"print(sorted(set({libraries.split()}) & set(sys.modules)))"
    program = f"import sys\n{code}\n{last}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_help_is_immediate_and_needs_no_library() -> None:
    code = (
        "sys.argv = ['kubectl-finetune', '--help']\n"
        "from finetune.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = loaded(code, "kopf kubernetes aiohttp asyncio sqlalchemy fastapi pydantic yaml")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert out.splitlines()[-1] == "[]"
    assert out.startswith("usage: kubectl finetune ")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.0, "it takes 0.1 s of a processor; this is for the slowest"


def test_the_commands_of_people_need_none_of_the_operators_libraries() -> None:
    names = ("adapters", "datasets", "doctor", "login", "making", "runs", "watching", "completion")
    modules = ", ".join([*(f"finetune.cli.{each}" for each in names), "finetune.clients.people"])
    assert loaded(f"import {modules}", "kopf kubernetes sqlalchemy fastapi uvicorn alembic") == "[]\n"


@pytest.mark.parametrize("command", ["operator", "registry migrate --database-url=sqlite:////tmp/none.db"])
def test_a_server_without_its_libraries_says_where_they_are(command: str) -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('kubernetes', 'sqlalchemy')))\n"
        f"from finetune.cli.main import main\nsys.exit(main({command.split()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "is missing: pip install 'finetune-operator[operator]'" in done.stderr


def test_a_terminal_that_lacks_a_letter_gets_the_others() -> None:
    words = ["run", "r", "--model=a/b", "--dataset=d", "--adapter=s", "--dry-run", "--set", "experiment=gr\xf6\xdfe"]
    code = f"import sys\nfrom finetune.cli.main import main\nsys.exit(main({words!a}))"
    environment = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"experiment: gr??e" in done.stdout


def test_who_has_read_enough_ends_a_command_that_goes_on() -> None:
    """`finetune logs -f RUN | head` is no failure."""

    async def logs(_: Session, __: argparse.Namespace) -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):  # which `main` takes for the end
        run_command(logs, argparse.Namespace())
