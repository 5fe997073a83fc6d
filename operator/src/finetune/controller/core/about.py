"""Which object an action is about, for messages and logs."""

from __future__ import annotations

from . import decide, names
from .case import Case
from .storage import output_claim_name


def object_of(case: Case, action: decide.Action) -> str:
    """The object that an action is about, as `Kind/name`."""
    job = names.job_name(case.run.metadata.name, case.run.metadata.uid)
    match action:
        case decide.CreateClaim() | decide.FindClaim() | decide.DeleteClaim():
            return f"PersistentVolumeClaim/{output_claim_name(case.run)}"
        case decide.CreateCollectJob():
            return f"Job/{names.collect_job_name(job)}"
        case decide.CreateSendJob():
            return f"Job/{names.send_job_name(job)}"
        case decide.RegisterAdapter():
            return f"Adapter/{case.run.adapter_name}"
        case decide.RecordRun() | decide.FetchResult() | decide.AskStored() | decide.TellEnd():
            return f"Run/{case.run.metadata.name}"
        case decide.FindResume():
            return f"TrainingRun/{case.run.spec.resume_from.run if case.run.spec.resume_from else ''}"
        case decide.SetWorkloadActive():
            return f"Workload/{action.name}"
        case decide.DeletePod():
            return f"Pod/{action.name}"
        case _:
            return f"Job/{job}"
