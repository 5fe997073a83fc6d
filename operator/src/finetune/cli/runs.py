"""`finetune list`, `status`, `compare`, `suspend`, `resume` and `delete`: what became of runs, and their course."""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .output import age, document, duration, facts, number, painted, phase_colour, printable, table
from .session import Session, UsageError, failed, note, told
from .views import RunView, merged, of_object, of_record

COLUMNS = ("NAME", "STATE", "REASON", "MODEL", "DATASET", "LOSS", "VS BASE", "STEP", "LEFT", "ADAPTER", "AGE")
MORE = ("EXPERIMENT", "METHOD", "ATTEMPTS", "GPU TIME", "MESSAGE")
RESOURCE = "trainingrun"
IGNORED = frozenset({"suspend"})
"""Settings that say nothing about what was trained."""


async def list_runs(session: Session, arguments: argparse.Namespace) -> str:
    """The runs of a namespace, newest first."""
    if arguments.all_namespaces:
        runs = await _of_cluster(session, None)
        more = False
    else:
        runs, more = await known_runs(session, limit=arguments.limit, gone=arguments.all, wanted=_wanted(arguments))
    runs = [run for run in runs if _fits(run, arguments)]
    shown = runs[: arguments.limit]
    if more or len(runs) > len(shown):
        note(f"only the newest {len(shown)} runs are shown; --limit={2 * arguments.limit} shows more")
    if arguments.output == "name":
        return "\n".join(f"{RESOURCE}/{run.name}" for run in shown)
    if arguments.output in {"json", "yaml"}:
        return document([run.to_dict() for run in shown], arguments.output)
    if not shown:
        where = "any namespace" if arguments.all_namespaces else f"namespace {session.namespace}"
        if _wanted(arguments):
            note(f"no runs in {where} are as --state, --experiment and --text want them")
        else:
            note(f"no runs in {where}; `finetune run --help` says how one is made")
    now, wide = datetime.now(UTC), arguments.output == "wide"
    return runs_table(shown, now=now, wide=wide, everywhere=arguments.all_namespaces)


def runs_table(
    runs: Iterable[RunView], *, now: datetime, wide: bool, everywhere: bool = False, on: bool | None = None
) -> str:
    """The table that `list` prints; `everywhere`: the runs are of many namespaces."""
    columns = (*(("NAMESPACE",) if everywhere else ()), *COLUMNS, *(MORE if wide else ()))
    rows = ((*((run.namespace,) if everywhere else ()), *_row(run, now, wide=wide)) for run in runs)
    return table(columns, rows, paint={"STATE": phase_colour}, on=on)


def _row(run: RunView, now: datetime, *, wide: bool) -> Sequence[object]:
    step = "-" if run.step is None else f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step)
    more = (run.experiment, run.method, run.attempts or 0, duration(run.gpu_seconds), run.message or "-")
    return (
        run.name,
        run.phase,
        run.reason or "-",
        run.model.rpartition("/")[2],
        run.dataset,
        number(run.best_known_loss),
        run.change or "-",
        step,
        duration(run.remaining) if not run.is_over else "-",
        run.adapter or "-",
        age(run.created, now),
        *(more if wide else ()),
    )


def _wanted(arguments: argparse.Namespace) -> dict[str, str]:
    state = arguments.state and arguments.state.capitalize()  # every phase is one word
    asked = {"state": state, "experiment": arguments.experiment, "text": arguments.text}
    return {key: value for key, value in asked.items() if value}


def _fits(run: RunView, arguments: argparse.Namespace) -> bool:
    """The filters once more, for runs that the cluster has told of."""
    words = " ".join(filter(None, (run.name, run.experiment, run.model, run.reason, run.message))).lower()
    return (
        (not arguments.state or run.phase.lower() == arguments.state.lower())
        and (not arguments.experiment or run.experiment == arguments.experiment)
        and (not arguments.text or arguments.text.lower() in words)
    )


async def known_runs(
    session: Session, *, limit: int, gone: bool, wanted: Mapping[str, str]
) -> tuple[list[RunView], bool]:
    """The runs of the namespace, as cluster and registry know them together, and whether the registry has more.

    Where one of them does not answer the other's are given, with a word about it. `gone`: those, too, whose object was
    deleted.
    """
    from finetune.clients.kubeconfig import KubeconfigError
    from finetune.clients.kubernetes_errors import KubernetesError
    from finetune.clients.registry_errors import RegistryError

    objects: list[RunView] | None = None
    trouble: Exception | None = None
    try:
        objects = await _of_cluster(session, session.namespace)
    except (KubernetesError, KubeconfigError) as error:
        trouble = error
    try:
        registry = await session.registry()
        records, more = await registry.newest_runs(session.namespace, limit=limit, **wanted)
    except (RegistryError, KubernetesError) as error:
        if objects is None:
            raise trouble or error from error
        note(f"the registry cannot be asked ({brief(error)}); only the cluster's runs are shown")
        return objects, False
    seen = [of_record(each, session.namespace) for each in records]
    if objects is None:
        if not isinstance(trouble, KubeconfigError):
            note(f"the cluster cannot be asked ({brief(trouble)}); only the registry's records are shown")
        return seen, more
    uids = {each.uid for each in objects}
    return merged(objects, [each for each in seen if gone or each.uid in uids or not each.is_over]), more and gone


def brief(error: Exception | None) -> str:
    """A failure in one sentence."""
    from finetune.clients.kubernetes_errors import KubernetesError

    return told(error)[0] if isinstance(error, KubernetesError) else str(error)


async def _of_cluster(session: Session, namespace: str | None) -> list[RunView]:
    from finetune.clients.cluster import runs_path

    items = await (await session.cluster()).items(runs_path(namespace))
    return sorted(map(of_object, items), key=lambda run: (str(run.created), run.name), reverse=True)


async def find_run(session: Session, name: str) -> RunView:
    """A run by name: the object, else the registry's record of a deleted one. Raises as both do."""
    from finetune.clients.cluster import runs_path
    from finetune.clients.kubeconfig import KubeconfigError
    from finetune.clients.kubernetes_errors import KubernetesError, NotFoundError
    from finetune.clients.registry_errors import RegistryError

    try:
        view = of_object(await (await session.cluster()).get(runs_path(session.namespace, name)))
    except (NotFoundError, KubeconfigError) as error:
        try:
            return of_record(await (await session.registry()).get_run(session.namespace, name), session.namespace)
        except (RegistryError, KubernetesError):
            if isinstance(error, NotFoundError):
                raise error from None
            raise
    try:
        record = of_record(await (await session.registry()).get_run(session.namespace, view.uid))
    except (RegistryError, KubernetesError):
        return view
    return merged([view], [record])[0]


async def status(session: Session, arguments: argparse.Namespace) -> str:
    """The card of one run."""
    run = await find_run(session, arguments.name)
    if arguments.output in {"json", "yaml"}:
        return document(run.to_dict(), arguments.output)
    if arguments.output == "name":
        return f"{RESOURCE}/{run.name}"
    return card(run, now=datetime.now(UTC), wide=arguments.output == "wide", interim=await _interim(session, run))


async def _interim(session: Session, run: RunView) -> str | None:
    """What can be pulled of a run without a finished adapter; None where that is nothing, or nobody can say."""
    from finetune.clients.kubernetes_errors import KubernetesError
    from finetune.clients.registry_errors import RegistryError

    from .adapters import kept_as

    if run.adapter is not None or run.step is None:
        return None
    try:
        items = await (await session.registry()).interim_adapters(session.namespace, run.uid)
    except (RegistryError, KubernetesError):
        return None
    return (
        "\n".join(f"{item.reference}  loss {number(item.evaluation_loss)}, {kept_as(item)}" for item in items) or None
    )


def card(run: RunView, *, now: datetime, wide: bool = False, on: bool | None = None, interim: str | None = None) -> str:
    """What there is to say of a run: its state first, then its numbers, then what to do.

    `interim` is what can be pulled of it before it has ended well.
    """
    head = f"{run.name}  {painted(run.phase, phase_colour(run.phase), on=on)}"
    if not run.in_cluster:
        head += painted("  (its object is gone; this is the registry's record)", "dim", on=on)
    known: dict[str, object] = {
        "Method": f"{run.method} of {run.model} on {run.dataset}",
        "Experiment": run.experiment,
        "Progress": progress_of(run),
        "Loss": losses_of(run),
        "Rewards": f"accuracy {number(run.reward_accuracy)}" if run.reward_accuracy else None,
        "Adapter": run.adapter or (None if run.is_over else f"{run.adapter_name}, not yet"),
        "To pull": interim,
        "Attempts": _attempts(run),
        "GPU time": duration(run.gpu_seconds) if run.gpu_seconds else None,
        "Created": _when(run.created, now),
        "Ended": _when(run.ended, now) if run.ended else None,
        "Warning": "\n".join(run.warnings) or None,
    }
    parts = [f"{head}\n{facts(known)}"]
    if trouble := panel(run, on=on):
        parts.append(trouble)
    if wide and run.conditions:
        parts.append(table(("CONDITION", "STATUS", "MESSAGE"), run.conditions))
    return "\n\n".join(parts)


def panel(run: RunView, *, on: bool | None = None) -> str | None:
    """Why a run failed or what it waits for, and what to do about it."""
    if run.reason is None or run.phase == "Succeeded":
        return None
    title = painted(f"{run.phase if run.is_over else 'Waiting'}: {run.reason}", phase_colour(run.phase), on=on)
    lines = [title, f"  {printable(run.message or '')}"]
    if run.row is not None:
        lines.append(f"  row {run.row} of the dataset")
    if run.hint:
        lines.append(f"  do: {printable(run.hint)}")
    if run.phase == "Failed":
        goes_on = run.checkpoint and run.in_cluster
        retry = f"finetune retry {run.name}" + (f"  (goes on from step {run.checkpoint})" if goes_on else "")
        lines += [f"  logs:  finetune logs {run.name}"] if run.in_cluster else []
        lines.append(f"  again: {retry}")
    return "\n".join(lines)


def progress_of(run: RunView) -> str | None:
    """How far the training is, in a line."""
    if run.step is None:
        return None
    words = [f"step {run.step}" + (f" of {run.total_steps}" if run.total_steps else "")]
    if run.percent is not None:
        words.append(f"{run.percent} %")
    if run.tokens_per_second and not run.is_over:
        words.append(f"{number(run.tokens_per_second)} tokens/s")
    if run.remaining is not None and not run.is_over:
        words.append(f"{duration(run.remaining)} left")
    if run.best_step is not None:
        words.append(f"the best is step {run.best_step}")
    return ", ".join(words)


def losses_of(run: RunView) -> str | None:
    """The losses in a line, that on held-out rows beside the base model's."""
    words = []
    if run.evaluation_loss:
        words.append(f"{number(run.evaluation_loss)} on held-out rows")
    if run.base_loss:
        words.append(f"{number(run.base_loss)} of the base" + (f" ({run.change})" if run.change else ""))
    if run.loss:
        words.append(f"{number(run.loss)} in training")
    return ", ".join(words) or None


def _attempts(run: RunView) -> str | None:
    if not run.attempts:
        return None
    return f"{run.attempts}" + (f", the newest from step {run.resumed_from}" if run.resumed_from else "")


def _when(moment: datetime | None, now: datetime) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M:%SZ}, {age(moment, now)} ago"


async def compare(session: Session, arguments: argparse.Namespace) -> str:
    """What differs between runs, and their results."""
    if len(arguments.names) < 2:
        raise UsageError("give two runs or more, such as `finetune compare support-13 support-14`")
    runs = list(await asyncio.gather(*(find_run(session, name) for name in arguments.names)))
    differing = differences([run.spec for run in runs], equal=arguments.equal)
    if arguments.output in {"json", "yaml"}:
        settings = {path: dict(zip(arguments.names, values, strict=True)) for path, values in differing.items()}
        return document({"settings": settings, "runs": [run.to_dict() for run in runs]}, arguments.output)
    return comparison(runs, differing)


def comparison(runs: Sequence[RunView], differing: Mapping[str, Sequence[object]]) -> str:
    """Two tables: settings that differ, and results."""
    names = [run.name for run in runs]
    settings = [(path, *("-" if value is None else value for value in values)) for path, values in differing.items()]
    if any(run.dataset_version for run in runs) and len({run.dataset for run in runs}) > 1:
        settings.append(("dataset, as recorded", *(run.dataset for run in runs)))
    losses = [float(run.evaluation_loss) for run in runs if run.evaluation_loss]
    best = min(filter(math.isfinite, losses), default=None)
    results: list[tuple[object, ...]] = [
        ("state", *(run.phase for run in runs)),
        ("loss on held-out rows", *(_marked(run, best) for run in runs)),
        ("of the base model", *(number(run.base_loss) for run in runs)),
        ("against it", *(run.change or "-" for run in runs)),
        ("loss in training", *(number(run.loss) for run in runs)),
        ("steps", *(run.step if run.step is not None else "-" for run in runs)),
        ("reward accuracy", *(number(run.reward_accuracy) for run in runs)),
        ("GPU time", *(duration(run.gpu_seconds) for run in runs)),
        ("adapter", *(run.adapter or "-" for run in runs)),
    ]
    results = [row for row in results if set(row[1:]) != {"-"}]
    parts = [table(("SETTING", *names), settings) if settings else "The settings are the same."]
    return "\n\n".join([*parts, table(("RESULT", *names), results)])


def _marked(run: RunView, best: float | None) -> str:
    text = number(run.evaluation_loss)
    return f"{text} *" if run.evaluation_loss and float(run.evaluation_loss) == best else text


def differences(specs: Sequence[Mapping[str, Any]], *, equal: bool = False) -> dict[str, list[object]]:
    """The settings that are not the same everywhere, by path; None where one is not set. `equal`: all settings."""
    flat = [_flat(spec) for spec in specs]
    paths = dict.fromkeys(path for each in flat for path in each)
    found = {path: [each.get(path) for each in flat] for path in paths}
    return {path: values for path, values in found.items() if equal or any(each != values[0] for each in values)}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, each in value.items():
        path = f"{prefix}{key}"
        if path in IGNORED:
            continue
        if isinstance(each, Mapping) and each:
            found |= _flat(each, f"{path}.")
        else:
            found[path] = each if isinstance(each, str | int | float) else str(each)
    return found


async def suspend(session: Session, arguments: argparse.Namespace) -> int:
    """Stop runs after they have saved a checkpoint."""
    return await _set_suspend(session, arguments, suspended=True)


async def resume(session: Session, arguments: argparse.Namespace) -> int:
    """Let suspended runs go on."""
    return await _set_suspend(session, arguments, suspended=False)


async def _set_suspend(session: Session, arguments: argparse.Namespace, *, suspended: bool) -> int:
    from finetune.clients.cluster import runs_path

    cluster = await session.cluster()

    async def change(name: str) -> str:
        view = of_object(await cluster.get(runs_path(session.namespace, name)))
        if view.is_over:
            hint = f"`finetune retry {name}` makes a run that goes on" if view.phase == "Failed" else "it is done"
            raise UsageError(f"{name} has ended ({view.phase}); {hint}")
        await cluster.patch(runs_path(session.namespace, name), {"spec": {"suspend": suspended}})
        return f"{name} {'is being suspended: it saves a checkpoint first' if suspended else 'goes on'}"

    return await _each(arguments, change)


async def delete(session: Session, arguments: argparse.Namespace) -> int:
    """Delete runs; what the registry knows of them stays."""
    from finetune.clients.cluster import runs_path

    cluster = await session.cluster()

    async def remove(name: str) -> str:
        await cluster.delete(runs_path(session.namespace, name))
        return f"deleted {name}; its record and adapter stay in the registry"

    return await _each(arguments, remove)


async def _each(arguments: argparse.Namespace, change: Callable[[str], Awaitable[str]]) -> int:
    """Change one run after the other; one that cannot be changed is told, and the others are changed all the same."""
    from finetune.clients.kubernetes_errors import KubernetesError

    code = 0
    for name in arguments.names:
        try:
            said = await change(name)
        except (KubernetesError, UsageError) as error:
            code = max(code, failed(error))
        else:
            print(f"{RESOURCE}/{name}" if arguments.output == "name" else said, flush=True)
    return code
