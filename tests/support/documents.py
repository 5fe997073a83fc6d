"""What the documentation tells people to type and to apply, with where it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    sorted(
        path
        for pattern in ("*.md", "llms.txt", "docs/*.md", "images/*.md", "locks/*.md", "charts/*/README.md")
        for path in ROOT.glob(pattern)
    )
)

SHELL = frozenset({"", "sh", "bash", "shell", "console"})
"""Languages of blocks that hold commands. Everything else needs a language of its own: `text`, `yaml`, `json`."""

FOREIGN = {
    "argocd": "Argo CD's own; the real one goes through it in tests/gitops",
    "cat": "",
    "cd": "",
    "curl": "the addresses are of a cluster that is not here",
    "df": "",
    "docker": "there need not be a Docker engine",
    "export": "",
    "git": "",
    "grep": "",
    "iostat": "",
    "jq": "",
    "kind": "needs Docker",
    "ls": "",
    "nvidia-smi": "needs a GPU",
    "pg_dump": "PostgreSQL's own",
    "pip": "",
    "sha256sum": "",
    "sqlite3": "SQLite's own",
    "sudo": "",
    "velero": "needs an object store and a cluster of its own",
    "vllm": "needs a GPU",
    "watch": "",
}
"""Programs whose commands are not checked, and why where that is no matter of course."""

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_PLACEHOLDER = re.compile(r"<([a-zA-Z][\w .-]*)>")
_SEPARATORS = frozenset({"|", "||", "&&", "&", ";", "(", ")"})
_REDIRECTIONS = frozenset({">", ">>", "<", "2>", "&>"})


@dataclass(frozen=True)
class Block:
    """A fenced block: the page, the line of its first line, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """Page and line, as an editor takes them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One call of a program.

    Attributes
    ----------
        where: page and line.
        variables: assignments in front of it.
        words: the program and its arguments, unquoted.
        whole: False where it is only named within a sentence, or has an ellipsis: arguments may be left out.
    """

    where: str
    variables: tuple[str, ...]
    words: tuple[str, ...]
    whole: bool


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        indent = len(found[1])
        body = "\n".join(each[indent:] for each in found[3].splitlines())
        yield Block(page, line, found[2], body)


def inline(page: Path) -> Iterator[tuple[str, str]]:
    """What stands in code within sentences and tables: where, and the code."""
    text = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))
    for number, line in enumerate(text.splitlines(), start=1):
        for found in _INLINE.finditer(line):
            yield f"{page.relative_to(ROOT)}:{number}", found[1].replace("\\|", "|")


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page, also within pipes, substitutions and sentences."""
    for block in blocks(page):
        if block.language in SHELL:
            for offset, line in _lines(block.text):
                yield from parse(line, f"{page.relative_to(ROOT)}:{block.line + offset}")
    for where, code in inline(page):
        if re.match(r"(?:finetune|kubectl|helm|make|python) [\w-]", code) and not code.startswith("finetune.dev"):
            yield from parse(code, where, whole=False)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The logical lines of a block. Where some begin with `$ `, those are typed, and the others are answers."""
    typed = bool(re.search(r"^\$ ", text, re.MULTILINE))
    number, lines = 0, text.splitlines()
    while number < len(lines):
        start, line = number, lines[number]
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line[:-1] + lines[number]
        number += 1
        if typed and not line.startswith("$ "):
            continue
        line = line.removeprefix("$ ").strip()
        if line and not line.startswith("#"):
            yield start, line


def parse(line: str, where: str, *, whole: bool = True) -> Iterator[Command]:
    """The commands of one line."""
    while found := _SUBSTITUTION.search(line):
        yield from parse(found[1], where, whole=whole)
        line = line[: found.start()] + "SUBSTITUTED" + line[found.end() :]
    lexer = shlex.shlex(
        _PLACEHOLDER.sub(lambda found: found[1].replace(" ", "-"), line), posix=True, punctuation_chars=True
    )
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in _SEPARATORS:
            if words:
                yield _command(where, words, whole)
            words = []
        elif word in _REDIRECTIONS:
            skip = True
        else:
            words.append(word)


def _command(where: str, words: list[str], whole: bool) -> Command:
    count = next((index for index, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words))
    rest = [word for word in words[count:] if word != "..."]
    return Command(where, tuple(words[:count]), tuple(rest), whole and len(rest) == len(words) - count)


def manifests(page: Path) -> Iterator[tuple[Block, dict[str, Any]]]:
    """The Kubernetes objects in a page's YAML blocks."""
    for block in blocks(page):
        if block.language == "yaml":
            for document in yaml.safe_load_all(block.text):
                if isinstance(document, dict) and "apiVersion" in document:
                    yield block, document


def named_files(page: Path) -> dict[str, str]:
    """The blocks whose first line is the name of a file, as in `# mix.yaml`, by that name."""
    found = {}
    for block in blocks(page):
        if match := re.match(r"# ([\w.-]+\.(?:ya?ml|json|jsonl))\b", block.text):
            found[match[1]] = block.text
    return found


@cache
def chart_values() -> tuple[dict[str, Any], dict[str, Any]]:
    """The chart's schema of values, and its values."""
    chart = ROOT / "charts" / "finetune-operator"
    schema = yaml.safe_load((chart / "values.schema.json").read_text())
    return schema, yaml.safe_load((chart / "values.yaml").read_text())


def has_path(schema: dict[str, Any], path: str, root: dict[str, Any] | None = None) -> bool:
    """Whether a schema has a field, by its dotted path; lists are passed through, open objects have every field."""
    root = root or schema
    while "$ref" in schema:
        schema = _definition(root, schema["$ref"])
    if not path:
        return True
    if "items" in schema:
        return has_path(schema["items"], path, root)
    head, _, rest = path.partition(".")
    head = re.sub(r"\[\w*\]$", "", head)
    properties = schema.get("properties", {})
    if head in properties:
        return has_path(properties[head], rest, root)
    more = schema.get("additionalProperties", not properties)
    return bool(more) and (rest == "" or not isinstance(more, dict) or has_path(more, rest, root))


def _definition(root: dict[str, Any], reference: str) -> dict[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)
