"""Writing runs to MLflow, a server or a store, by its own client library, which is an extra of this package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from .tracking import RUNNING, UID_TAG, Point, TrackedRun

INSTALL = "mlflow-skinny is not installed: pip install 'finetune-operator[mlflow]'"
DIGEST_TAG = "finetune.export"
"""What was written last, see `TrackedRun.digest`: a run that is as it was costs one look."""
MAX_ITEMS = 100
MAX_POINTS = 1000
"""Of one call, see MLflow's limits on requests."""

Outcome = Literal["made", "updated", "unchanged", "deleted"]


class MlflowError(Exception):
    """MLflow is not installed, does not answer, or refuses."""


class MlflowStore:
    """Experiments and runs at a tracking URI. Every method raises MlflowError.

    Who calls says MLflow's own environment: MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and the like.
    """

    def __init__(self, uri: str) -> None:
        check_installed()
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody has asked for that
        if urlsplit(uri).scheme in {"", "file"}:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it was asked for by name
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._refusal = MlflowException
        self._experiments: dict[str, str] = {}
        try:
            self._client = MlflowClient(tracking_uri=uri)
        except MlflowException as error:
            raise MlflowError(f"{uri}: {error}") from error

    def write(self, run: TrackedRun) -> Outcome:
        """Make a run, or bring the one of the same uid up to date; says which. One that was deleted there stays so."""
        try:
            return self._write(run)
        except self._refusal as error:
            raise MlflowError(f"run {run.name} ({run.uid}): {error}") from error

    def _write(self, run: TrackedRun) -> Outcome:
        experiment = self._experiment(run.experiment)
        found = self._find(experiment, run.uid)
        if found is None:
            tags = {UID_TAG: run.uid}
            made = self._client.create_run(experiment, start_time=run.start, tags=tags, run_name=run.name)
            self._fill(made.info.run_id, run, parameters=run.parameters, points=run.points)
            return "made"
        if found.info.lifecycle_stage == "deleted":
            return "deleted"
        if found.data.tags.get(DIGEST_TAG) == run.digest:
            return "unchanged"
        identity, known = found.info.run_id, found.data.params
        new = {name: value for name, value in run.parameters.items() if name not in known}  # they never change there
        self._fill(identity, run, parameters=new, points=self._missing(identity, run.points, found.data.metrics))
        return "updated"

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "deleted":
                raise MlflowError(
                    f"the experiment {name} was deleted in MLflow: restore it there, or delete it for good"
                )
            self._experiments[name] = found.experiment_id if found is not None else self._client.create_experiment(name)
        return self._experiments[name]

    def _find(self, experiment: str, uid: str) -> Any:
        from mlflow.entities import ViewType

        wanted = f"tags.`{UID_TAG}` = '{uid}'"
        found = self._client.search_runs([experiment], wanted, run_view_type=ViewType.ALL, max_results=2)
        return found[0] if found else None

    def _missing(self, identity: str, points: Sequence[Point], keys: Iterable[str]) -> list[Point]:
        """The points that a run there does not have: a store in files would keep both."""
        has = {
            (each.key, each.step, each.timestamp, each.value)
            for key in set(keys) & {point.key for point in points}
            for each in self._client.get_metric_history(identity, key)
        }
        return [each for each in points if (each.key, each.step, each.milliseconds, each.value) not in has]

    def _fill(self, identity: str, run: TrackedRun, *, parameters: dict[str, str], points: Sequence[Point]) -> None:
        """Write everything, and last that it was: what was interrupted is gone on with the next time."""
        from mlflow.entities import Metric, Param, RunTag

        log = self._client.log_batch
        for some in _batches([Param(name, value) for name, value in parameters.items()], MAX_ITEMS):
            log(identity, params=some)
        for some in _batches(
            [Metric(each.key, each.value, each.milliseconds, each.step) for each in points], MAX_POINTS
        ):
            log(identity, metrics=some)
        for some in _batches([RunTag(name, value) for name, value in run.tags.items()], MAX_ITEMS):
            log(identity, tags=some)
        if run.status == RUNNING:
            self._client.update_run(identity, status=RUNNING, name=run.name)
        else:
            self._client.set_terminated(identity, run.status, run.end)
        self._client.set_tag(identity, DIGEST_TAG, run.digest)


def check_installed() -> None:
    """Raise MlflowError, which says what to install, where the library is missing."""
    if importlib.util.find_spec("mlflow") is None:
        raise MlflowError(INSTALL)


def _batches(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + most] for start in range(0, len(items), most))
