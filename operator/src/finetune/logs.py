"""How the operator and the registry log: one line for each record, as JSON or as text, without anybody's content.

Logs leave the cluster and are read by more people than the runs are. So a line holds what happened and to which object,
and nothing of what a spec, a dataset or an answer says: an error is its class and where it was raised, not its words,
which quote values. The words are on the run itself, for those who may read it.

    _log.info("Training", extra=fields(run="support-1", namespace="ml", seconds=12))
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, get_args

Format = Literal["json", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)

MAXIMUM_MESSAGE = 2000
"""Characters of a message; fields have the bounds of what they name."""
MAXIMUM_FRAMES = 40
"""Frames of one error, the innermost ones: a recursion without end has a thousand."""
HIDDEN = "***"
_SECRETS = re.compile(
    r"(?i:\bbearer\s+)\S+"  # an Authorization header
    r"|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"  # a JSON Web Token
    r"|(?<=://)[^\s/@]+(?=@)"  # user and password of a URL
)
"""What other libraries may put into a message; our own lines hold nothing of the kind."""
_WORDS = re.compile(r"[\w ,./:()-]{1,400}", re.ASCII)
"""What `log_words` may consist of: a status, a reason and a path; a server that sends other things is not quoted."""


def install(format_: Format) -> None:
    """Send every record of this process, and the error that ends it, to standard error in this format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_the_end


def fields(**facts: object) -> dict[str, dict[str, object]]:
    """Facts of a line beside its message, for `extra=`."""
    return {"fields": facts}


def described(error: BaseException) -> str:
    """An error without words that may quote an object: its class, and its `log_words` if it has any."""
    words: object = getattr(error, "log_words", None)
    told = isinstance(words, str) and _WORDS.fullmatch(words)
    return f"{type(error).__name__}: {words}" if told else type(error).__name__


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, and an error with its frames."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            **_fields(record),
        }
        error = _error(record)
        if error is not None:
            document["error"] = [
                {"error": described(each), "frames": [_frame(frame) for frame in _frames(each)]}
                for each in _chain(error)
            ]
        return json.dumps(document, default=str)  # ASCII: half a surrogate pair and line ends are escaped


class TextFormatter(logging.Formatter):
    """The same for people: `time level logger: message name=value ...`, and the frames of an error below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of an error."""
        facts = "".join(f" {name}={_printable(str(value))}" for name, value in _fields(record).items())
        lines = [f"{_time(record)} {record.levelname} {record.name}: {_printable(_message(record))}{facts}"]
        error = _error(record)
        for each in _chain(error) if error is not None else ():
            lines += [f"  {described(each)}", *(f"    {_frame(frame)}" for frame in _frames(each))]
        return "\n".join(lines)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.name == "asyncio":  # below its first line it shows the task with the words of the task's error
        message = message.partition("\n")[0]
    return _SECRETS.sub(HIDDEN, message)[:MAXIMUM_MESSAGE]


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found: object = getattr(record, "fields", None)
    return found if isinstance(found, dict) else {}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from, newest first; the members of a group as well."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        waiting.append(each.__cause__ or (None if each.__suppress_context__ else each.__context__))


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__, limit=-MAXIMUM_FRAMES)


def _frame(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def _printable(text: str) -> str:
    """The text on one line: whatever a name holds, it makes no line of its own and moves no cursor."""
    return text if text.isprintable() else json.dumps(text)


def _log_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    if issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    logging.getLogger("finetune").critical("ended by an error", exc_info=(kind, error, trace))
    return None
