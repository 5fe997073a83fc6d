"""Completion of commands and flags in a shell, read from the parser itself; names of runs come from the cluster.

    source <(finetune completion bash)

kubectl completes its plugins by a program of the name `kubectl_complete-finetune`, which is installed beside this one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable, Sequence

NO_FILES = ":4"
"""What kubectl wants as the last line: complete no names of files."""
RUNS = frozenset({"RUN"})
CLUSTER_SECONDS = 3.0

_SCRIPTS = {
    "bash": """_finetune() {
    local IFS=$'\\n'
    COMPREPLY=($(finetune __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _finetune finetune
""",
    "zsh": """#compdef finetune
_finetune() {
    local -a found
    found=(${(f)"$(finetune __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -- $found; else _files; fi
}
compdef _finetune finetune
""",
    "fish": """function __finetune_complete
    set -l words (commandline -opc) (commandline -ct)
    finetune __complete $words[2..-1] 2>/dev/null
end
complete -c finetune -a '(__finetune_complete)'
""",
}


def script(shell: str) -> str:
    """What a shell reads to complete `finetune`."""
    return _SCRIPTS[shell]


def kubectl() -> int:
    """What kubectl calls to complete the plugin."""
    found = complete(sys.argv[1:])
    print("\n".join([*found, NO_FILES]))
    return 0


def complete(words: Sequence[str]) -> list[str]:
    """What the last word may become, given those before it."""
    from .main import build_parser

    *before, begun = words or [""]
    parser, rest = _parser_of(build_parser(), before)
    last = rest[-1] if rest else ""
    option = parser._option_string_actions.get(last)  # noqa: SLF001 - argparse tells its options in no other way
    if option is not None and option.nargs != 0:
        if option.metavar in RUNS:
            return _begin(_names(before), begun)
        return _begin(map(str, option.choices or ()), begun)
    if begun.startswith("-"):
        return _begin(sorted(parser._option_string_actions), begun)  # noqa: SLF001
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return _begin(action.choices, begun)
    if any(action.metavar in RUNS for action in _positionals(parser)):
        return _begin(_names(before), begun)
    choices = (str(each) for action in _positionals(parser) for each in action.choices or ())
    return _begin(choices, begun)


def _parser_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of the command that the words name, and the words that are its own."""
    rest: list[str] = []
    for word in words:
        inner = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)  # noqa: SLF001
        if inner is not None and word in inner.choices:
            parser, rest = inner.choices[word], []
        else:
            rest.append(word)
    return parser, rest


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]  # noqa: SLF001


def _begin(candidates: Iterable[str], begun: str) -> list[str]:
    return [each for each in candidates if each.startswith(begun) and not each.startswith("__")]


def _names(words: Sequence[str]) -> list[str]:
    """The names of the namespace's runs; none where the cluster does not say in time."""
    import asyncio

    from .main import build_parser
    from .session import Session

    async def ask() -> list[str]:
        from finetune.clients.cluster import runs_path

        asked, _ = build_parser().parse_known_args([*_cluster_options(words), "list"])
        async with Session(asked) as session, asyncio.timeout(CLUSTER_SECONDS):
            items = await (await session.cluster()).items(runs_path(session.namespace))
        return [each["metadata"]["name"] for each in items]

    with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
        return asyncio.run(ask())
    return []


def _cluster_options(words: Sequence[str]) -> list[str]:
    """Of the words those that choose cluster and namespace."""
    wanted = ("-n", "--namespace", "--context", "--kubeconfig")
    found: list[str] = []
    for place, word in enumerate(words):
        if word in wanted and place + 1 < len(words):
            found += [word, words[place + 1]]
        elif word.startswith(tuple(f"{each}=" for each in wanted[1:])):
            found.append(word)
    return found
