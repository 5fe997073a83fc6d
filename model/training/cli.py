r"""Trains LoRA adapters: in a pod, or on any machine.

    python -m model.training.cli train --method=SFT --base-model=DIRECTORY --dataset=rows.jsonl

trains, tells how it goes, and leaves the adapter in runs/<name>. The same command again goes on where it stopped.
Only what needs the model imports torch. Exit codes are in `model.exits`.
"""

from __future__ import annotations

import signal
import sys

from model.training.processes import interruption

if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        interruption.install()
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, NoReturn

from pydantic import Field

from model import exits, flags
from model.exits import FailureError
from model.files import RunDirectory
from model.result import as_failure, failure_document, result_document, write_termination_message
from model.training import launch, local
from model.training.local import PlanCommand, TrainCommand
from model.training.output import terminal
from model.training.processes import parallel, process

PROGRAM = terminal.PROGRAM
STOPPED = 128 + signal.SIGINT


class ValidateCommand(TrainCommand):
    """A run's settings, and how far to look."""

    tokens: bool = Field(True, description="Count tokens, when the model's tokenizer and transformers are here")


class CollectSettings(flags.Settings):
    """Which run's last words to repeat."""

    run_directory: Path = Field(
        description="The run's directory; --run-directory= may be left out", json_schema_extra=flags.POSITIONAL
    )


class SendSettings(CollectSettings):
    """Which run's adapter to send, and where to."""

    registry_url: str = Field(description="Base URL of the registry")
    registry_token_file: Path | None = Field(None, description="File with the token for the registry")
    namespace: str = Field(description="The run's namespace")
    run_uid: str = Field(description="The run's uid")


class ChatSettings(flags.Settings):
    """What to ask the base model and the adapter."""

    adapter: Path = Field(
        description="Directory of the adapter, or of its run; --adapter= may be left out",
        json_schema_extra=flags.POSITIONAL,
    )
    base_model: str | None = Field(
        None, min_length=1, description="The base model's directory or hub name; the run's when left out"
    )
    prompt: list[str] = Field(
        default_factory=list, description="A question; may be given several times", json_schema_extra=flags.REPEATED
    )
    prompts_file: Path | None = Field(None, description="JSON lines with a prompt each")
    system: str | None = Field(None, description="System message in front of each conversation")
    max_new_tokens: int = Field(64, ge=1, le=4096, description="Length of an answer, in tokens")


class MergeSettings(flags.Settings):
    """What to merge, and where to put it."""

    adapter: Path = Field(
        description="Directory of the adapter, or of its run; --adapter= may be left out",
        json_schema_extra=flags.POSITIONAL,
    )
    output: Path = Field(description="Directory to make; nothing is overwritten")
    base_model: str | None = Field(
        None, min_length=1, description="The base model's directory or hub name; the run's when left out"
    )
    precision: Literal["Auto", "BFloat16", "Float32"] = Field(
        "Auto", description="Type of the merged weights; Auto: that of the base's"
    )


class VerifySettings(flags.Settings):
    """What to look over."""

    directory: Path = Field(
        description="Directory of an adapter, or of a run; --directory= may be left out",
        json_schema_extra=flags.POSITIONAL,
    )
    base_model: str | None = Field(None, description="The base model's directory; the run's when left out")


class PlotSettings(flags.Settings):
    """Which run's loss to draw."""

    run_directory: Path = Field(
        description="The run's directory; --run-directory= may be left out", json_schema_extra=flags.POSITIONAL
    )
    plot: Path | None = Field(
        None,
        description="Draw a picture into this file instead; alone: loss.png in the run's directory",
        json_schema_extra=flags.bare("loss.png"),
    )


def train(arguments: Sequence[str]) -> None:
    """Train an adapter, or go on with it."""
    command = flags.parse(TrainCommand, arguments)
    if command.print_config:
        _print_config(command)
        return
    if parallel.is_launched() and (command.dataset is not None or not command.run_uid):
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            "processes that were started together must be told the same place: export the dataset first and give "
            "--run-directory and --run-uid, or let this command start them (--gpus, --processes)",
        )
    if command.plot is not None:
        from model.training.output.plot import check_picture

        check_picture(command.plot)
    process.check_packages()
    place = local.find_place(command)
    settings = command.settings(place.directory, place.uid)
    tell = _teller()
    if place.note:
        tell(place.note)
    tell(f"run directory {place.directory}")
    if command.dataset is not None:
        from model.training.weights import hub

        hub.check_base(hub.pin(settings))  # a mistyped name is told before the rows are read
        manifest = local.export_dataset(command, place.directory)
        tell(f"dataset: {terminal.dataset_line(manifest)}")
    tell("loading libraries and model ...")
    count = parallel.planned(settings)
    if count > 1 and not parallel.is_launched():
        launch.train(settings, count)
    else:
        parallel.enter(settings.gpus)
        output = process.prepare()
        from model.training.run import train as train_run

        train_run(settings, output)
    if command.plot is not None and parallel.first():
        tell(f"loss curve in {_picture(place.directory, command.plot)}")


def validate(arguments: Sequence[str]) -> None:
    """Check settings, dataset, base model and parent adapter without training."""
    command = flags.parse(ValidateCommand, arguments)
    if command.print_config:
        _print_config(command)
        return
    from model.training.commands.validate import check

    found = check(command, tokens=command.tokens)
    _show(found.document(), found.text)
    if found.failures:
        raise found.failure()


def plan(arguments: Sequence[str]) -> None:
    """Tell what a run needs here: memory, steps, time."""
    command = flags.parse(PlanCommand, arguments)
    if command.print_config:
        _print_config(command)
        return
    from model.training.commands.plan import make_plan

    made = make_plan(command, probe=not command.no_probe)
    _show(made.document(), made.text)


def merge(arguments: Sequence[str]) -> None:
    """Make a plain model of base and adapter, checked against the two."""
    settings = flags.parse(MergeSettings, arguments)
    output = process.prepare()
    from model.training.commands.merge import merge as merge_adapter

    process.settle()
    merged = merge_adapter(settings.adapter, settings.base_model, settings.output, settings.precision)
    _show(merged.document(), merged.text, output)


def verify(arguments: Sequence[str]) -> None:
    """Check a finished run or an adapter: digests, shapes, numbers, vLLM."""
    settings = flags.parse(VerifySettings, arguments)
    from model.training.commands.verify import verify as verify_adapter

    findings = verify_adapter(settings.directory, settings.base_model)
    _show(findings.document(), findings.text)
    if findings.problems:
        raise FailureError(exits.CRASH, "AdapterInvalid", "; ".join(findings.problems))


def chat(arguments: Sequence[str]) -> None:
    """Ask base and adapter the same questions, side by side."""
    settings = flags.parse(ChatSettings, arguments)
    prompts = _prompts(settings)
    talks = not prompts and sys.stdin.isatty()
    if not prompts and not talks:
        raise FailureError(
            exits.INVALID_CONFIGURATION,
            "InvalidSpec",
            "chat needs --prompt or --prompts-file where it cannot ask; --prompts-file=/dev/stdin reads its input",
        )
    output = process.prepare()
    from model.training.commands.chat import Pair, answer, converse, side_by_side

    process.settle()
    pair = Pair(settings.base_model, settings.adapter, max_new_tokens=settings.max_new_tokens, system=settings.system)
    if talks:
        converse(pair, output)
        return
    for document in answer(pair, prompts):
        if terminal.is_terminal(output):
            print(f"> {document['prompt']}{side_by_side(document)}", file=output, flush=True)
        else:
            print(json.dumps(document, ensure_ascii=False), file=output, flush=True)


def plot(arguments: Sequence[str]) -> None:
    """Draw a run's loss, here or into a picture."""
    settings = flags.parse(PlotSettings, arguments)
    if settings.plot is not None:
        print(_picture(settings.run_directory, settings.plot))
        return
    from model.training.output.plot import draw, read_losses

    print(draw(read_losses(RunDirectory(settings.run_directory).metrics), width=terminal.width()))


def collect(arguments: Sequence[str]) -> None:
    """Repeat the last words of a finished run."""
    directory = RunDirectory(flags.parse(CollectSettings, arguments).run_directory)
    from model.training.result import read_training_config

    training_config = read_training_config(directory)
    write_termination_message(result_document(training_config))
    print(json.dumps(result_document(training_config)))


def send(arguments: Sequence[str]) -> None:
    """Send a finished run's adapter to the registry."""
    settings = flags.parse(SendSettings, arguments)
    directory = RunDirectory(settings.run_directory)
    from model import upload
    from model.registry import RunRegistry
    from model.training.result import read_training_config

    files = read_training_config(directory)["result"]["adapter"]["files"]
    registry = RunRegistry(settings.registry_url, settings.namespace, settings.run_uid, settings.registry_token_file)
    upload.send_later(registry, directory.adapter, files)


def schema(arguments: Sequence[str]) -> None:
    """Print the JSON schema of the file for --config."""
    flags.parse(flags.Settings, arguments)
    print(json.dumps(TrainCommand.model_json_schema(by_alias=True), indent=1))


class Command(NamedTuple):
    """A command, its settings, and how its help is grouped."""

    run: Callable[[Sequence[str]], None]
    settings: type[flags.Settings]
    usage: str
    groups: flags.Groups = ()


_TRAIN_USAGE = "--method=SFT|DPO|KTO --base-model=MODEL --dataset=rows.jsonl [--flag=value ...]"
COMMANDS: dict[str, Command] = {
    "train": Command(train, TrainCommand, _TRAIN_USAGE, local.GROUPS),
    "validate": Command(validate, ValidateCommand, _TRAIN_USAGE, (*local.GROUPS, ("Only here", ("tokens",)))),
    "plan": Command(plan, PlanCommand, _TRAIN_USAGE, (*local.GROUPS, ("Only here", ("no_probe",)))),
    "chat": Command(chat, ChatSettings, "RUN [--prompt=TEXT ...]"),
    "plot": Command(plot, PlotSettings, "RUN [--plot=loss.png]"),
    "verify": Command(verify, VerifySettings, "RUN-OR-ADAPTER [--base-model=DIRECTORY]"),
    "merge": Command(merge, MergeSettings, "RUN-OR-ADAPTER --output=DIRECTORY [--flag=value ...]"),
    "collect": Command(collect, CollectSettings, "RUN"),
    "send": Command(send, SendSettings, "RUN --registry-url=URL --namespace=NAMESPACE --run-uid=UID"),
    "schema": Command(schema, flags.Settings, ""),
}


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; a failure's reason is in the termination message."""
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
        return exits.OK
    try:
        if name not in COMMANDS:
            raise flags.InvalidSettingsError([f"{name}: no such command{flags.suggest(name, COMMANDS)}"])
        command = COMMANDS[name]
        if "--help" in arguments or "-h" in arguments:
            usage = f"{PROGRAM} {name} {command.usage}\n\n{command.run.__doc__}"
            print(flags.help_text(command.settings, usage, command.groups))
            return exits.OK
        command.run(arguments[1:])
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return STOPPED
    except BaseException as error:  # noqa: BLE001 - the process ends here, and its last words must say why
        failure = as_failure(error)
        write_termination_message(failure_document(failure))
        if parallel.PARENT not in os.environ:  # else the parent says it, once for all
            print(_last_words(failure), file=sys.stderr)
        return failure.code
    return exits.OK


def overview() -> str:
    """Return what there is to do, one line each."""
    lines = [(__doc__ or "").strip(), ""]
    lines += [f"  {name:10}{command.run.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help lists the flags of a command."])


def _last_words(failure: FailureError) -> str:
    if terminal.is_terminal(sys.stderr):
        return terminal.explain(failure)
    return f"{failure.reason}: {failure.message}"


def _teller() -> Callable[[str], None]:
    """Return what tells a person how it goes; where nobody reads, or the parent says it, it says nothing."""
    if terminal.is_terminal(sys.stdout) and parallel.PARENT not in os.environ and parallel.first():
        return lambda text: print(text, file=sys.stderr, flush=True)
    return lambda _text: None


def _show(document: dict[str, Any], text: Callable[[], str], output: Any = None) -> None:
    """Print a result: as text on a terminal, else as JSON."""
    stream = output or sys.stdout
    shown = text() if terminal.is_terminal(stream) else json.dumps(document, ensure_ascii=False)
    print(shown, file=stream, flush=True)


def _print_config(command: TrainCommand) -> None:
    import yaml

    print(yaml.safe_dump(command.shown(), sort_keys=False, allow_unicode=True), end="")


def _picture(directory: Path, path: Path) -> Path:
    from model.training.output.plot import check_picture, read_losses, write_picture

    target = directory / path if path == Path("loss.png") else path
    check_picture(target)
    write_picture(read_losses(RunDirectory(directory).metrics), target, directory.name)
    return target


def _prompts(settings: ChatSettings) -> list[str]:
    prompts = list(settings.prompt)
    if settings.prompts_file is None:
        return prompts
    where = f"--prompts-file={settings.prompts_file}"
    try:
        lines = settings.prompts_file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FailureError(
            exits.INVALID_CONFIGURATION, "InvalidSpec", f"{where}: cannot be read ({error}): name a file of JSON lines"
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompts.append(_prompt(line, f"{where} line {number}"))
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        text = f'{where}: must be an object with a text in prompt, as in {{"prompt": "What is a closure?"}}'
        raise FailureError(exits.INVALID_CONFIGURATION, "InvalidSpec", text)
    return prompt


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Treat the first Ctrl-C like SIGTERM, and end at once on the second."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("\nstopping: what is done is saved first; Ctrl-C again stops at once", file=sys.stderr, flush=True)
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        handler(number, frame)


def run(arguments: Sequence[str]) -> NoReturn:
    """Run a command and end the process with its exit code."""
    if arguments[:1] == ["train"]:
        interruption.install()
        signal.signal(signal.SIGINT, _interrupt)
    else:  # there is nothing to save, and what was begun can be cleaned up
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process.quiet()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Tearing down an interpreter with torch in it takes a second that nobody needs.
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
