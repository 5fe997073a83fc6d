"""What the metrics of the operator and of the registry have in common: a registry of their own, and bounded labels.

Every label has a set of values that is known beforehand, and one more, `other`, for all that is not in it: no name, no
user and no path, so that the number of series does not grow with what people do.
"""

from __future__ import annotations

from collections.abc import Container
from http import HTTPStatus
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

OTHER = "other"
NO_ANSWER = "none"
"""The code of a request without an answer."""
SECONDS_OF_A_CALL = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets for what takes milliseconds when it goes well, up to the timeouts."""
_CODES = frozenset(str(status.value) for status in HTTPStatus)


def new_registry(program: str) -> CollectorRegistry:
    """A registry with what Prometheus' clients tell of a process, and `finetune_<program>_build_info`."""
    # else each counter and histogram has one more series, which nobody reads
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    build = Gauge(f"finetune_{program}_build_info", "1; the label has the version.", ["version"], registry=registry)
    build.labels(version=version("finetune-operator")).set(1)
    return registry


def page(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The answer of `/metrics` and its content type, in the format that the request's Accept header asks for."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def bounded(value: str, known: Container[str]) -> str:
    """The value of a label, if it is one of those that are known."""
    return value if value in known else OTHER


def code_label(status: int) -> str:
    """The label of an HTTP status; 0 is no answer."""
    return bounded(str(status), _CODES) if status else NO_ANSWER
