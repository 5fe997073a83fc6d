"""The commands as a person uses them, on a terminal and without, with a real model."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model import exits
from model.training import cli
from model.training.output import plot
from model.training.output.plot import Losses
from tests.training.conftest import make_rows
from tests.training.harness import finish
from tests.training.programs import run_program, start_program

DEADLINE_SECONDS = 180.0
RUN = "runs/rows-base-sft"


class Terminal:
    """The program in a pseudo terminal, and what it shows there."""

    def __init__(
        self, directory: Path, *arguments: str, size: tuple[int, int] = (24, 100), fresh: bool = False
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = start_program(directory, arguments, [slave] * 3, fresh=fresh)
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + DEADLINE_SECONDS
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if not self._read():
                assert text in self.shown, self.shown
                return

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)

    def finish(self) -> int:
        while self._read():
            pass
        return finish(self.process)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], DEADLINE_SECONDS)[0]:
            return False
        with contextlib.suppress(OSError):  # the other end is closed
            chunk = os.read(self._master, 65536).decode(errors="replace")
            self.shown += chunk.replace("\r\n", "\n")
            return bool(chunk)
        return False


@pytest.fixture(scope="module")
def workplace(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a base model, rows, and a run that was trained on a terminal."""
    directory = tmp_path_factory.mktemp("cli")
    shutil.copytree(base_model, directory / "base")
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(60)))
    return directory


USUAL = ("--method=SFT", "--base-model=base", "--dataset=rows.jsonl", "--batch-size=4", "--learning-rate=1e-2")


@pytest.fixture(scope="module")
def first(workplace: Path) -> Terminal:
    """The first run, finished; its process imports everything, as a person's does."""
    terminal = Terminal(workplace, "train", *USUAL, "--plot", "--evaluation-steps=5", fresh=True)
    assert terminal.finish() == 0, terminal.shown
    return terminal


def call(workplace: Path, *arguments: str, code: int = 0) -> Any:
    """Run a command without a terminal and return the JSON that it prints last."""
    done = run_program(workplace, *arguments)
    assert done.code == code, done.errors
    return json.loads(done.output.splitlines()[-1]) if done.output else done.errors


def test_one_command_trains_and_tells_a_person_how_it_goes(first: Terminal, workplace: Path) -> None:
    shown = first.shown
    assert f"run directory {RUN}" in shown
    assert "57 rows to train on, 3 held out" in shown
    assert "step 1/15, loss " in shown  # the bar
    assert " tokens/s, " in shown
    assert " left" in shown
    assert "step 5: held-out loss" in shown
    assert "⠒ training loss   o held-out loss" in shown
    assert "done: 15 steps" in shown
    assert '{"event"' not in shown
    assert "Traceback" not in shown
    assert (workplace / RUN / "loss.png").read_bytes().startswith(b"\x89PNG")
    events = [json.loads(line)["event"] for line in (workplace / RUN / "metrics.jsonl").read_text().splitlines()]
    assert (events[0], events.count("train"), events[-1]) == ("tokens", 15, "end")


def test_the_same_command_again_has_nothing_left_to_do(first: Terminal, workplace: Path) -> None:
    del first
    before = (workplace / RUN / "training_config.json").read_bytes()
    said = call(workplace, "train", *USUAL, "--evaluation-steps=5")
    assert (said["event"], said["steps"]) == ("end", 15)
    assert (workplace / RUN / "training_config.json").read_bytes() == before
    assert sorted(path.name for path in (workplace / "runs").iterdir()) == ["rows-base-sft"]


def test_ctrl_c_saves_and_the_same_command_goes_on(workplace: Path) -> None:
    arguments = ("train", *USUAL, "--name=stopped", "--epochs=40")
    terminal = Terminal(workplace, *arguments, size=(0, 0))  # as in a container
    terminal.wait_for("step 3/")
    terminal.interrupt()
    assert terminal.finish() == exits.INTERRUPTED, terminal.shown
    assert "the same command goes on from there" in terminal.shown
    again = Terminal(workplace, *arguments)
    again.wait_for("going on from step ")
    again.wait_for(" left")
    again.process.kill()
    again.finish()


def test_a_finished_run_is_verified(first: Terminal, workplace: Path) -> None:
    del first
    found = call(workplace, "verify", RUN)
    assert (found["problems"], found["warnings"], found["baseModel"]) == ([], [], "base")
    recorded = json.loads((workplace / RUN / "training_config.json").read_text())["result"]["adapter"]
    assert found["sha256"] == recorded["sha256"]


def test_a_changed_or_broken_adapter_is_found(first: Terminal, workplace: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    del first
    shutil.copytree(workplace / RUN, tmp_path / "run")
    path = tmp_path / "run/adapter/adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    weights[name][0, 0] = torch.nan
    path.chmod(0o644)
    save_file(weights, path)
    (tmp_path / "run/adapter/more.txt").touch()
    said = call(workplace, "verify", f"{tmp_path}/run", f"--base-model={workplace}/base", code=exits.CRASH)
    assert f"{name} holds numbers that are not finite" in said["problems"][0]
    assert any("adapter_model.safetensors was changed" in problem for problem in said["problems"])
    assert any("more.txt was added" in problem for problem in said["problems"])


def test_an_adapter_that_changes_nothing_is_a_warning(first: Terminal, workplace: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    del first
    shutil.copytree(workplace / RUN / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file({name: torch.zeros_like(w) if "lora_B" in name else w for name, w in weights.items()}, path)
    assert "it changes nothing" in call(workplace, "verify", str(tmp_path / "adapter"))["warnings"][0]


def test_base_and_adapter_answer_side_by_side(first: Terminal, workplace: Path) -> None:
    del first
    answers = call(workplace, "chat", RUN, "--prompt=What is 3 times 3?", "--max-new-tokens=8")
    assert set(answers) == {"prompt", "base", "adapter"}
    assert answers["base"] != answers["adapter"]
    assert answers["adapter"].startswith("It is")


def test_a_conversation(first: Terminal, workplace: Path) -> None:
    del first
    terminal = Terminal(workplace, "chat", RUN, "--max-new-tokens=4")
    terminal.wait_for("> ")
    terminal.type("What is 3 times 3?\n")
    terminal.wait_for("adapter  It is")
    terminal.type("/quit\n")
    assert terminal.finish() == 0


def test_validate_shows_what_is_learned(first: Terminal, workplace: Path) -> None:
    del first
    found = call(workplace, "validate", *USUAL)
    assert found["tokens"]["training"]["rows"] == 57
    assert "⟦It is" in found["tokens"]["example"][0]
    long = json.dumps({"prompt": "a", "completion": "x " * 600})
    (workplace / "long.jsonl").write_text(long + "\n" + long.replace("x", "y") + "\n")
    found = call(workplace, "validate", *USUAL[:2], "--dataset=long.jsonl", code=exits.INVALID_CONFIGURATION)
    assert "the base model reads 512" in found["problems"][0]["message"]


def test_the_curve_of_a_finished_run(
    first: Terminal, workplace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    del first
    assert cli.main(["plot", str(workplace / RUN)]) == 0
    assert "o held-out loss" in capsys.readouterr().out
    assert cli.main(["plot", str(workplace / RUN), f"--plot={tmp_path}/a/loss.svg"]) == 0
    assert "held-out rows, base model" in (tmp_path / "a/loss.svg").read_text()
    assert cli.main(["plot", str(workplace / RUN), f"--plot={tmp_path}/loss.xyz"]) == exits.INVALID_CONFIGURATION
    assert "must end in one of" in capsys.readouterr().err


def test_a_picture_of_one_step(tmp_path: Path) -> None:
    plot.write_picture(Losses([(1, 2.0)], []), tmp_path / "loss.png", "one")
    assert (tmp_path / "loss.png").stat().st_size > 1000
