"""The commands where a conversation grows, a branch of the hub moves, or another launcher starts the processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.exits import FailureError
from model.training.commands.chat import Conversation, Pair, converse
from model.training.commands.verify import recorded_base_model
from tests.support.hub import Hub, hub
from tests.support.ports import free_port
from tests.training.harness import DEADLINE_SECONDS, Run, wait_for

REPOSITORY = Path(__file__).parents[2]
SECONDS = 2 * DEADLINE_SECONDS
"""These start interpreters that import everything anew, several at once."""


@pytest.fixture(scope="module")
def lora(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random weights, which answers otherwise than its base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    directory = tmp_path_factory.mktemp("lora")
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config).save_pretrained(directory)
    return directory


def test_a_long_conversation_forgets_its_oldest_turns(base_model: Path, lora: Path) -> None:
    pair = Pair(str(base_model), lora, max_new_tokens=32, system=None)
    questions = [f"What is {'very ' * 10}{number}?" for number in range(12)]
    conversation = Conversation()
    for number, question in enumerate(questions):
        pair.ask(question, conversation)
        for turns in (conversation.base, conversation.adapter):
            assert [turn["role"] for turn in turns[:2]] == ["user", "assistant"]
            assert turns[-2]["content"] == question
            assert len(turns) // 2 + conversation.forgotten >= number + 1
    assert 0 < conversation.forgotten < len(questions) - 1
    assert min(len(conversation.base), len(conversation.adapter)) == 2 * (len(questions) - conversation.forgotten)


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(base_model: Path, lora: Path) -> None:
    pair = Pair(str(base_model), lora, max_new_tokens=32, system=None)
    conversation = Conversation()
    pair.ask("What is 1?", conversation)
    before = list(conversation.base)
    with pytest.raises(FailureError, match="the model reads 512 in all: ask a shorter one, or lower --max-new-tokens"):
        pair.ask("why " * 600, conversation)
    assert conversation.base == before


def test_a_system_message_without_a_template_is_refused(base_model: Path, lora: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_model, base)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(FailureError, match=r"--system: .* has no chat template"):
        Pair(str(base), lora, max_new_tokens=2, system="Be brief.")
    assert Pair(str(base), lora, max_new_tokens=2, system=None).ask("What?", Conversation())["prompt"] == "What?"


def test_a_conversation_says_what_it_forgets_and_goes_on_after_a_refusal(base_model: Path, lora: Path) -> None:
    pair = Pair(str(base_model), lora, max_new_tokens=32, system=None)
    typed = iter(["why " * 600, *["What is " + "very " * 40 + f"{n}?" for n in range(4)], "/quit"])
    output = io.StringIO()
    converse(pair, output, read=lambda _prompt: next(typed))
    assert "ask a shorter one" in output.getvalue()
    assert "(the oldest 1 questions and answers are forgotten: the model reads no more at once)" in output.getvalue()
    assert output.getvalue().count("adapter  ") == 4


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as served:
        yield served


def start(run: Run, *interpreter: str, **environment: str) -> subprocess.Popen[str]:
    """Start a real command line: what is said on the way, and read from the environment on import, counts."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.Popen(
        [*(interpreter or (sys.executable,)), "-m", "model.training.cli", *run.arguments()],
        cwd=run.path,
        env=known | {"PYTHONPATH": str(REPOSITORY)} | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def interrupt(run: Run, process: subprocess.Popen[str], step: int) -> str:
    """Send SIGTERM once this step was made, and return what was said on standard error."""
    wait_for(lambda: run.steps()[-1:] >= [step] or process.poll() is not None, SECONDS)
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=SECONDS)[1]


def test_torchrun_may_start_the_processes(base_model: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(tmp_path, base_model, max_steps=60, checkpoint_steps=60, processes=2).export(rows)
    # Not --standalone: it looks for the machine by its name, which in a container need not lead anywhere.
    address = ("--master-addr=127.0.0.1", f"--master-port={free_port()}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *address)
    interrupt(run, start(run, *torchrun, GLOO_SOCKET_IFNAME="lo"), 3)
    (saved,) = (run.directory / "checkpoints").glob("checkpoint-*")
    assert (saved / "rng_state_1.pth").exists()
    step = int(saved.name.rpartition("-")[2])
    process = start(run, *torchrun, GLOO_SOCKET_IFNAME="lo")
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, said
    assert "Warning" not in said  # the libraries' own, which nobody here can act on
    assert run.steps() == list(range(1, 61))
    assert run.events("resume")[0]["step"] == step >= 3
    result = run.said()["result"]
    assert (result["steps"], result["resumedFromStep"]) == (60, step)
    assert len(run.events("end")) == 1  # the first process alone tells


def test_a_branch_that_moves_between_attempts_changes_nothing(
    server: Hub, base_model: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in base_model.iterdir()}
    repository = server.repository("owner/tiny", files)
    first = repository.revisions["main"]
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
    run = Run(tmp_path, Path("owner/tiny"), base_model_name=None, max_steps=60, checkpoint_steps=60).export(rows)
    interrupt(run, start(run, **environment), 3)
    config = json.loads(files["config.json"])
    moved = {"config.json": json.dumps(config | {"rms_norm_eps": 0.1}).encode()}
    assert repository.commit({**files, **moved}) != first
    process = start(run, **environment)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, said
    assert not [event for event in run.events("resume") if "skipped" in event]
    assert run.said()["result"]["resumedFromStep"] >= 3
    assert run.said()["baseModel"] == {"name": "owner/tiny", "revision": first}
    adapter = run.directory / "adapter"
    assert recorded_base_model(run.directory, adapter) == ("owner/tiny", first)  # what chat and merge load
    alone = adapter.rename(tmp_path / "adapter")
    assert recorded_base_model(alone, alone) == ("owner/tiny", first)
