"""The `finetune` command with a clock that is wrong: `python -m tests.support.skewed SECONDS ARGUMENTS...`.

Every module of the project sees the shifted clock; what others do, such as TLS and timeouts, does not.
"""

from __future__ import annotations

import datetime as datetime_module
import sys
from datetime import timedelta, tzinfo
from typing import Any

from finetune.cli.main import main


class _Kind(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, datetime_module.datetime)


def shift(seconds: float) -> None:
    """Shift `datetime.now` in all modules of the project that have been imported."""

    class Skewed(datetime_module.datetime, metaclass=_Kind):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime_module.datetime.now(tz) + timedelta(seconds=seconds)

    for name, module in list(sys.modules.items()):
        if name.startswith("finetune.") and getattr(module, "datetime", None) is datetime_module.datetime:
            module.datetime = Skewed  # type: ignore[attr-defined]


if __name__ == "__main__":
    import finetune.controller.handlers  # noqa: F401 - what the operator's command imports later is shifted too

    shift(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
