"""How long a run that waits is left alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune.controller.core.views import pod_view
from finetune.controller.reconcile import SELDOM_SECONDS, SOON_SECONDS, WATCHED_SECONDS, waiting_seconds
from tests.support import objects as o

TIMEOUT = o.SETTINGS.reference_timeout_seconds


@pytest.mark.parametrize(
    ("waited", "seldom", "pause"),
    [
        (0, SELDOM_SECONDS, SOON_SECONDS),
        (60, SELDOM_SECONDS, 10),
        (TIMEOUT - 3, SELDOM_SECONDS, 3),  # what expires is found in time
        (TIMEOUT - 0.5, SELDOM_SECONDS, 1),
        (TIMEOUT + 1, SELDOM_SECONDS, SELDOM_SECONDS),
        (10 * TIMEOUT, SELDOM_SECONDS, SELDOM_SECONDS),
        (60, WATCHED_SECONDS, 10),
        (TIMEOUT + 60, WATCHED_SECONDS, 60),
        (24 * 3600, WATCHED_SECONDS, WATCHED_SECONDS),
    ],
)
def test_the_longer_a_run_waits_the_rarer_it_is_looked_at(waited: float, seldom: float, pause: float) -> None:
    assert waiting_seconds(timedelta(seconds=waited), o.SETTINGS, seldom) == pytest.approx(pause)


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
