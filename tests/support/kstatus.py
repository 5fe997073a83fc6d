"""What kstatus makes of an object of a kind that it does not know: how Flux and `helm --wait` see a TrainingRun.

Source: sigs.k8s.io/cli-utils, pkg/kstatus/status (Compute: the generic checks, then Ready).
"""

from __future__ import annotations

from typing import Any, Literal

Document = dict[str, Any]
Kstatus = Literal["Terminating", "InProgress", "Failed", "Current"]


def compute(obj: Document) -> Kstatus:
    """The status of an object, in the order in which kstatus asks."""
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = obj.get("status") or {}
    if status.get("observedGeneration", obj["metadata"].get("generation")) != obj["metadata"].get("generation"):
        return "InProgress"
    said = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    if said.get("Reconciling") == "True":
        return "InProgress"
    if said.get("Stalled") == "True":
        return "Failed"
    return "Current" if said.get("Ready", "True") == "True" else "InProgress"
