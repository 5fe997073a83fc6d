"""Troubles between the operator and the API server: a run succeeds once all the same, and says what it waits for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.faults import (
    GATEWAY_PAGE,
    Answer,
    Delay,
    Fault,
    FrozenWatch,
    Hang,
    Meanwhile,
    RefusedField,
    Reset,
    WatchError,
    status_document,
)
from tests.support.kubectl import Kubectl
from tests.support.kubelet import Attempt, Play
from tests.support.managed import Managed, a_managed_world
from tests.support.world import ROWS, eventually

SAID_SECONDS = 15.0
"""How long a refusal may go on before the run says so."""

JOBS, STATUS = "/jobs$", "/trainingruns/[^/]*/status"
READS = r"/(trainingruns|jobs|pods)(/|\?)"


def refusal(code: int, reason: str, words: str) -> str:
    return status_document(code, reason, words)


def passing_faults() -> dict[str, list[Fault]]:
    """Faults of some requests, by what a test calls them; each is gone before anybody could say something of it."""
    unavailable = refusal(503, "ServiceUnavailable", "the server is currently unable to handle the request")
    denied = "jobs \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: not now"
    many = {"status": 429, "headers": {"Retry-After": "1"}, "body": refusal(429, "TooManyRequests", "slow down")}
    return {
        "400": [Answer("POST", JOBS, times=2, status=400, body=refusal(400, "BadRequest", "denied the request: no"))],
        "403": [Answer("POST", JOBS, times=2, status=403, body=refusal(403, "Forbidden", denied))],
        "409": [Answer("PUT", STATUS, times=3, status=409, body=refusal(409, "Conflict", "the object was modified"))],
        "422": [Answer("POST", JOBS, times=2, status=422, body=refusal(422, "Invalid", denied))],
        "429": [Answer("POST|PUT|PATCH", "", times=2, **many), Answer("GET", READS, times=2, **many)],
        "500": [Answer("GET", READS, times=4, status=500, body=refusal(500, "InternalError", "etcdserver: leader"))],
        "503": [Answer("POST|PUT", "", times=3, status=503, body=unavailable)],
        "html-502": [Answer("GET|PUT|POST", "", times=6, status=502, body=GATEWAY_PAGE)],
        "html-200": [Answer("GET", READS, times=4, status=200, body=GATEWAY_PAGE)],
        "html-404": [Answer("GET", READS, times=4, status=404, body="<html>404 page not found</html>")],
        "plain-404": [Answer("GET", READS, times=4, status=404, body="404 page not found")],
        "cut-json": [Reset("GET", READS, times=4, body='{"kind": "TrainingRun", "metadata": {"na')],
        "reset": [Reset("GET|PUT|POST", "", times=6)],
        "lost-job": [Reset("POST", JOBS, times=1, after=True)],
        "lost-claim": [Reset("POST", "/persistentvolumeclaims$", times=1, after=True)],
        "lost-status": [Reset("PUT", STATUS, times=3, after=True)],
        "lost-page": [Answer("POST|PUT|PATCH", "", times=4, after=True, status=504, body=GATEWAY_PAGE)],
        "slow": [Delay("POST", JOBS, times=1, seconds=5)],
        "watch-410": [WatchError(times=6)],
        "watch-500": [WatchError(times=2, code=500, reason="InternalError")],
        "watch-frozen": [FrozenWatch()],
    }


PASSING = ("409", "422", "html-502", "cut-json", "lost-job", "watch-410", "watch-frozen")
"""One of each kind; the others take a minute, for each has the whole operator for itself."""


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.long)], ids=["each kind", "others"])
async def test_faults_that_pass_cost_a_run_nothing(managed_kubectl: Kubectl, tmp_path: Path, others: bool) -> None:
    chosen = {name: faults for name, faults in passing_faults().items() if (name not in PASSING) is others}
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="60") as managed:
        for name, faults in chosen.items():
            with managed.world.kubernetes.faulty(*faults):
                if faults[0].watches:
                    managed.world.kubernetes.cut()  # so that there are new ones
                managed.world.apply(name)
                done = await managed.world.phase("Succeeded", name)
            assert all(fault.hits for fault in faults), f"{name}: the fault was never met"
            assert done["status"]["attempts"] == 1, name
        await managed.check(names=tuple(chosen))


WORDS = "the words of the server"
DENIAL = f'admission webhook "policy.example.com" denied the request: {WORDS}'
WEBHOOK = f'Internal error occurred: failed calling webhook "policy.example.com": {WORDS}'
QUOTA = f'jobs.batch "x" is forbidden: exceeded quota: {WORDS}, requested: count/jobs.batch=1'
RIGHTS = f'jobs.batch is forbidden: User "o" cannot create resource "jobs" in API group "batch": {WORDS}'

LASTING: dict[str, Answer] = {
    "denied-400": Answer("POST", JOBS, status=400, body=refusal(400, "BadRequest", DENIAL)),
    "denied-403": Answer("POST", JOBS, status=403, body=refusal(403, "Forbidden", DENIAL)),
    "denied-413": Answer("POST", JOBS, status=413, body=refusal(413, "RequestEntityTooLarge", DENIAL)),
    "denied-422": Answer("POST", JOBS, status=422, body=refusal(422, "Invalid", DENIAL)),
    "denied-418": Answer("POST", JOBS, status=418, body=refusal(418, "Teapot", DENIAL)),
    "webhook-500": Answer("POST", JOBS, status=500, body=refusal(500, "InternalError", WEBHOOK)),
    "quota-403": Answer("POST", JOBS, status=403, body=refusal(403, "Forbidden", QUOTA)),
    "rights-403": Answer("POST", JOBS, status=403, body=refusal(403, "Forbidden", RIGHTS)),
    "busy-429": Answer("POST", JOBS, status=429, headers={"Retry-After": "1"}, body=refusal(429, "Busy", WORDS)),
    "away-503": Answer("POST", JOBS, status=503, body=refusal(503, "ServiceUnavailable", WORDS)),
    "page-403": Answer("POST", JOBS, status=403, body=f"<html>{WORDS}</html>"),
    "page-502": Answer("POST", JOBS, status=502, body=f"<html>{WORDS}</html>"),
    "claim-403": Answer("POST", "/persistentvolumeclaims$", status=403, body=refusal(403, "Forbidden", DENIAL)),
    "job-unread": Answer("GET", "/jobs/", status=500, body=refusal(500, "InternalError", WORDS)),
    "pods-unread": Answer("GET", r"/pods\?", status=403, body=refusal(403, "Forbidden", RIGHTS)),
    "html-reads": Answer("GET", r"/(jobs|pods)(/|\?)", status=200, body=f"<html>{WORDS}</html>"),
}


REFUSALS = ("denied-403", "webhook-500", "quota-403", "page-502", "job-unread")
"""One of each kind of `LASTING`."""


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.long)], ids=["each kind", "others"])
async def test_faults_that_last_are_said_in_the_servers_words(
    managed_kubectl: Kubectl, tmp_path: Path, others: bool
) -> None:
    chosen = {name: fault for name, fault in LASTING.items() if (name not in REFUSALS) is others}
    async with a_managed_world(managed_kubectl, tmp_path, FINETUNE_REFERENCE_TIMEOUT_SECONDS="60") as managed:
        silent = []
        for name, fault in chosen.items():
            fault.hits = 0
            fault.over = asyncio.Event()
            with managed.world.kubernetes.faulty(fault):
                managed.world.apply(name)
                if not await said(managed, name, WORDS):
                    silent.append(f"{name}: {(managed.world.run(name) or {}).get('status')}")
                elif name.startswith("page-"):  # a proxy's, whatever its status: no refusal that could end the run
                    waiting = (managed.world.run(name) or {})["status"]["waiting"]
                    assert waiting["reason"] == "APIServerUnavailable", name
            done = await managed.world.phase("Succeeded", name)
            assert done["status"]["attempts"] == 1, name
        assert not silent, "\n".join(silent)
        await managed.check(names=tuple(chosen))


async def said(managed: Managed, name: str, words: str) -> bool:
    """Whether the run says this in time, in `status.waiting` and in a condition."""
    began = time.monotonic()

    def heard() -> bool:
        status = (managed.world.run(name) or {}).get("status") or {}
        conditions = " ".join(each["message"] for each in status.get("conditions") or ())
        return words in (status.get("waiting") or {}).get("message", "") and words in conditions

    while time.monotonic() - began < SAID_SECONDS:
        if await asyncio.to_thread(heard):
            return True
        await asyncio.sleep(0.1)
    return False


async def test_a_suspension_that_is_refused_is_said_and_ends_nothing(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=Play(seconds=None, sigterm_code=75)), Attempt())
    managed.world.apply()
    await managed.world.phase("Training")
    with managed.world.kubernetes.faulty(
        Answer("PATCH", "/jobs/", status=400, body=refusal(400, "BadRequest", DENIAL))
    ):
        managed.world.apply(suspend=True)
        assert await said(managed, "support", WORDS)
    await managed.world.phase("Suspended")
    managed.world.apply()
    await managed.world.phase("Succeeded")
    await managed.check(names=("support",))


@pytest.mark.parametrize(
    ("name", "cause"), [("timings", "status.timings.acceptedSeconds"), ("lossHistory", "status.lossHistory[0].loss")]
)
async def test_a_field_of_the_status_that_is_refused_is_left_out_and_nothing_else(
    managed: Managed, name: str, cause: str
) -> None:
    """The CustomResourceDefinition is older than the operator."""
    fault = RefusedField("PUT", STATUS, name=name, cause=cause)
    with managed.world.kubernetes.faulty(fault):
        managed.world.apply()
        done = await managed.world.phase("Succeeded")
    assert fault.hits
    assert name not in done["status"]
    assert {"result", "attempts", "attemptHistory", "conditions", "output"} <= set(done["status"])


async def test_a_suspension_by_somebody_else_in_the_same_moment_stays_theirs(managed: Managed) -> None:
    """Between what the operator saw and its write: without the version that it saw, it would take it for its own."""
    managed.kubelet.script("support", Attempt(trainer=Play(seconds=None, sigterm_code=75)), Attempt())
    managed.world.apply()
    await managed.world.phase("Training")
    job = (managed.world.job_of() or {})["metadata"]["name"]

    def set_suspend(value: str) -> None:
        managed.world.kubectl("patch", "job", job, "--type=merge", f'--patch={{"spec":{{"suspend":{value}}}}}')

    other = Meanwhile("PATCH", f"/jobs/{job}$", times=1, act=lambda: set_suspend("true"))
    with managed.world.kubernetes.faulty(other):
        managed.world.apply(suspend=True)
        await managed.world.phase("Suspended")
    assert other.hits
    managed.world.apply()
    assert await said(managed, "support", "not by this run's spec.suspend")
    assert (managed.world.job_of() or {})["spec"]["suspend"] is True
    set_suspend("false")
    await managed.world.phase("Succeeded")


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.long)])
async def test_an_api_server_that_is_away_for_a_while_ends_no_process_and_no_run(
    managed: Managed, seconds: int
) -> None:
    managed.kubelet.script("support", Attempt(trainer=Play(seconds=2)))
    managed.world.apply()
    await managed.world.phase("Training")
    async with managed.world.kubernetes.away():
        managed.world.apply("another")
        await eventually("the trainer has ended", lambda: not managed.kubelet.of("support"))
        await asyncio.sleep(seconds)  # long enough for every watch and every loop of the operator to have failed
    await managed.world.phase("Succeeded")
    await managed.world.phase("Succeeded", "another")
    assert managed.world.operator.running
    await managed.check(names=("support", "another"))


@pytest.mark.long
async def test_an_api_server_that_hangs_ends_no_run(managed: Managed) -> None:
    managed.kubelet.script("support", Attempt(trainer=Play(seconds=1)))
    managed.world.apply()
    await managed.world.phase("Training")
    with managed.world.kubernetes.faulty(Hang("GET|PUT|POST", r"/(trainingruns|jobs|pods)(/|\?|$)")):
        await eventually("the trainer has ended", lambda: not managed.kubelet.of("support"))
        await asyncio.sleep(3)  # some calls hang
    await managed.world.phase("Succeeded")
    assert managed.world.operator.running
    await managed.check(names=("support",))


@pytest.mark.long
@pytest.mark.parametrize("delay", [Delay(seconds=0.7), Delay(times=20, seconds=5)])
async def test_a_slow_api_server_makes_a_run_slow_and_no_more(managed: Managed, delay: Delay) -> None:
    with managed.world.kubernetes.faulty(delay):
        managed.world.apply()
        await managed.world.phase("Succeeded")
    await managed.check(names=("support",))


@pytest.mark.parametrize(
    ("operator", "node"), [(3600.0, -3600.0), pytest.param(-3600.0, 3600.0, marks=pytest.mark.long)]
)
async def test_clocks_that_differ_by_an_hour_change_nothing(
    managed_kubectl: Kubectl, tmp_path: Path, operator: float, node: float
) -> None:
    settings = {"FINETUNE_REFERENCE_TIMEOUT_SECONDS": "300", "FINETUNE_PENDING_SECONDS": "0"}
    async with a_managed_world(managed_kubectl, tmp_path, skew=operator, kubelet_skew=node, **settings) as managed:
        world = managed.world
        managed.kubelet.script(
            "stuck", Attempt(mounts='MountVolume.SetUp failed: configmap "rows" not found'), Attempt()
        )
        stopped = Play(seconds=None, sigterm_code=75, sigterm_words={"interrupted": {"step": 3}})
        managed.kubelet.script("paused", Attempt(trainer=stopped), Attempt())
        world.apply("plain")
        world.apply("stuck")
        world.apply("late", dataset={"registry": {"name": "late"}})
        world.apply("paused", activeDeadlineSeconds=600)
        await world.phase("Training", "paused")
        world.apply("paused", activeDeadlineSeconds=600, suspend=True)
        assert await said(managed, "late", "late")
        assert await said(managed, "stuck", "rows")
        await world.phase("Suspended", "paused")
        rows = tmp_path / "late.jsonl"
        rows.write_bytes(ROWS)
        await world.client.push_dataset(world.kubectl.namespace, "late", rows)
        managed.kubelet.heal("stuck")
        world.apply("paused", activeDeadlineSeconds=600)
        for name in ("plain", "stuck", "late", "paused"):
            done = await world.phase("Succeeded", name)
            active = (done["status"].get("active") or {}).get("seconds", 0)  # absent where no pass saw it train
            for seconds in (done["status"]["gpuSeconds"], active):
                assert seconds < 120, f"{name}: {done['status']}"
        await managed.check(names=("plain", "stuck", "late", "paused"))
