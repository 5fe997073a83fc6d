"""What the registry does beside its requests: every hour it removes what nobody needs any more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from finetune.logs import described
from finetune.registry.errors import Conflict, NotFound, RegistryFault
from finetune.registry.store.quota import superfluous

from .common import Services

log = logging.getLogger(__name__)

CLEAN_EVERY_SECONDS = 3600


async def clean_forever(services: Services, *, keep_versions: int | None) -> None:
    """Clean up at once, and every hour; what fails is tried again an hour later."""
    while True:
        try:
            await clean(services, keep_versions=keep_versions)
        except (SQLAlchemyError, RegistryFault) as error:
            log.warning("could not clean up, next try in an hour: %s", described(error))
        await asyncio.sleep(CLEAN_EVERY_SECONDS)


async def clean(services: Services, *, keep_versions: int | None) -> None:
    """Remove abandoned uploads and what deletions left, move rows into the store, retire versions, collect garbage."""
    dropped = await services.datasets.drop_abandoned()
    if dropped:
        log.info("removed %d abandoned uploads", dropped)
    finished = await services.datasets.finish_deletions()
    if finished:
        log.info("removed the rows of %d deleted versions of datasets, which were left", finished)
    if not services.files.is_kept:
        return
    moved = await services.datasets.move_into_store()
    if moved:
        log.info("moved %d pieces of datasets' rows from the database into the store", moved)
    if keep_versions is not None:
        await _retire(services, keep_versions)
    garbage = await services.files.collect_garbage(dry_run=False)
    if garbage.blobs:
        log.info("removed %d files that nothing needs, %d bytes", garbage.blobs, garbage.bytes)


async def _retire(services: Services, keep: int) -> None:
    retired = 0
    for namespace, name, version in await superfluous(services.database, keep):
        with suppress(Conflict, NotFound):  # needed by now, or gone
            deleted = await services.states.delete(namespace, name, version, actor="retention")
            await services.files.release(deleted.files)
            retired += 1
    if retired:
        log.info("deleted %d versions of adapters: %d of each are kept, and those with an alias", retired, keep)
