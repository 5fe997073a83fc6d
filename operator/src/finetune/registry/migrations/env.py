"""Alembic's entry point. `migrate.py` passes a connection that already holds the lock and the transaction."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from finetune.registry.schema import UtcTime, metadata


def _render_item(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    if kind == "type" and isinstance(item, UtcTime):
        return "sa.DateTime(timezone=True)"  # a migration must not change when our own type does
    return False


def _run() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        render_as_batch=True,
        render_item=_render_item,
        compare_type=True,
        transactional_ddl=True,  # on SQLite too, because migrate.py starts the transaction itself
    )
    context.run_migrations()


_run()
