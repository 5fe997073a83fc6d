r"""Trains a LoRA adapter in a pod, or on any machine.

    python -m model.training.cli train --method=SFT --run-directory=/output/demo/<uid> --run-uid=<uid> \
        --base-model=/models/base/smollm2-135m --base-model-name=HuggingFaceTB/SmolLM2-135M-Instruct
    python -m model.training.cli validate ...    checks the same flags, and nothing else
    python -m model.training.cli collect --run-directory=...    repeats the last words of a finished run
    python -m model.training.cli chat --base-model=... --adapter=... --prompt=...    the base and the adapter, asked
    python -m model.training.cli schema    the JSON schema of the file for --config

Only `train` and `chat` import torch. Exit codes are in `model.exits`.
"""

from __future__ import annotations

from model.training import interruption

if __name__ == "__main__":
    interruption.install()

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import Field

from model import exits, flags
from model.exits import FailureError
from model.files import RunDirectory
from model.result import as_failure, failure_document, result_document, write_termination_message
from model.training import process
from model.training.config import TrainSettings


class CollectSettings(flags.Settings):
    """Which run's last words to repeat."""

    run_directory: Path = Field(description="The run's directory on the output volume")


class ChatSettings(flags.Settings):
    """What to ask the base model and the adapter."""

    base_model: str = Field(min_length=1, description="Directory of the base model, or its name on the hub")
    adapter: Path = Field(description="Directory of the adapter")
    prompt: list[str] = Field(
        default_factory=list, description="A question; may be given several times", json_schema_extra=flags.REPEATED
    )
    prompts_file: Path | None = Field(None, description="JSON lines with a prompt each")
    max_new_tokens: int = Field(64, ge=1, le=4096, description="Length of an answer")


def train(arguments: Sequence[str]) -> None:
    """Train a run to its end."""
    settings = flags.parse(TrainSettings, arguments)
    output = process.prepare()
    from model.training.run import train as train_run

    train_run(settings, output)


def validate(arguments: Sequence[str]) -> None:
    """Check a run's flags and print the settings that they give."""
    print(json.dumps(flags.parse(TrainSettings, arguments).document()))


def collect(arguments: Sequence[str]) -> None:
    """Write a finished run's termination message again."""
    directory = RunDirectory(flags.parse(CollectSettings, arguments).run_directory)
    from model.training.result import read_training_config

    training_config = read_training_config(directory)
    write_termination_message(result_document(training_config))
    print(json.dumps(result_document(training_config)))


def chat(arguments: Sequence[str]) -> None:
    """Ask the base model and the adapter, and print both answers."""
    settings = flags.parse(ChatSettings, arguments)
    output = process.prepare()
    from model.training.chat import answer

    for document in answer(settings.base_model, settings.adapter, _prompts(settings), settings.max_new_tokens):
        print(json.dumps(document, ensure_ascii=False), file=output, flush=True)


def schema(arguments: Sequence[str]) -> None:
    """Print the JSON schema of the settings file."""
    flags.parse(flags.Settings, arguments)
    print(json.dumps(TrainSettings.model_json_schema(by_alias=True), indent=1))


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], type[flags.Settings]]] = {
    "train": (train, TrainSettings),
    "validate": (validate, TrainSettings),
    "collect": (collect, CollectSettings),
    "chat": (chat, ChatSettings),
    "schema": (schema, flags.Settings),
}


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; a failure's reason is in the termination message."""
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        print(__doc__)
        return exits.OK
    try:
        if name not in COMMANDS:
            raise FailureError(
                exits.INVALID_CONFIGURATION, "InvalidSpec", f"{name}: no such command, use {', '.join(COMMANDS)}"
            )
        command, settings = COMMANDS[name]
        if "--help" in arguments:
            print(flags.help_text(settings, f"python -m model.training.cli {name} [--flag=value ...]"))
            return exits.OK
        command(arguments[1:])
    except BaseException as error:  # noqa: BLE001 - the process ends here, and its last words must say why
        failure = as_failure(error)
        write_termination_message(failure_document(failure))
        print(f"{failure.reason}: {failure.message}", file=sys.stderr)
        return failure.code
    return exits.OK


def _prompts(settings: ChatSettings) -> list[str]:
    prompts = list(settings.prompt)
    if settings.prompts_file is not None:
        lines = settings.prompts_file.read_text(encoding="utf-8").splitlines()
        prompts += [json.loads(line)["prompt"] for line in lines if line.strip()]
    if not prompts:
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", "chat needs --prompt or --prompts-file")
    return prompts


def run(arguments: Sequence[str]) -> NoReturn:
    """Run a command and end the process with its exit code."""
    interruption.install()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Tearing down an interpreter with torch in it takes a second that nobody needs.
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
