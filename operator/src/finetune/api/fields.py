"""The building blocks of the API's models: one base class and the bounded field types.

A constraint that deserves a sentence is a CEL rule beside the field (`rule`), not a schema keyword: the API
server evaluates no rule of an object that breaks its schema, so one schema error would hide every sentence.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

MAX_MESSAGE = 4096
"""Longest message in a status, in characters."""

RULES = "x-kubernetes-validations"
"""Schema keyword that holds CEL rules."""

UNTYPED = "x-kubernetes-preserve-unknown-fields"
"""Schema keyword that lets a field have values of more than one type."""

INT_OR_STRING = "x-kubernetes-int-or-string"
"""Schema keyword for what may be written with quotes or without, such as `memory: 16`; CEL sees the type."""

DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_SUBDOMAIN = rf"{DNS_LABEL}(\\.{DNS_LABEL})*"
LABEL_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
"""The name in a label's key, and what a label's value is unless it is empty."""
LABEL_KEY = f"({DNS_SUBDOMAIN}/)?{LABEL_NAME}"
"""The key of a label or of a taint; `MAX_PREFIX` bounds what is before the slash."""
MAX_PREFIX = 253
"""Longest prefix of a label's key."""


class ApiModel(BaseModel):
    """Base of every part of a TrainingRun: immutable, camelCase outside, unknown fields ignored on read."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: camelCase keys, RFC 3339 times, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str, **more: str) -> dict[str, str]:
    """One CEL validation rule in the CRD's own words; `more` may hold `reason` and `fieldPath`."""
    return {"rule": expression, "message": message, **more}


def ruled(*rules: dict[str, str]) -> FieldInfo:
    """Annotation that puts CEL rules on a field's schema."""
    listed: list[JsonValue] = [dict(each) for each in rules]
    info: FieldInfo = Field(json_schema_extra={RULES: listed})
    return info


def matching(pattern: str, message: str) -> FieldInfo:
    """Annotation: the whole string matches the RE2 `pattern` (backslashes doubled, as CEL wants them)."""
    return ruled(rule(f"self.matches('^{pattern}$')", message))


def clip(text: str, limit: int = MAX_MESSAGE) -> str:
    """The text, shortened to `limit` characters with an ellipsis at the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _to_whole_seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _to_rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime,
    AfterValidator(_to_whole_seconds),
    PlainSerializer(_to_rfc3339, return_type=str, when_used="json"),
]
"""A moment in UTC with a resolution of one second, as Kubernetes writes times."""

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63),
    matching(
        DNS_SUBDOMAIN,
        "must consist of lower-case letters, digits, '-' and '.', and start and end with a letter or digit",
    ),
]
"""A name that becomes a label, a folder or a part of another name."""

ObjectName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253),
    matching(
        DNS_SUBDOMAIN,
        "must be the name of an object in the run's namespace: lower-case letters, digits, '-' and '.'",
    ),
]
"""The name of a Kubernetes object in the run's own namespace."""

DataKey = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253),
    ruled(
        rule(
            "self.matches('^[-._a-zA-Z0-9]+$') && !self.startsWith('..') && self != '.'",
            "must be a key of a ConfigMap or Secret: letters, digits, '-', '_' and '.'",
        )
    ),
]
"""A key in the data of a ConfigMap or Secret."""

RelativePath = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512),
    matching(
        "[A-Za-z0-9_][-A-Za-z0-9._]*(/[A-Za-z0-9_][-A-Za-z0-9._]*)*",
        "must be a path from the root of the claim: no leading or trailing '/', no '..', no hidden names, "
        "only letters, digits, '-', '_' and '.' between the slashes",
    ),
]
"""A path below the root of a claim; it cannot leave the claim, nor be taken for an option."""

MAX_DECIMAL = 32
"""Longest number that is not an integer, in characters."""


def _to_text(value: object) -> object:
    return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


DecimalNumber = Annotated[str, BeforeValidator(_to_text), StringConstraints(min_length=1, max_length=MAX_DECIMAL)]
"""A number as a person writes it, with quotes or without; read as text, so that `2e-4` stays what it is."""


def decimal(pattern: str, **bounds: float | bool) -> FieldInfo:
    """Annotation: a decimal number that is `bounds` (JSON schema's) as a number, and matches `pattern` as text.

    Nothing but an untyped schema takes both, and CEL cannot look into one: so these are schema keywords, each of
    which speaks of one type only. The last three leave numbers and text as the only types.
    """
    schema: dict[str, JsonValue] = {
        UNTYPED: True,
        "maxLength": 16,
        "pattern": f"^({pattern})$",
        **bounds,
        "maxItems": 0,
        "maxProperties": 0,
        "not": {"enum": [True, False, [], {}]},
    }
    info: FieldInfo = Field(json_schema_extra=schema)
    return info


DecimalString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_DECIMAL)]
"""A number that is not an integer, as text."""


def _to_cpus(value: object) -> object:
    """A number as a quantity; thousandths are the smallest part that is scheduled."""
    if not isinstance(value, float):
        return _to_text(value)
    return f"{(Decimal(repr(value)) * 1000).to_integral_value(ROUND_CEILING)}m"


CpuQuantity = Annotated[
    str,
    BeforeValidator(_to_cpus),
    StringConstraints(min_length=1, max_length=MAX_DECIMAL),
    decimal(
        r"[1-9][0-9]{0,3}(\.[0-9]{1,3})?|0\.(00[1-9]|0[1-9][0-9]?|[1-9][0-9]{0,2})|[1-9][0-9]{0,5}m",
        minimum=0,
        exclusiveMinimum=True,
        maximum=9999,
    ),
]
"""An amount of CPU, such as 4, 0.5 or 500m."""

ByteQuantity = Annotated[
    str,
    StringConstraints(min_length=2, max_length=16),
    Field(
        json_schema_extra={
            INT_OR_STRING: True,  # so that whoever writes `memory: 16` is told of the unit, not of a type
            RULES: [
                rule(
                    "type(self) == string && self.matches('^[1-9][0-9]{0,8}(k|M|G|T|Ki|Mi|Gi|Ti)$')",
                    "must be a whole number of bytes with a unit, such as 16Gi or 512Mi",
                )
            ],
        }
    ),
]
"""An amount of memory or storage."""
