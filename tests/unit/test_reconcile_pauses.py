"""How long a run that waits is left alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune.controller.core.views import pod_view
from finetune.controller.reconcile import SELDOM_SECONDS, SOON_SECONDS, WATCHED_SECONDS, waiting_seconds
from tests.support import objects as o

TIMEOUT = o.SETTINGS.reference_timeout_seconds


@pytest.mark.parametrize(
    ("waited", "watched", "pause"),
    [
        (0, False, SOON_SECONDS),
        (60, False, 10),
        (TIMEOUT - 3, False, 3),  # what expires is found in time
        (TIMEOUT - 0.5, False, 1),
        (TIMEOUT + 1, False, SELDOM_SECONDS),
        (10 * TIMEOUT, False, SELDOM_SECONDS),
        (60, True, TIMEOUT - 60),
        (TIMEOUT + 60, True, WATCHED_SECONDS),
        (24 * 3600, True, WATCHED_SECONDS),
    ],
)
def test_the_longer_a_run_waits_the_rarer_it_is_looked_at(waited: float, watched: bool, pause: float) -> None:
    assert waiting_seconds(timedelta(seconds=waited), o.SETTINGS, watched=watched) == pytest.approx(pause)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", True),
        ("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.", False),
        ("", False),
    ],
)
def test_a_pod_says_itself_why_it_has_no_node_but_not_why_its_claim_has_no_volume(message: str, told: bool) -> None:
    assert pod_view(o.unschedulable(message) if message else o.pod()).awaits_a_node is told
