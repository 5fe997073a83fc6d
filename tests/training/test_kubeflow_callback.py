"""transformers' own callback, as somebody else's trainer image may use it: what it says is what the registry knows.

`tests/unit/test_registry_points.py` posts these documents to the registry; here it is seen that they are its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from transformers.integrations.integration_utils import KubeflowCallback

from tests.training.harness import Run

POSTS: list[tuple[str, str | None, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    """Takes posts as the registry does."""

    def do_POST(self) -> None:
        """Keep the path, the token and the document."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        POSTS.append((self.path, self.headers["Authorization"], json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: Any) -> None:
        """Nothing: the posts are kept."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    POSTS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    path = "/api/v1/namespaces/ml/runs/u1/status"
    (tmp_path / "token").write_text("the token\n")
    monkeypatch.delenv("DISABLE_KUBEFLOW_INTEGRATION", raising=False)  # a trainer in this process may have set it
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"http://127.0.0.1:{server.server_address[1]}{path}")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    yield path
    server.shutdown()
    server.server_close()


def test_its_variables_its_names_and_its_posts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KubeflowCallback, "_MIN_UPDATE_INTERVAL", 0.0)
    callback, control = KubeflowCallback(), TrainerControl()
    state = TrainerState(max_steps=40, is_world_process_zero=True)
    callback.on_train_begin(None, state, control)
    state.global_step, state.epoch = 10, 0.25
    callback.on_log(None, state, control, logs={"loss": 2.5, "learning_rate": 1e-4, "grad_norm": 0.5})
    callback.on_step_end(None, state, control)
    state.global_step, state.epoch = 20, 0.5
    callback.on_log(None, state, control, logs={"eval_loss": 2.25})
    callback.on_step_end(None, state, control)
    callback.on_train_end(None, state, control)
    assert {(path, token) for path, token, _ in POSTS} == {(url, "Bearer the token")}
    said = [document["trainerStatus"] for _, _, document in POSTS]
    assert [status["progressPercentage"] for status in said] == [0, 25, 50, 100]
    assert all("lastUpdatedTime" in status for status in said)
    metrics = [{each["name"]: each["value"] for each in status.get("metrics", [])} for status in said]
    measured = {"loss": "2.5", "learning_rate": "0.0001", "grad_norm": "0.5"}
    assert metrics == [
        {"total_steps": "40"},
        {**measured, "current_step": "10", "total_steps": "40", "current_epoch": "0.25"},
        {**measured, "eval_loss": "2.25", "current_step": "20", "total_steps": "40", "current_epoch": "0.5"},
        {**measured, "eval_loss": "2.25"},
    ]


@pytest.mark.usefixtures("url")
def test_our_trainer_leaves_the_telling_to_itself(base_model: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = Run(tmp_path, base_model, max_steps=2).export(rows)
    assert run.train() == 0, run.said()
    assert POSTS == []
