"""The operator's metrics: counted where things happen, and read off the queue and the known runs when asked for.

No series has the name of a run, of a namespace or of a person: every label is bounded, see `finetune.metrics`. Counters
begin at zero with each process, as Prometheus expects. What concerns a run is counted when its status is stored: a pass
that is made again, or another operator, counts nothing twice.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError

from finetune.api import reasons
from finetune.api.status import TrainingRunStatus
from finetune.api.trainingrun import ObjectMeta
from finetune.clients.kubernetes_errors import Asked, KubernetesError
from finetune.clients.registry_errors import RegistryError
from finetune.metrics import OTHER, SECONDS_OF_A_CALL, bounded, code_label, new_registry

from .core.attempts import COMPLETED, GONE, INTERRUPTED, SUSPENDED
from .core.case import is_finished
from .transitions import REASONS, UNFINISHED, reason_of
from .workqueue import QueueState

NEW = "New"
"""The phase of a run that the operator has not written yet."""
PHASES = UNFINISHED | {NEW}
ENDS = frozenset({COMPLETED, INTERRUPTED, SUSPENDED, GONE, *reasons.FAILURE_REASONS})
"""How an attempt ends."""
REASONS_OF_ENDS = frozenset({reasons.ADAPTER_REGISTERED, OTHER, *reasons.FAILURE_REASONS})
"""Why a run has ended."""
CAUSES = ("kubernetes", "registry", "object", "internal")
RESOURCES = frozenset({"trainingruns", "jobs", "pods", "persistentvolumeclaims", "events", "workloads"})
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
METHODS = frozenset(VERBS)
ANSWERS = frozenset(
    {"ok", "RegistrySilent", "RegistryUnavailable", "RegistryDenied", "RegistryRefused", "RegistryNotFound"}
)

_START_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_FIRST_STEP_SECONDS = (10, 30, 60, 120, 300, 600, 1200, 3600, 7200, 21600, 86400)
_RUN_SECONDS = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800)


class OperatorMetrics:
    """Everything that is counted. One object for each operator; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = new_registry("operator")
        make = _Maker(self.registry)
        self._finished = make.counter(
            "runs_finished", "Runs that ended, by the reason of their end.", "reason", known=REASONS_OF_ENDS
        )
        self._attempts = make.counter("attempts_ended", "Pods of runs that ended, by how.", "reason", known=ENDS)
        self._gpu_seconds = make.counter("gpu_seconds", "Time that ended pods of runs held GPUs, times their number.")
        self._tokens = make.counter("tokens_trained", "Tokens that succeeded runs were trained on.")
        self._accepted = make.histogram(
            "run_acceptance_seconds", "From a run's creation to its acceptance.", _START_SECONDS
        )
        self._first_step = make.histogram(
            "run_first_step_seconds",
            "From a run's creation to its first step, of runs that succeeded.",
            _FIRST_STEP_SECONDS,
        )
        self._completed = make.histogram(
            "run_completion_seconds", "From a run's creation to its end.", _RUN_SECONDS, "phase"
        )
        self._passes = make.histogram("reconcile_duration_seconds", "One pass for one run.", SECONDS_OF_A_CALL)
        self._errors = make.counter(
            "reconcile_errors", "Passes that failed and are made again, by whose fault.", "cause", known=CAUSES
        )
        self._requests = make.counter(
            "kubernetes_requests", "Requests to the Kubernetes API, without the watches.", "verb", "resource", "code"
        )
        self._request_seconds = make.histogram(
            "kubernetes_request_duration_seconds", "One request to the Kubernetes API.", SECONDS_OF_A_CALL, "verb"
        )
        self._calls = make.histogram(
            "registry_call_duration_seconds", "One call to the registry.", SECONDS_OF_A_CALL, "method", "result"
        )

    def show(
        self,
        *,
        runs: Callable[[], Iterable[tuple[str, str]]],
        queue: Callable[[], QueueState],
        namespaces: Callable[[], Mapping[str, int]],
        registry_silent: Callable[[], bool],
    ) -> None:
        """Show what is true at the moment of each scrape.

        `runs` gives phase, and reason of waiting or "", of every unfinished run; `namespaces` how many of the served
        ones are in each state; `registry_silent` whether calls to the registry fail at once, as it did not answer.
        """
        self.registry.register(_Now(runs, queue, namespaces, registry_silent))

    def status_changed(self, run: ObjectMeta, old: TrainingRunStatus, new: TrainingRunStatus) -> None:
        """A run's stored status was `old` and is `new`."""
        if new == old:
            return
        timings, before = new.timings, old.timings
        if timings is not None:
            if timings.accepted_seconds is not None and (before is None or before.accepted_seconds is None):
                self._accepted.observe(timings.accepted_seconds)
            if timings.first_step_seconds is not None and (before is None or before.first_step_seconds is None):
                self._first_step.observe(timings.first_step_seconds)
        known = {attempt.uid for attempt in old.attempt_history if attempt.completion_time}
        for attempt in new.attempt_history:
            if attempt.completion_time and attempt.uid not in known:
                self._attempts.labels(bounded(attempt.reason or "", ENDS)).inc()
        self._gpu_seconds.inc(max(0, (new.gpu_seconds or 0) - (old.gpu_seconds or 0)))
        if is_finished(new) and not is_finished(old):
            self._ended(run, new)

    def _ended(self, run: ObjectMeta, status: TrainingRunStatus) -> None:
        self._finished.labels(bounded(reason_of(status), REASONS_OF_ENDS)).inc()
        if status.result is not None:
            self._tokens.inc(status.result.tokens)
        seconds = _seconds(run.creation_timestamp, status.completion_time)
        if seconds is not None:
            phase = reasons.FAILED if status.failure is not None else reasons.SUCCEEDED
            self._completed.labels(phase).observe(seconds)

    def pass_made(self, seconds: float, error: Exception | None) -> None:
        """A pass for a run has ended, well or with an error."""
        self._passes.observe(seconds)
        if error is not None:
            self._errors.labels(cause_of(error)).inc()

    def kubernetes_answered(self, asked: Asked, status: int, seconds: float) -> None:
        """A request to the Kubernetes API has ended; without an answer the status is 0."""
        verb = VERBS.get(asked.verb, OTHER)
        if verb == "get" and not asked.name and asked.resource:
            verb = "list"
        self._requests.labels(verb, bounded(asked.resource, RESOURCES), code_label(status)).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def registry_answered(self, method: str, error: BaseException | None, seconds: float) -> None:
        """A call to the registry has ended, or was not made because it is silent."""
        result = bounded(type(error).__name__ if error is not None else "ok", ANSWERS)
        self._calls.labels(bounded(method, METHODS), result).observe(seconds)


def cause_of(error: BaseException) -> str:
    """Whose fault a failed pass is: the API server's, the registry's, the object's, or a fault of the operator."""
    if isinstance(error, KubernetesError):
        return "kubernetes"
    if isinstance(error, RegistryError):
        return "registry"
    return "object" if isinstance(error, ValidationError) else "internal"


class _Maker:
    """Makes metrics with the operator's prefix; `_total` is added to counters by the library."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str, known: Iterable[str] = ()) -> Counter:
        made = Counter(f"finetune_operator_{name}", text, labels, registry=self._registry)
        for value in known:  # from zero on: the first of its kind would not be an increase
            made.labels(value)
        return made

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"finetune_operator_{name}", text, labels, buckets=buckets, registry=self._registry)


class _Now(Collector):
    """Gauges of this moment."""

    def __init__(
        self,
        runs: Callable[[], Iterable[tuple[str, str]]],
        queue: Callable[[], QueueState],
        namespaces: Callable[[], Mapping[str, int]],
        registry_silent: Callable[[], bool],
    ) -> None:
        self._runs = runs
        self._queue = queue
        self._namespaces = namespaces
        self._registry_silent = registry_silent

    def collect(self) -> Iterator[Metric]:
        phases, waits = Count(dict.fromkeys(PHASES, 0)), Count[str]()
        for phase, reason in self._runs():
            phases[bounded(phase or NEW, PHASES)] += 1
            if reason:
                waits[bounded(reason, REASONS)] += 1
        queue = self._queue()
        due = {"urgent": queue.urgent, "routine": queue.routine}
        yield _gauge("runs", "Unfinished runs.", phases, "phase")
        yield _gauge("runs_waiting", "Unfinished runs that wait for something, by what it is.", waits, "reason")
        yield _gauge("queue_depth", "Runs that are due for a pass, by line.", due, "line")
        yield _gauge("queue_running", "Runs that a pass is made for.", {"": queue.running})
        yield _gauge(
            "queue_oldest_seconds", "How long the first in the queue has been due.", {"": queue.oldest_seconds}
        )
        yield _gauge(
            "namespaces",
            "Served namespaces, by what their list says; all together count as one.",
            self._namespaces(),
            "state",
        )
        yield _gauge(
            "registry_silent", "1 while calls to the registry fail at once.", {"": float(self._registry_silent())}
        )


def _gauge(name: str, text: str, values: Mapping[str, float], label: str = "") -> Metric:
    family = GaugeMetricFamily(f"finetune_operator_{name}", text, labels=[label] if label else [])
    for value, number in sorted(values.items()):
        family.add_metric([value] if label else [], number)
    return family


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return max(0.0, (end - start).total_seconds()) if start and end else None
