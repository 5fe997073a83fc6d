"""Commands and HTTP calls as the documentation has them, given to the parsers that would take them; nothing is run."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import yaml
from sqlalchemy import make_url

from finetune.cli import main as finetune
from finetune.registry.service.app import create_app
from model import flags
from model.data.export import ExportSettings
from model.training import cli as training
from tests.support import documents
from tests.support.documents import ROOT, Command

ARGPARSE = (
    "benchmarks.export",
    "benchmarks.gpu.__main__",
    "benchmarks.gpu.wheels",
    "benchmarks.operator.__main__",
    "benchmarks.training",
    "images.build",
    "images.push",
    "images.run",
    "tests.cluster.__main__",
    "tools.release",
    "tools.sbom",
)
"""Modules whose `main` parses `sys.argv` before it does anything."""
WITHOUT_FLAGS = ("deploy.argocd.render", "finetune.api.crd", "mkdocs", "pytest", "tools.reference")
"""Modules that are run with `python -m` and of which only the name is checked."""
SCRIPTS = ("examples/dataset/make_dataset.py",)


MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))


class Parsed(BaseException):
    """The arguments were understood."""


@contextlib.contextmanager
def only_parsing(parsers: list[argparse.ArgumentParser] | None = None) -> Iterator[None]:
    """Let every program that uses argparse end where it has parsed its arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> None:
        if parsers is not None:
            parsers.append(self)
            raise Parsed
        original(self, *arguments, **options)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]


def main_of(name: str) -> Callable[[], object]:
    """The program that a module or a script is."""
    if name.endswith(".py"):
        return lambda: runpy.run_path(str(ROOT / name), run_name="__main__")
    main: Callable[[], object] = importlib.import_module(name).main
    return main


def complaint(main: Callable[[], object], command: Command, arguments: tuple[str, ...]) -> str:
    """What a program with argparse has against its arguments; nothing when it takes them."""
    errors = io.StringIO()
    before, sys.argv = sys.argv, ["program", *arguments]
    try:
        with only_parsing(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            main()
    except Parsed:
        return ""
    except SystemExit as end:
        said = errors.getvalue().strip().splitlines()[-1:]
        left_out = "required" in " ".join(said) and not command.whole
        stands_for_any = re.search(r"invalid choice: '[A-Z]+'", " ".join(said))
        return "" if left_out or stands_for_any or not end.code else " ".join(said)
    finally:
        sys.argv = before
    return "the program did not parse its arguments first"


def check_model(settings: type[flags.Settings], command: Command, arguments: tuple[str, ...]) -> list[str]:
    """What the trainer's or the export's parser has against its arguments."""
    try:
        flags.parse(settings, [each for each in arguments if each not in ("--help", "-h")])
    except flags.InvalidSettingsError as error:
        return [each for each in error.problems if command.whole or "no such" in each]
    return []


def check_python(command: Command) -> list[str]:
    words = command.words[1:]
    while words and words[0] == "-W":
        words = words[2:]
    if not words or words[0] == "-c":
        return []
    if words[0] != "-m":
        return _one(complaint(main_of(words[0]), command, words[1:]) if words[0] in SCRIPTS else f"{words[0]}: unknown")
    if len(words) == 1:
        return []
    name, arguments = words[1], words[2:]
    if name == "model.data.export":
        return check_model(ExportSettings, command, arguments)
    if name == "model.training.cli":
        if not arguments or arguments[0] in ("--help", "COMMAND"):
            return []
        if arguments[0] not in training.COMMANDS:
            return [f"model.training.cli has no command {arguments[0]}"]
        return check_model(training.COMMANDS[arguments[0]].settings, command, arguments[1:])
    for known in (name, f"{name}.__main__"):
        if known in ARGPARSE:
            return _one(complaint(main_of(known), command, arguments))
    return [] if name in WITHOUT_FLAGS else [f"python -m {name}: tell test_docs_commands.py how it parses"]


def check_make(command: Command) -> list[str]:
    problems = []
    for word in command.words[1:]:
        name, assigned, _ = word.partition("=")
        if assigned and f"$({name})" not in MAKEFILE and f"{name} ?=" not in MAKEFILE:
            problems.append(f"the Makefile uses no variable {name}")
        if not assigned and word not in TARGETS:
            problems.append(f"no target {word}")
    return problems


def check_helm(command: Command) -> list[str]:
    """The values that a command sets, against the schema that the chart refuses with."""
    schema, values = documents.chart_values()
    values, problems = copy.deepcopy(values), []
    words = list(command.words[1:])
    given = [words[index + 1] for index, word in enumerate(words[:-1]) if word in ("--set", "--set-string")]
    given += [word.partition("=")[2] for word in words if word.startswith(("--set=", "--set-string="))]
    for each in given:
        path, _, text = each.partition("=")
        if not documents.has_path(schema, path):
            problems.append(f"the chart has no value {path}")
            continue
        _put(values, path, [] if text.startswith("{") else yaml.safe_load(text) if text else "")
    problems += [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(values)]
    charts = [word for word in words if word.startswith("charts/")]
    return problems + [f"{chart} is no chart" for chart in charts if not (ROOT / chart / "Chart.yaml").is_file()]


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *above, last = re.sub(r"\[\d+\]", "", path).split(".")
    for part in above:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            return
    values[last] = value


def _one(problem: str) -> list[str]:
    return [problem] if problem else []


def check_finetune(command: Command) -> list[str]:
    words = command.words[2:] if command.words[0] == "kubectl" else command.words[1:]
    return _one(complaint(finetune.main, command, words))


CHECKS: dict[str, Callable[[Command], list[str]]] = {
    "finetune": check_finetune,
    "kubectl-finetune": check_finetune,
    "helm": check_helm,
    "make": check_make,
    "python": check_python,
    "python3": check_python,
}


def check(command: Command) -> list[str]:
    if not command.words:
        return []
    program = Path(command.words[0]).name if command.words[0].startswith(".venv/") else command.words[0]
    if program == "kubectl":
        return check_finetune(command) if command.words[1:2] == ("finetune",) else []
    if program in documents.FOREIGN:
        return []
    if program not in CHECKS:
        return [f"{program}: what program is this? A block that holds no commands needs a language, as ```text"]
    return CHECKS[program](command)


@cache
def known_flags() -> frozenset[str]:
    """Every flag of every program of ours."""
    known = {flags.flag(name) for settings in _settings() for name in settings.model_fields} | set(flags.PSEUDO_FLAGS)
    for name in ("finetune.cli.main", *ARGPARSE, *SCRIPTS):
        parsers: list[argparse.ArgumentParser] = []
        with contextlib.suppress(Parsed), only_parsing(parsers):
            main_of(name)()
        known |= {flag for parser in parsers for flag in _flags_below(parser)}
    return frozenset(known)


def _settings() -> Iterator[type[flags.Settings]]:
    yield ExportSettings
    yield from (command.settings for command in training.COMMANDS.values())


def _flags_below(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _flags_below(each)


@cache
def calls() -> dict[tuple[str, str], frozenset[str]]:
    """The names of the query's parameters, by method and path without the names in braces, of every HTTP call."""
    database = make_url("sqlite://")
    paths = create_app(database_url=database, access=open_access).openapi()["paths"]
    return {
        (method.upper(), shape(path)): frozenset(each["name"] for each in call.get("parameters", []))
        for path, methods in paths.items()
        for method, call in methods.items()
    } | {("GET", "openapi.json"): frozenset()}


async def open_access() -> NoReturn:
    raise AssertionError("the registry is only described, not started")


def shape(path: str) -> str:
    """A path below a namespace, with one star for each part that is a name."""
    path = re.sub(r"\{[^}]*\}", "*", path).strip("/")
    return path.removeprefix("api/v1/namespaces/*/").removeprefix("api/v1/")


def check_call(text: str) -> str:
    """What is wrong with `METHOD path?query`; nothing when the registry has that call."""
    method, _, rest = text.partition(" ")
    path, _, query = rest.partition("?")
    wanted = shape(re.sub(r"namespaces/[\w-]+/", "namespaces/{}/", path)).split("/")
    for (known_method, known), parameters in calls().items():
        parts = known.split("/")
        if known_method != method or len(parts) != len(wanted):
            continue
        if all(there in ("*", asked) for there, asked in zip(parts, wanted, strict=True)):
            unknown = [pair.partition("=")[0] for pair in query.split("&") if query]
            return "".join(f"no parameter {name}" for name in unknown if name not in parameters)
    return "no such call"
