"""The routes of the pages, in groups."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from finetune.registry.pages.assets import asset

from . import actions, adapters, administration, datasets, experiments, runs, sessions


def routes() -> list[BaseRoute]:
    """All of them, below `/ui`."""
    return [
        Route("/static/{digest}/{path:path}", asset),
        *sessions.routes(),
        *administration.routes(),
        *runs.routes(),
        *adapters.routes(),
        *datasets.routes(),
        *experiments.routes(),
        *actions.routes(),
    ]
