"""Makes a small, real dataset: what the functions of Python's standard library do, in their own words.

    python make_dataset.py --train train.jsonl --held-out held-out.jsonl --preferences preferences.jsonl
    python make_dataset.py --train train.jsonl --labelled labelled.jsonl

Each row asks about one function or class and answers with the first paragraph of its documentation:
`{"prompt": "What does `os.path.join` do in Python?", "completion": "Join two or more pathname components, ..."}`.
The preferences are other rows of the same kind; their chosen answer is the whole paragraph, their rejected one breaks
off in the middle of a sentence: `{"prompt": "...", "chosen": "...", "rejected": "..."}`. The labelled answers are one
answer of each of these pairs: `{"prompt": "...", "completion": "...", "label": true}` for a whole one, false otherwise.
The order comes from a hash of the prompt, so that the same minor version of Python gives the same files.
"""

import argparse
import hashlib
import importlib
import inspect
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# fmt: off
MODULES = [
    "abc", "argparse", "array", "ast", "asyncio", "base64", "binascii", "bisect", "bz2", "calendar", "cmath",
    "codecs", "collections", "colorsys", "concurrent.futures", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest", "email.utils", "enum", "filecmp",
    "fnmatch", "fractions", "functools", "gc", "getpass", "glob", "gzip", "hashlib", "heapq", "hmac", "html",
    "http.client", "inspect", "io", "ipaddress", "itertools", "json", "keyword", "linecache", "locale",
    "logging", "lzma", "math", "mimetypes", "multiprocessing", "numbers", "operator", "os", "os.path",
    "pathlib", "pickle", "platform", "pprint", "queue", "random", "re", "sched", "secrets", "select",
    "selectors", "shelve", "shlex", "shutil", "signal", "socket", "sqlite3", "ssl", "stat", "statistics",
    "string", "struct", "subprocess", "sys", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit",
    "token", "tokenize", "traceback", "tracemalloc", "types", "typing", "unicodedata", "unittest.mock",
    "urllib.parse", "urllib.request", "uuid", "warnings", "weakref", "webbrowser", "xml.sax.saxutils",
    "zipfile", "zlib", "zoneinfo",
]
# fmt: on

SHORTEST, LONGEST = 30, 300
"""Characters of an answer: shorter ones say nothing, longer ones are slow to learn."""
FEWEST_WORDS, LONGEST_CHOSEN = 8, 140
"""Words and characters of a chosen answer: a shorter one has no middle, and a pair is read twice."""


def documented_members(module_name: str) -> Iterator[tuple[str, str]]:
    """Yield the qualified name and the documentation of a module's public functions and classes."""
    module = importlib.import_module(module_name)
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isroutine(member) or inspect.isclass(member)):
            continue
        if documentation := inspect.getdoc(member):
            yield f"{module_name}.{name}", documentation


def first_paragraph(documentation: str) -> str | None:
    """Return the first paragraph on one line, None when it is a signature or has no fitting length."""
    text = " ".join(re.split(r"\n\s*\n", documentation, maxsplit=1)[0].split())
    is_signature = re.match(r"[\w.]+\(.*\)( ->|$)", text) is not None
    return None if is_signature or not SHORTEST <= len(text) <= LONGEST else text


def make_rows() -> list[dict[str, str]]:
    """Return all rows, each answer once, in the order of their prompts' hashes."""
    rows: dict[str, dict[str, str]] = {}
    for module_name in MODULES:
        for name, documentation in documented_members(module_name):
            answer = first_paragraph(documentation)
            if answer is not None and answer not in rows:
                rows[answer] = {"prompt": f"What does `{name}` do in Python?", "completion": answer}
    return sorted(rows.values(), key=lambda row: hashlib.sha256(row["prompt"].encode()).digest())


def break_off(answer: str) -> str:
    """Return the beginning of an answer: a third to two thirds of its words, by a hash, without an end mark."""
    words = answer.split()
    share = 1 / 3 + hashlib.sha256(answer.encode()).digest()[0] / 255 / 3
    return " ".join(words[: max(3, round(len(words) * share))]).rstrip(".,;:!?")


def make_preferences(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a pair of answers for each row whose answer is long enough to break off and short enough to learn."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": break_off(row["completion"])}
        for row in rows
        if len(row["completion"].split()) >= FEWEST_WORDS and len(row["completion"]) <= LONGEST_CHOSEN
    ]


def make_labelled(pairs: list[dict[str, str]]) -> list[dict[str, str | bool]]:
    """Return one answer of each pair with its label: the chosen one of every second pair."""
    return [
        {"prompt": pair["prompt"], "completion": pair["chosen" if good else "rejected"], "label": good}
        for pair, good in zip(pairs, itertools.cycle([True, False]))
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the two files; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="file for the rows to train and evaluate on")
    parser.add_argument("--held-out", type=Path, help="file for rows that the training never sees")
    parser.add_argument("--rows", type=int, default=440, help="rows in the first file (default %(default)s)")
    parser.add_argument("--held-out-rows", type=int, default=40, help="rows in the second (default %(default)s)")
    parser.add_argument("--preferences", type=Path, help="file for pairs about functions that are in neither file")
    parser.add_argument("--labelled", type=Path, help="file for one answer of each of these pairs, with its label")
    parser.add_argument("--pairs", type=int, default=240, help="pairs of these (default %(default)s)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # deprecated modules say so when they are imported
    rows = make_rows()
    wanted = options.rows + options.held_out_rows
    if len(rows) < wanted:
        parser.error(f"this Python documents {len(rows)} rows, {wanted} are wanted")
    write_rows(options.train, rows[: options.rows])
    if options.held_out is not None:
        write_rows(options.held_out, rows[options.rows : wanted])
    if options.preferences is not None or options.labelled is not None:
        pairs = make_preferences(rows[wanted:])
        if len(pairs) < options.pairs:
            parser.error(f"this Python documents {len(pairs)} pairs, {options.pairs} are wanted")
        if options.preferences is not None:
            write_rows(options.preferences, pairs[: options.pairs])
        if options.labelled is not None:
            write_rows(options.labelled, make_labelled(pairs[: options.pairs]))
    print(f"{options.rows} rows to train on, {options.held_out_rows} held out, {len(rows)} available")


if __name__ == "__main__":
    main()
