"""What the cluster's administrator has decided: what runs may choose for themselves, and whether any may start now."""

from __future__ import annotations

from finetune.api import reasons
from finetune.controller.core.case import Case
from finetune.controller.core.findings import Finding, end, wait


def not_allowed(case: Case) -> Finding | None:
    """The spec asks for an image, a service account or a label that is on none of the administrator's lists."""
    refusal = case.settings.allowed.refusal_of(case.run.spec) if case.starting else None
    return end(reasons.INVALID_SPEC, refusal) if refusal is not None else None


def paused(case: Case) -> Finding | None:
    """No new Jobs are made; what the registry knows as done needs none."""
    if not case.starting or not case.settings.paused or case.run.spec.suspend or case.result is not None:
        return None
    return wait(
        reasons.PAUSED,
        "the cluster's administrator lets no new runs start for now (operator.paused of the chart); what trains goes "
        "on, and this run starts by itself afterwards",
        "Operator",
    )
