"""A clock that is wrong, for the project's own modules; what others do, such as TLS and timeouts, does not see it."""

from __future__ import annotations

import datetime as datetime_module
import sys
from datetime import timedelta, tzinfo
from typing import Any

import finetune.controller.handlers  # noqa: F401 - what the operator's command imports later is shifted too


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
